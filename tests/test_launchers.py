"""The presets of launchers: what they compose to, and two jobs that run side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf
from whole_runs import ROOT, runs_of

INSTALLED = {plugin.__name__ for plugin in Plugins.instance().discover(Launcher)}
needs_launchers = pytest.mark.skipif(
    not {"JoblibLauncher", "SlurmLauncher"} <= INSTALLED, reason="needs pip install -e '.[launchers]'"
)


@needs_launchers
@pytest.mark.parametrize(
    ("preset", "target", "settings"),
    [
        ("processes", "JoblibLauncher", {"n_jobs": 2}),
        (
            "slurm",
            "SlurmLauncher",
            {
                "timeout_min": 720,
                "gpus_per_node": 1,
                "array_parallelism": 16,
                "max_num_timeout": 10,
                "additional_parameters": {"requeue": True},
                "submitit_folder": "outputs/wash/.submitit/%j",
            },
        ),
    ],
)
def test_a_preset_of_a_launcher_composes(preset: str, target: str, settings: dict[str, object]) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        config = compose("config", overrides=[f"hydra/launcher={preset}"], return_hydra_config=True)
        config.hydra.runtime.output_dir = config.hydra.job.id = "."
        found = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    assert found["_target_"].endswith(f".{target}")
    assert {key: found[key] for key in settings} == settings


@needs_launchers
@pytest.mark.slow
def test_two_jobs_run_side_by_side_and_share_the_cores(tmp_path: Path, inputs: list[str]) -> None:
    command = [
        sys.executable,
        str(ROOT / "experiments" / "wash.py"),
        "-m",
        "name=two",
        "tracker=none",
        "seed=0,1",
    ]
    command += ["hydra/launcher=processes", "method=none", *inputs]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    manifests = [
        json.loads((run / "manifest.json").read_text()) for run in runs_of(tmp_path / "outputs" / "two")
    ]
    assert [manifest["status"] for manifest in manifests] == ["finished"] * 2
    assert {manifest["threads"] for manifest in manifests} == {max(1, len(os.sched_getaffinity(0)) // 2)}
    one, other = ((manifest["started"], manifest["ended"]) for manifest in manifests)
    assert one[0] <= other[1] and other[0] <= one[1]  # both at the same time
