"""Which runs may stand in one row, and which rows may stand in one table.

The runs of a row are averaged, so they must share configuration, input files and code. The rows of a table
are compared, so they must share the reasoning tasks and the rule of recall.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from law.reporting.labels import labels, of_method
from law.reporting.sweep import ORIGIN, UNKNOWN, Run, Setup

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass
class Panel:
    """The setups of one table: one model and data set, one set of reasoning tasks, one rule of recall."""

    model: str
    dataset: str
    tasks: tuple[str, ...]
    recall: str
    setups: list[Setup]
    title: str = ""

    def takes(self, setup: Setup) -> bool:
        """Whether the setup can stand here. One that measured no reasoning can; so can one without a finished run."""
        same = (setup.model, setup.dataset) == (self.model, self.dataset)
        return same and setup.tasks in ((), self.tasks) and setup.recall in ("", self.recall)


def separate(runs: Sequence[Run]) -> list[Run]:
    """The same runs. Those with the same choices and settings but another origin get setups of their own."""
    alike = _grouped(runs, lambda run: run.setup.asked)
    separated = []
    for run in runs:
        differing = _differing(alike[run.setup.asked])
        origin = tuple((part, run.origin[part]) for part in differing)
        separated.append(replace(run, setup=replace(run.setup, origin=origin)))
    return separated


def panels_of(setups: Iterable[Setup]) -> list[Panel]:
    """The setups in panels; the panels, and the setups of each, in the order of a table."""
    panels: list[Panel] = []
    ordered = sorted(setups, key=lambda setup: setup.order)
    for setup in sorted(ordered, key=lambda setup: (not setup.tasks, not setup.recall)):
        home = next((panel for panel in panels if panel.takes(setup)), None)
        if home is None:
            home = Panel(setup.model, setup.dataset, setup.tasks, setup.recall, [])
            panels.append(home)
        home.setups.append(setup)
    for panel in panels:
        panel.setups.sort(key=lambda setup: setup.order)
    panels.sort(key=lambda panel: panel.setups[0].order)
    for panel in panels:
        panel.title = _title(panel, [other for other in panels if _pair(other) == _pair(panel)])
    return panels


def _title(panel: Panel, rivals: Sequence[Panel]) -> str:
    """Model and data set, and what distinguishes the panel from the others of the same two."""
    title = f"{panel.model}, {panel.dataset}"
    if len({rival.tasks for rival in rivals}) > 1:
        common = set.intersection(*(set(rival.tasks) for rival in rivals))
        own = [task for task in panel.tasks if task not in common] or panel.tasks
        title += f", reasoning on {', '.join(own) or 'no task'}"
    if len({rival.recall for rival in rivals}) > 1:
        title += f", recall by {panel.recall}"
    return title


def _pair(one: Panel | Setup) -> tuple[str, str]:
    return one.model, one.dataset


def names_of(setups: Iterable[Setup]) -> dict[Setup, str]:
    """What each setup is called outside its table: the title of its panel and its label."""
    return {
        setup: f"{panel.title}, {label}"
        for panel in panels_of(setups)
        for setup, label in labels(panel.setups).items()
    }


def check_rows(runs: Sequence[Run]) -> list[str]:
    """Remarks, one sentence or more each, on runs that were separated and on what could not be checked."""
    split: dict[str, list[str]] = defaultdict(list)
    mixed = []
    asked_for = _grouped(runs, lambda run: run.setup.asked)
    for asked, name in names_of(asked_for).items():
        recorded = [run for run in asked_for[asked] if UNKNOWN not in run.origin.values()]
        if differing := _differing(recorded):
            split[_listed(differing)].append(name)
        if 0 < len(recorded) < len(asked_for[asked]):
            mixed.append(name)
    remarks = [
        f"Runs with the same settings differ in their {what} and stand in rows of their own: {'; '.join(names)}."
        for what, names in split.items()
    ]
    if mixed:
        remarks.append(
            "An earlier version of the code made some runs of these methods and did not record configuration, input "
            f"files and code. These runs stand in rows of their own: {'; '.join(mixed)}."
        )
    rows, unchecked = _grouped(runs, lambda run: run.setup), []
    for setup, name in names_of(rows).items():
        row = rows[setup]
        if len(row) > 1 and UNKNOWN in row[0].origin.values():
            unchecked.append(name)
        packages = sorted({package for run in row for package in run.versions})
        changed = [package for package in packages if len({run.versions.get(package) for run in row}) > 1]
        if changed:
            remarks.append(f"{name}: the runs of one row used different versions of {', '.join(changed)}.")
    if unchecked:
        remarks.append(
            "It could not be checked whether the runs of a row share configuration, input files and code, since "
            f"an earlier version of the code made them and did not record these: {'; '.join(unchecked)}."
        )
    by_code = _grouped(runs, lambda run: run.origin.get(ORIGIN["code_hash"], UNKNOWN))
    if len(known := [code for code in by_code if code != UNKNOWN]) > 1:
        users = [f"{code[:4]} ({', '.join(_methods(by_code[code]))})" for code in known]
        remarks.append(f"The runs were made with {len(known)} versions of the code: {', '.join(users)}.")
    remarks += _same_weights(runs)
    for (model, dataset), panels in _grouped(panels_of(rows), _pair).items():
        if len(sets := sorted({panel.tasks for panel in panels})) > 1:
            named = "; ".join(", ".join(tasks) or "no task" for tasks in sets)
            remarks.append(
                f"{model}, {dataset}: the runs measure reasoning on different tasks ({named}), so their means cannot be "
                "compared. Each set of tasks has a table of its own. evaluation.reasoning.source=hub or =local "
                "gives every run the same tasks."
            )
        if len(rules := sorted({panel.recall for panel in panels})) > 1:
            remarks.append(
                f"{model}, {dataset}: the runs decide by different rules whether a fact is recalled "
                f"({', '.join(rules)}). Each rule has a table of its own."
            )
    return remarks


def _same_weights(runs: Sequence[Run]) -> list[str]:
    """A remark for each two or more washes by other methods, or other settings of one, that end with the same weights."""
    names = names_of({run.setup for run in runs})
    remarks = []
    washed = [run for run in runs if run.washed and run.setup.method != "none"]
    for alike in _grouped(washed, lambda run: run.washed).values():
        # other facts to keep, or another evaluation, leave the wash as it is
        ways = _grouped(alike, lambda run: (run.setup.method, *filter(of_method, run.setup.settings)))
        if len(ways) > 1:
            ended = "; ".join(f"{names[first.setup]}, seed {first.seed}" for first, *_ in ways.values())
            remarks.append(
                f"Runs under different names end with the same washed weights: {ended}. What tells their names apart had "
                "no effect."
            )
    return remarks


def _differing(runs: Sequence[Run]) -> list[str]:
    """The parts of their origin in which these runs differ."""
    return [part for part in ORIGIN.values() if len({run.origin.get(part) for run in runs}) > 1]


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _methods(runs: Iterable[Run]) -> list[str]:
    return [*dict.fromkeys(run.setup.method for run in runs)]


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The items by their key, in the order of the first of each."""
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
