"""The finished runs of one experiment as a table (Markdown, CSV, LaTeX) and a picture."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from statistics import fmean

import pandas as pd

from law.errors import LawError
from law.results import METRICS, describe

ARROWS = {"higher": "↑", "lower": "↓"}
LATEX = {character: f"\\{character}" for character in "_%&#${}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
LATEX |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "—": "---"}
# Okabe and Ito's colour-blind safe colours less the pale yellow; 6 colours in step with 7 markers: 42 looks.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Run:
    """One finished run; ``label`` is the method's name and the settings that vary among its like."""

    label: str
    method: str
    model: str
    dataset: str
    settings: dict[str, str]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Table:
    """What Markdown and LaTeX show: ``cells`` (text) and ``best`` (bool) are [rows, columns].

    The first ``names`` columns hold words, the others numbers.
    """

    headings: list[str]
    cells: pd.DataFrame
    best: pd.DataFrame
    names: int
    note: str


def write_tables(folder: Path) -> tuple[list[Path], int, Table]:
    """Write ``table.md``, ``table.csv``, ``table.tex`` and ``tradeoff.png`` beside the runs of ``load_runs``.

    Returns the files (no picture where no run has both of its axes), the number of unfinished runs left
    out, and the table.
    """
    runs, unfinished = load_runs(folder)
    summary = summarise(runs)
    table = build_table(summary, unfinished)
    paths = [folder / "table.md", folder / "table.csv", folder / "table.tex"]
    paths[0].write_text(to_markdown(table), encoding="utf-8")
    summary.drop(columns="washed").to_csv(paths[1], index=False)
    paths[2].write_text(to_latex(table), encoding="utf-8")
    drawn = [run for run in runs if {"forget/accuracy", "reasoning/mean"} <= run.metrics.keys()]
    if drawn:
        paths.append(folder / "tradeoff.png")
        plot_tradeoff(drawn, paths[-1])
    return paths, unfinished, table


def load_runs(folder: Path) -> tuple[list[Run], int]:
    """The finished runs directly in ``folder``, and the number of unfinished ones.

    Raises:
        LawError: the folder is missing or holds no finished run.
    """
    mend = (
        f"Expected run folders {folder}/<run>, each with metrics.json and a manifest.json whose status is "
        "'finished'. Make runs with `python experiments/wash.py`, then name the folder that holds them."
    )
    if not folder.is_dir():
        raise LawError(f"There is no folder {folder}. {mend}")
    marks = (".hydra", "metrics.json", "manifest.json")
    found = [path for path in sorted(folder.iterdir()) if any((path / mark).exists() for mark in marks)]
    runs = [run for run in map(_load_run, found) if run]
    if not runs:
        raise LawError(f"{folder} holds no finished run (unfinished: {len(found)}). {mend}")
    return _labelled(runs), len(found) - len(runs)


def _labelled(runs: list[Run]) -> list[Run]:
    """The runs, told apart by the settings that vary among those of one method, model and dataset."""
    labelled = []
    for run in runs:
        like = [r for r in runs if (r.method, r.model, r.dataset) == (run.method, run.model, run.dataset)]
        varying = [key for key in run.settings if len({r.settings.get(key) for r in like}) > 1]
        told = ", ".join(f"{key.removeprefix('method.')}={run.settings[key]}" for key in sorted(varying))
        labelled.append(replace(run, label=f"{run.method} ({told})" if told else run.method))
    return labelled


