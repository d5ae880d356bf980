"""Attacking runs that have finished: from the weights that they kept, and without washing again."""

from __future__ import annotations

import json
import logging
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from conftest import TrainedLab
from whole_runs import ROOT, runs_of, wash

from law.attacks.attacking import Attacks
from law.attacks.leak import Leak
from law.base.errors import LawError
from law.runs.attacking import attack_run


@pytest.fixture(scope="module")
def washed(tmp_path_factory: pytest.TempPathFactory, inputs: list[str], trained_lab: TrainedLab) -> Path:
    """A MEMIT run and the unwashed model's, attacked when they were made; MEMIT's changed tensors are kept."""
    folder = tmp_path_factory.mktemp("attacked")
    memit = ["method.layers=[0,1]", "method.lam=1", f"method.moments.text={trained_lab.text_path}"]
    common = ["attack=quick", "tracker=none", *inputs]
    for more in (["method=memit", "save=delta", *memit], ["method=none"]):
        done = wash(folder, *common, *more)
        assert done.code == 0, done.message
    return folder


def attack(folder: Path, monkeypatch: pytest.MonkeyPatch, *settings: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["attack.py", "outputs/wash", *settings])
    runpy.run_path(str(ROOT / "experiments" / "attack.py"), run_name="__main__")


def test_a_finished_run_is_attacked_as_it_was_in_the_run(
    washed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The model rebuilt from the delta has the washed model's hash: all that was found is taken from the cache."""
    before = {
        run: json.loads((run / "metrics.json").read_text()) for run in runs_of(washed / "outputs" / "wash")
    }
    lines = {run: (run / "attacks.jsonl").read_text() for run in before}
    for run, metrics in before.items():
        kept = {key: value for key, value in metrics.items() if not key.startswith("attack/")}
        (run / "metrics.json").write_text(json.dumps(kept))
        (run / "attacks.jsonl").unlink()
        manifest = json.loads((run / "manifest.json").read_text())
        del manifest["files"]  # as an earlier version left it: these are no damaged results
        (run / "manifest.json").write_text(json.dumps(manifest))
    with caplog.at_level(logging.INFO):
        attack(washed, monkeypatch, "attack=quick")
    assert caplog.text.count("attack_refusal: taken from") == 6  # unwashed, washed and control of two runs
    for run, metrics in before.items():
        assert json.loads((run / "metrics.json").read_text()) == metrics
        assert (run / "attacks.jsonl").read_text() == lines[run]
        assert "attacked" in json.loads((run / "manifest.json").read_text())


def test_another_attack_takes_the_place_of_the_earlier_ones(
    washed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(washed, tmp_path / "copy")
    attack(tmp_path / "copy", monkeypatch, "attack.made=[leak]", "attack.leak.at=[3]")
    for run in runs_of(tmp_path / "copy" / "outputs" / "wash"):
        metrics = json.loads((run / "metrics.json").read_text())
        scores = {key for key in metrics if key.startswith("attack/")}
        assert scores and all(key.startswith("attack/leak/at_3") for key in scores)
        assert "forget/accuracy" in metrics


def test_what_cannot_be_attacked_is_said(
    washed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(washed, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    memit, none = runs_of(tmp_path / "copy" / "outputs" / "wash")
    attacks = Attacks(["leak"], leak=Leak(at=[1]))
    manifest = json.loads((memit / "manifest.json").read_text())
    for key in ("model_hash", "facts_hash"):
        (memit / "manifest.json").write_text(json.dumps(manifest | {key: "another"}))
        with pytest.raises(LawError, match=f"The {key} of .* is another in its manifest"):
            attack_run(memit, attacks)
    (memit / "manifest.json").write_text(json.dumps(manifest | {"status": "failed"}))
    with pytest.raises(LawError, match="is no finished run"):
        attack_run(memit, attacks)
    (memit / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(memit / "washed")
    with pytest.raises(
        SystemExit, match=r"has kept no washed model \(save=delta\); expected .*washed. Repeat"
    ):
        attack(tmp_path / "copy", monkeypatch, "attack=quick")  # the other run is attacked all the same
    with pytest.raises(SystemExit, match="No attack is chosen"):
        attack(tmp_path / "copy", monkeypatch, "attack=none")
    with pytest.raises(
        SystemExit, match=r"attack.made is \['leek'\]; expected a list of attacks, which are refusal"
    ):
        attack(tmp_path / "copy", monkeypatch, "attack.made=[leek]")
    assert "attacked" in json.loads((none / "manifest.json").read_text())
