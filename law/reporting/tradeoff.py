"""The picture of what washing costs: facts forgotten against facts kept, and against reasoning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from law.reporting.comparability import panels_of
from law.reporting.drawing import (
    Handles,
    finish,
    looks_of,
    meaning_of_bars,
    plain,
    tidy,
    widen,
)
from law.reporting.labels import labels
from law.reporting.summary import score
from law.reporting.sweep import Run, Sweep

LEFT = "forget/accuracy"
COSTS = {
    "retain/accuracy": "other facts kept (%)",
    "reasoning/mean": "mean reasoning accuracy (%)",
}
"""The metrics of the vertical axes and their titles."""


def can_plot_tradeoff(sweep: Sweep) -> bool:
    """Whether some washed run has both axes of a picture."""
    return bool(_drawable(sweep))


def _drawable(sweep: Sweep) -> list[Run]:
    washed = [run for run in sweep.runs if run.setup.method != "none" and LEFT in run.metrics]
    return [run for run in washed if COSTS.keys() & run.metrics.keys()]


def plot_tradeoff(sweep: Sweep, path: Path) -> None:
    """Facts forgotten against each of ``COSTS`` that was measured, a mark for each setup, a row for each panel.

    Bars are the sample standard deviation over runs, or the standard error over the items of one run. The
    pentagon is the unwashed model. The star is the ideal: all washed facts forgotten, nothing else lost.
    """
    runs = _drawable(sweep)
    panels = panels_of({run.setup for run in runs})
    costs = [key for key in COSTS if any(key in run.metrics for run in runs)]
    named = {setup: label for panel in panels for setup, label in labels(panel.setups).items()}
    looks = looks_of(named)
    figure = Figure((4.6 * len(costs), 3.8 * len(panels) + 0.4), layout="constrained")
    handles: Handles = {}
    for row, panel in zip(figure.subplots(len(panels), len(costs), squeeze=False), panels, strict=True):
        for axes, key in zip(row, costs, strict=True):
            mine = [run for run in runs if run.setup in panel.setups]
            for setup in panel.setups:
                alike = [run for run in mine if run.setup == setup]
                left, cost = score(alike, LEFT), score(alike, key)
                if left and cost:
                    colour, marker = looks[named[setup]]
                    handles[named[setup]] = axes.errorbar(
                        100 * (1 - left.mean),
                        100 * cost.mean,
                        xerr=100 * (left.spread or 0),
                        yerr=100 * (cost.spread or 0),
                        color=colour,
                        marker=marker,
                        markersize=8,
                        linestyle="none",
                        capsize=3,
                    )
            measured = score(mine, key)
            if measured and measured.before is not None:
                before = 100 * measured.before
                look: dict[str, Any] = {"edgecolors": "black", "zorder": 1}  # behind the runs
                handles["unwashed model"] = axes.scatter(0, before, 200, "white", marker="p", **look)
                handles["ideal"] = axes.scatter(100, before, 300, "#F0E442", marker="*", **look)
            tidy(axes, "washed facts forgotten (%)", COSTS[key])
            axes.set_xlim(-5, 105)
            if key == "retain/accuracy":
                axes.set_ylim(-5, 105)
            else:
                widen(axes)
        if len(panels) > 1:
            row[0].set_title(plain(panel.title), fontsize="medium", loc="left")
    title = f"Washed facts forgotten against what else changes ({meaning_of_bars(runs)})"
    finish(figure, handles, title, path)
