"""Whole runs through the command line: what they leave, how they fail, how they go on."""

from __future__ import annotations

import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import TrainedLab
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from law.base.report import Report
from law.decoders.greedy_decoding import Recall, greedy_answers
from law.decoders.loading import ModelSettings
from law.decoders.saving import Save
from law.evaluation.fluency import FluencySettings
from law.evaluation.metrics import describe
from law.evaluation.scores import EvaluationSettings
from law.facts.counterfact import CounterFact
from law.facts.fact import Fact, FactSplit
from law.facts.source import Known
from law.methods.none import Unwashed
from law.runs import configuration
from law.runs.identity import Identity
from law.runs.sequence import Job, wash_and_score
from law.runs.tracker import NoTracker

ROOT = Path(__file__).parents[1]
PROMISED = {
    *("forget/accuracy_before", "forget/accuracy", "forget/qa_f1_before", "forget/qa_f1"),
    *("forget/paraphrase_accuracy", "retain/accuracy_before", "retain/accuracy"),
    *("forget/exact_match", "forget/log_prob", "forget/paraphrase_log_prob", "retain/log_prob"),
    *(
        "retain/same_relation_accuracy",
        "retain/neighbour_accuracy",
        "forget/accuracy_stderr",
        "forget/accuracy_n",
    ),
    *("fluency/entropy", "fluency/repetition", "fluency/perplexity", "fluency/perplexity_before_stderr"),
    *(
        "reasoning/lab_larger/acc_before",
        "reasoning/lab_larger/acc",
        "reasoning/lab_larger/chance",
    ),
    *("time/wash_s", "facts/known", "facts/washed"),
}


