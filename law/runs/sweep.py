"""The jobs of a sweep, and how long those that are left will take."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from time import monotonic
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from law.base.processes import rank
from law.base.progress import duration
from law.runs.folder import MANIFEST, read_object

log = logging.getLogger(__name__)


def jobs(params: Mapping[str, Any] | None, overrides: Sequence[str]) -> Iterator[dict[str, str]]:
    """What each job of a sweep sets, from the sweeper's parameters and the command line.

    They are expanded as Hydra's basic sweeper does it: an override of the command line replaces the
    sweeper's parameter.
    """
    swept = [f"{key}={value}" for key, value in (params or {}).items()]
    values: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides([*swept, *overrides]):
        key, several = override.get_key_element(), override.is_sweep_override()
        # an override taken back (~key) has no value
        values[key] = (
            [*override.sweep_string_iterator()] if several else [override.get_value_element_as_str() or ""]
        )
    for job in product(*values.values()):
        yield dict(zip(values, job, strict=True))


class Remaining(Callback):
    """Logs after each job of a sweep how many there are and how long the others will take.

    The time is the mean over the jobs of this process that were run to their end: not those that failed, and not those
    that had finished before. Nothing is logged where jobs may run side by side, or where Hydra's own sweeper does not
    choose them.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock, self._jobs, self._began = clock, 0, 0.0
        self._seconds: list[float] = []
        self._before: dict[str, Any] | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        hydra = config.hydra
        if {hydra.runtime.choices[group] for group in ("hydra/launcher", "hydra/sweeper")} != {"basic"}:
            return
        with suppress(HydraException):  # a sweep over all options of a group: only the sweeper can list them
            self._jobs = len([*jobs(hydra.sweeper.params, hydra.overrides.task)])

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        self._began, self._before = self._clock(), _manifest(config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if not self._jobs or rank():
            return
        failed, ended = job_return.status is JobStatus.FAILED, config.hydra.job.num + 1
        if not failed and _manifest(config) != self._before:
            self._seconds.append(self._clock() - self._began)
        left = ""
        if self._seconds and ended < self._jobs:
            mean = sum(self._seconds) / len(self._seconds)
            left = f"; about {duration(mean * (self._jobs - ended))} left"
        log.info("run %d of %d %s%s", ended, self._jobs, "failed" if failed else "finished", left)


def _manifest(config: DictConfig) -> dict[str, Any] | None:
    return read_object(Path(config.hydra.runtime.output_dir) / MANIFEST)
