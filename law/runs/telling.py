"""How far a run has come, in a small file of its folder that ``experiments/status.py`` reads."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from law.base.files import remove, write_json
from law.base.progress import Reached
from law.runs.folder import PROGRESS
from law.runs.manifest import now


class ProgressFile:
    """Writes ``progress.json``: the stage of the run, and how far the loop in it has come. It never fails a run."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PROGRESS
        self._stage = ""

    def stage(self, name: str) -> None:
        """A stage of the run begins."""
        self._stage = name
        self._write({})

    def step(self, reached: Reached) -> None:
        """A loop inside the stage has come so far."""
        self._write({"step": reached.stage, **asdict(reached)})

    def close(self) -> None:
        """The run has ended, and its manifest says how."""
        with suppress(OSError):
            remove(self._path)

    def _write(self, reached: dict[str, object]) -> None:
        with suppress(OSError):  # such as a full disk, which what matters will tell
            write_json(self._path, reached | {"stage": self._stage, "updated": now()})
