"""How far a sweep is, from what its runs leave in their folders."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from run_folders import save, save_multirun
from whole_runs import wash

from law.base.errors import LawError
from law.base.progress import Reached, heard_by, progress
from law.reporting.status import outlook, sweep_status
from law.runs import telling
from law.runs.folder import LOCK, PROGRESS
from law.runs.telling import ProgressFile


def test_a_listener_is_told_the_begin_and_then_every_five_seconds() -> None:
    heard: list[Reached] = []
    now = [0.0]
    with heard_by(heard.append), progress("z*", 20, "facts", done=10, clock=lambda: now[0]) as bar:
        for _ in range(10):
            now[0] += 2
            bar.update(1)
    with progress("z*", 1, "facts"):
        pass
    assert [(reached.done, reached.seconds, reached.left_s) for reached in heard] == [
        (10, 0, None),
        (13, 6, 14),  # three in six seconds: seven more in fourteen
        (16, 12, 8),
        (19, 18, 2),
    ]


def test_a_run_tells_where_it_is_and_ends_without_that_file(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    monkeypatch.setattr(telling, "write_json", lambda path, value: written.append((path.name, value)))
    done = wash(tmp_path, "method=gradient_ascent", "method.learning_rate=1e-6", "tracker=none", *inputs)
    assert done.code == 0
    assert {name for name, _ in written} == {PROGRESS}
    stages = [value["stage"] for _, value in written]
    assert [*dict.fromkeys(stages)] == ["load", "score_before", "wash", "score_after", "save"]
    steps = {value["step"]: value for _, value in written if "step" in value}
    assert steps["generation"]["unit"] == "texts" and steps["generation"]["total"] == 4
    assert not list(tmp_path.rglob(PROGRESS))


def test_a_progress_file_that_cannot_be_written_does_not_fail_the_run(tmp_path: Path) -> None:
    told = ProgressFile(tmp_path / "nowhere")
    told.stage("load")
    told.close()


def test_every_run_of_a_sweep_is_in_one_state(tmp_path: Path) -> None:
    save_multirun(tmp_path, ["method=law,memit,none", "seed=0,1"])
    finished = save(tmp_path, "law", {}, 0, stages_s={"load": 10.0, "wash": 50.0})
    running = save(tmp_path, "law", {}, 1, status="running")
    (running / LOCK).touch()
    step = {"step": "z*", "done": 40, "total": 200, "unit": "facts", "left_s": 30.0}
    (running / PROGRESS).write_text(json.dumps({"stage": "score_before", **step}))
    failed = save(tmp_path, "memit", {}, 0, status="failed", error="LawError: λ is\nNaN")
    killed = save(tmp_path, "memit", {}, 1, status="running")
    (killed / LOCK).touch()
    os.utime(killed / LOCK, (time.time() - 3600,) * 2)
    for path, method, seed in (
        (finished, "law", 0),
        (running, "law", 1),
        (failed, "memit", 0),
        (killed, "memit", 1),
    ):
        as_hydra_writes_it(path, method, seed)
    early = tmp_path / "early"
    as_hydra_writes_it(early, "none", 0)
    (early / "wash.log").write_text("first\nnone failed: seed is too large\n")

    jobs = sweep_status(tmp_path)
    assert [(job.name, job.state, job.told) for job in jobs] == [
        (finished.name, "finished", "60 s"),
        (running.name, "running", "score before; z*: 40 of 200 facts, about 30 s left"),
        (failed.name, "failed", f"NaN ({failed / 'wash.log'})"),
        ("early", "failed", f"none failed: seed is too large ({early / 'wash.log'})"),
        (killed.name, "stopped", f"begins ({killed / 'wash.log'})"),
        ("none-lab-lab-s1", "waiting", ""),
    ]
    assert outlook(jobs) == (
        "1 finished, 1 running, 2 failed, 1 stopped, 1 waiting. About 2 min left, with 1 at a time."
    )


def as_hydra_writes_it(run: Path, method: str, seed: int) -> None:
    (run / ".hydra").mkdir(parents=True)
    choices = {"model": "lab", "dataset": "lab", "method": method}
    hydra = {"runtime": {"choices": choices}, "overrides": {"task": [f"method={method}", f"seed={seed}"]}}
    (run / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": hydra}))
    (run / ".hydra" / "config.yaml").write_text(json.dumps({"seed": seed}))


def test_a_folder_without_runs_is_told(tmp_path: Path) -> None:
    with pytest.raises(LawError, match="holds no run; expected the folder of a sweep"):
        sweep_status(tmp_path)
