"""How far a sweep is: which of its runs have finished, run, failed, were stopped, or wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from law.base.errors import LawError
from law.base.progress import duration
from law.reporting.loading import expected_jobs, setup_of
from law.reporting.sweep import Setup
from law.runs.folder import LOCK, MANIFEST, PROGRESS, read_object
from law.runs.identity import settings_of
from law.runs.lock import LEASE_S

LOG = "wash.log"

STATES = ("finished", "running", "failed", "stopped", "waiting")
"""The order of the groups. A run that was stopped has left neither a result nor an error: its process was killed."""


@dataclass(frozen=True)
class JobStatus:
    """One run of a sweep.

    Args:
        name: of its folder; of a waiting run, what tells it apart.
        state: one of :data:`STATES`.
        told: the seconds of a finished run; how far a running one is; the last line of the error of a failed one, and
            where its log lies.
        seconds: that a finished run took; otherwise 0.
    """

    name: str
    state: str
    told: str = ""
    seconds: float = 0.0


def sweep_status(folder: Path) -> list[JobStatus]:
    """Every run of a sweep, in the order of :data:`STATES`.

    Raises:
        LawError: there is no such folder, or no run in it.
    """
    found = [
        path for path in sorted(folder.glob("*/")) if (path / ".hydra").is_dir() or (path / MANIFEST).exists()
    ]
    if not found:
        raise LawError(
            f"{folder} holds no run; expected the folder of a sweep, outputs/<name>. Name one that has runs."
        )
    jobs = [_job(path) for path in found]
    begun = [_asked(path) for path in found]
    jobs += [
        JobStatus(_described(setup, seed), "waiting")
        for setup, seed in expected_jobs(folder / "multirun.yaml")
        if (setup, seed) not in begun
    ]
    return sorted(jobs, key=lambda job: STATES.index(job.state))


def outlook(jobs: list[JobStatus]) -> str:
    """How many runs are in which state, and how long the others will take if they run as those before."""
    counts = {state: sum(job.state == state for job in jobs) for state in STATES}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    left = counts["running"] + counts["waiting"]
    if not (left and counts["finished"] and counts["running"]):
        return f"{told}."
    mean = sum(job.seconds for job in jobs) / counts["finished"]
    return (
        f"{told}. About {duration(mean * left / counts['running'])} left, with {counts['running']} at a time."
    )


def _job(folder: Path) -> JobStatus:
    manifest = read_object(folder / MANIFEST)
    status = "running" if manifest is None else manifest.get("status")
    if manifest is not None and status == "finished":
        seconds = sum(manifest.get("stages_s", {}).values())
        return JobStatus(folder.name, "finished", duration(seconds), seconds)
    if manifest is not None and status == "failed":
        problem = str(manifest.get("error", "")).strip().splitlines() or ["no error was written down"]
        return JobStatus(folder.name, "failed", f"{problem[-1]} ({folder / LOG})")
    if _held(folder / LOCK):
        return JobStatus(folder.name, "running", _reached(read_object(folder / PROGRESS) or {}))
    if manifest is None:  # it failed before its manifest was begun
        return JobStatus(folder.name, "failed", f"{_last_line(folder / LOG)} ({folder / LOG})")
    return JobStatus(
        folder.name, "stopped", f"{_reached(read_object(folder / PROGRESS) or {})} ({folder / LOG})"
    )


def _held(lock: Path) -> bool:
    """Whether the heart of a lock's owner beats."""
    try:
        return time.time() - lock.stat().st_mtime < LEASE_S
    except FileNotFoundError:
        return False


def _reached(progress: dict[str, Any]) -> str:
    stage = str(progress.get("stage", "begins")).replace("_", " ")
    if "step" not in progress:
        return stage
    done, total, left_s = progress["done"], progress["total"], progress["left_s"]
    share = f"{done:,} {progress['unit']}" if total is None else f"{done:,} of {total:,} {progress['unit']}"
    left = "" if left_s is None else f", about {duration(left_s)} left"
    return f"{stage}; {progress['step']}: {share}{left}"


def _last_line(log: Path) -> str:
    try:
        return (log.read_text(encoding="utf-8").strip().splitlines() or [""])[-1]
    except OSError:
        return "no log"


def _asked(folder: Path) -> tuple[Setup, int] | None:
    """What the run in a folder was asked for, as :func:`expected_jobs` names it."""
    hydra, config = (folder / ".hydra" / f"{name}.yaml" for name in ("hydra", "config"))
    try:
        record: Any = OmegaConf.to_container(OmegaConf.load(hydra), resolve=False)
        seed = int(OmegaConf.load(config).seed)
    except (OSError, ValueError, AttributeError):
        return None
    asked = record["hydra"]
    return setup_of(asked["runtime"]["choices"], settings_of(asked["overrides"]["task"])), seed


def _described(setup: Setup, seed: int) -> str:
    def parts() -> Iterator[str]:
        yield f"{setup.method}-{setup.model}-{setup.dataset}-s{seed}"
        yield from (f"{key}={value}" for key, value in setup.settings)

    return " ".join(parts())
