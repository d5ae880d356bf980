"""TensorBoard as the tracker: ``tracker=tensorboard``, then ``tensorboard --logdir outputs/<name>``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from law.base.errors import LawError
from law.runs.identity import Identity


@dataclass
class TensorBoard:
    """Writes the curves and the final scores of each run into ``tensorboard/`` of its folder."""

    def start(self, identity: Identity, folder: Path) -> None:
        """Begin a file of events."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise LawError(
                "tracker=tensorboard needs TensorBoard: pip install -e '.[tensorboard]'."
            ) from error
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._steps = Counter[str]()
        self._writer.add_text("configuration", f"```json\n{json.dumps(identity.config, indent=1)}\n```")

    def log(self, values: Mapping[str, float]) -> None:
        """One step of each of these curves."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, self._steps[name])
            self._steps[name] += 1

    def conclude(self, summary: Mapping[str, float], predictions: Path) -> None:
        """The final scores; the predictions stay in their file."""
        for name, value in summary.items():
            self._writer.add_scalar(f"final/{name}", value, 0)

    def finish(self, failed: bool) -> None:
        """Close the file; the manifest says whether the run failed."""
        self._writer.close()
