"""Which run this is: what tells it from another one, and whether it has finished already."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from law.base.cache import content_hash

CHOICES = ("model", "dataset", "method")
NO_SETTINGS = {
    "name",
    "seed",
    "save",
    "rerun",
    "tracker",
    "experiment",
    *CHOICES,
}  # change no number, or are told elsewhere


@dataclass(frozen=True)
class Identity:
    """Which run this is: what the table groups by, and what makes it the same run again."""

    name: str  # the sweep it belongs to
    choices: Mapping[str, str]  # which model, dataset and method were chosen
    settings: Mapping[str, str]  # what the command line or the sweep set besides
    seed: int
    config: Mapping[str, Any]  # resolved
    inputs: str  # which files the model, the facts and the texts are


def settings_of(overrides: Iterable[str]) -> dict[str, str]:
    """The settings among Hydra overrides: what tells runs of one model, data set, method and seed apart."""
    split = (override.lstrip("+~").partition("=") for override in overrides)
    return {
        key: value
        for key, _, value in split
        if key not in NO_SETTINGS and key.partition(".")[0] not in ("tracker", "hydra")
    }


def finished(folder: Path, identity: Identity) -> dict[str, float] | None:
    """The metrics of a finished run of the same configuration over the same files, or ``None``."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        asked = ("finished", content_hash(identity.config), identity.inputs)
        if (manifest["status"], manifest["config_hash"], manifest["inputs"]) != asked:
            return None
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError):
        return None
