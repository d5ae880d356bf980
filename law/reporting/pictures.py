"""Pictures of the finished runs of one sweep."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.figure import Figure

from law.base.errors import LawError
from law.evaluation.metrics import describe
from law.reporting.comparability import panels_of
from law.reporting.drawing import (
    Handles,
    axis_title,
    finish,
    looks_of,
    meaning_of_bars,
    names_in_order,
    tidy,
    widen,
)
from law.reporting.summary import score
from law.reporting.sweep import Setup, Sweep


@dataclass(frozen=True)
class Picture:
    """Metrics against one swept setting, with axes for each metric; ``label`` is the title of the setting's axis."""

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
    """Each metric of the picture that was measured, against its setting. Each row of a table is a line.

    The axis of a setting with numbers is linear, or logarithmic if the largest is at least 20 times the
    smallest. Other values stand side by side. Bars are the sample standard deviation over runs, or the
    standard error over the items of a single run.

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
    names = names_in_order(line_of.values())
    looks = looks_of(names)

    figure = Figure((3.3 * len(metrics), 3.8), layout="constrained")
    handles: Handles = {}
    for axes, key in zip(figure.subplots(1, len(metrics), squeeze=False).flat, metrics, strict=True):
        scale = 100 if describe(key).unit == "fraction" else 1
        # before washing all of them are recalled: a line at 100 % would compress the axis
        for panel in () if key.startswith("forget/") else panels_of(at):
            measured = score([run for run in runs if run.setup in panel.setups], key)
            if measured and measured.before is not None:
                handles["before washing"] = axes.axhline(scale * measured.before, color="0.4", linestyle="--")
        for line, name in names.items():
            points = []
            for x in sorted({*at.values()}):
                alike = [run for run in runs if line_of[run.setup] == line and at[run.setup] == x]
                if one := score(alike, key):
                    points.append((x, scale * one.mean, scale * (one.spread or 0)))
            if points:
                x_, y, bars = zip(*points, strict=True)
                colour, marker = looks[name]
                connected = "-" if to_scale else ""
                handles[name] = axes.errorbar(
                    x_, y, bars, color=colour, marker=marker, linestyle=connected, capsize=3
                )
        tidy(axes, picture.label, axis_title(key))
        if scale == 100:
            widen(axes)
        if not to_scale:
            axes.set_xticks([*places.values()], [*places])
            axes.set_xlim(-0.5, len(places) - 0.5)
        elif 0 < 20 * min(places.values()) <= max(places.values()):
            axes.set_xscale("log")
    finish(figure, handles, f"Effect of {picture.setting} ({meaning_of_bars(runs)})", path)


def _places(texts: set[str]) -> tuple[dict[str, float], bool]:
    """The place of each value of a setting on its axis, and whether the places are the values themselves."""
    try:
        return {text: float(text) for text in sorted(texts, key=float)}, True
    except ValueError:
        return {text: float(place) for place, text in enumerate(sorted(texts))}, False


def _without(setup: Setup, setting: str) -> Setup:
    return replace(setup, settings=tuple(pair for pair in setup.settings if pair[0] != setting))


def plot_facts_left(sweep: Sweep, path: Path) -> None:
    """The washed facts still recalled after each layer, in percent, of the runs whose method reported them.

    A run that reports nothing for a layer had no facts left before it, so it has none there.

    Raises:
        LawError: no run reports them.
    """
    reported = {run.folder: left for run in sweep.runs if (left := facts_left(run.folder))}
    runs = [run for run in sweep.runs if run.folder in reported]
    if not runs:
        raise LawError(
            "No finished run has lines with `layer` and `facts_left` in its method.jsonl; expected runs of LAW, "
            "which reports them after each layer."
        )
    layers = sorted({layer for left in reported.values() for layer in left})
    names = names_in_order(run.setup for run in runs)
    looks = looks_of(names)
    figure = Figure((6.5, 4.3), layout="constrained")
    axes = figure.subplots()
    handles: Handles = {}
    for setup, name in names.items():
        shares = [  # (runs, 1 + layers), in percent
            [
                100,
                *(100 * reported[run.folder].get(layer, 0) / run.metrics["facts/known"] for layer in layers),
            ]
            for run in runs
            if run.setup == setup
        ]
        columns = [*zip(*shares, strict=True)]
        bars = [stdev(column) for column in columns] if len(shares) > 1 else None
        colour, marker = looks[name]
        handles[name] = axes.errorbar(
            range(len(columns)), [*map(fmean, columns)], bars, color=colour, marker=marker, capsize=3
        )
    axes.set_xticks(range(len(layers) + 1), ["before", *map(str, layers)])
    axes.set_ylim(-3, 103)
    tidy(axes, "after layer", "washed facts still recalled (%)")
    several = len(runs) > len(names)
    finish(figure, handles, "Facts left after each layer" + f" ({meaning_of_bars(runs)})" * several, path)


def facts_left(folder: Path) -> dict[int, int]:
    """By layer, how many washed facts were still recalled after it; empty if the method did not report them."""
    try:
        lines = (folder / "method.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    rows = map(json.loads, lines)
    return {row["layer"]: row["facts_left"] for row in rows if {"layer", "facts_left"} <= row.keys()}
