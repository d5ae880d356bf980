"""The headline numbers of the frontiers of a block, with intervals and with what is not told apart from the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from law.reporting.blocks import Block, Outcome, Outcomes
from law.reporting.frontier import Array, along, area
from law.reporting.resampling import LEVEL, draw_weights, holm, interval, p_value

LEFT: dict[str, Callable[[Outcome], bool]] = {
    "forget/accuracy": lambda fact: fact.recalled,
    "forget/unrefused_accuracy": lambda fact: bool(fact.unrefused),
}
"""When a washed fact counts as left, by the metric that counts so."""

REASONING = "reasoning/mean"
"""The metric that is the mean accuracy on the reasoning tasks."""


def ways_of(block: Block) -> list[str]:
    """The ways to count what is left that all runs of a block report."""
    return [left for left in LEFT if all(left in run.metrics for run in block.runs)]


@dataclass(frozen=True)
class Points:
    """The points of one curve and seed, the unwashed model first, in the data and in each draw.

    Args:
        forgotten: the share of washed facts forgotten, (1 + draws, points).
        kept: the share of other facts kept, likewise.
        reasoning: mean accuracy on the reasoning tasks, likewise; NaN where it was not measured.
    """

    forgotten: Array
    kept: Array
    reasoning: Array


@dataclass(frozen=True)
class Measure:
    """A number of a frontier: its title, and how points give it, (1 + draws); NaN where the frontier does not reach it."""

    title: str
    of: Callable[[Points], Array]


MEASURES = (
    Measure("kept at 10 % left", lambda p: along(p.forgotten, p.kept, 0.9)[0]),
    Measure("kept at 5 % left", lambda p: along(p.forgotten, p.kept, 0.95)[0]),
    Measure("reasoning at 10 % left", lambda p: along(p.forgotten, p.kept, 0.9, p.reasoning)[1]),
    Measure("area", lambda p: area(p.forgotten, p.kept)),
)
AREA = MEASURES[-1]


@dataclass(frozen=True)
class Number:
    """A measure of one curve, over its seeds.

    Args:
        value: the mean over seeds; ``None`` if the frontier of some seed does not reach it.
        interval: of that mean, where there is one.
        reached: how many seeds reach it.
        seeds: of how many.
        p: of the difference to the best curve of the block, corrected; 1 for the best one, and ``None`` without a value.
    """

    value: float | None
    interval: tuple[float, float] | None
    reached: int
    seeds: int
    p: float | None

    @property
    def best(self) -> bool:
        """Whether it is the best of its block, or not told apart from it."""
        return self.p is not None and self.p >= LEVEL


class Frontiers:
    """The points of all curves of a block, with one set of draws for all of them, so that differences are paired.

    Args:
        block: the runs.
        left: the metric that says when a washed fact counts as left, a key of :data:`LEFT`.
    """

    def __init__(self, block: Block, left: str) -> None:
        self.block, self.left = block, left
        generator = np.random.default_rng(0)
        outcomes = block.outcomes
        subjects = sorted(
            {fact.subject for runs in outcomes.values() for fact in _all(next(iter(runs.values())))}
        )
        at = {subject: place for place, subject in enumerate(subjects)}
        weights = draw_weights(len(subjects), generator)  # (1 + draws, subjects)
        sizes = {
            (task, len(items))
            for runs in outcomes.values()
            for task, items in next(iter(runs.values())).reasoning.items()
        }
        items = {size: draw_weights(size[1], generator) for size in sorted(sizes)}  # (1 + draws, items)
        self._seeds = dict(zip(block.seeds, draw_weights(len(block.seeds), generator).T, strict=True))
        self.points: dict[str, dict[int, Points]] = {
            curve.label: {
                seed: _points(
                    [outcomes[seed][run.folder.name] for run in curve.points(seed)],
                    at,
                    weights,
                    items,
                    LEFT[left],
                )
                for seed in curve.seeds
            }
            for curve in block.curves
        }

    def mean(self, by_seed: Mapping[int, Array]) -> Array:
        """The mean over seeds in the data and in each draw, (1 + draws); NaN where a seed that was drawn has NaN, or none was."""
        seeds = np.stack([self._seeds[seed] for seed in by_seed], 1)  # (1 + draws, seeds)
        values = np.stack([*by_seed.values()], 1)
        total = seeds.sum(1)
        return np.where(seeds > 0, seeds * values, 0).sum(1) / np.where(total > 0, total, np.nan)

    def numbers(self, measure: Measure) -> dict[str, Number]:
        """The measure of each curve, by label."""
        values = {
            label: {seed: measure.of(points) for seed, points in by_seed.items()}
            for label, by_seed in self.points.items()
        }
        reached = {
            label: sum(bool(np.isfinite(one[0])) for one in by_seed.values())
            for label, by_seed in values.items()
        }
        means = {
            label: self.mean(by_seed) for label, by_seed in values.items() if reached[label] == len(by_seed)
        }
        p_values = self._compared(values, means)
        return {
            label: Number(
                float(means[label][0]) if label in means else None,
                interval(means[label]) if label in means else None,
                reached[label],
                len(by_seed),
                p_values.get(label),
            )
            for label, by_seed in values.items()
        }

    def _compared(
        self, values: Mapping[str, Mapping[int, Array]], means: Mapping[str, Array]
    ) -> dict[str, float]:
        """The corrected p-value of each curve that has a mean against the best one, over the seeds that both have."""
        if not means:
            return {}
        best = max(means, key=lambda label: float(means[label][0]))
        others = [label for label in means if label != best]
        found = []
        for label in others:
            common = [seed for seed in values[label] if seed in values[best]]
            differences = {seed: values[best][seed] - values[label][seed] for seed in common}
            found.append(p_value(self.mean(differences)) if common else 1.0)
        return {best: 1.0, **dict(zip(others, holm(found), strict=True))}


def _points(
    told: Sequence[Outcomes],
    at: Mapping[str, int],
    weights: Array,
    items: Mapping[tuple[str, int], Array],
    left: Callable[[Outcome], bool],
) -> Points:
    """The points of the runs of one curve and seed.

    Args:
        told: what the runs scored.
        at: the place of each subject among the weights.
        weights: of the subjects, (1 + draws, subjects).
        items: weights of the items of reasoning, (1 + draws, items), by task and number of items.
        left: when a washed fact counts as left.
    """
    lost = _shares([one.washed for one in told], left, at, weights)
    kept = _shares([one.kept for one in told], lambda fact: fact.recalled, at, weights)
    forgotten = np.where(np.isfinite(kept), 1 - lost, np.nan)  # a draw without any kept fact says nothing
    return Points(_behind(0.0, forgotten), _behind(1.0, kept), _reasoning(told, items, len(weights)))


def _reasoning(told: Sequence[Outcomes], weights: Mapping[tuple[str, int], Array], rows: int) -> Array:
    """The mean accuracy over tasks of the unwashed model and of each run, (``rows``, 1 + runs); NaN without tasks."""
    means = []
    for task, first in told[0].reasoning.items():
        weight = weights[task, len(first)]
        right = np.array(
            [[one for one, _ in first], *([one for _, one in run.reasoning[task]] for run in told)]
        )
        means.append(weight @ right.T / weight.sum(1, keepdims=True))  # (rows, items) @ (items, 1 + runs)
    return np.mean(means, 0) if means else np.full((rows, 1 + len(told)), np.nan)


def _shares(
    runs: Sequence[Sequence[Outcome]],
    counts: Callable[[Outcome], bool],
    at: Mapping[str, int],
    weights: Array,
) -> Array:
    """The weighted share of the facts of each run that count, (1 + draws, runs); NaN where no fact was drawn."""
    sums = np.zeros((len(at), len(runs)))
    sizes = np.zeros((len(at), 1))
    for column, facts in enumerate(runs):
        for fact in facts:
            sums[at[fact.subject], column] += counts(fact)
    for fact in runs[0]:  # all runs of a seed have the same facts
        sizes[at[fact.subject]] += 1
    total = weights @ sizes  # (1 + draws, subjects) @ (subjects, 1)
    return (weights @ sums) / np.where(total > 0, total, np.nan)  # (1 + draws, subjects) @ (subjects, runs)


def _behind(unwashed: float, points: Array) -> Array:
    """The points with that of the unwashed model before them."""
    return np.concatenate([np.full((len(points), 1), unwashed), points], 1)


def _all(one: Outcomes) -> Sequence[Outcome]:
    return (*one.washed, *one.kept)
