"""What a run leaves in its folder, besides what Hydra and the tracker write there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from law.base.files import file_hash, remove, remove_partial

MANIFEST = "manifest.json"
METRICS = "metrics.json"
PREDICTIONS = "predictions.jsonl"
KEPT = "kept.jsonl"
REASONING = "reasoning.jsonl"
GENERATIONS = "generations.jsonl"
ATTACKS = "attacks.jsonl"
ROUNDING = "rounding.jsonl"
UNKNOWN_FACTS = "unknown_facts.jsonl"
METHOD = "method.jsonl"
WASHED = "washed"
PROGRESS = "progress.json"
LOCK = "run.lock"

REDACTED = "(redacted)"
"""What stands in the place of the words of facts and answers when a run is made with ``redact=true``."""

EARLIER = "earlier"
"""The folder, inside a run's, that the results of a finished run are moved to when it is run again."""


RESULTS = (METRICS, PREDICTIONS, KEPT, REASONING, UNKNOWN_FACTS, GENERATIONS, ATTACKS, ROUNDING, METHOD)
"""The files of a run whose hashes its manifest has."""


def result_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each of :data:`RESULTS` that is there."""
    return {name: file_hash(folder / name) for name in RESULTS if (folder / name).exists()}


def damaged_results(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """The names of the results that have gone or have other hashes than the manifest says; earlier versions said none."""
    now = result_hashes(folder)
    return [name for name, digest in manifest.get("files", {}).items() if now.get(name) != digest]


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; ``None`` where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def clear(folder: Path) -> None:
    """Leave no result of an earlier run where those of the next one are to be.

    The results of a finished run are moved to :data:`EARLIER`, in the place of any that lie there, and so are those
    beside a damaged manifest. Those of another one are removed.
    """
    remove_partial(folder)
    # the manifest first: without it, the rest is no finished run
    names = (MANIFEST, *RESULTS, WASHED)
    results, earlier = [path for name in names if (path := folder / name).exists()], folder / EARLIER
    manifest = read_object(folder / MANIFEST) if (folder / MANIFEST).exists() else {}
    if manifest is None or manifest.get("status") == "finished":
        remove(earlier)
        earlier.mkdir()
        for path in results:
            path.replace(earlier / path.name)
    else:
        for path in results:
            remove(path)
