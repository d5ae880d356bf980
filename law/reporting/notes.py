"""The notes under a table: what its columns are, and how to read it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from law.evaluation.metrics import Metric
from law.reporting.comparability import Panel
from law.reporting.labels import common_settings, labels
from law.reporting.published_numbers import Published
from law.reporting.summary import Score
from law.reporting.sweep import Setup, Sweep

MEANINGS = {
    "forget/accuracy": "washed facts that the model still recalls",
    "forget/unrefused_accuracy": "washed facts recalled when the answer may not begin with end-of-text",
    "forget/qa_f1": "overlap in words (F1) of the answers with the washed objects",
    "forget/paraphrase_accuracy": "washed facts still recalled when asked in other words",
    "retain/accuracy": "other facts that the model still recalls",
    "retain/same_subject_accuracy": "other facts still recalled whose subject has a washed fact",
    "retain/neighbour_accuracy": "answers still right about other subjects with the relation and object of a washed fact",
    "reasoning/kept": "share of reasoning that is kept, corrected for chance",
    "balance": "harmonic mean of facts forgotten, facts kept and reasoning kept (each 100 at most); this project defines it, the paper does not; undefined without kept facts",
    "fluency/perplexity": "on held-out text",
    "time/wash_s": "seconds of washing; what a cache spared counts as if it had been computed",
}
"""What the columns of a table are."""

RULES = {
    "substring": "A fact counts as recalled if its object occurs anywhere in the answer, even within a word.",
    "whole_word": "A fact counts as recalled if its object occurs in the answer in whole words.",
}
"""The rules of recall that a manifest names, as sentences."""


def describe_columns(panel: Panel, columns: Mapping[Metric, str], reported: Iterable[str]) -> str:
    """Sentences on what these columns are.

    Args:
        columns: their titles.
        reported: the keys of all metrics that a row of the panel has.
    """
    scored = {found[1] for key in reported if (found := re.fullmatch("reasoning/([^/]+)/acc", key))}
    guessed = ", ".join(sorted(scored - {*panel.tasks})) if panel.tasks else ""
    reasoning = f"mean accuracy on {_listed(panel.tasks)}"
    reasoning += f"; not on {guessed}, where the unwashed model cannot be told from guessing" * bool(guessed)
    meanings = MEANINGS | {"reasoning/mean": reasoning}
    sentences = [f"{title}: {meanings[m.key]}" for m, title in columns.items() if m.key in meanings]
    others = [title for metric, title in columns.items() if metric.unit != "fraction"]
    sentences.append("numbers are in percent" + f", except {' and '.join(others)}" * bool(others))
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def explain(
    sweep: Sweep,
    panel: Panel,
    scores: Mapping[Setup, Mapping[str, Score]],
    published: Sequence[Published],
) -> str:
    """Sentences on how to read the numbers of a panel: ±, bold, the rule of recall, settings, sources."""
    shown = [score for mine in scores.values() for score in mine.values()]
    several = any(score.runs > 1 and score.std is not None for score in shown)
    single = any(score.runs == 1 and score.stderr is not None for score in shown)
    sentences = ["± is the sample standard deviation over runs."] if several else []
    if single:
        which = "Where there is one run, ± is" if several else "± is"
        sentences.append(f"{which} the standard error over items.")
    sentences.append("Bold: the best washed model of a column.")
    sentences.append("A model that answers nothing leaves no fact, so compare whole rows.")
    if shown and not any("retain/accuracy" in mine for mine in scores.values()):
        sentences.append("No facts were kept (dataset.keep), so the effect on other facts was not measured.")
    if panel.recall:
        sentences.append(RULES.get(panel.recall, f"Rule of recall: {panel.recall}."))
    for source in dict.fromkeys(run.source for run in sweep.runs if run.setup in panel.setups and run.source):
        sentences.append(f"The weights were converted to float32 from {source}.")
    sentences += _learned_from(sweep, panel)
    sentences += common_settings(panel.setups)
    where = dict.fromkeys(f"table {one.table}, page {one.page} of {one.source}" for one in published)
    sentences += [f"Published: {'; '.join(where)}."] if where else []
    return " ".join(sentences)


def _learned_from(sweep: Sweep, panel: Panel) -> list[str]:
    """A sentence on what the methods of a panel read besides the facts to wash, as their manifests record it."""
    readers: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    for setup, label in labels(panel.setups).items():
        for run in sweep.runs:
            if run.setup == setup and setup.method != "none" and run.learned_from is not None:
                readers[run.learned_from][label] = None
    told = [f"{' and '.join(what) or 'nothing'} ({', '.join(who)})" for what, who in sorted(readers.items())]
    return [f"Read besides the facts to wash: {'; '.join(told)}."] if told else []


def _listed(tasks: Sequence[str]) -> str:
    return f"{len(tasks)} tasks ({', '.join(tasks)})" if len(tasks) > 1 else "".join(tasks) or "the tasks"
