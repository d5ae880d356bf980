"""A run is made by one process at a time, and the lock of a dead one does not hold."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import SoftFileLease
from whole_runs import ROOT, runs_of

from law.reporting.loading import load_sweep
from law.runs import lock
from law.runs.folder import LOCK
from law.runs.lock import sole


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE_S", 0.6)
    monkeypatch.setattr(lock, "POLL_S", 0.02)


def left_by_another_machine(folder: Path) -> Path:
    """The lock of a process on another machine, whose process id says nothing here."""
    path = folder / LOCK
    with SoftFileLease(path, lease_duration=lock.LEASE_S):
        record = path.read_text()
    lines = ["host=elsewhere" if line.startswith("host=") else line for line in record.splitlines()]
    path.write_text("\n".join([*lines, ""]))
    return path


@contextmanager
def touched(path: Path, seconds: float, step: float) -> Iterator[None]:
    """Another machine's heartbeat for some seconds, whose clock moves by ``step`` seconds at each beat."""

    def beat() -> None:
        began, clock = time.monotonic(), path.stat().st_mtime
        while time.monotonic() - began < seconds:
            clock += step
            os.utime(path, (clock, clock))
            time.sleep(0.1)

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    thread.join()


def test_the_lock_goes_with_its_run_whether_it_fails_or_not(tmp_path: Path) -> None:
    with sole(tmp_path):
        assert (tmp_path / LOCK).exists()
    with pytest.raises(RuntimeError), sole(tmp_path):
        raise RuntimeError
    assert not (tmp_path / LOCK).exists()


def test_the_lock_of_a_dead_machine_is_taken_when_its_heart_has_stopped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left_by_another_machine(tmp_path)
    began = time.monotonic()
    with caplog.at_level(logging.INFO), sole(tmp_path):
        assert time.monotonic() - began >= 0.6
    assert "on elsewhere; waiting until that has ended" in caplog.text


@pytest.mark.parametrize("step", [0.1, -3600.0], ids=["a right clock", "a clock that jumps back"])
def test_a_lock_whose_heart_beats_is_waited_for_whatever_its_clock_says(tmp_path: Path, step: float) -> None:
    path = left_by_another_machine(tmp_path)
    began = time.monotonic()
    with touched(path, 1.5, step), sole(tmp_path):
        assert time.monotonic() - began >= 1.5 + 0.4  # after its last beat, a lease less a beat


def test_a_lock_of_this_machine_whose_process_is_gone_is_taken_at_once(tmp_path: Path) -> None:
    code = (
        "import os, filelock\n"
        f"lease = filelock.SoftFileLease({str(tmp_path / LOCK)!r}, lease_duration=600)\nlease.acquire()\n"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / LOCK).exists()
    began = time.monotonic()
    with sole(tmp_path):
        assert time.monotonic() - began < 0.5


def test_a_process_that_has_lost_its_lock_ends_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    with sole(tmp_path):
        (tmp_path / LOCK).unlink()
        end = time.monotonic() + 5
        while not ended and time.monotonic() < end:
            time.sleep(0.05)
    assert ended == [1]
    assert "Give the command again to go on with the sweep" in caplog.text


@pytest.mark.slow
def test_two_sweeps_on_one_folder_end_with_one_complete_table(tmp_path: Path, inputs: list[str]) -> None:
    command = [
        sys.executable,
        str(ROOT / "experiments" / "wash.py"),
        "-m",
        "name=both",
        "tracker=none",
        "seed=0,1",
    ]
    command += [
        "method=gradient_ascent",
        "method.learning_rate=1e-6,1e-5",
        *inputs,
        "evaluation.reasoning.tasks=[]",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    sweeps = [
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for _ in range(2)
    ]
    said = [sweep.communicate()[0].decode() for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], said
    runs = runs_of(tmp_path / "outputs" / "both")
    made = [
        sum(text.count("load: begins") for text in said),
        sum("load: begins" in (run / "wash.log").read_text() for run in runs),
    ]
    assert made == [4, 4]  # each run once, and by one of them
    sweep = load_sweep(tmp_path / "outputs" / "both")
    assert (len(sweep.runs), sweep.missing, sweep.remarks) == (4, [], [])
    assert not [
        path for path in (tmp_path / "outputs").rglob("*") if path.name == LOCK or path.suffix == ".partial"
    ]
