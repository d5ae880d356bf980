"""The presets of launchers: what they compose to, and two jobs that run side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf
from whole_runs import MANY_RUNS, ROOT, runs_of

from law.reporting.loading import load_sweep

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


@needs_launchers
@pytest.mark.slow
def test_a_sweep_of_24_runs_side_by_side_that_is_killed_twice_gives_the_complete_table(
    tmp_path: Path, inputs: list[str]
) -> None:
    command = [sys.executable, str(ROOT / "experiments" / "wash.py"), *MANY_RUNS, *inputs]
    command += ["name=many", "hydra/launcher=processes"]
    folder = tmp_path / "outputs" / "many"

    def finished() -> int:
        return sum(
            json.loads((run / "manifest.json").read_text())["status"] == "finished" for run in runs_of(folder)
        )

    made = []
    for enough in (3, 9, 24):
        with (tmp_path / "said").open("wb") as said:
            # in a session of its own, so that its workers can be killed with it
            sweep = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said, start_new_session=True)
            while sweep.poll() is None and (enough == 24 or finished() < enough):
                time.sleep(0.2)
            if sweep.poll() is None:
                os.killpg(sweep.pid, signal.SIGKILL)
            assert sweep.wait() == (0 if enough == 24 else -signal.SIGKILL), (tmp_path / "said").read_text()
        made.append(finished())
    assert 3 <= made[0] < made[1] < made[2] == 24
    loaded = load_sweep(folder)
    assert (len(loaded.runs), loaded.missing, loaded.remarks) == (24, [], [])
    assert not [run for run in runs_of(folder) if "is run again" in (run / "wash.log").read_text()]