def _load_run(folder: Path) -> Run | None:
    """The run in ``folder``, or None unless it finished and both of its files can be read."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        names = {name: manifest["choices"][name] for name in ("method", "model", "dataset")}
        settings = {str(key): str(value) for key, value in manifest.get("settings", {}).items()}
        numbers = {key: float(value) for key, value in metrics.items()}
        run = Run(label=names["method"], settings=settings, metrics=numbers, **names)
        return run if manifest["status"] == "finished" else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def summarise(runs: list[Run]) -> pd.DataFrame:
    """One row per model, dataset and label, sorted, the unwashed model first in its dataset.

    Columns: label, model, dataset, runs, washed (False for the unwashed model), then for each metric its
    mean ``<key>`` and sample standard deviation ``<key>/std``, NaN where too few runs report it.
    """
    keys = {key for run in runs for key in run.metrics}
    ordered = [*_documented(keys), *sorted(keys - {*_documented(keys)})]
    frame = pd.DataFrame([run.metrics for run in runs], columns=ordered)
    names = [(run.model, run.dataset, run.method != "none", run.label) for run in runs]
    frame.index = pd.MultiIndex.from_tuples(names, names=["model", "dataset", "washed", "label"])
    groups = frame.groupby(level=[*frame.index.names])
    parts = [groups.size().rename("runs"), groups.mean(), groups.std().add_suffix("/std")]
    pairs = [column for key in ordered for column in (key, f"{key}/std")]
    return pd.concat(parts, axis=1).reset_index()[["label", "model", "dataset", "runs", "washed", *pairs]]


def _documented(keys: set[str]) -> list[str]:
    """The keys that ``law.results`` documents, in its order, tasks by name."""
    patterns = [metric.key.replace("{task}", "*") for metric in METRICS]
    return [key for pattern in patterns for key in fnmatch.filter(sorted(keys), pattern)]


def build_table(summary: pd.DataFrame, unfinished: int) -> Table:
    """The metrics that have a better direction: fractions in percent, times in seconds.

    The best is sought among the washed rows of one model and dataset, at the precision shown.
    """
    names = [name for name in ("model", "dataset") if summary[name].nunique() > 1]
    reported = _documented({*summary.dropna(axis=1, how="all")})
    metrics = [metric for metric in map(describe, reported) if metric.better in ARROWS]
    cells = summary[[*names, "label", "runs"]].astype(str)
    best = pd.DataFrame(False, cells.index, [*cells.columns, *(metric.key for metric in metrics)])
    for metric in metrics:
        scale = 100 if metric.unit == "fraction" else 1
        mean, std = ((summary[key] * scale).round(1) for key in (metric.key, f"{metric.key}/std"))
        spread = std.map(" ± {:.1f}".format).where(std.notna(), "")
        cells[metric.key] = (mean.map("{:.1f}".format) + spread).where(mean.notna(), "—")
        rivals = mean.where(summary["washed"])
        contest = rivals.groupby([summary["model"], summary["dataset"]])
        winner = contest.transform("max" if metric.better == "higher" else "min")
        # a time depends on what was cached, so none is called the best
        best[metric.key] = (rivals == winner) & (contest.transform("count") > 1) & (metric.unit != "seconds")
    titles = [f"{metric.title} {ARROWS[metric.better]}" for metric in metrics]
    note = (
        "Accuracies and F1 in percent, times in seconds; mean ± standard deviation over several runs. "
        f"Runs left out as unfinished: {unfinished}."
    )
    return Table([*names, "method", "runs", *titles], cells, best, len(names) + 1, note)


def to_markdown(table: Table) -> str:
    """A pipe table, padded so that it also reads well as plain text, and the note."""
    rows = _rows(table, lambda text: re.sub(r"([\\|*`<])", r"\\\1", text), "**{}**")
    columns = []
    for number, (heading, *cells) in enumerate(zip(*rows, strict=True)):
        width = max(map(len, (heading, *cells)))
        pad, rule = (str.ljust, "-" * width) if number < table.names else (str.rjust, "-" * (width - 1) + ":")
        columns.append([pad(text, width) for text in (heading, rule, *cells)])
    lines = [f"| {' | '.join(row)} |" for row in zip(*columns, strict=True)]
    return "\n".join([*lines, "", table.note, ""])


def to_latex(table: Table) -> str:
    """A whole booktabs ``tabular`` to ``\\input``; the note is a comment above it."""
    rows = _rows(table, lambda text: "".join(LATEX.get(letter, letter) for letter in text), r"\textbf{{{}}}")
    head, *body = (" & ".join(row) + r" \\" for row in rows)
    begin = rf"\begin{{tabular}}{{{'l' * table.names}{'r' * (len(table.headings) - table.names)}}}"
    lines = [r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([f"% {table.note}", begin, *lines, ""])


def _rows(table: Table, escape: Callable[[str], str], bold: str) -> list[list[str]]:
    """The headings and the rows, escaped; ``bold`` is the format of the best cells."""
    cells = table.cells.map(escape)
    cells = cells.mask(table.best, cells.map(bold.format))
    return [[*map(escape, table.headings)], *cells.to_numpy().tolist()]


def plot_tradeoff(runs: list[Run], path: Path) -> None:
    """Reasoning against washed facts still recalled, in percent, for runs that report both.

    A mark per run, a panel per model and dataset; the dashed line is the unwashed model's mean reasoning.
    """
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

    labels = sorted({(run.method != "none", run.label) for run in runs})
    styles = zip(cycle(COLOURS), cycle(MARKERS))
    looks = {label: next(styles) if washed else ("black", "p") for washed, label in labels}
    panels = sorted({(run.model, run.dataset) for run in runs})
    per_row = max(1, 90 // (max(map(len, looks)) + 6))
    figure = Figure((7, 4.2 * len(panels) + 0.22 * (len(labels) // per_row + 3)), layout="constrained")
    figure.suptitle("Reasoning kept against facts still recalled")
    handles: dict[str, Artist] = {}
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False).flat, panels, strict=True):
        drawn = [run for run in runs if (run.model, run.dataset) == panel]
        for label, (colour, marker) in looks.items():
            mine = [run.metrics for run in drawn if run.label == label]
            x, y = ([100 * metrics[key] for metrics in mine] for key in ("forget/accuracy", "reasoning/mean"))
            # See-through faces, so that a mark shows through another on top of it.
            handles[label] = axes.scatter(x, y, 55, [(colour, 0.3)], marker=marker, edgecolors=colour)
        before = [run.metrics[key] for run in drawn if (key := "reasoning/mean_before") in run.metrics]
        if before:
            handles["before washing"] = axes.axhline(100 * fmean(before), color="0.4", linestyle="--")
        axes.set_title(f"model {panel[0]}, dataset {panel[1]}".replace("$", r"\$"), fontsize="medium")
        axes.set(xlabel="washed facts still recalled (%), lower is cleaner", xlim=(-3, 103))
        axes.set(ylabel="reasoning accuracy, mean over tasks (%)", ymargin=0.1, axisbelow=True)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    names = [name.replace("$", r"\$") for name in handles]
    figure.legend(handles.values(), names, loc="outside lower center", ncols=per_row, frameon=False)
    figure.savefig(path, dpi=200, bbox_inches="tight")
