"""The numbers of each row: every metric over the runs of a setup, and the balance."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, harmonic_mean, stdev

from law.base.files import replacing
from law.evaluation.metrics import METRICS, Metric, describe, pattern
from law.reporting.comparability import panels_of
from law.reporting.labels import labels
from law.reporting.sweep import Run, Setup, Sweep

BALANCE = Metric(
    "balance",
    "balance",
    "fraction",
    "higher",
    "the harmonic mean of three shares: washed facts forgotten, other facts kept, and reasoning kept (corrected for "
    "chance, between 0 and 1)",
)


@dataclass(frozen=True)
class Score:
    """A metric of a setup over the runs that report it, in the metric's unit. None where it is not known.

    Args:
        runs: how many runs report it.
        mean: over these runs.
        std: the sample standard deviation over two or more runs.
        stderr: the standard error over the items of one run, mean over runs.
        n: the items of one run, mean over runs.
        before: the value of the unwashed model, mean over runs.
    """

    runs: int
    mean: float
    std: float | None
    stderr: float | None
    n: float | None
    before: float | None

    @property
    def spread(self) -> float | None:
        """What stands behind ±: the deviation over several runs, or the error over the items of one."""
        return self.std if self.runs > 1 else self.stderr


def score(runs: Sequence[Run], key: str) -> Score | None:
    """A metric over these runs; None if none of them reports it."""
    values = _values(runs, key)
    if not values:
        return None
    error, items, before = (_mean(_values(runs, f"{key}_{end}")) for end in ("stderr", "n", "before"))
    return Score(len(values), fmean(values), stdev(values) if len(values) > 1 else None, error, items, before)


def balance(metrics: Mapping[str, float]) -> float | None:
    """``BALANCE`` of one run, between 0 and 1.

    None if forgetting, kept facts or reasoning was not measured. Without kept facts, a method that destroys all
    knowledge would have a high balance.
    """
    reasoning = metrics.get("reasoning/kept")
    left, kept = metrics.get("forget/accuracy"), metrics.get("retain/accuracy")
    if left is None or kept is None or reasoning is None:
        return None
    return harmonic_mean([1 - left, kept, min(1.0, max(0.0, reasoning))])


def scores_of(sweep: Sweep, setup: Setup) -> dict[str, Score]:
    """Every metric of the washed model that the runs of a setup report, and the balance, in the order of a table."""
    runs = [run for run in sweep.runs if run.setup == setup]
    keys = {key for run in runs for key in run.metrics} | {BALANCE.key}
    found = {key: score(runs, key) for key in _ordered(keys)}
    return {key: one for key, one in found.items() if one}


def metric_of(key: str) -> Metric | None:
    """The metric behind a key; None for one that an earlier version of the code reported."""
    try:
        return BALANCE if key == BALANCE.key else describe(key)
    except KeyError:
        return None


def write_csv(sweep: Sweep, path: Path) -> None:
    """A line for each setup and metric. A setup without a finished run has one line, without a metric.

    Numbers are in the unit of their metric, fractions between 0 and 1. :class:`Score` explains the columns
    from ``runs`` to ``before``.
    """
    columns = "model dataset method label settings tasks recall source metric unit better runs mean std stderr n before"
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns.split(), lineterminator="\n")
        writer.writeheader()
        for panel in panels_of(sweep.setups):
            for setup, label in labels(panel.setups).items():
                row = {
                    "model": setup.model,
                    "dataset": setup.dataset,
                    "method": setup.method,
                    "label": label,
                    "settings": " ".join(f"{key}={value}" for key, value in setup.settings),
                    "tasks": " ".join(setup.tasks),
                    "recall": setup.recall,
                    "source": " ".join(
                        dict.fromkeys(run.source for run in sweep.runs if run.setup == setup and run.source)
                    ),
                }
                scores = scores_of(sweep, setup)
                for key, one in scores.items():
                    metric = metric_of(key)
                    known = {"unit": metric.unit, "better": metric.better} if metric else {}
                    writer.writerow({**row, "metric": key, **known, **vars(one)})
                if not scores:
                    writer.writerow({**row, "runs": 0})


def _values(runs: Iterable[Run], key: str) -> list[float]:
    values = (balance(run.metrics) if key == BALANCE.key else run.metrics.get(key) for run in runs)
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _ordered(keys: Iterable[str]) -> list[str]:
    """The metrics of the washed model: the documented ones in the order of their documentation, then any others."""
    own = sorted(key for key in keys if not key.endswith(("_before", "_stderr", "_n")))
    documented = [
        key for metric in (*METRICS, BALANCE) for key in own if re.fullmatch(pattern(metric.key), key)
    ]
    return [*documented, *(key for key in own if key not in documented)]
