"""What all pictures of runs share: names and looks of what is drawn, axes, and the legend."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from law.base.files import replacing
from law.evaluation.metrics import describe
from law.reporting.comparability import panels_of
from law.reporting.labels import labels
from law.reporting.sweep import Run, Setup

# Okabe and Ito's colour-blind safe colours less the pale yellow; 6 colours in step with 7 markers: 42 looks.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
UNITS = {"fraction": "%", "seconds": "s"}
NARROWEST = 10
"""Percentage points that an axis spans at least, so that small differences do not look large."""

LONGEST = 46
"""Characters in a line of the legend; a longer entry is wrapped."""

Handles = dict[str, Any]  # by name: artists, and containers of artists, which have no common type


def names_in_order(setups: Iterable[Setup]) -> dict[Setup, str]:
    """What each setup is called in a legend, in the order of a table; with the panel's title if there are several."""
    panels = panels_of({*setups})
    return {
        setup: f"{panel.title}: {label}" if len(panels) > 1 else label
        for panel in panels
        for setup, label in labels(panel.setups).items()
    }


def looks_of(names: Mapping[Setup, str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each name; the unwashed model's are its own."""
    styles = zip(cycle(COLOURS), cycle(MARKERS))
    looks: dict[str, tuple[str, str]] = {}
    for setup, name in names.items():
        if name not in looks:
            looks[name] = ("black", "p") if setup.method == "none" else next(styles)
    return looks


def meaning_of_bars(runs: Sequence[Run]) -> str:
    """What the error bars of these runs are."""
    counts = {sum(other.setup == run.setup for other in runs) for run in runs}
    if counts == {1}:
        return "bars: standard error over items"
    several = "/".join(map(str, sorted(counts - {1})))
    single = ", of a single run standard error over items" if 1 in counts else ""
    return f"mean of {several} runs, bars: sample standard deviation{single}"


def axis_title(key: str) -> str:
    """A metric's title with its unit and which way is better."""
    metric = describe(key)
    return f"{metric.title} ({UNITS.get(metric.unit, metric.unit)}), {metric.better} is better"


def tidy(axes: Axes, x: str, y: str) -> None:
    """Title the axes and take away what carries no information."""
    axes.set(xlabel=plain(x), ylabel=plain(y), axisbelow=True)
    axes.margins(y=0.1)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def widen(axes: Axes) -> None:
    """Let an axis of percentages span ``NARROWEST`` at least, and end soon after 0 and 100."""
    low, high = axes.get_ylim()
    span = min(max(high - low, NARROWEST), 104)
    low = min(max((low + high - span) / 2, -2), 102 - span)
    axes.set_ylim(low, low + span)


def plain(text: str) -> str:
    """The text, with no dollar sign that would begin a formula."""
    return text.replace("$", r"\$")


def finish(figure: Figure, handles: Handles, title: str, path: Path) -> None:
    """Write the figure with a title above it and a legend below it. The legend makes it taller."""
    names = [textwrap.fill(plain(name), LONGEST) for name in handles]
    width = max(len(line) for name in names for line in name.splitlines())
    columns = max(1, min(len(names), int(13 * figure.get_figwidth()) // (width + 6)))
    lines = max(name.count("\n") + 1 for name in names) * math.ceil(len(names) / columns)
    figure.set_figheight(figure.get_figheight() + 0.21 * lines)
    figure.suptitle(textwrap.fill(plain(title), int(11 * figure.get_figwidth())), fontsize="medium")
    figure.legend(handles.values(), names, loc="outside lower center", ncols=columns, frameon=False)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, with all that reaches beyond it."""
    with replacing(path) as partial:
        figure.savefig(partial, dpi=200, bbox_inches="tight", format="png")
