"""The finished runs of one sweep as tables: Markdown, LaTeX and CSV."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import harmonic_mean
from typing import NamedTuple

import pandas as pd

from law.evaluation.metrics import METRICS, Metric, describe
from law.reporting.pictures import plot_tradeoff
from law.reporting.published_numbers import Published, load_published
from law.reporting.sweep import Missing, Setup, Sweep, labels, load_sweep
from law.reporting.typesetting import Cell, Table, to_latex, to_markdown

ARROWS = {"higher": "↑", "lower": "↓"}

BALANCE = Metric(
    "balance",
    "balance",
    "fraction",
    "higher",
    "harmonic mean of 100 − forget acc., retain acc. (where there are kept facts) and reasoning in percent of the "
    "unwashed model's (at most 100); 0 for a model that forgets nothing or keeps no fact",
)
# What Markdown and LaTeX show, in this order, where some run of the table reports it; the CSV has everything.
COLUMNS = (
    "forget/accuracy",
    "forget/qa_f1",
    "forget/paraphrase_accuracy",
    "retain/accuracy",
    "retain/same_subject_accuracy",
    "retain/neighbour_accuracy",
    "reasoning/{task}/acc",
    "reasoning/mean",
    "balance",
    "fluency/perplexity",
    "time/wash_s",
)


class Score(NamedTuple):
    """A metric of a setup: the mean over its runs, and what stands behind ± (NaN where nothing can)."""

    mean: float
    spread: float


def write_tables(folder: Path, published: Path | None = None) -> tuple[list[Path], list[Table], list[str]]:
    """Write ``table.md``, ``table.csv``, ``table.tex`` and ``tradeoff.png`` beside the runs of ``load_sweep``.

    Returns the files (no picture where no run has both of its axes), the tables, and what did not finish.

    Raises:
        LawError: no finished run, or published numbers that are malformed.
    """
    quoted = load_published(published) if published else []
    sweep = load_sweep(folder)
    summary = summarise(sweep)
    tables, problems = build_tables(sweep, summary, quoted), list_problems(sweep)
    paths = [folder / "table.md", folder / "table.csv", folder / "table.tex"]
    paths[0].write_text(to_markdown(tables, problems), encoding="utf-8")
    summary.to_csv(paths[1], index=False)
    paths[2].write_text(to_latex(tables, problems), encoding="utf-8")
    if any({"forget/accuracy", "reasoning/mean"} <= run.metrics.keys() for run in sweep.runs):
        paths.append(folder / "tradeoff.png")
        plot_tradeoff(sweep, paths[-1])
    return paths, tables, problems


def balance(metrics: dict[str, float]) -> float | None:
    """``BALANCE`` of one run, between 0 and 1; None where forgetting or reasoning was not measured."""
    reasoning, before = metrics.get("reasoning/mean"), metrics.get("reasoning/mean_before")
    if "forget/accuracy" not in metrics or reasoning is None or not before:
        return None
    parts = [1 - metrics["forget/accuracy"], min(1.0, reasoning / before)]
    if "retain/accuracy" in metrics:
        parts.append(metrics["retain/accuracy"])
    return harmonic_mean(parts)


def summarise(sweep: Sweep) -> pd.DataFrame:
    """A line per setup and metric, the setups and metrics in the order of a table.

    Columns: model, dataset, method, label, metric, unit, better, runs, mean and std (over runs; sample
    standard deviation), stderr and n (of one run: its standard error over items, and the items; their
    means over runs), before (the unwashed model's mean). A setup without a finished run has one line,
    without a metric.
    """
    named = labels(sweep.setups)
    lines = []
    for setup in sweep.setups:
        runs = [run for run in sweep.runs if run.setup == setup]
        values = pd.DataFrame([run.metrics for run in runs], dtype=float)
        values[BALANCE.key] = pd.Series([balance(run.metrics) for run in runs], dtype=float)
        row = {"model": setup.model, "dataset": setup.dataset, "method": setup.method, "label": named[setup]}
        blank = pd.Series(dtype=float)
        for key in _ordered(values.dropna(axis=1, how="all").columns):
            metric, one = _metric(key), values[key].dropna()
            mean = {
                name: values.get(f"{key}{suffix}", blank).mean()
                for name, suffix in (("stderr", "_stderr"), ("n", "_n"), ("before", "_before"))
            }
            known = {"unit": metric.unit, "better": metric.better} if metric else {}
            spread = {"runs": len(one), "mean": one.mean(), "std": one.std()}
            lines.append({**row, "metric": key, **known, **spread, **mean})
        if not runs:
            lines.append({**row, "runs": 0})
    columns = "model dataset method label metric unit better runs mean std stderr n before".split()
    return pd.DataFrame(lines, columns=columns)


def _ordered(keys: Iterable[str]) -> list[str]:
    """The metrics of the washed model in the order of ``law.evaluation.metrics``, the balance, then any not documented there."""
    patterns = [metric.key.replace("{task}", "[^/]+") for metric in (*METRICS, BALANCE)]
    own = sorted(key for key in keys if not key.endswith(("_before", "_stderr", "_n")))
    documented = [key for pattern in patterns for key in own if re.fullmatch(pattern, key)]
    return [*documented, *(key for key in own if key not in documented)]


def _metric(key: str) -> Metric | None:
    """The metric behind a key; None for one that an older version reported."""
    try:
        return BALANCE if key == BALANCE.key else describe(key)
    except KeyError:
        return None


def build_tables(sweep: Sweep, summary: pd.DataFrame, published: Sequence[Published] = ()) -> list[Table]:
    """A table for each model and data set of the sweep; the best is sought among its washed rows."""
    panels = dict.fromkeys((setup.model, setup.dataset) for setup in sweep.setups)
    return [
        _table(sweep, summary, [p for p in published if (p.model, p.dataset) == panel], *panel)
        for panel in panels
    ]


def _table(
    sweep: Sweep, summary: pd.DataFrame, published: list[Published], model: str, dataset: str
) -> Table:
    named = labels(sweep.setups)
    setups = [setup for setup in sweep.setups if (setup.model, setup.dataset) == (model, dataset)]
    mine = summary[(summary["model"] == model) & (summary["dataset"] == dataset)].dropna(subset="metric")
    scores: dict[str, dict[str, Score]] = defaultdict(dict)
    for line in mine.itertuples():
        spread = line.std if line.runs > 1 else line.stderr
        scores[line.label][line.metric] = Score(line.mean, spread)
    shown = _shown([*mine["metric"], *(entry.metric for entry in published)])
    washed = [named[setup] for setup in setups if setup.method != "none"]
    best = {
        metric.key: _best(metric, [scores[label].get(metric.key) for label in washed]) for metric in shown
    }

    lines: list[tuple[Setup, list[Cell]]] = []
    for setup in setups:
        label = named[setup]
        missing = [job for job in sweep.missing if job.setup == setup]
        done = sum(run.setup == setup for run in sweep.runs)
        cells = [Cell(label), Cell(f"{done} of {done + len(missing)}" if missing else str(done))]
        for metric in shown:
            score = scores[label].get(metric.key)
            text = _text(metric, score) if score else ("—" if done else _worst(missing))
            wins = score is not None and label in washed and _round(metric, score.mean) == best[metric.key]
            cells.append(Cell(text, wins))
        lines.append((setup, cells))
    for method in dict.fromkeys(entry.method for entry in published):
        told = {
            entry.metric: Score(entry.value, float("nan")) for entry in published if entry.method == method
        }
        texts = [_text(metric, told[metric.key]) if metric.key in told else "—" for metric in shown]
        lines.append((Setup(model, dataset, method), [*map(Cell, (f"{method} (published)", "—", *texts))]))
    lines.sort(key=lambda line: line[0].order[:4])  # stable: what is published follows what was measured
    headings = ["method", "runs", *(f"{metric.title} {ARROWS[metric.better]}" for metric in shown)]
    return Table(model, dataset, headings, [cells for _, cells in lines], 1, _note(mine, shown, published))


def _shown(keys: Iterable[str]) -> list[Metric]:
    """The metrics of ``COLUMNS`` among these keys; the tasks of one column by name."""
    there = {*keys}
    patterns = [column.replace("{task}", "[^/]+") for column in COLUMNS]
    found = [key for pattern in patterns for key in sorted(there) if re.fullmatch(pattern, key)]
    return [metric for metric in map(_metric, found) if metric]


def _best(metric: Metric, scores: list[Score | None]) -> float | None:
    """The best mean as it is shown; none without a rival, nor of a time, which depends on what was cached."""
    rivals = [_round(metric, score.mean) for score in scores if score]
    if len(rivals) < 2 or metric.unit == "seconds":
        return None
    return max(rivals) if metric.better == "higher" else min(rivals)


def _round(metric: Metric, value: float) -> float:
    """The value as it is shown: fractions in percent."""
    return round(100 * value, 1) if metric.unit == "fraction" else round(value, _decimals(metric))


def _decimals(metric: Metric) -> int:
    return 2 if metric.unit == "perplexity" else 1


def _text(metric: Metric, score: Score) -> str:
    numbers = [_round(metric, value) for value in score if value == value]
    # the perplexity of a destroyed model has more digits than a table has room for
    shape = ".1e" if max(numbers) >= 1e5 else f".{_decimals(metric)}f"
    return " ± ".join(f"{number:{shape}}" for number in numbers)


def _worst(missing: list[Missing]) -> str:
    """What to call a setup none of whose jobs finished."""
    return next(
        status for status in ("failed", "unfinished", "not run") if any(m.status == status for m in missing)
    )


def _note(mine: pd.DataFrame, shown: list[Metric], published: list[Published]) -> str:
    several, single = (mine["runs"] > 1).any(), ((mine["runs"] == 1) & mine["stderr"].notna()).any()
    spreads = ["sample standard deviation over runs"] * bool(several)
    spreads += ["standard error over items" + " where there is one run" * bool(several)] * bool(single)
    parts = ["Accuracies, F1 and balance in percent, times in seconds."]
    parts += [f"±: {', '.join(spreads)}."] if spreads else []
    parts += [
        "Bold: the best washed method of a column; what answers nothing has forgotten best, so no column is read alone."
    ]
    if BALANCE.key in {metric.key for metric in shown}:
        parts += [f"Balance, this project's own and not the paper's: {BALANCE.meaning}."]
    where = dict.fromkeys(f"table {entry.table}, page {entry.page} of {entry.source}" for entry in published)
    parts += [f"Published: {'; '.join(where)}."] if where else []
    return " ".join(parts)


def list_problems(sweep: Sweep) -> list[str]:
    """What failed or did not finish, a line each, and what else has to be said of the folder."""
    named = labels(sweep.setups)
    seeds: dict[tuple[Setup, str, str], list[int]] = defaultdict(list)
    for job in sweep.missing:
        if job.problem:  # a job that was not run has none; the tables tell of it
            seeds[job.setup, job.status, job.problem].append(job.seed)
    lines = [
        f"{setup.model}, {setup.dataset}, {named[setup]}, seed {', '.join(map(str, sorted(which)))} {status}: {problem}"
        for (setup, status, problem), which in sorted(seeds.items(), key=lambda item: item[0][0].order)
    ]
    return [*lines, *sweep.remarks]
