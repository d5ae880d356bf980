"""A sweep as jobs of a real Slurm: one of them is killed, queued again, and the table is that of an undisturbed sweep."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import answer, cluster, wait_until
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from whole_runs import MANY_RUNS, ROOT, runs_of, wash

from law.reporting.loading import load_sweep

LACKING = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
if "SlurmLauncher" not in {plugin.__name__ for plugin in Plugins.instance().discover(Launcher)}:
    LACKING.append("pip install -e '.[launchers]'")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKING), reason=f"needs {', '.join(LACKING)} (apt-get install slurm-wlm munge)"),
]

JOB = {"partition": "main", "gpus_per_node": "null", "cpus_per_task": "1", "mem_gb": "1", "timeout_min": "10"}
"""What a job of the small cluster gets."""


def scores_of(folder: Path) -> dict[str, dict[str, float]]:
    """The metrics of each run, less times."""
    metrics = {run.name: json.loads((run / "metrics.json").read_text()) for run in runs_of(folder)}
    return {
        name: {key: value for key, value in found.items() if not key.startswith("time/")}
        for name, found in metrics.items()
    }


def running(folder: Path) -> Path | None:
    """A run that has begun to wash or to score."""
    for run in runs_of(folder):
        if json.loads((run / "manifest.json").read_text())["status"] == "running":
            return run
    return None


def test_a_sweep_on_slurm_with_a_job_killed_and_queued_again_gives_the_complete_table(
    tmp_path: Path, inputs: list[str]
) -> None:
    (tmp_path / "slurm").mkdir()
    folder = tmp_path / "outputs" / "jobs"
    launcher = [f"hydra.launcher.{name}={value}" for name, value in JOB.items()]
    command = [
        sys.executable,
        str(ROOT / "experiments" / "wash.py"),
        *MANY_RUNS,
        *inputs,
        "name=jobs",
        "hydra/launcher=slurm",
        *launcher,
    ]
    with cluster(tmp_path / "slurm") as environment, (tmp_path / "said").open("wb") as said:
        environment |= {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
        }
        sweep = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            wait_until(lambda: running(folder) is not None or sweep.poll() is not None, 120)
            jobs = answer(["squeue", "-h", "-t", "running", "-o", "%i"], environment).split()
            assert jobs, (tmp_path / "said").read_text()
            subprocess.run(["scontrol", "requeue", jobs[0]], env=environment, check=True)
            assert sweep.wait(1200) == 0, (tmp_path / "said").read_text()
            told = answer(["scontrol", "show", "job", jobs[0]], environment)
        finally:
            sweep.kill()
    assert re.search(r"\bRestarts=1\b", told)
    loaded = load_sweep(folder)
    assert (len(loaded.runs), loaded.missing, loaded.remarks) == (24, [], [])

    done = wash(tmp_path, *MANY_RUNS, *inputs, "name=plain")
    assert done.code == 0, done.message
    assert scores_of(folder) == scores_of(tmp_path / "outputs" / "plain")
