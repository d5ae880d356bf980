from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb

from law.base.errors import LawError
from law.runs.identity import Identity
from law.runs.tensorboard import TensorBoard
from law.runs.tracker import Guarded, Mode, NoTracker, Tracker, Wandb, run_id

SUMMARY = {"forget/accuracy": 0.125, "retain/accuracy": 0.75}
CHOICES = {"model": "lab", "dataset": "zsre", "method": "law"}
IDENTITY = Identity("demo", CHOICES, {}, 0, config={"method": {"layers": [1, 2]}, "seed": 0}, config_hash="c")
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

    def start(self, identity: Identity, folder: Path) -> None:
        self._call("start", identity, folder)

    def log(self, values: Mapping[str, float]) -> None:
        self._call("log", values)

    def conclude(self, summary: Mapping[str, float], predictions: Path) -> None:
        self._call("conclude", summary, predictions)

    def finish(self, failed: bool) -> None:
        self._call("finish", failed)


def predictions_of(folder: Path) -> Path:
    """A file beside a run's folder, since a tracker that keeps nothing leaves the folder empty."""
    return folder.with_name(f"{folder.name}.jsonl")


def whole_run(tracker: Tracker, folder: Path, failed: bool = False) -> None:
    tracker.start(IDENTITY, folder)
    tracker.log({"targets/first_nll": 4.5})
    tracker.log({"targets/first_nll": 3.5})
    predictions_of(folder).write_text("".join(json.dumps(row) + "\n" for row in TABLE))
    tracker.conclude(SUMMARY, predictions_of(folder))
    tracker.finish(failed)


def test_a_guard_passes_everything_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Fragile()
    whole_run(Guarded(tracker), tmp_path, failed=True)
    assert tracker.calls == [
        ("start", IDENTITY, tmp_path),
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
        whole_run(Wandb(project="washing"), tmp_path / name)
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


def test_a_run_has_one_wandb_id_whenever_it_is_made_and_another_run_has_another(tmp_path: Path) -> None:
    first = run_id(IDENTITY, tmp_path)
    assert first == run_id(replace(IDENTITY, settings={"a": "b"}), Path("elsewhere") / tmp_path.name)
    others = [replace(IDENTITY, **change) for change in OTHER_RUNS]
    assert len({first, run_id(IDENTITY, tmp_path / "b"), *(run_id(other, tmp_path) for other in others)}) == 6


OTHER_RUNS: list[dict[str, Any]] = [
    {"name": "paper"},
    {"config_hash": "d"},
    {"code_hash": "k"},
    {"inputs": {"model": ["m"]}},
]


def test_wandb_honours_its_environment_except_for_the_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "MODE": "disabled",
        "PROJECT": "mine",
        "RUN_ID": "theirs",
        "RUN_GROUP": "theirs",
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    (tmp_path / "a").mkdir()
    whole_run(Wandb(), tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())  # WANDB_MODE
    asked: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options))
    Wandb().start(IDENTITY, tmp_path / "a")
    assert (asked["mode"], asked["project"], asked["group"]) == ("disabled", "mine", "demo")
    assert (asked["job_type"], asked["tags"]) == ("law", ["lab", "law", "zsre"])
    Wandb(Mode.offline, "washing").start(IDENTITY, tmp_path / "a")
    assert (asked["mode"], asked["project"]) == ("offline", "washing")
    monkeypatch.undo()
    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    (tmp_path / "b").mkdir()
    for _ in range(2):  # killed and made again
        whole_run(Wandb(), tmp_path / "b")
    names = [folder.name for folder in (tmp_path / "b" / "wandb").glob("offline-run-*")]
    assert len(names) == 2 and all(run_id(IDENTITY, tmp_path / "b") in name for name in names)


def test_tensorboard_has_the_curves_and_the_final_scores(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    whole_run(TensorBoard(), tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    curve = [(event.step, event.value) for event in events.Scalars("targets/first_nll")]
    assert curve == [(0, 4.5), (1, 3.5)]
    assert {key: events.Scalars(f"final/{key}")[0].value for key in SUMMARY} == SUMMARY


def test_tensorboard_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(LawError, match=r"pip install -e '\.\[tensorboard\]'"):
        TensorBoard().start(IDENTITY, tmp_path)


def test_wandb_disabled_leaves_nothing(tmp_path: Path) -> None:
    whole_run(Wandb(mode=Mode.disabled), tmp_path)
    assert list(tmp_path.iterdir()) == []
