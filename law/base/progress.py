"""How far a stage has come: a bar on a terminal, and lines in the log everywhere else."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Protocol, TypeVar

from tqdm import tqdm

from law.base.processes import rank

log = logging.getLogger(__name__)

EVERY_S = 30.0
"""The shortest time between two lines about one stage."""

T = TypeVar("T")


class Bar(Protocol):
    """Receives how much has been done since the last call."""

    def update(self, n: int) -> object: ...


@contextmanager
def progress(
    stage: str, total: int | None, unit: str, done: int = 0, clock: Callable[[], float] = monotonic
) -> Iterator[Bar]:
    """The progress of a stage of ``total`` units, of which an earlier process has done ``done``.

    On a terminal this is a bar. Elsewhere the log has a line when the stage begins, a line at most every ``EVERY_S``
    seconds with what is done and the time that is left at this rate, and a line when the stage ends. Of several
    processes, only the first one writes.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, initial=done, desc=stage, unit=f" {unit}", leave=False) as bar:
            yield bar
        return
    lines = _Lines(stage, total, unit, done, clock)
    yield lines
    lines.end()


def tracked(items: Sequence[T], stage: str, unit: str) -> Iterator[T]:
    """The items, one after another, with the progress of the loop over them."""
    with progress(stage, len(items), unit) as bar:
        for item in items:
            yield item
            bar.update(1)


class _Lines:
    """The progress of a stage as lines in the log."""

    def __init__(
        self, stage: str, total: int | None, unit: str, done: int, clock: Callable[[], float]
    ) -> None:
        self._stage, self._total, self._unit, self._clock = stage, total, unit, clock
        self._before = self._done = done
        self._begun = self._told = clock()
        self._log("%s: %s", self._count() if done or total is None else f"{total:,} {unit}")

    def update(self, n: int) -> None:
        """Add to what is done, and tell if it is time to."""
        self._done += n
        now = self._clock()
        if now - self._told < EVERY_S or self._done == self._total:
            return
        self._told = now
        if self._total is None:
            self._log("%s: %s in %s", self._count(), duration(now - self._begun))
            return
        left_s = (now - self._begun) * (self._total - self._done) / (self._done - self._before)
        self._log("%s: %s, about %s left", self._count(), duration(left_s))

    def end(self) -> None:
        """Tell how long it took."""
        self._log("%s: %s in %s", f"{self._done:,} {self._unit}", duration(self._clock() - self._begun))

    def _count(self) -> str:
        """What is done of how much."""
        if self._total is None:
            return f"{self._done:,} {self._unit}"
        share = 100 * self._done / self._total
        return f"{self._done:,} of {self._total:,} {self._unit} ({share:.0f} %)"

    def _log(self, line: str, *words: str) -> None:
        if rank() == 0:
            log.info(line, self._stage, *words)


def duration(seconds: float) -> str:
    """A time in words, to two digits or so: 0.4 s, 25 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