@pytest.fixture(scope="module", autouse=True)
def _code_is_hashed_once() -> Iterator[None]:
    """To parse it takes a third of what many a run here takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configuration, "code", cache(configuration.code))
        yield


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
    return Done(code, message, logs(folder))


def wash_in_a_process(folder: Path, *overrides: str) -> Done:
    """The command line itself."""
    command = [sys.executable, str(ROOT / "experiments" / "wash.py"), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stderr.strip().splitlines()[-1], logs(folder))


def logs(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted((folder / "outputs").glob("*/*/wash.log")))


@pytest.fixture(scope="module")
def inputs(trained_lab: TrainedLab) -> list[str]:
    return [
        "model=local",
        f"model.path={trained_lab.model_path}",
        "dataset=counterfact",
        f"dataset.path={trained_lab.facts_path}",
        "dataset.wash=8",
        "evaluation=lab",
        "evaluation.fluency.prompts=4",
        "evaluation.fluency.documents=20",
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
        assert manifest["stages_s"].keys() == {"load", "score_before", "wash", "score_after", "save"}
        # the model has learned facts alone: what it guesses is no reasoning that could be lost
        assert manifest["reasoning_tasks"] == manifest["tasks_at_chance"] == ["lab_larger"]
        assert metrics["reasoning/lab_larger/chance"] == 1 / 2
        assert "reasoning/mean" not in metrics and "reasoning/mean_before" not in metrics
        assert "left out of reasoning/mean: lab_larger" in (run / "wash.log").read_text()
        assert manifest["recall"] == "substring"
        assert {"model_hash", "facts_hash", "git_revision", "versions"} <= manifest.keys()
        assert None not in manifest["inputs"].values()
        assert manifest["inputs"].keys() == {
            *("model", "dataset", "method.moments", "evaluation.fluency", "evaluation.reasoning")
        }
        rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
        assert len(rows) == 8
        assert sum(row["known_before"] for row in rows) == metrics["facts/known"] == metrics["facts/washed"]
        left = sum(row["known_after"] for row in rows if row["known_before"])
        assert left / metrics["facts/known"] == pytest.approx(metrics["forget/accuracy"])
        assert metrics["forget/accuracy"] < metrics["forget/accuracy_before"] == 1.0
        less_likely = [row["log_prob_after"] < row["log_prob_before"] for row in rows if row["known_before"]]
        assert metrics["forget/log_prob"] < metrics["forget/log_prob_before"] and any(less_likely)
        unknown = [json.loads(line) for line in (run / "unknown_facts.jsonl").read_text().splitlines()]
        assert {row["id"] for row in unknown if row["set"] == "wash"} == {
            row["id"] for row in rows if not row["known_before"]
        }
        texts = [json.loads(line) for line in (run / "generations.jsonl").read_text().splitlines()]
        assert 2 <= len(texts) == metrics["fluency/entropy_n"] <= 4
        assert all(text["before"] and text["after"] for text in texts)
        reported = [json.loads(line) for line in (run / "method.jsonl").read_text().splitlines()]
        assert {row["layer"] for row in reported if "layer" in row} == {0, 1}
        assert (run / ".hydra" / "config.yaml").exists()
        assert not list(run.glob("*.partial"))


def test_the_seeds_of_a_setup_are_told_by_their_hashes(sweep: tuple[Path, Done]) -> None:
    one, other = (json.loads((run / "manifest.json").read_text()) for run in runs_of(sweep[0]))
    for name in ("setup_hash", "inputs_hash", "code_hash"):
        assert len(one[name]) == 64 and one[name] == other[name]
    assert one["config_hash"] != other["config_hash"]


def test_each_stage_tells_its_begin_and_how_long_it_took(sweep: tuple[Path, Done]) -> None:
    for stage in ("load", "score before", "wash", "score after", "save"):
        assert sweep[1].log.count(f"{stage}: begins") == sweep[1].log.count(f"{stage}: took ") == 2


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
    for part in ("texts", "perplexity", "reasoning"):
        assert f"{part}: taken from" in none.log
    for part in ("answers", "log_probs"):
        assert re.search(rf"{part}: (\d+) of \1 taken from", none.log)
    run = next(run for run in runs_of(sweep[0]) if run.name.startswith("none"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["forget/accuracy"] == 1.0
    assert all(
        metrics[key.removesuffix("_before")] == metrics[key] for key in metrics if key.endswith("_before")
    )


def test_the_same_command_over_a_changed_file_runs_again_and_says_why(
    tmp_path: Path, inputs: list[str], trained_lab: TrainedLab
) -> None:
    facts = tmp_path / "facts.json"
    shutil.copy(trained_lab.facts_path, facts)
    other = [*inputs, "method=none", "tracker=none", "evaluation.reasoning.tasks=[]"]

    def run(path: str) -> str:
        done = wash(tmp_path, *other, f"dataset.path={path}")
        assert done.code == 0, done.message
        assert len(runs_of(tmp_path / "outputs" / "wash")) == 1
        return done.log

    assert "has finished" not in run("facts.json")
    assert run(f"./../{tmp_path.name}/facts.json").count("has finished before") == 1
    records = json.loads(facts.read_text())
    stat = facts.stat()
    facts.write_text(json.dumps(records[::-1], indent=1))  # as long as before
    os.utime(facts, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run("facts.json").count("is run again with other inputs (dataset)") == 1
    assert run("facts.json").count("has finished before") == 2


def test_a_whole_checkpoint_loads_in_plain_transformers(
    tmp_path: Path, inputs: list[str], memit: list[str]
) -> None:
    law = ["method=law", *(part.replace("method.", "method.initial.") for part in memit[1:])]
    done = wash(
        tmp_path,
        "save=model",
        "tracker=none",
        "method.iterations=5",
        "method.learning_rate=1e-4",
        *inputs,
        *law,
    )
    assert done.code == 0, done.message
    run = runs_of(tmp_path / "outputs" / "wash")[0]
    model = AutoModelForCausalLM.from_pretrained(run / "washed")
    tokenizer = AutoTokenizer.from_pretrained(run / "washed")
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    known = [row for row in rows if row["known_before"]]
    answers = greedy_answers(model, tokenizer, [row["prompt"] for row in known], batch_size=8)
    assert answers == [row["answer_after"] for row in known]


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


class Talker(Unwashed):
    """A method that changes nothing and reports more than numbers, some of which JSON has no words for."""

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
    ) -> None:
        report({"contexts": ["The. {}"], "loss": [1.0, math.nan], "step": 1})
        report({"lambda": math.inf, "why": {"because": "λ"}})
        report({"said": "nothing"})


@dataclass
class Listener(NoTracker):
    """Keeps what it is told."""

    heard: list[Mapping[str, float]] = field(default_factory=list)

    def log(self, values: Mapping[str, float]) -> None:
        self.heard.append(values)


@dataclass
class Failing(Talker):
    """Reports once, and fails if it is told to."""

    fails: bool

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report,
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
    whole = left | {"metrics.json", "predictions.jsonl", "generations.jsonl", "washed"}
    assert run(fails=False) == whole
    (folder / "predictions.jsonl.1.partial").write_text("{")
    for _ in range(2):  # a second failure does not take the finished results away
        assert run(fails=True) == left | {"earlier"}
        assert json.loads((folder / "manifest.json").read_text())["status"] == "failed"
        assert (folder / "method.jsonl").read_text() == '{"said": "something"}\n'
        assert {path.name for path in (folder / "earlier").iterdir()} == whole
        assert json.loads((folder / "earlier" / "manifest.json").read_text())["status"] == "finished"
    assert run(fails=False) == whole | {"earlier"}


def test_reports_may_be_words_and_need_not_be_finite(tmp_path: Path, trained_lab: TrainedLab) -> None:
    listener = Listener()
    job = Job(
        model=ModelSettings(str(trained_lab.model_path), device="cpu"),
        source=CounterFact(str(trained_lab.facts_path), wash=4, keep=4),
        method=Talker(),
        evaluation=EvaluationSettings(fluency=FluencySettings(prompts=1, tokens=4)),
        tracker=listener,
        save=Save.nothing,
        folder=tmp_path / "run",
        identity=Identity("test", {}, {}, 0),
    )
    metrics = wash_and_score(job)
    assert (metrics["forget/accuracy"], metrics["fluency/entropy_n"]) == (1, 1)
    assert not [key for key in metrics if key.startswith("reasoning/") or "perplexity" in key]
    lines = (tmp_path / "run" / "method.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"contexts": ["The. {}"], "loss": [1.0, None], "step": 1},
        {"lambda": None, "why": {"because": "λ"}},
        {"said": "nothing"},
    ]
    assert listener.heard == [{"step": 1}, {"lambda": math.inf}]


class Halves(CounterFact):
    """The object of the first fact lacks its last two letters."""

    def load(self) -> FactSplit:
        split = super().load()
        first, *rest = split.wash
        return FactSplit([replace(first, object=first.object[:-2]), *rest], split.keep)


def test_a_run_takes_one_rule_of_recall_and_tells_it(tmp_path: Path, trained_lab: TrainedLab) -> None:
    found = {}
    for rule in Recall:
        job = Job(
            model=ModelSettings(str(trained_lab.model_path), device="cpu"),
            source=Halves(str(trained_lab.facts_path), wash=4, keep=0),
            method=Unwashed(),
            evaluation=EvaluationSettings(fluency=FluencySettings(prompts=0), recall=rule),
            tracker=NoTracker(),
            save=Save.nothing,
            folder=tmp_path / rule.value,
            identity=Identity("test", {}, {}, 0, {}, ""),
        )
        metrics = wash_and_score(job)
        assert json.loads((job.folder / "manifest.json").read_text())["recall"] == rule.value
        first = json.loads((job.folder / "predictions.jsonl").read_text().splitlines()[0])
        assert metrics["forget/accuracy"] == 1
        found[rule] = metrics["facts/known"], first["known_before"]
    known, _ = found[Recall.substring]
    assert found == {Recall.substring: (known, True), Recall.whole_word: (known - 1, False)}


def test_a_wash_that_changes_no_weight_is_an_error(tmp_path: Path, inputs: list[str]) -> None:
    """A step of 1e-13 is rounded away in bfloat16, which has eight bits."""
    method = ["method=gradient_ascent", "method.learning_rate=1e-13", "model.dtype=bfloat16"]
    done = wash(tmp_path, "tracker=none", "save=model", *inputs, "evaluation.reasoning.tasks=[]", *method)
    assert (done.code, "GradientAscent changed no weight of the model" in done.message) == (1, True)
    (run,) = runs_of(tmp_path / "outputs" / "wash")
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "failed" and "set model.dtype=float32" in manifest["error"]
    assert not (run / "metrics.json").exists() and not (run / "washed").exists()


class OneRelation(CounterFact):
    """All facts have one relation, so that each subject can take the place of each other one."""

    def load(self) -> FactSplit:
        split = super().load()
        return FactSplit([replace(fact, relation="any") for fact in split.wash], split.keep)


def test_facts_that_do_not_hang_on_their_subject_are_left_alone(
    tmp_path: Path, trained_lab: TrainedLab
) -> None:
    """With dataset.known=subject they are neither washed nor scored, and are listed with the reason."""
    job = Job(
        model=ModelSettings(str(trained_lab.model_path), device="cpu"),
        source=OneRelation(str(trained_lab.facts_path), known=Known.subject),
        method=Unwashed(),
        evaluation=EvaluationSettings(fluency=FluencySettings(prompts=0)),
        tracker=NoTracker(),
        save=Save.nothing,
        folder=tmp_path / "run",
        identity=Identity("test", {}, {}, 0),
    )
    metrics = wash_and_score(job)
    lines = (job.folder / "unknown_facts.jsonl").read_text(encoding="utf-8").splitlines()
    reasons = Counter(json.loads(line)["reason"] for line in lines)
    kinds = {
        key.removeprefix("facts/known_"): n for key, n in metrics.items() if key.startswith("facts/known_")
    }
    assert metrics["facts/known"] == metrics["facts/washed"] == kinds.pop("subject") > 0
    assert reasons.pop("not_recalled", 0) + sum(reasons.values()) == 18 - metrics["facts/known"]
    assert reasons == {kind: n for kind, n in kinds.items() if n} and reasons
    assert metrics["forget/of_subject_accuracy"] == metrics["forget/accuracy"] == 1
    known = [
        json.loads(line)["known_before"]
        for line in (job.folder / "predictions.jsonl").read_text().splitlines()
    ]
    assert sum(known) == metrics["facts/known"] and len(known) == 18


def test_a_metric_that_is_not_finite_is_left_out(
    tmp_path: Path, inputs: list[str], trained_lab: TrainedLab
) -> None:
    """Learning at a rate that keeps weights finite and makes them huge."""
    done = wash(
        tmp_path,
        *("method=gradient_ascent", "method.learning_rate=10", "tracker=none"),
        *inputs,
        "evaluation.reasoning.tasks=[]",
    )
    assert done.code == 0, done.message
    (run,) = runs_of(tmp_path / "outputs" / "wash")
    metrics = json.loads((run / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert "fluency/perplexity_before" in metrics and "fluency/perplexity" not in metrics
    assert "fluency/perplexity is inf and left out" in done.log


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
