"""Local rows for harness tasks; the harness calls these through ``!function`` in a task's YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets


def beside_task(file: str, **_: Any) -> datasets.DatasetDict:
    """The rows of a JSONL file in ``law/evaluation/tasks``, as the split ``test``."""
    return _load(Path(__file__).parent / file)


def in_folder(file: str, folder: str | None = None, **_: Any) -> datasets.DatasetDict:
    """The rows of a JSONL file in the user's ``folder`` (``evaluation.reasoning.data``)."""
    if folder is None:
        raise FileNotFoundError(f"no folder is named for {file}")
    return _load(Path(folder) / file)


def _load(path: Path) -> datasets.DatasetDict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    return datasets.DatasetDict({"test": datasets.Dataset.from_json(str(path))})
