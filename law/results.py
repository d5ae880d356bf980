"""Every number a run reports: its key in ``metrics.json``, its unit and which way is better.

This is the one place where metrics are named. ``docs/metrics.md`` is :func:`as_markdown`, written down.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal["fraction", "seconds", "count"]
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Metric:
    """One number of ``metrics.json``.

    ``{task}`` in a key stands for the name of an lm-evaluation-harness task.
    A fraction lies between 0 and 1; tables show it in percent.
    """

    key: str
    title: str
    unit: Unit
    better: Better
    meaning: str


METRICS: tuple[Metric, ...] = (
    Metric("facts/known", "known", "count", "neither", "facts to wash that the unwashed model recalls; only these are washed and scored"),
    Metric("facts/washed", "washed", "count", "neither", "facts handed to the method"),
    Metric("facts/kept", "kept", "count", "neither", "facts not washed that the unwashed model recalls; these score what is retained"),
    Metric("facts/kept_same_subject", "kept, same subject", "count", "neither", "kept facts whose subject also has a washed fact"),
    Metric("forget/accuracy_before", "forget acc. before", "fraction", "neither", "washed facts recalled by the unwashed model, in the washed phrasing (1 by construction)"),
    Metric("forget/accuracy", "forget acc.", "fraction", "lower", "washed facts still recalled in the washed phrasing: the object occurs in 10 greedy tokens, case ignored"),
    Metric("forget/qa_f1_before", "forget F1 before", "fraction", "neither", "mean token F1 (SQuAD) between answer and object, before"),
    Metric("forget/qa_f1", "forget F1", "fraction", "lower", "mean token F1 (SQuAD) between answer and object, after"),
    Metric("forget/paraphrase_accuracy_before", "paraphrase acc. before", "fraction", "neither", "as below, by the unwashed model"),
    Metric("forget/paraphrase_accuracy", "paraphrase acc.", "fraction", "lower", "washed facts recalled in the phrasings used only for scoring, mean over all such prompts"),
    Metric("retain/accuracy_before", "retain acc. before", "fraction", "neither", "kept facts recalled by the unwashed model, in their first phrasing (1 by construction)"),
    Metric("retain/accuracy", "retain acc.", "fraction", "higher", "kept facts still recalled in their first phrasing"),
    Metric("retain/same_subject_accuracy", "same-subject acc.", "fraction", "higher", "kept facts still recalled, of subjects that also have a washed fact"),
    Metric("reasoning/{task}/acc_before", "{task} before", "fraction", "neither", "accuracy of the unwashed model on a harness task"),
    Metric("reasoning/{task}/acc", "{task}", "fraction", "higher", "accuracy of the washed model on a harness task"),
    Metric("reasoning/{task}/acc_stderr", "{task} s.e.", "fraction", "neither", "the harness's standard error of that accuracy"),
    Metric("reasoning/mean_before", "reasoning before", "fraction", "neither", "mean accuracy of the unwashed model over the tasks"),
    Metric("reasoning/mean", "reasoning", "fraction", "higher", "mean accuracy of the washed model over the tasks"),
    Metric("time/wash_s", "wash time", "seconds", "lower", "wall time of the method alone, statistics and target values included unless they were cached"),
)  # fmt: skip


def describe(key: str) -> Metric:
    """The metric behind a key of ``metrics.json``, with ``{task}`` filled in.

    Raises:
        KeyError: the key is not documented here.
    """
    for metric in METRICS:
        found = re.fullmatch(metric.key.replace("{task}", "(?P<task>[^/]+)"), key)
        if found:
            title = metric.title.format(**found.groupdict())
            return Metric(key, title, metric.unit, metric.better, metric.meaning)
    raise KeyError(f"metric {key!r} is not documented in law/results.py; add it to METRICS")


def as_markdown() -> str:
    """The page ``docs/metrics.md``."""
    head = (
        "# Metrics\n\nThe keys of `metrics.json`, as `law/results.py` documents them. A fraction lies between 0 and 1\n"
        "(tables show percent). `{task}` stands for the name of a harness task.\n\n"
        "| key | unit | better | meaning |\n| --- | --- | --- | --- |\n"
    )
    return head + "".join(f"| `{m.key}` | {m.unit} | {m.better} | {m.meaning} |\n" for m in METRICS)
