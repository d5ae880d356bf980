"""Where a run's numbers go besides its files: Weights & Biases, or nowhere."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from law.base.cache import content_hash
from law.base.errors import first_line
from law.runs.identity import Identity, digests

log = logging.getLogger(__name__)

START_S = 30.0
"""A server that does not answer for so long is given up: the run is kept as an offline one."""

FINISH_S = 300.0
"""A server that does not take the rest of a run for so long is not waited for; the rest stays in the run's folder."""


class Tracker(Protocol):
    """Four calls in this order: ``start``, any number of ``log``, ``conclude``, ``finish``.

    ``predictions`` is a file with one JSON object in each line.
    """

    def start(self, identity: Identity, folder: Path) -> None: ...

    def log(self, values: Mapping[str, float]) -> None: ...

    def conclude(self, summary: Mapping[str, float], predictions: Path) -> None: ...

    def finish(self, failed: bool) -> None: ...


@dataclass
class NoTracker:
    """Stores nothing. The run's files contain everything."""

    def start(self, identity: Identity, folder: Path) -> None:
        """Store nothing."""

    def log(self, values: Mapping[str, float]) -> None:
        """Store nothing."""

    def conclude(self, summary: Mapping[str, float], predictions: Path) -> None:
        """Store nothing."""

    def finish(self, failed: bool) -> None:
        """Store nothing."""


class Guarded:
    """A tracker that cannot fail a run: after an error of the tracker in it, the log has a warning and it gets no more calls."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._lost = False

    def start(self, identity: Identity, folder: Path) -> None:
        self._try("start", identity, folder)

    def log(self, values: Mapping[str, float]) -> None:
        self._try("log", values)

    def conclude(self, summary: Mapping[str, float], predictions: Path) -> None:
        self._try("conclude", summary, predictions)

    def finish(self, failed: bool) -> None:
        self._try("finish", failed)

    def _try(self, call: str, *arguments: Any) -> None:
        try:
            if not self._lost or call == "finish":
                getattr(self._tracker, call)(*arguments)
        except Exception as error:  # the run continues after any error of a tracker
            if self._lost:
                return
            self._lost = True
            log.warning("the tracker failed at %s and is not used from here on: %s", call, error)


def run_id(identity: Identity, folder: Path) -> str:
    """What makes a tracked run the same one again: its place, its configuration, what it reads, and the code."""
    parts = [identity.name, folder.name, identity.config_hash, digests(identity.inputs), identity.code_hash]
    return content_hash(parts)[:16]


class Mode(Enum):
    """How W&B runs: ``offline`` needs no account and leaves a folder that ``wandb sync`` uploads."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass
class Wandb:
    """One Weights & Biases run for each run here.

    Its group is the sweep, its job type the method, its tags are model, data set and method. Its id is made from the
    identity of the run, so that a run that was killed goes on as the same one, whatever ``WANDB_RUN_ID`` says.

    Args:
        mode: how W&B runs; ``null`` takes ``WANDB_MODE``, and offline without it.
        project: the W&B project; ``null`` takes ``WANDB_PROJECT``, and ``law`` without it.
    """

    mode: Mode | None = None
    project: str | None = None

    def start(self, identity: Identity, folder: Path) -> None:
        """Begin the run, or go on with it; offline if no server answers."""
        import wandb

        mode = self.mode.value if self.mode else os.environ.get("WANDB_MODE", "offline")
        try:
            self._run = self._begin(identity, folder, mode)
        except wandb.Error as error:
            if mode != "online":
                raise
            log.warning(
                "W&B could not begin the run online (%s); it is kept offline, and `make sync` uploads it",
                first_line(error),
            )
            wandb.teardown()  # its own process takes the id for used by the run that did not begin
            self._run = self._begin(identity, folder, "offline")

    def _begin(self, identity: Identity, folder: Path, mode: str) -> Any:
        import wandb

        return wandb.init(
            id=run_id(identity, folder),
            resume="allow",
            project=self.project or os.environ.get("WANDB_PROJECT", "law"),
            name=folder.name,
            group=identity.name,
            job_type=identity.choices.get("method"),
            tags=sorted({*identity.choices.values()}),
            dir=folder,
            config=dict(identity.config),
            mode=mode,  # type: ignore[arg-type]
            reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=START_S, finish_timeout=FINISH_S
            ),
        )

    def log(self, values: Mapping[str, float]) -> None:
        """One step of the curves."""
        self._run.log(dict(values))

    def conclude(self, summary: Mapping[str, float], predictions: Path) -> None:
        """Store the final scores, and the predictions as a table."""
        import wandb

        self._run.summary.update(dict(summary))
        with predictions.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        if rows:
            columns: list[str | int] = list(rows[0])
            table = wandb.Table(columns=columns, data=[list(row.values()) for row in rows])
            self._run.log({"predictions": table})

    def finish(self, failed: bool) -> None:
        """Close the run, and mark it if it failed."""
        self._run.finish(exit_code=int(failed))
