"""Pictures of the finished runs of one sweep."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from law.base.errors import LawError
from law.evaluation.metrics import describe
from law.reporting.sweep import Run, Setup, Sweep, labels

# Okabe and Ito's colour-blind safe colours less the pale yellow; 6 colours in step with 7 markers: 42 looks.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
UNITS = {"fraction": "%", "seconds": "s"}
Handles = dict[str, Any]  # of a legend: artists and, which the stubs call no artist, their containers
NARROWEST = 10  # percentage points that an axis spans at least: less would make a landscape of noise


@dataclass(frozen=True)
class Picture:
    """Metrics against one swept setting, a panel each; ``label`` says what the setting is."""

    setting: str
    label: str
    metrics: tuple[str, ...] = (
        "forget/accuracy",
        "forget/paraphrase_accuracy",
        "retain/accuracy",
        "reasoning/mean",
    )


PICTURES = {
    "washed_facts": Picture("dataset.wash", "facts to wash"),
    "beta_ratio": Picture("method.beta_ratio", "β ratio"),
    "elimination": Picture("method.eliminate", "successive elimination"),
    "initialisation": Picture("method.start", "start of the ascent"),
}


def plot_setting(sweep: Sweep, picture: Picture, path: Path) -> None:
    """Each metric of the picture that was measured, against its setting; a line per model, data set and method.

    Numbers lie to scale, on a logarithmic axis if the largest is 20 times the smallest; words side by
    side. Bars are the sample standard deviation over runs, or one run's standard error over items.

    Raises:
        LawError: the setting takes fewer than two values, or none of the metrics was measured.
    """
    chosen = {run.setup: dict(run.setup.settings).get(picture.setting) for run in sweep.runs}
    places, to_scale = _places({text for text in chosen.values() if text is not None})
    if len(places) < 2:
        raise LawError(
            f"The finished runs have {len(places)} values of {picture.setting}; expected two or more. Sweep it, "
            f"as in `python experiments/wash.py -m {picture.setting}=...,...`, then name the folder of those runs."
        )
    at = {setup: places[text] for setup, text in chosen.items() if text is not None}
    runs = [run for run in sweep.runs if run.setup in at]
    metrics = [key for key in picture.metrics if any(key in run.metrics for run in runs)]
    if not metrics:
        raise LawError(
            f"No finished run reports any of {', '.join(picture.metrics)}; expected at least one of them in its "
            "metrics.json. Run with an evaluation that measures it."
        )
    line_of = {setup: _without(setup, picture.setting) for setup in at}
    looks = _looks(_names(line_of.values()))

    figure = Figure((3.3 * len(metrics), 4), layout="constrained")
    handles: Handles = {}
    for axes, key in zip(figure.subplots(1, len(metrics), squeeze=False).flat, metrics, strict=True):
        scale = 100 if describe(key).unit == "fraction" else 1
        before = [run.metrics[f"{key}_before"] for run in runs if f"{key}_before" in run.metrics]
        # all of them are recalled before, and a line up there would leave the axis no room for what is left
        if before and not key.startswith("forget/"):
            handles["before washing"] = axes.axhline(scale * fmean(before), color="0.4", linestyle="--")
        for line, name in _names(line_of.values()).items():
            points = []
            for x in sorted({*at.values()}):
                like = [run for run in runs if line_of[run.setup] == line and at[run.setup] == x]
                if measured := [run for run in like if key in run.metrics]:
                    mean, bar = _mean_and_bar(measured, key)
                    points.append((x, scale * mean, scale * bar))
            if points:
                x_, y, bars = zip(*points, strict=True)
                colour, marker = looks[name]
                connected = "-" if to_scale else ""
                handles[name] = axes.errorbar(
                    x_, y, bars, color=colour, marker=marker, linestyle=connected, capsize=3
                )
        _tidy(axes, picture.label, _axis_title(key))
        if scale == 100:
            low, high = axes.get_ylim()
            if high - low < NARROWEST:
                low = min(max((low + high - NARROWEST) / 2, -1), 101 - NARROWEST)
                axes.set_ylim(low, low + NARROWEST)
        if not to_scale:
            axes.set_xticks([*places.values()], [*places])
            axes.set_xlim(-0.5, len(places) - 0.5)
        elif 0 < 20 * min(places.values()) <= max(places.values()):
            axes.set_xscale("log")
    _finish(figure, handles, f"Effect of {picture.setting} ({_what_bars_are(runs)})", path)


def _places(texts: set[str]) -> tuple[dict[str, float], bool]:
    """Where each value of a setting stands on its axis, and whether that is to scale."""
    try:
        return {text: float(text) for text in sorted(texts, key=float)}, True
    except ValueError:
        return {text: float(place) for place, text in enumerate(sorted(texts))}, False


def _without(setup: Setup, setting: str) -> Setup:
    return replace(setup, settings=tuple(pair for pair in setup.settings if pair[0] != setting))


def _mean_and_bar(runs: Sequence[Run], key: str) -> tuple[float, float]:
    values = [run.metrics[key] for run in runs]
    return fmean(values), stdev(values) if len(runs) > 1 else runs[0].metrics.get(f"{key}_stderr", 0.0)


def _what_bars_are(runs: Sequence[Run]) -> str:
    counts = {sum(other.setup == run.setup for other in runs) for run in runs}
    if counts == {1}:
        return "bars: standard error over items, one run each"
    several = "/".join(map(str, sorted(counts - {1})))
    single = ", of a single run standard error over items" if 1 in counts else ""
    return f"mean of {several} runs, bars: sample standard deviation{single}"


def plot_facts_left(sweep: Sweep, path: Path) -> None:
    """The washed facts still recalled after each layer, in percent, of the runs whose method told of them.

    A run that stopped early had none left, and so has none after the later layers.

    Raises:
        LawError: no run tells of facts left.
    """
    told = {run.folder: left for run in sweep.runs if (left := facts_left(run.folder))}
    runs = [run for run in sweep.runs if run.folder in told]
    if not runs:
        raise LawError(
            "No finished run has lines with `layer` and `facts_left` in its method.jsonl; expected runs of LAW, "
            "which tells of them after each layer."
        )
    layers = sorted({layer for left in told.values() for layer in left})
    names = _names(run.setup for run in runs)
    figure = Figure((6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    handles: Handles = {}
    for setup, name in names.items():
        shares = [  # (runs, 1 + layers), in percent
            [100, *(100 * told[run.folder].get(layer, 0) / run.metrics["facts/known"] for layer in layers)]
            for run in runs
            if run.setup == setup
        ]
        columns = [*zip(*shares, strict=True)]
        bars = [stdev(column) for column in columns] if len(shares) > 1 else None
        colour, marker = _looks(names)[name]
        handles[name] = axes.errorbar(
            range(len(columns)), [*map(fmean, columns)], bars, color=colour, marker=marker, capsize=3
        )
    axes.set_xticks(range(len(layers) + 1), ["before", *map(str, layers)])
    axes.set_ylim(-3, 103)
    _tidy(axes, "after layer", "washed facts still recalled (%)")
    several = len(runs) > len(names)
    _finish(figure, handles, "Facts left after each layer" + f" ({_what_bars_are(runs)})" * several, path)


def facts_left(folder: Path) -> dict[int, int]:
    """By layer, the facts that a method said were left after it; empty where it said nothing of the kind."""
    try:
        lines = (folder / "method.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    rows = map(json.loads, lines)
    return {row["layer"]: row["facts_left"] for row in rows if {"layer", "facts_left"} <= row.keys()}


def plot_tradeoff(sweep: Sweep, path: Path) -> None:
    """Reasoning against washed facts still recalled, in percent, for runs that report both.

    A mark per run, a panel per model and dataset; the dashed line is the unwashed model's mean reasoning.
    """
    runs = [run for run in sweep.runs if {"forget/accuracy", "reasoning/mean"} <= run.metrics.keys()]
    told = labels(sweep.setups)
    looks = _looks({run.setup: told[run.setup] for run in runs})
    panels = [*dict.fromkeys((run.setup.model, run.setup.dataset) for run in runs)]
    rows = -(-len(looks) // _per_row(looks, 7)) + 1
    figure = Figure((7, 4.2 * len(panels) + 0.22 * (rows + 2)), layout="constrained")
    handles: Handles = {}
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False).flat, panels, strict=True):
        drawn = [run for run in runs if (run.setup.model, run.setup.dataset) == panel]
        for name, (colour, marker) in looks.items():
            mine = [run.metrics for run in drawn if told[run.setup] == name]
            x, y = ([100 * metrics[key] for metrics in mine] for key in ("forget/accuracy", "reasoning/mean"))
            # See-through faces, so that a mark shows through another on top of it.
            handles[name] = axes.scatter(x, y, 55, [(colour, 0.3)], marker=marker, edgecolors=colour)
        before = [run.metrics[key] for run in drawn if (key := "reasoning/mean_before") in run.metrics]
        if before:
            handles["before washing"] = axes.axhline(100 * fmean(before), color="0.4", linestyle="--")
        axes.set_title(_plain(f"model {panel[0]}, dataset {panel[1]}"), fontsize="medium")
        axes.set_xlim(-3, 103)
        title = "reasoning accuracy, mean over tasks (%)"
        _tidy(axes, "washed facts still recalled (%), lower is cleaner", title)
    _finish(figure, handles, "Reasoning kept against facts still recalled", path)


def _names(setups: Iterable[Setup]) -> dict[Setup, str]:
    """What each setup is called in a legend, in the order of a table; the data set where they differ in it."""
    ordered = sorted({*setups}, key=lambda setup: setup.order)
    told = labels(ordered)
    several = len({(setup.model, setup.dataset) for setup in ordered}) > 1
    return {s: f"{s.model}, {s.dataset}: {told[s]}" if several else told[s] for s in ordered}


def _looks(names: dict[Setup, str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each name; the unwashed model's are its own."""
    styles = zip(cycle(COLOURS), cycle(MARKERS))
    looks: dict[str, tuple[str, str]] = {}
    for setup, name in names.items():
        if name not in looks:
            looks[name] = ("black", "p") if setup.method == "none" else next(styles)
    return looks


def _axis_title(key: str) -> str:
    metric = describe(key)
    return f"{metric.title} ({UNITS.get(metric.unit, metric.unit)}), {metric.better} is better"


def _tidy(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=_plain(x), ylabel=_plain(y), axisbelow=True)
    axes.margins(y=0.1)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str) -> str:
    """The text, with no dollar sign that would begin a formula."""
    return text.replace("$", r"\$")


def _per_row(names: Iterable[str], inches: float) -> int:
    """How many entries of a legend fit side by side."""
    return max(1, int(13 * inches) // (max(map(len, names)) + 6))


def _finish(figure: Figure, handles: Handles, title: str, path: Path) -> None:
    names, width = [*map(_plain, handles)], figure.get_figwidth()
    figure.suptitle(_plain(title), fontsize="medium")
    ncols = min(len(names), _per_row(names, width))
    figure.legend(handles.values(), names, loc="outside lower center", ncols=ncols, frameon=False)
    figure.savefig(path, dpi=200, bbox_inches="tight")
