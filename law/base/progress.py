"""How far a stage has come: a bar on a terminal, and lines in the log everywhere else."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic
from typing import Protocol, TypeVar

from tqdm import tqdm

from law.base.processes import rank

log = logging.getLogger(__name__)

EVERY_S = 30.0
"""The shortest time between two lines about one stage."""

HEARD_S = 5.0
"""The shortest time between two calls of a listener about one stage."""

T = TypeVar("T")


class Bar(Protocol):
    """Receives how much has been done since the last call."""

    def update(self, n: int) -> object: ...


@dataclass(frozen=True)
class Reached:
    """How far a stage has come.

    Args:
        done: of ``total``, in ``unit``; ``total`` is ``None`` where nobody knows it.
        seconds: since this process began the stage.
        left_s: the seconds that are left at this rate; ``None`` before the first unit, or without a total.
    """

    stage: str
    done: int
    total: int | None
    unit: str
    seconds: float
    left_s: float | None


Listener = Callable[[Reached], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Inside, ``listener`` is also told how far a stage has come: at its begin, then at most every ``HEARD_S`` seconds."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


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
            yield _Stage(stage, total, unit, done, clock, bar)
        return
    lines = _Stage(stage, total, unit, done, clock)
    lines.begin()
    yield lines
    lines.end()


def tracked(items: Sequence[T], stage: str, unit: str) -> Iterator[T]:
    """The items, one after another, with the progress of the loop over them."""
    with progress(stage, len(items), unit) as bar:
        for item in items:
            yield item
            bar.update(1)


class _Stage:
    """Counts what is done of a stage, and tells it to the listener, to a bar, or without one to the log."""

    def __init__(
        self,
        stage: str,
        total: int | None,
        unit: str,
        done: int,
        clock: Callable[[], float],
        bar: Bar | None = None,
    ) -> None:
        self._stage, self._total, self._unit, self._clock, self._bar = stage, total, unit, clock, bar
        self._before = self._done = done
        self._begun = self._told = self._heard = clock()
        self._listener = _listener.get() if rank() == 0 else None
        if self._listener:
            self._listener(self._reached(self._begun))

    def update(self, n: int) -> None:
        """Add to what is done, and tell if it is time to."""
        self._done += n
        now = self._clock()
        if self._listener and now - self._heard >= HEARD_S:
            self._heard = now
            self._listener(self._reached(now))
        if self._bar:
            self._bar.update(n)
        elif now - self._told >= EVERY_S and self._done != self._total:
            self._told = now
            reached = self._reached(now)
            if reached.left_s is None:
                self._log("%s: %s in %s", self._count(), duration(reached.seconds))
            else:
                self._log("%s: %s, about %s left", self._count(), duration(reached.left_s))

    def begin(self) -> None:
        """Tell how much there is to do."""
        known = self._done or self._total is None
        self._log("%s: %s", self._count() if known else f"{self._total:,} {self._unit}")

    def end(self) -> None:
        """Tell how long it took."""
        self._log("%s: %s in %s", f"{self._done:,} {self._unit}", duration(self._clock() - self._begun))

    def _reached(self, now: float) -> Reached:
        seconds, own = now - self._begun, self._done - self._before
        left_s = None if self._total is None or own == 0 else seconds * (self._total - self._done) / own
        return Reached(self._stage, self._done, self._total, self._unit, seconds, left_s)

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
