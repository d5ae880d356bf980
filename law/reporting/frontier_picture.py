"""The picture of the frontiers of a sweep: kept facts and reasoning against forgotten facts, one curve a method."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from law.reporting.blocks import Curve, blocks_of
from law.reporting.drawing import COLOURS, MARKERS, Handles, finish, plain, tidy, widen
from law.reporting.frontier import Array, along
from law.reporting.frontier_scores import REASONING, Frontiers, Points, ways_of
from law.reporting.resampling import LEVEL, interval
from law.reporting.sweep import Sweep

STEPS = 51
"""Places on the axis of forgotten facts at which a frontier is computed."""

ACROSS = {
    "forget/accuracy": "washed facts forgotten (%)",
    "forget/unrefused_accuracy": "washed facts forgotten, first token not refusing (%)",
}
UP = ("other facts kept (%)", "mean reasoning accuracy (%)")


class Drawn(NamedTuple):
    """A frontier as it is drawn, in percent: where it is reached, its height there, and its band."""

    at: list[float]
    height: list[float]
    low: list[float]
    high: list[float]


def plot_frontier(sweep: Sweep, path: Path) -> None:
    """Two axes for each block and each way to count what is left: kept facts, and reasoning if it was measured.

    A line is the mean frontier over seeds, as far as all seeds reach it. Its band is the bootstrap's interval. Marks are the values of
    the knob, mean over seeds; those below their line are surpassed by others.

    Raises:
        LawError: there is no frontier (:func:`~law.reporting.blocks.blocks_of`).
    """
    blocks = blocks_of(sweep)
    rows = [Frontiers(block, left) for block in blocks for left in ways_of(block)]
    labels = dict.fromkeys(curve.label for row in rows for curve in row.block.curves)
    looks = {label: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, label in enumerate(labels)}
    columns = 1 + any(REASONING in run.metrics for run in sweep.runs)
    figure = Figure((4.6 * columns, 3.8 * len(rows) + 0.4), layout="constrained")
    handles: Handles = {}
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for across, row in zip(grid, rows, strict=True):
        for which, axes in enumerate(across):
            for curve in row.block.curves:
                colour, marker = looks[curve.label]
                (handles[curve.label],) = _draw(axes, row, curve, which, colour, marker)
            tidy(axes, ACROSS[row.left], UP[which])
            axes.set_xlim(-5, 105)
            if which == 0:
                axes.set_ylim(-5, 105)
            else:
                widen(axes)
        if len(blocks) > 1:
            across[0].set_title(plain(row.block.title), fontsize="medium", loc="left")
    title = f"What is kept for what is forgotten (bands: {100 * (1 - LEVEL):.0f} % interval over seeds, facts and items)"
    finish(figure, handles, title, path)


def _draw(axes: Axes, row: Frontiers, curve: Curve, which: int, colour: str, marker: str) -> list[object]:
    """The line, the band and the marks of one curve; returns the artist of its legend."""
    line = frontier_of(row, curve, which)
    axes.fill_between(line.at, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(*marks_of(row, curve, which), color=colour, marker=marker, markersize=4, linestyle="none")
    return [*axes.plot(line.at, line.height, color=colour, marker=marker, markevery=[0], markersize=4)]


def frontier_of(row: Frontiers, curve: Curve, which: int) -> Drawn:
    """The mean frontier of a curve: kept facts (``which`` is 0), or reasoning (1)."""
    drawn = Drawn([], [], [], [])
    for wanted in np.linspace(0, 1, STEPS):
        samples = row.mean(
            {seed: _height(points, wanted)[which] for seed, points in row.points[curve.label].items()}
        )
        if np.isfinite(samples[0]):
            ends = interval(samples)
            for values, one in zip(drawn, (wanted, samples[0], *ends), strict=True):
                values.append(100 * float(one))
    return drawn


def _height(points: Points, wanted: float) -> list[Array]:
    return along(points.forgotten, points.kept, wanted, points.reasoning)


def marks_of(row: Frontiers, curve: Curve, which: int) -> tuple[list[float], list[float]]:
    """Where the values of the knob are, mean over seeds, in percent."""
    found: dict[object, list[tuple[float, float]]] = defaultdict(list)
    for seed, points in row.points[curve.label].items():
        heights = points.reasoning if which else points.kept
        for place, run in enumerate(curve.points(seed), start=1):  # behind the unwashed model
            found[run.knob].append((points.forgotten[0, place], heights[0, place]))
    means = [np.mean(values, 0) for values in found.values()]
    return [100 * float(x) for x, _ in means], [100 * float(y) for _, y in means]
