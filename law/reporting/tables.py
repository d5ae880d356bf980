"""The tables of a sweep: a short one and a full one for each panel."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from law.evaluation.metrics import Metric, pattern
from law.reporting.attack_table import WORST, attack_table, worst_cells
from law.reporting.comparability import Panel, names_of, panels_of
from law.reporting.labels import labels
from law.reporting.notes import describe_columns, explain
from law.reporting.published_numbers import Published
from law.reporting.summary import Score, metric_of, scores_of
from law.reporting.sweep import REFERENCES, Missing, Setup, Sweep
from law.reporting.typesetting import NOTHING, Cell, Table

ARROWS = {"higher": "↑", "lower": "↓"}

SHORT = {
    "forget/accuracy": "left",
    "forget/unrefused_accuracy": "unrefused",
    "forget/paraphrase_accuracy": "paraphrase",
    "retain/accuracy": "kept",
    "retain/neighbour_accuracy": "neighbours",
    "reasoning/mean": "reasoning",
    "fluency/perplexity": "perplexity",
    "time/wash_s": "time",
}
"""The metrics of the short table and their titles there, in its order."""

FULL = (
    "forget/accuracy",
    "forget/unrefused_accuracy",
    "forget/qa_f1",
    "forget/paraphrase_accuracy",
    "retain/accuracy",
    "retain/same_subject_accuracy",
    "retain/neighbour_accuracy",
    "reasoning/{task}/acc",
    "reasoning/mean",
    "reasoning/kept",
    "balance",
    "fluency/perplexity",
    "time/wash_s",
)
"""The metrics of the full table, in its order. The CSV file has every metric."""


@dataclass(frozen=True)
class Report:
    """The tables of a sweep, one for each panel, and the remarks on it. Panels that were not attacked have none of attacks."""

    short: list[Table]
    full: list[Table]
    attacks: list[Table]
    remarks: list[str]


def build_report(sweep: Sweep, published: Sequence[Published] = ()) -> Report:
    """The tables of a sweep, with the published numbers of the same model and data set."""
    report = Report([], [], [], list_remarks(sweep))
    for panel in panels_of(sweep.setups):
        quoted = [one for one in published if (one.model, one.dataset) == (panel.model, panel.dataset)]
        scores = {setup: scores_of(sweep, setup) for setup in panel.setups}
        reported = [*(key for mine in scores.values() for key in mine), *(one.metric for one in quoted)]
        full = {metric: metric.title for metric in metrics_among(FULL, reported)}
        short = {metric: SHORT[metric.key] for metric in metrics_among(SHORT, reported)}
        note = explain(sweep, panel, scores, quoted)
        for tables, columns in ((report.short, short), (report.full, full)):
            headings = ["method", "runs", *(f"{title} {ARROWS[m.better]}" for m, title in columns.items())]
            bare = {"time/wash_s"} if columns is short else set()  # a short table lacks the width
            worst = worst_cells(panel, scores) if columns is short else {}
            rows = _rows(sweep, panel, scores, quoted, [*columns], bare, worst)
            legend = describe_columns(panel, columns, reported)
            if worst:
                headings.append("worst attack ↓")
                legend += f" {WORST}"
            tables.append(Table(panel.title, headings, rows, names=1, legend=legend, note=note))
        if attacked := attack_table(panel, scores):
            report.attacks.append(attacked)
    return report


def _rows(
    sweep: Sweep,
    panel: Panel,
    scores: Mapping[Setup, Mapping[str, Score]],
    quoted: Sequence[Published],
    metrics: Sequence[Metric],
    bare: Container[str],
    last: Mapping[Setup, Cell],
) -> list[list[Cell]]:
    """A row for each setup, and after those of its method one for what was published of it.

    ``bare`` holds the metrics to show without ±, ``last`` the cells of one more column, if there is one.
    """
    washed = [scores[setup] for setup in panel.setups if setup.method not in REFERENCES]
    best = {metric.key: _best(metric, [mine.get(metric.key) for mine in washed]) for metric in metrics}
    lines: list[tuple[Setup, list[Cell]]] = []
    for setup, label in labels(panel.setups).items():
        missing = [job for job in sweep.missing if job.setup == setup]
        done = sum(run.setup == setup for run in sweep.runs)
        cells = [Cell(label), Cell(f"{done} of {done + len(missing)}" if missing else str(done))]
        for metric in metrics:
            score = scores[setup].get(metric.key)
            if score:
                text = as_text(metric, score.mean, None if metric.key in bare else score.spread)
            else:
                text = NOTHING if done else _worst(missing)
            wins = score and setup.method not in REFERENCES and _shown(metric, score.mean) == best[metric.key]
            cells.append(Cell(text, bool(wins)))
        lines.append((setup, [*cells, *([last[setup]] if last else [])]))
    for method in dict.fromkeys(one.method for one in quoted):
        values = {one.metric: one.value for one in quoted if one.method == method}
        texts = [as_text(m, values[m.key]) if m.key in values else NOTHING for m in metrics]
        row = [
            Cell(text) for text in (f"{method} (published)", NOTHING, *texts, *([NOTHING] if last else []))
        ]
        lines.append((Setup(panel.model, panel.dataset, method), row))
    lines.sort(key=lambda line: line[0].order[:4])  # stable: published rows follow measured ones
    return [cells for _, cells in lines]


def metrics_among(columns: Iterable[str], reported: Iterable[str]) -> list[Metric]:
    """The metrics of these columns that were reported; ``{task}`` stands for each task, by name."""
    keys = {*reported}
    found = [key for column in columns for key in sorted(keys) if re.fullmatch(pattern(column), key)]
    return [metric for metric in map(metric_of, found) if metric]


def _best(metric: Metric, scores: Sequence[Score | None]) -> float | None:
    """The best mean, as it is shown. None without a second row, and of a time, which depends on other load."""
    rivals = [_shown(metric, score.mean) for score in scores if score]
    if len(rivals) < 2 or metric.unit == "seconds":
        return None
    return max(rivals) if metric.better == "higher" else min(rivals)


def _shown(metric: Metric, value: float) -> float:
    return float(as_text(metric, value))


def as_text(metric: Metric, value: float, spread: float | None = None) -> str:
    """A number as tables show it, with what stands behind ±: fractions in percent; no decimals from 100 up."""
    scale = 100 if metric.unit == "fraction" else 1
    decimals = 2 if metric.unit == "perplexity" else 1
    numbers = [scale * one for one in (value, spread) if one is not None]
    if round(numbers[0], decimals) >= 100:
        decimals = 0
    # the perplexity of a destroyed model has more digits than a table has room for
    form = ".1e" if max(numbers) >= 1e5 else f".{decimals}f"
    return " ± ".join(f"{number:{form}}" for number in numbers)


def _worst(missing: Sequence[Missing]) -> str:
    """What to call a setup without a finished run."""
    return next(
        status for status in ("failed", "unfinished", "not run") if any(m.status == status for m in missing)
    )


def list_remarks(sweep: Sweep) -> list[str]:
    """One line for each error that kept jobs of a setup from finishing, then the remarks on the folder."""
    seeds: dict[tuple[Setup, str, str], list[int]] = defaultdict(list)
    for job in sweep.missing:
        if job.problem:  # a job that was not run has none; the tables show it
            seeds[job.setup, job.status, job.problem].append(job.seed)
    names = names_of(sweep.setups)
    lines = [
        f"{names[setup]}, seed {', '.join(map(str, sorted(which)))} {status}: {problem}"
        for (setup, status, problem), which in sorted(seeds.items(), key=lambda item: item[0][0].order)
    ]
    return [*lines, *sweep.remarks]
