r"""The picture of mean ranks: which methods differ over many models, data sets and seeds (Demšar, JMLR 2006).

In each block, which is one model, one data set and one seed, the methods are ranked by the area under their frontier; rank 1 is the
best. Over N blocks and k methods, two mean ranks are told apart if they differ by the critical difference of Nemenyi's test,

.. math::
    \mathrm{CD} = q_\alpha \sqrt{\frac{k (k + 1)}{6 N}},

with :math:`q_\alpha` the quantile of the studentised range for k groups and infinitely many degrees of freedom, divided by
:math:`\sqrt 2`. Friedman's test says first whether the methods differ at all. Seeds of one model and data set share facts, so that
blocks of other models and data sets weigh more than their number tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from law.base.errors import LawError
from law.reporting.blocks import blocks_of
from law.reporting.drawing import plain, save
from law.reporting.frontier_scores import AREA, LEFT, Frontiers, ways_of
from law.reporting.resampling import LEVEL
from law.reporting.sweep import Sweep

FEWEST_BLOCKS, FEWEST_METHODS = 10, 3
"""Of fewer blocks the distribution of Friedman's test is not known well (Demšar: about ten); it compares three methods at least."""

TITLES = {
    "forget/accuracy": "area under the frontier",
    "forget/unrefused_accuracy": "area under the frontier, first token not refusing",
}


@dataclass(frozen=True)
class Ranks:
    """Mean ranks of methods over blocks, the best first.

    Args:
        methods: their names.
        means: their mean ranks.
        blocks: how many blocks they are over.
        p: of Friedman's test: that all methods are alike.
        critical: the critical difference of two mean ranks.
    """

    methods: list[str]
    means: list[float]
    blocks: int
    p: float
    critical: float

    @property
    def groups(self) -> list[tuple[int, int]]:
        """The first and last place of each longest run of methods that are not told apart."""
        ends = [
            max(j for j in range(len(self.means)) if self.means[j] - low < self.critical)
            for low in self.means
        ]
        return [(i, end) for i, end in enumerate(ends) if end > i and (i == 0 or ends[i - 1] < end)]


def ranks_of(sweeps: Sequence[Sweep], left: str) -> Ranks:
    """The ranks of the methods that every block of the sweeps has.

    Raises:
        LawError: there are too few blocks or methods.
    """
    areas: list[dict[str, float]] = []  # of each block, by method
    for block in (block for sweep in sweeps for block in blocks_of(sweep)):
        if left in ways_of(block):
            points = Frontiers(block, left).points
            areas += [
                {
                    label: float(AREA.of(by_seed[seed])[0])
                    for label, by_seed in points.items()
                    if seed in by_seed
                }
                for seed in block.seeds
            ]
    if len(areas) < FEWEST_BLOCKS:
        raise LawError(
            f"There are {len(areas)} blocks of one model, data set and seed; expected at least {FEWEST_BLOCKS}, since mean ranks over "
            "fewer tell no methods apart. Name the folders of more frontiers, run with other models, data sets (such as "
            "experiment=frontier_real) or seeds."
        )
    methods = [label for label in areas[0] if all(label in one for one in areas)]
    if len(methods) < FEWEST_METHODS:
        raise LawError(
            f"{len(methods)} methods ({', '.join(methods) or 'none'}) have a frontier in every block; expected at least "
            f"{FEWEST_METHODS}. Run the missing ones, or name only folders that have them."
        )
    scores = np.array([[one[label] for label in methods] for one in areas])  # (blocks, methods)
    means = rankdata(-scores, axis=1).mean(0)
    order = np.argsort(means, kind="stable")
    k, n = len(methods), len(areas)
    q = float(studentized_range.ppf(1 - LEVEL, k, np.inf)) / math.sqrt(2)
    return Ranks(
        [methods[i] for i in order],
        [float(means[i]) for i in order],
        n,
        float(friedmanchisquare(*scores.T).pvalue),
        q * math.sqrt(k * (k + 1) / (6 * n)),
    )


def plot_critical_difference(sweeps: Sequence[Sweep], path: Path) -> None:
    """Mean ranks on a line for each way to count what is left; a bar joins methods that are not told apart.

    Raises:
        LawError: as :func:`ranks_of`.
    """
    ways = [left for left in LEFT if all(left in run.metrics for sweep in sweeps for run in sweep.runs)]
    found = [ranks_of(sweeps, left) for left in ways]
    height = 1.2 + 0.24 * max(len(ranks.methods) + len(ranks.groups) for ranks in found)
    figure = Figure((7.5, height * len(found)), layout="constrained")
    for axes, left, ranks in zip(
        figure.subplots(len(found), 1, squeeze=False).flat, ways, found, strict=True
    ):
        _draw(axes, ranks)
        axes.set_title(
            f"{TITLES[left]}: mean rank over {ranks.blocks} blocks (Friedman p = {ranks.p:.2g}, critical difference "
            f"{ranks.critical:.2f})",
            fontsize="medium",
        )
    save(figure, path)


def _draw(axes: Axes, ranks: Ranks) -> None:
    """A line of ranks with the best on the left, a line to the name of each method below it, and the bars between."""
    k, half = len(ranks.methods), (len(ranks.methods) + 1) // 2
    lowest = len(ranks.groups) + 1
    for place, (name, rank) in enumerate(zip(ranks.methods, ranks.means, strict=True)):
        best = place < half  # names of the better half stand on the left
        depth = -lowest - (place if best else k - 1 - place)
        side = 0.7 if best else k + 0.3
        axes.plot([rank, rank, side], [0, depth, depth], color="black", linewidth=0.8)
        axes.text(
            side,
            depth,
            f" {plain(name)} {rank:.2f} ",
            ha="right" if best else "left",
            va="center",
            fontsize="small",
        )
    for depth, (first, last) in enumerate(ranks.groups, start=1):
        ends = [ranks.means[first] - 0.05, ranks.means[last] + 0.05]
        axes.plot(ends, [-depth, -depth], color="black", linewidth=3)
    axes.set(xlim=(0.5, k + 0.5), ylim=(-lowest - half, 0), yticks=[])
    axes.set_xticks(range(1, k + 1))
    axes.xaxis.tick_top()
    axes.spines[["left", "right", "bottom"]].set_visible(False)
