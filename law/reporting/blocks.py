"""Runs whose frontiers may be compared: the same model, data set and facts, and what became of each fact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from law.base.errors import LawError
from law.reporting.comparability import panels_of
from law.reporting.labels import labels, of_method
from law.reporting.sweep import Run, Setup, Sweep
from law.runs.folder import KEPT, PREDICTIONS, REASONING, REDACTED, read_lines

POINT = "point"
"""The setting of a run that turns its method's knob."""


@dataclass(frozen=True)
class Outcome:
    """What became of one fact: ``recalled`` after washing, and when the answer may not begin by refusing (``None``: not asked)."""

    id: str
    subject: str
    recalled: bool
    unrefused: bool | None


@dataclass(frozen=True)
class Outcomes:
    """What one run scored: the facts that were washed, the others, and for each reasoning task the accuracy on each item, of the
    unwashed and of the washed model.
    """

    washed: tuple[Outcome, ...]
    kept: tuple[Outcome, ...]
    reasoning: Mapping[str, Sequence[tuple[float, float]]]

    @property
    def scored(self) -> tuple[object, ...]:
        """Which facts and items were scored."""
        facts = (tuple(sorted(one.id for one in half)) for half in (self.washed, self.kept))
        return (*facts, {task: len(items) for task, items in self.reasoning.items()})


@dataclass(frozen=True)
class Curve:
    """The runs of one method and its other settings, at all values of its knob and with all seeds.

    ``owed`` counts the jobs of the sweep that belong to it and have no finished run.
    """

    label: str
    runs: Sequence[Run]
    owed: int = 0

    @property
    def knob(self) -> str:
        """The setting that is the knob, within the method."""
        return next((run.knob[0].removeprefix("method.") for run in self.runs if run.knob), "unknown")

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs, each once."""
        return sorted({run.seed for run in self.runs})

    def points(self, seed: int) -> list[Run]:
        """The runs of one seed."""
        return [run for run in self.runs if run.seed == seed]


@dataclass(frozen=True)
class Block:
    """Curves of one model and data set, over the same facts for each seed."""

    title: str
    model: str
    dataset: str
    curves: Sequence[Curve]

    @property
    def runs(self) -> list[Run]:
        """The runs of all curves."""
        return [run for curve in self.curves for run in curve.runs]

    @property
    def seeds(self) -> list[int]:
        """The seeds of all curves, each once."""
        return sorted({seed for curve in self.curves for seed in curve.seeds})

    @cached_property
    def outcomes(self) -> dict[int, dict[str, Outcomes]]:
        """By seed and name of the run's folder, what became of its facts.

        Raises:
            LawError: a run's files do not tell, or two runs of a seed score other facts or other items of reasoning.
        """
        found: dict[int, dict[str, Outcomes]] = defaultdict(dict)
        for run in self.runs:
            one = _read(run)
            first = next(iter(found[run.seed].items()), None)
            if first is not None and first[1].scored != one.scored:
                raise LawError(
                    f"{self.title}, seed {run.seed}: {first[0]} and {run.folder.name} score other facts or reasoning items; expected "
                    "the same, since methods are compared fact by fact. Make both runs with the same data set and the same version "
                    "of the code, or keep them in two folders."
                )
            found[run.seed][run.folder.name] = one
        return found


def blocks_of(sweep: Sweep) -> list[Block]:
    """The blocks of a sweep, in the order of a table. Each panel has one for each choice of settings that are none of the method.

    Raises:
        LawError: no method was run at two values of its knob or more with one seed.
    """
    blocks = []
    for panel in panels_of({run.setup for run in sweep.runs if run.setup.method != "none"}):
        parts: dict[tuple[tuple[str, str], ...], dict[Setup, list[Run]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for run in sweep.runs:
            if run.setup in panel.setups:
                other = tuple(pair for pair in run.setup.settings if not _of_curve(pair))
                parts[other][_curve(run)].append(run)
        shared = set.intersection(*({*other} for other in parts))
        for other, grouped in parts.items():
            named = labels(sorted(grouped, key=lambda setup: setup.order))
            told = ", ".join(f"{key}={value}" for key, value in other if (key, value) not in shared)
            title = f"{panel.title}, {told}" if told else panel.title
            curves = [
                Curve(
                    label, grouped[setup], sum(_but_point(job.setup) == setup.asked for job in sweep.missing)
                )
                for setup, label in named.items()
            ]
            blocks.append(Block(title, panel.model, panel.dataset, curves))
    if not any(
        len(curve.points(seed)) > 1 for block in blocks for curve in block.curves for seed in curve.seeds
    ):
        raise LawError(
            "No method has finished runs at two values of its knob with one seed; expected that of at least one, since a "
            "frontier joins such runs. Make them with `python experiments/wash.py experiment=frontier`, or with "
            "`python experiments/wash.py -m method=memit point=0,1,2,3,4,5,6,7,8`, then name the folder of those runs."
        )
    return blocks


def _of_curve(pair: tuple[str, str]) -> bool:
    """Whether a setting tells the runs of one block apart: one of the method, or its point."""
    return of_method(pair) or pair[0] == POINT


def _but_point(setup: Setup) -> Setup:
    """What was asked for, without the point."""
    return replace(setup.asked, settings=tuple(pair for pair in setup.settings if pair[0] != POINT))


def _curve(run: Run) -> Setup:
    """What the runs of a curve share: all of the setup except where the knob stands."""
    where = {POINT, run.knob[0] if run.knob else POINT}
    return replace(run.setup, settings=tuple(pair for pair in run.setup.settings if pair[0] not in where))


def _read(run: Run) -> Outcomes:
    try:
        halves = [
            tuple(
                Outcome(str(row["id"]), str(row["subject"]), bool(row["known_after"]), row["known_unrefused"])
                for row in read_lines(run.folder / name)
                if row["known_before"]
            )
            for name in (PREDICTIONS, KEPT)
        ]
        reasoning: dict[str, list[tuple[float, float]]] = defaultdict(list)
        if run.setup.tasks:
            for row in read_lines(run.folder / REASONING):
                reasoning[row["task"]].append((float(row["before"]), float(row["after"])))
        tasks = {task: reasoning[task] for task in run.setup.tasks}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LawError(
            f"{run.folder} does not tell what became of each fact and item ({type(error).__name__}: {error}); expected "
            f"{PREDICTIONS}, {KEPT} and {REASONING} with the outcome of each fact and item. An earlier version of the code made the "
            "run: make it again with rerun=true."
        ) from error
    if any(fact.subject == REDACTED for half in halves for fact in half):
        raise LawError(
            f"{run.folder} does not tell the subjects of its facts, since it was made with redact=true; expected them, since facts "
            "about one subject are drawn together. Make the runs of a frontier with redact=false where that is allowed."
        )
    if not halves[1]:
        raise LawError(
            f"{run.folder} scored no other facts; expected some, since a frontier shows how many are kept. Set dataset.keep."
        )
    return Outcomes(halves[0], halves[1], tasks)
