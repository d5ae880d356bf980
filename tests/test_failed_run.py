"""Whole runs that fail: what they say and leave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import TrainedLab
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from whole_runs import Done, runs_of, wash, wash_in_a_process

from law.base.report import Report
from law.decoders.loading import ModelSettings
from law.decoders.saving import Save
from law.evaluation.fluency import FluencySettings
from law.evaluation.scores import EvaluationSettings
from law.facts.counterfact import CounterFact
from law.facts.fact import Fact
from law.methods.none import Unwashed
from law.runs.identity import Identity
from law.runs.sequence import Job, wash_and_score
from law.runs.tracker import NoTracker


@pytest.mark.parametrize("run", [wash, pytest.param(wash_in_a_process, marks=pytest.mark.slow)])
def test_a_failed_job_leaves_the_others_running_and_the_sweep_fails(
    tmp_path: Path, inputs: list[str], run: Callable[..., Done]
) -> None:
    """The first learning rate makes the weights infinite; the second job still finishes."""
    rates = "method.learning_rate=1e30,1e-6"
    done = run(tmp_path, "-m", "name=mixed", "tracker=none", "method=gradient_ascent", rates, *inputs)
    assert done.code == 1
    assert done.message.startswith("error: ") and "not finite" in done.message
    assert "failed: Washing left" in done.log
    manifests = [
        json.loads((run / "manifest.json").read_text()) for run in runs_of(tmp_path / "outputs" / "mixed")
    ]
    assert sorted(m["status"] for m in manifests) == ["failed", "finished"]
    failed = next(m for m in manifests if m["status"] == "failed")
    assert "not finite" in failed["error"]
    assert {m["settings"]["method.learning_rate"] for m in manifests} == {"1e+30", "1e-06"}


def test_a_job_that_runs_out_of_memory_leaves_the_others_running(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.AdamW.step

    def full(self: torch.optim.AdamW, closure: None = None) -> None:
        if self.param_groups[0]["lr"] == 1e-5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    rates = "method.learning_rate=1e-5,1e-6"
    done = wash(tmp_path, "-m", "name=mixed", "tracker=none", "method=gradient_ascent", rates, *inputs)
    assert done.code == 1 and "a step of AdamW" in done.message and "method.lora.rank=8" in done.message
    manifests = [
        json.loads((run / "manifest.json").read_text()) for run in runs_of(tmp_path / "outputs" / "mixed")
    ]
    assert {m["settings"]["method.learning_rate"]: m["status"] for m in manifests} == {
        "1e-05": "failed",
        "1e-06": "finished",
    }


def test_a_job_without_a_value_that_it_needs_leaves_the_others_running(
    tmp_path: Path, inputs: list[str]
) -> None:
    done = wash(tmp_path, "-m", "name=mixed", "tracker=none", "method=gradient_ascent,none", *inputs)
    assert done.code == 1 and done.message.startswith(
        "error: method.learning_rate is not set; expected a value"
    )
    (run,) = runs_of(tmp_path / "outputs" / "mixed")
    assert json.loads((run / "manifest.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.path=no/such.json"], "facts file no/such.json can't be read: No such file"),
        (["model.path=no/such/model"], "no folder no/such/model"),
        (["method=memit", "method.lam=1", "method.layers=[1,9]"], "between 0 and 2"),
        (["method=memit", "method.lam=1", "method.layers=[1]", "method.moments.text=no.txt"], "no.txt"),
        (["evaluation.reasoning.tasks=[lab_largest]"], "Did you mean 'lab_larger'?"),
        (["evaluation.fluency.text=no.txt"], "held-out text no.txt does not exist"),
        (
            ["evaluation.reasoning.tasks=[piqa]", "evaluation.reasoning.source=local"],
            "evaluation.reasoning.data names no folder",
        ),
        (["model.device=cuda:7"], "'cuda:7' can't be used here"),
        (["model.dtype=float17"], "expected float32, bfloat16 or float16"),
        (["method.lamda=1"], "Unknown key 'method.lamda'"),
    ],
)
def test_errors_are_one_paragraph_and_exit_with_one(
    tmp_path: Path, inputs: list[str], overrides: list[str], message: str
) -> None:
    done = wash(tmp_path, "method=none", "tracker=none", *inputs, *overrides)
    assert done.code == 1
    assert done.message.startswith("error: ")
    assert message in done.message


def test_truncated_weights_are_told(tmp_path: Path, inputs: list[str], trained_lab: TrainedLab) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained_lab.model_path, folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    done = wash(tmp_path, "method=none", "tracker=none", *inputs, f"model.path={folder}")
    assert done.code == 1
    assert done.message.startswith(f"error: The model '{folder}' could not be loaded")


@dataclass
class Failing(Unwashed):
    """Reports once, and fails if it is told to."""

    fails: bool

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report,
        others: Sequence[Fact] = (),
    ) -> None:
        report({"said": "something"})
        if self.fails:
            raise RuntimeError("the power is gone")


def test_a_failed_rerun_leaves_no_earlier_result_beside_its_manifest(
    tmp_path: Path, trained_lab: TrainedLab
) -> None:
    folder = tmp_path / "run"

    def run(fails: bool) -> set[str]:
        job = Job(
            model=ModelSettings(str(trained_lab.model_path), device="cpu"),
            source=CounterFact(str(trained_lab.facts_path), wash=4, keep=4),
            method=Failing(fails),
            evaluation=EvaluationSettings(fluency=FluencySettings(prompts=1, tokens=4)),
            tracker=NoTracker(),
            save=Save.nothing if fails else Save.delta,
            folder=folder,
            identity=Identity("test", {}, {}, 0),
        )
        if fails:
            with pytest.raises(RuntimeError):
                wash_and_score(job)
        else:
            wash_and_score(job)
        return {path.name for path in folder.iterdir()}

    left = {"manifest.json", "method.jsonl", "unknown_facts.jsonl"}
    whole = left | {
        "metrics.json",
        "predictions.jsonl",
        "kept.jsonl",
        "reasoning.jsonl",
        "generations.jsonl",
        "washed",
    }
    assert run(fails=False) == whole
    (folder / "predictions.jsonl.1.partial").write_text("{")
    for _ in range(2):  # a second failure does not take the finished results away
        assert run(fails=True) == left | {"earlier"}
        assert json.loads((folder / "manifest.json").read_text())["status"] == "failed"
        assert (folder / "method.jsonl").read_text() == '{"said": "something"}\n'
        assert {path.name for path in (folder / "earlier").iterdir()} == whole
        assert json.loads((folder / "earlier" / "manifest.json").read_text())["status"] == "finished"
    assert run(fails=False) == whole | {"earlier"}


def test_a_wash_that_changes_no_weight_is_an_error(tmp_path: Path, inputs: list[str]) -> None:
    """A step of 1e-13 is rounded away in bfloat16, which has eight bits."""
    method = ["method=gradient_ascent", "method.learning_rate=1e-13", "model.dtype=bfloat16"]
    done = wash(tmp_path, "tracker=none", "save=model", *inputs, "evaluation.reasoning.tasks=[]", *method)
    assert (done.code, "GradientAscent changed no weight of the model" in done.message) == (1, True)
    (run,) = runs_of(tmp_path / "outputs" / "wash")
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "failed" and "set model.dtype=float32" in manifest["error"]
    assert not (run / "metrics.json").exists() and not (run / "washed").exists()


def test_a_model_that_knows_nothing_is_told(
    tmp_path: Path, inputs: list[str], trained_lab: TrainedLab
) -> None:
    records = json.loads(trained_lab.facts_path.read_text())
    for record in records:
        record["requested_rewrite"]["target_true"]["str"] = "Xyzzy"
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps(records))
    done = wash(tmp_path, "tracker=none", *inputs, f"dataset.path={facts}", "method=none")
    assert done.code == 1
    assert "knows none of the 8 facts to wash" in done.message
    (run,) = runs_of(tmp_path / "outputs" / "wash")
    assert not list(run.glob("*.partial"))
    rows = [json.loads(line) for line in (run / "unknown_facts.jsonl").read_text().splitlines()]
    assert [row["set"] for row in rows] == ["wash"] * 8 + ["keep"] * 10
    for row in rows:
        rewrite = next(r for r in records if str(r["case_id"]) == row["id"])["requested_rewrite"]
        assert row["prompt"] == rewrite["prompt"].replace("{}", rewrite["subject"])
        assert row["object"] == "Xyzzy"
        assert row["answer"].strip() and "Xyzzy" not in row["answer"]
    told = f"0 of 8 facts to wash and 0 of 10 facts to keep are known; those that are not are listed in {run}"
    assert told in done.log
