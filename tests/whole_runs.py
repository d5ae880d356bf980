"""Whole runs through the command line, for the tests of what they leave and how they fail."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from law.runs import configuration

ROOT = Path(__file__).parents[1]

hash_of_the_code = cache(configuration.code)
"""To parse the code takes a third of what many a run here takes; it is hashed once."""

MANY_RUNS = [
    "-m",
    "tracker=none",
    "seed=range(6)",
    "method=gradient_ascent,seul,finetune,undial",
    "method.learning_rate=1e-5",
    "evaluation.reasoning.tasks=[]",
]
"""A sweep of 24 runs over four methods."""


@dataclass(frozen=True)
class Done:
    """How the command ended: its exit code, what it said on its way out, and the logs of its runs."""

    code: int
    message: str
    log: str


def wash(folder: Path, *overrides: str) -> Done:
    """Call ``experiments/wash.py`` as its command line would, with ``folder`` as the working directory."""
    code, message = 0, ""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["wash.py", *overrides])
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.setattr(configuration, "code", hash_of_the_code)
        try:
            runpy.run_path(str(ROOT / "experiments" / "wash.py"), run_name="__main__")
        except SystemExit as error:
            code, message = 1, str(error.code)
        finally:
            GlobalHydra.instance().clear()
    return Done(code, message, logs(folder))


def wash_in_a_process(folder: Path, *overrides: str) -> Done:
    """The command line itself."""
    command = [sys.executable, str(ROOT / "experiments" / "wash.py"), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stderr.strip().splitlines()[-1], logs(folder))


def logs(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted((folder / "outputs").glob("*/*/wash.log")))


def runs_of(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/manifest.json"))
