"""Whole runs: what they leave, and how they go on."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

import pytest
import torch
from conftest import TrainedLab
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from whole_runs import Done, runs_of, wash

from law.base.report import Report
from law.base.settings import OTHER_FACTS
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
from law.runs.identity import Identity
from law.runs.sequence import Job, wash_and_score
from law.runs.tracker import NoTracker

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
    done = wash(folder, "-m", "name=two", "seed=0,1", "save=delta", "attack=quick", *inputs, *memit)
    assert done.code == 0, done.message
    return folder / "outputs" / "two", done


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
        stages = {"load", "score_before", "attack_before", "wash", "score_after", "attack_after", "save"}
        assert manifest["stages_s"].keys() == stages
        # the model has learned facts alone: what it guesses is no reasoning that could be lost
        assert manifest["reasoning_tasks"] == manifest["tasks_at_chance"] == ["lab_larger"]
        assert metrics["reasoning/lab_larger/chance"] == 1 / 2
        assert "reasoning/mean" not in metrics and "reasoning/mean_before" not in metrics
        assert "left out of reasoning/mean: lab_larger" in (run / "wash.log").read_text()
        assert manifest["learned_from"] == ["general text"]
        assert manifest["washed_hash"] != manifest["model_hash"]
        # the second seed takes C, and z* of the facts that both wash, from the cache
        assert (metrics["time/cached_s"] > 0) == (seed == 1)
        assert metrics["time/wash_s"] == pytest.approx(
            manifest["stages_s"]["wash"] + metrics["time/cached_s"]
        )
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
        unrefused = [row["known_unrefused"] for row in rows if row["known_before"]]
        assert mean(unrefused) == pytest.approx(metrics["forget/unrefused_accuracy"])
        assert not any(row["known_after"] is not None for row in rows if not row["known_before"])
        kept = [json.loads(line) for line in (run / "kept.jsonl").read_text().splitlines()]
        assert len(kept) == metrics["facts/kept"] and all(row["known_before"] for row in kept)
        assert mean(row["known_after"] for row in kept) == pytest.approx(metrics["retain/accuracy"])
        assert all(row["subject"] in row["prompt"] for row in (*rows, *kept))
        items = [json.loads(line) for line in (run / "reasoning.jsonl").read_text().splitlines()]
        for task in {item["task"] for item in items}:
            for model, end in (("before", "_before"), ("after", "")):
                found = [item[model] for item in items if item["task"] == task]
                assert mean(found) == pytest.approx(metrics[f"reasoning/{task}/acc{end}"])
                assert len(found) == metrics[f"reasoning/{task}/acc_n"]
        attacked = [json.loads(line) for line in (run / "attacks.jsonl").read_text().splitlines()]
        assert [row["id"] for row in attacked] == [row["id"] for row in rows if row["known_before"]]
        found = [row["after"]["refusal/recalled"] for row in attacked]
        assert metrics["forget/unrefused_accuracy"] == metrics["attack/refusal/recalled"] == mean(found)
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


def test_a_run_and_a_sweep_tell_how_long_they_will_take(sweep: tuple[Path, Done]) -> None:
    logs = sorted((run / "wash.log" for run in runs_of(sweep[0])), key=lambda path: path.stat().st_mtime_ns)
    time = r"(at most )?about [\d.]+ (s|min)"
    for number, path in enumerate(logs):
        said = [
            r"score before: begins",
            r"MEMIT: (\d+) facts are asked; at most 8 are washed and (\d+) kept\. Reasoning tasks: lab_larger "
            rf"\(20 items\)\. Asking takes ({time}|no time), scoring before washing {time}, and scoring after it {time}\.",
            r"facts to wash that are recalled",
            r"score after: took",
            (rf"run 1 of 2 finished; {time} left", r"run 2 of 2 finished\n")[number],
        ]
        found = [[match.start() for match in re.finditer(line, path.read_text())] for line in said]
        assert [len(places) for places in found] == [1] * len(said) and sorted(found) == found


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
    again = wash(folder, "-m", "name=two", "seed=0,1", "save=delta", "attack=quick", *inputs, *memit)
    assert again.code == 0
    assert again.log.count("has finished before") == 2
    assert (
        len(re.findall(r"run [12] of 2 finished\n", again.log)) == 3
    )  # and one with a time, of the first sweep
    assert {run: (run / "manifest.json").read_text() for run in runs_of(sweep[0])} == before

    none = wash(folder, "name=two", "method=none", "tracker=none", *inputs)
    assert none.code == 0, none.message
    for part in ("texts", "perplexity", "reasoning"):
        assert f"{part}: taken from" in none.log
    assert "Asking takes no time, scoring before washing no time, and scoring after it no time." in none.log
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


class Talker(Unwashed):
    """A method that changes nothing and reports more than numbers, some of which JSON has no words for."""

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
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


class Counting(Unwashed):
    """A method that changes nothing and reports how many other facts it was given."""

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        report({"others": len(others)})


class Learning(Counting):
    """The same, and says that it learns from them."""

    def learns_from(self) -> list[str]:
        return [OTHER_FACTS]


@pytest.mark.parametrize("method", [Counting(), Learning()], ids=["silent", "says so"])
def test_other_facts_go_only_to_a_method_that_says_that_it_learns_from_them(
    method: Counting, tmp_path: Path, trained_lab: TrainedLab
) -> None:
    source = CounterFact(str(trained_lab.facts_path), wash=4, keep=4)
    job = Job(
        model=ModelSettings(str(trained_lab.model_path), device="cpu"),
        source=source,
        method=method,
        evaluation=EvaluationSettings(fluency=FluencySettings(prompts=1, tokens=4)),
        tracker=NoTracker(),
        save=Save.nothing,
        folder=tmp_path,
        identity=Identity("test", {}, {}, 0),
    )
    wash_and_score(job)
    says_so = isinstance(method, Learning)
    expected = len(source.load().unscored) if says_so else 0
    assert json.loads((tmp_path / "method.jsonl").read_text()) == {"others": expected}
    assert json.loads((tmp_path / "manifest.json").read_text())["learned_from"] == [OTHER_FACTS] * says_so
    assert source.load().unscored


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
