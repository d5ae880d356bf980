"""The manifest of a run: what it was made with, and how it ended (docs/reference/run-files.md)."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from law.base.cache import content_hash
from law.runs.identity import PACKAGES, Identity, digests

TOLD = ("hydra-core", "omegaconf", "wandb")
"""Packages whose versions are recorded in addition to those that can change a number."""


def begin(identity: Identity) -> dict[str, Any]:
    """The manifest of a run that starts now."""
    return {
        "status": "running",
        **{name: value for name, value in asdict(identity).items() if name not in ("config", "inputs")},
        **inputs_entries(identity.inputs),
        "started": now(),
        "git_revision": _git_revision(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in (*PACKAGES, *TOLD)},
    }


def inputs_entries(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The entries about what the run reads."""
    found = digests(inputs)
    return {"inputs": found, "inputs_hash": content_hash(found)}


def now() -> str:
    """The time as ISO 8601 has it, in UTC."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _git_revision() -> str | None:
    """The revision of the code that runs, marked when it has uncommitted changes."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
