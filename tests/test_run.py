"""Whole runs through the command line: what they leave, how they fail, how they go on."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import TrainedLab
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from law.recall import greedy_answers
from law.results import describe

ROOT = Path(__file__).parents[1]
PROMISED = {
    *("forget/accuracy_before", "forget/accuracy", "forget/qa_f1_before", "forget/qa_f1"),
    *("forget/paraphrase_accuracy", "retain/accuracy_before", "retain/accuracy"),
    *(
        "reasoning/lab_larger/acc_before",
        "reasoning/lab_larger/acc",
        "reasoning/mean_before",
        "reasoning/mean",
    ),
    *("time/wash_s", "facts/known", "facts/washed"),
}


@dataclass(frozen=True)
class Done:
    """How the command ended: its exit code, what it said on its way out, and the logs of its runs."""

    code: int
    message: str
    log: str


def wash(folder: Path, *overrides: str) -> Done:
    """Call ``experiments/wash.py`` as its command line would, with ``folder`` as the working directory."""
    code, message = 0, ""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["wash.py", *overrides])
        patch.setenv("HYDRA_FULL_ERROR", "1")
        try:
            runpy.run_path(str(ROOT / "experiments" / "wash.py"), run_name="__main__")
        except SystemExit as error:
            code, message = 1, str(error.code)
        finally:
            GlobalHydra.instance().clear()
    logs = sorted((folder / "outputs").glob("*/*/wash.log"))
    return Done(code, message, "".join(path.read_text() for path in logs))


@pytest.fixture(scope="module")
def inputs(trained_lab: TrainedLab) -> list[str]:
    return [
        "model=local",
        f"model.path={trained_lab.model_path}",
        "dataset=counterfact",
        f"dataset.path={trained_lab.facts_path}",
        "dataset.wash=8",
        "evaluation.reasoning.tasks=[lab_larger]",
        "evaluation.reasoning.limit=20",
    ]


@pytest.fixture(scope="module")
def memit(trained_lab: TrainedLab) -> list[str]:
    return [
        "method=memit",
        "method.layers=[0,1]",
        "method.lam=1",
        "method.targets.clamp=4",
        f"method.moments.text={trained_lab.text_path}",
    ]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, inputs: list[str], memit: list[str]) -> tuple[Path, Done]:
    """One finished MEMIT run for each of two seeds, with W&B offline, the changed tensors kept."""
    folder = tmp_path_factory.mktemp("sweep")
    done = wash(folder, "-m", "name=two", "seed=0,1", "save=delta", *inputs, *memit)
    assert done.code == 0, done.message
    return folder / "outputs" / "two", done


def runs_of(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/manifest.json"))


def test_a_run_leaves_its_files(sweep: tuple[Path, Done]) -> None:
    runs = runs_of(sweep[0])
    assert len(runs) == 2
    for run, seed in zip(runs, (0, 1), strict=True):
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics.keys() >= PROMISED
        assert all(describe(key) for key in metrics)
        manifest = json.loads((run / "manifest.json").read_text())
        assert (manifest["status"], manifest["seed"], manifest["choices"]["method"]) == (
            "finished",
            seed,
            "memit",
        )
        assert manifest["stages_s"].keys() == {"load", "score_before", "wash", "score_after"}
        assert {"model_hash", "facts_hash", "config_hash", "git_revision", "versions"} <= manifest.keys()
        rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
        assert len(rows) == 8
        assert sum(row["known_before"] for row in rows) == metrics["facts/known"] == metrics["facts/washed"]
        left = sum(row["known_after"] for row in rows if row["known_before"])
        assert left / metrics["facts/known"] == pytest.approx(metrics["forget/accuracy"])
        assert metrics["forget/accuracy"] < metrics["forget/accuracy_before"] == 1.0
        assert (run / ".hydra" / "config.yaml").exists()
        assert not list(run.glob("*.partial"))


def test_each_job_has_its_own_wandb_run(sweep: tuple[Path, Done]) -> None:
    tracked = [next((run / "wandb").glob("offline-run-*")).name for run in runs_of(sweep[0])]
    assert len({name.rpartition("-")[2] for name in tracked}) == 2


def test_the_saved_delta_gives_the_washed_model(sweep: tuple[Path, Done], trained_lab: TrainedLab) -> None:
    run = runs_of(sweep[0])[0]
    delta = load_file(run / "washed" / "delta.safetensors")
    assert delta.keys() == {f"transformer.h.{layer}.mlp.fc_out.weight" for layer in (0, 1)}
    model = AutoModelForCausalLM.from_pretrained(trained_lab.model_path, dtype=torch.float32)
    model.load_state_dict(delta, strict=False)
    tokenizer = AutoTokenizer.from_pretrained(trained_lab.model_path)
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    known = [row for row in rows if row["known_before"]]
    answers = greedy_answers(model, tokenizer, [row["prompt"] for row in known], batch_size=8)
    assert answers == [row["answer_after"] for row in known]


def test_a_finished_run_is_not_run_again_and_the_unwashed_scores_are_reused(
    sweep: tuple[Path, Done], inputs: list[str], memit: list[str]
) -> None:
    folder = sweep[0].parents[1]
    before = {run: (run / "manifest.json").read_text() for run in runs_of(sweep[0])}
    again = wash(folder, "-m", "name=two", "seed=0,1", "save=delta", *inputs, *memit)
    assert again.code == 0
    assert again.log.count("has finished before") == 2
    assert {run: (run / "manifest.json").read_text() for run in runs_of(sweep[0])} == before

    none = wash(folder, "name=two", "method=none", "tracker=none", *inputs)
    assert none.code == 0, none.message
    assert "reasoning: taken from" in none.log
    run = next(run for run in runs_of(sweep[0]) if run.name.startswith("none"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["forget/accuracy"] == 1.0
    assert metrics["reasoning/mean"] == metrics["reasoning/mean_before"]


def test_a_whole_checkpoint_loads_in_plain_transformers(
    tmp_path: Path, inputs: list[str], memit: list[str]
) -> None:
    law = ["method=law", *(part.replace("method.", "method.initial.") for part in memit[1:])]
    done = wash(tmp_path, "save=model", "tracker=none", "method.iterations=5", *inputs, *law)
    assert done.code == 0, done.message
    run = runs_of(tmp_path / "outputs" / "wash")[0]
    model = AutoModelForCausalLM.from_pretrained(run / "washed")
    tokenizer = AutoTokenizer.from_pretrained(run / "washed")
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    known = [row for row in rows if row["known_before"]]
    answers = greedy_answers(model, tokenizer, [row["prompt"] for row in known], batch_size=8)
    assert answers == [row["answer_after"] for row in known]


def test_a_failed_job_leaves_the_others_running_and_the_sweep_fails(
    tmp_path: Path, inputs: list[str]
) -> None:
    """The first learning rate makes the weights infinite; the second job still finishes. In a real process."""
    rates = "method.learning_rate=1e30,1e-6"
    command = [sys.executable, str(ROOT / "experiments" / "wash.py"), "-m", "name=mixed", "tracker=none"]
    done = subprocess.run(
        [*command, "method=gradient_ascent", rates, *inputs],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "not finite" in done.stderr
    manifests = [
        json.loads((run / "manifest.json").read_text()) for run in runs_of(tmp_path / "outputs" / "mixed")
    ]
    assert sorted(m["status"] for m in manifests) == ["failed", "finished"]
    failed = next(m for m in manifests if m["status"] == "failed")
    assert "not finite" in failed["error"]
    assert {m["settings"]["method.learning_rate"] for m in manifests} == {"1e+30", "1e-06"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.path=no/such.json"], "facts file no/such.json does not exist"),
        (["model.path=no/such/model"], "no such folder exists"),
        (["method=memit", "method.layers=[1,9]"], "between 0 and 2"),
        (["method=memit", "method.layers=[1]", "method.moments.text=no.txt"], "no.txt, does not exist"),
        (["evaluation.reasoning.tasks=[lab_largest]"], "Did you mean 'lab_larger'?"),
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
    assert "recalls none of the 8 facts to wash" in done.message
