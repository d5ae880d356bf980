"""Where a run's numbers go besides its files: Weights & Biases, or nowhere."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Four calls in this order: ``start``, any number of ``log``, ``conclude``, ``finish``.

    ``predictions`` is a file with one JSON object in each line.
    """

    def start(self, name: str, group: str, folder: Path, config: Mapping[str, Any]) -> None: ...

    def log(self, values: Mapping[str, float]) -> None: ...

    def conclude(self, summary: Mapping[str, float], predictions: Path) -> None: ...

    def finish(self, failed: bool) -> None: ...


@dataclass
class NoTracker:
    """Stores nothing. The run's files contain everything."""

    def start(self, name: str, group: str, folder: Path, config: Mapping[str, Any]) -> None:
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

    def start(self, name: str, group: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._try("start", name, group, folder, config)

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


class Mode(Enum):
    """How W&B runs: ``offline`` needs no account and leaves a folder that ``wandb sync`` uploads."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass
class Wandb:
    """One Weights & Biases run for each run here.

    Args:
        mode: how W&B runs.
        project: the W&B project.
    """

    mode: Mode = Mode.offline
    project: str = "law"

    def start(self, name: str, group: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Begin a new run, even if this process has tracked one before."""
        import wandb

        self._run = wandb.init(
            project=self.project,
            name=name,
            group=group,
            dir=folder,
            config=dict(config),
            mode=self.mode.value,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
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
