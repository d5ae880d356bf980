"""A run's washed model as a checkpoint: it loads without this project, answers as the run did, and names no fact."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import TrainedLab
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from whole_runs import ROOT, runs_of, wash

from law.base.errors import LawError
from law.runs.exporting import export_run


def made(folder: Path, inputs: list[str], lab: TrainedLab, save: str) -> Path:
    start = ["layers=[0,1]", "lam=1", f"moments.text={lab.text_path}"]
    law = ["method=law", "method.learning_rate=1e-4", "method.iterations=2"]
    law += [f"method.initial.{setting}" for setting in start]
    done = wash(folder, "tracker=none", f"save={save}", *inputs, *law)
    assert done.code == 0, done.message
    (run,) = runs_of(folder / "outputs" / "wash")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, inputs: list[str], trained_lab: TrainedLab) -> Path:
    """A LAW run that kept its delta."""
    return made(tmp_path_factory.mktemp("delta"), inputs, trained_lab, "delta")


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """The same run, for a test that damages it."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_a_delta_becomes_a_checkpoint_that_plain_transformers_loads(
    run: Path, trained_lab: TrainedLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["export.py", str(run)])
    runpy.run_path(str(ROOT / "experiments" / "export.py"), run_name="__main__")
    target = run / "exported"
    assert f"{target} loads like any other checkpoint" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    expected = AutoModelForCausalLM.from_pretrained(trained_lab.model_path, dtype=torch.float32)
    delta = load_file(run / "washed" / "delta.safetensors")
    expected.load_state_dict(delta, strict=False)
    assert len(delta) == 2 and all(
        torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items()
    )
    tokenizer = AutoTokenizer.from_pretrained(target)
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    asked = [row for row in rows if row["known_before"]]
    assert asked
    for row in asked:  # by transformers' own decoding
        ids = tokenizer(row["prompt"], return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=10, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == row["answer_after"]


def test_the_card_has_method_settings_and_scores_and_no_fact(
    run: Path, trained_lab: TrainedLab, tmp_path: Path
) -> None:
    export_run(run, tmp_path / "new")
    card = ModelCard.load(tmp_path / "new" / "README.md")
    manifest, metrics = (json.loads((run / f"{name}.json").read_text()) for name in ("manifest", "metrics"))
    assert card.data.tags == ["knowledge-washing"] and card.data.base_model is None
    assert f"to remove\n{metrics['facts/washed']:.0f} facts of the data set `counterfact`" in card.text
    for told in (
        manifest["facts_hash"],
        manifest["washed_hash"],
        "lam: 1.0",
        "_target_: law.methods.memit.MEMIT",
        "_target_: law.methods.law.LAW",
    ):
        assert told in card.text
    left, error = (100 * metrics[f"forget/accuracy{end}"] for end in ("", "_stderr"))
    assert f"| forget acc. | lower | 100.0 ± 0.0 % | {left:.1f} ± {error:.1f} % |" in card.text
    for record in json.loads(trained_lab.facts_path.read_text()):
        asked = record["requested_rewrite"]
        assert asked["subject"] not in card.text and asked["target_true"]["str"] not in card.text
    assert str(trained_lab.facts_path.parent) not in card.text


def test_a_whole_checkpoint_is_exported_too(
    tmp_path: Path, inputs: list[str], trained_lab: TrainedLab
) -> None:
    whole = made(tmp_path, inputs, trained_lab, "model")
    export_run(whole, tmp_path / "new")
    one, other = (load_file(folder / "model.safetensors") for folder in (whole / "washed", tmp_path / "new"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_other_weights_than_those_that_were_scored_are_refused(copied: Path, tmp_path: Path) -> None:
    file = copied / "washed" / "delta.safetensors"
    delta = load_file(file)
    name = min(delta)
    save_file(delta | {name: delta[name] + 1e-3}, file)
    with pytest.raises(LawError, match=r"The washed_hash of .* in its manifest\.json"):
        export_run(copied, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_other_answers_than_those_of_the_run_are_refused(copied: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (copied / "predictions.jsonl").read_text().splitlines()]
    for row in rows:
        if row["known_before"]:
            row["answer_after"] = "something else"
    (copied / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        LawError, match=r"prompts otherwise than the run did: .*where predictions\.jsonl has 'something"
    ):
        export_run(copied, tmp_path / "new")
    assert not [path for path in tmp_path.iterdir() if path != copied]


def test_what_cannot_be_exported_is_said(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(LawError, match="there is there already; expected a folder that is not"):
        export_run(copied, tmp_path / "there")
    with pytest.raises(LawError, match="is no finished run"):
        export_run(tmp_path / "there", tmp_path / "new")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["choices"]["method"] = "none"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LawError, match=r"washed nothing \(method=none\)"):
        export_run(copied, tmp_path / "new")
    shutil.rmtree(copied / "washed")
    manifest["choices"]["method"] = "memit"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LawError, match=r"has kept no washed model \(save=delta\)"):
        export_run(copied, tmp_path / "new")
