"""Faults of the machine, over whole runs: docs/reliability.md lists them."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from whole_runs import ROOT, runs_of, wash

from law.reporting.loading import load_sweep
from law.reporting.writing import write_tables

RATE = ["method=gradient_ascent", "method.learning_rate=1e-5"]


# --- damaged files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "metrics.json",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("predictions.jsonl", "manifest.json")),
    ],
)
def test_a_damaged_result_is_told_set_aside_and_made_again(
    tmp_path: Path, inputs: list[str], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    command = ["tracker=none", *RATE, *inputs, "evaluation.reasoning.tasks=[]"]
    assert wash(tmp_path, *command).code == 0
    (run,) = runs_of(tmp_path / "outputs" / "wash")
    whole = (run / name).read_bytes()
    if name == "metrics.json":
        damaged = whole.replace(b"1", b"2", 1)  # JSON still
        (run / name).write_bytes(damaged)
        with pytest.raises(Exception, match=r"metrics\.json is damaged"):
            load_sweep(run.parent)
    else:
        damaged = whole[: len(whole) // 2]
        (run / name).write_bytes(damaged)
    done = wash(tmp_path, *command)
    assert done.code == 0 and done.log.count("load: begins") == 2
    assert name in "".join(line for line in done.log.splitlines() if "damaged" in line)
    assert (run / "earlier" / name).read_bytes() == damaged
    assert load_sweep(run.parent).missing == []
    assert wash(tmp_path, *command).log.count("load: begins") == 2  # it is whole again


# --- disks --------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_run_in_one_paragraph_and_the_next_one_goes_on(
    disk: Path, inputs: list[str]
) -> None:
    command = ["tracker=none", *RATE, *inputs, "save=model"]
    filler = disk / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(filler, filler.stat().st_size - 200 * 1024)  # room to begin, and not for a model
    done = wash(disk, *command)
    assert done.code == 1 and done.message.startswith("error: ") and "\n" not in done.message
    assert "No space left on device" in done.message
    assert not list(disk.rglob("*.partial")) and not list(disk.rglob("run.lock"))
    filler.unlink()
    done = wash(disk, *command)
    assert done.code == 0, done.message
    (run,) = runs_of(disk / "outputs" / "wash")
    assert json.loads((run / "manifest.json").read_text())["status"] == "finished"


def test_a_folder_that_cannot_be_written_is_told_in_one_paragraph(disk: Path, inputs: list[str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    done = wash(disk, "tracker=none", *RATE, *inputs)
    assert done.code == 1 and "Read-only file system" in done.message
    assert "Expected room and the right to write there" in done.message and "\n" not in done.message


# --- kills --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_ends_with_the_undisturbed_table(
    tmp_path: Path, inputs: list[str], trained_lab: object
) -> None:
    """SIGKILL, 20 times, at moments spread over six runs with second moments and z*; each time the command is given again."""
    text = trained_lab.text_path  # type: ignore[attr-defined]
    command = [
        sys.executable,
        str(ROOT / "experiments" / "wash.py"),
        "-m",
        "name=six",
        "tracker=none",
        "seed=0,1,2",
    ]
    command += [
        "method=memit",
        "method.layers=[0,1]",
        "method.lam=1,10",
        f"method.moments.text={text}",
        *inputs,
    ]
    command += ["method.moments.save_every=0", "method.targets.shard=2", "method.targets.batch_size=2"]
    command += ["method.moments.batch_size=512", "evaluation.reasoning.batch_size=16"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def begin(place: Path) -> subprocess.Popen[bytes]:
        place.mkdir(exist_ok=True)
        return subprocess.Popen(
            command, cwd=place, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def numbers(place: Path) -> list[dict[str, str]]:
        write_tables(place / "outputs" / "six")
        with (place / "outputs" / "six" / "table.csv").open(newline="") as file:
            return [row for row in csv.DictReader(file) if not row["metric"].startswith("time/")]

    calm = tmp_path / "calm"
    began = time.monotonic()
    assert begin(calm).wait() == 0
    whole_s = time.monotonic() - began
    rng, kills = random.Random(0), 0
    start_s = 4.0  # to import
    # where nothing else runs, a sweep may be done before the last one: then another one is struck
    while kills < 20:
        struck, finished = tmp_path / f"struck after {kills}", False
        while kills < 20 and not finished:
            process = begin(struck)
            try:
                process.wait(start_s + rng.random() * (whole_s - start_s) / 5)
                finished = True
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        assert begin(struck).wait() == 0
        assert numbers(struck) == numbers(calm)
        left = {path.name for path in (struck / "outputs" / "six").rglob("*")}
        assert len(runs_of(struck / "outputs" / "six")) == 6 and not left & {"run.lock", "progress.json"}
