from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import wandb

from law.runs.tracker import Guarded, Mode, NoTracker, Tracker, Wandb

SUMMARY = {"forget/accuracy": 0.125, "retain/accuracy": 0.75}
TABLE = [{"prompt": "Anna speaks", "answer": " Frenglish"}, {"prompt": "Ben speaks", "answer": ""}]


class Fragile:
    """A tracker that keeps what it is told, and fails at the calls named."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.calls: list[tuple[Any, ...]] = []

    def _call(self, call: str, *arguments: Any) -> None:
        self.calls.append((call, *arguments))
        if call in self.failing:
            raise ConnectionError(f"no network at {call}")

    def start(self, name: str, group: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._call("start", name, group, folder, config)

    def log(self, values: Mapping[str, float]) -> None:
        self._call("log", values)

    def conclude(self, summary: Mapping[str, float], predictions: Path) -> None:
        self._call("conclude", summary, predictions)

    def finish(self, failed: bool) -> None:
        self._call("finish", failed)


def predictions_of(folder: Path) -> Path:
    """A file beside a run's folder, since a tracker that keeps nothing leaves the folder empty."""
    return folder.with_name(f"{folder.name}.jsonl")


def whole_run(tracker: Tracker, folder: Path, name: str = "law-s0", failed: bool = False) -> None:
    tracker.start(name, "demo", folder, {"method": {"layers": [1, 2]}, "seed": 0})
    tracker.log({"targets/first_nll": 4.5})
    tracker.log({"targets/first_nll": 3.5})
    predictions_of(folder).write_text("".join(json.dumps(row) + "\n" for row in TABLE))
    tracker.conclude(SUMMARY, predictions_of(folder))
    tracker.finish(failed)


def test_a_guard_passes_everything_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Fragile()
    whole_run(Guarded(tracker), tmp_path, failed=True)
    assert tracker.calls == [
        ("start", "law-s0", "demo", tmp_path, {"method": {"layers": [1, 2]}, "seed": 0}),
        ("log", {"targets/first_nll": 4.5}),
        ("log", {"targets/first_nll": 3.5}),
        ("conclude", SUMMARY, predictions_of(tmp_path)),
        ("finish", True),
    ]
    assert caplog.records == []


@pytest.mark.parametrize(
    ("failing", "called"),
    [
        (["start"], ["start", "finish"]),
        (["log"], ["start", "log", "finish"]),
        (["conclude"], ["start", "log", "log", "conclude", "finish"]),
        (["finish"], ["start", "log", "log", "conclude", "finish"]),
        (["start", "log", "conclude", "finish"], ["start", "finish"]),
        (["log", "finish"], ["start", "log", "finish"]),
    ],
    ids=lambda calls: "+".join(calls),
)
def test_a_failing_tracker_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failing: list[str], called: list[str]
) -> None:
    tracker = Fragile(*failing)
    with caplog.at_level(logging.DEBUG):
        whole_run(Guarded(tracker), tmp_path)
    assert [call for call, *_ in tracker.calls] == called
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert f"failed at {failing[0]}" in warnings[0] and "no network" in warnings[0]


def test_a_guard_lets_an_interrupt_through(tmp_path: Path) -> None:
    class Interrupted(Fragile):
        def log(self, values: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guarded(Interrupted()).log({})


def test_no_tracker_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole_run(NoTracker(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def wait_for_size(log: Path) -> None:
    """Until W&B's own process has written more than a header; it does so within milliseconds."""
    end = time.monotonic() + 20
    while log.stat().st_size < 1000 and time.monotonic() < end:
        time.sleep(0.01)


def test_wandb_offline_leaves_a_folder_for_each_run(tmp_path: Path) -> None:
    # As in a multirun: one process, the second run begins after the first has ended.
    for name in ("law-s0", "law-s1"):
        (tmp_path / name).mkdir()
        whole_run(Wandb(project="washing"), tmp_path / name, name)
    ids = []
    for name in ("law-s0", "law-s1"):
        (folder,) = (tmp_path / name / "wandb").glob("offline-run-*")
        (log,) = folder.glob("*.wandb")
        ids.append(log.stem.removeprefix("run-"))
        assert folder.name.endswith(f"-{ids[-1]}")
        wait_for_size(log)
        written = log.read_bytes()
        for text in (name, "demo", "washing", "layers", "targets/first_nll", "forget/accuracy", "0.125"):
            assert text.encode() in written, text
        (table,) = folder.rglob("*.table.json")
        rows = [["Anna speaks", " Frenglish"], ["Ben speaks", ""]]
        found = json.loads(table.read_text())
        assert (found["columns"], found["data"]) == (["prompt", "answer"], rows)
    assert len({*ids}) == 2
    assert wandb.run is None


def test_wandb_disabled_leaves_nothing(tmp_path: Path) -> None:
    whole_run(Wandb(mode=Mode.disabled), tmp_path)
    assert list(tmp_path.iterdir()) == []
