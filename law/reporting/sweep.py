"""What the runs of one sweep are, before they are tabulated or drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

METHODS = "none retrained law memit sparing emmet alphaedit encore ultraedit zerounlearn finetune gradient_ascent seul woh grad_diff npo simnpo undial jensun dpo rmu".split()
"""The order of the methods in tables and legends. Any others follow by name."""

REFERENCES = ("none", "retrained")
"""Methods that wash nothing: no table sets their numbers in bold."""

ORIGIN = {"setup_hash": "configuration", "inputs_hash": "input files", "code_hash": "code"}
"""Entries of a manifest that the runs of one row must share, and what each is the hash of."""

UNKNOWN = "unknown"
"""The value of an entry that a manifest lacks, because an earlier version of the code wrote it."""


@dataclass(frozen=True)
class Setup:
    """What the runs of one row of a table share: everything but the seed.

    Args:
        settings: what the command line or the sweep set besides, by name.
        tasks: the tasks that the mean of reasoning is over, in alphabetical order; none if no run has finished.
        recall: the rule by which a fact counts as recalled; "" if no run has finished.
        origin: the entries of ``ORIGIN`` in which it differs from setups with the same choices and settings.
    """

    model: str
    dataset: str
    method: str
    settings: tuple[tuple[str, str], ...] = ()
    tasks: tuple[str, ...] = ()
    recall: str = ""
    origin: tuple[tuple[str, str], ...] = ()

    @property
    def asked(self) -> Setup:
        """The part that the user asked for: choices and settings."""
        return Setup(self.model, self.dataset, self.method, self.settings)

    @property
    def order(self) -> tuple[Any, ...]:
        """A key to sort setups: model, data set, methods in their own order, numbers by size."""
        rank = METHODS.index(self.method) if self.method in METHODS else len(METHODS)
        values = [(key, *_by_size(value)) for key, value in self.settings]
        return self.model, self.dataset, rank, self.method, values, self.tasks, self.recall, self.origin


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        ended: an ISO time, or "" if unknown.
        origin: every entry of ``ORIGIN``.
        source: the file of quantised weights that the model was made from; "" for a plain checkpoint.
        learned_from: what the method read besides the facts to wash; ``None`` if an earlier version of the code ran it.
        washed: the hash of the washed weights, "" likewise.
        knob: the setting that trades forgetting against keeping, and its value; ``None`` if the method has none, or likewise.
    """

    setup: Setup
    seed: int
    metrics: dict[str, float]
    folder: Path
    ended: str = ""
    origin: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    learned_from: tuple[str, ...] | None = None
    washed: str = ""
    knob: tuple[str, float] | None = None


@dataclass(frozen=True)
class Missing:
    """A job without a finished run. ``status`` is "failed", "unfinished" or "not run"."""

    setup: Setup
    seed: int
    status: str
    problem: str = ""


@dataclass(frozen=True)
class Sweep:
    """The finished runs of a folder, the jobs without one, and remarks on both for the reader."""

    runs: list[Run]
    missing: list[Missing]
    remarks: list[str] = field(default_factory=list)

    @property
    def setups(self) -> list[Setup]:
        """Every setup, with or without a finished run, in the order of a table."""
        setups = {run.setup for run in self.runs} | {job.setup for job in self.missing}
        return sorted(setups, key=lambda setup: setup.order)


def _by_size(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value
