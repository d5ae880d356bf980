"""A washed model that a run kept is an ordinary checkpoint: the same logits, the same scores, no code of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from small import TEXTS, gpt2_style, llama2_style, random_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from law.decoders.greedy_decoding import greedy_answers, recalls
from law.decoders.prompts import pad_right
from law.decoders.saving import Save, save_washed
from law.editing.second_moments import MomentSettings
from law.evaluation.estimates import Estimate
from law.evaluation.reasoning import score_reasoning
from law.evaluation.reasoning_tasks import LOCAL_TASKS, ReasoningSettings, load_tasks
from law.facts.fact import Fact
from law.methods.law import LAW
from law.methods.memit import MEMIT

TASK = "lab_larger"
FACTS = [
    Fact("0", "Danielle Darrieux", "The mother tongue of {} is", "French", "P103"),
    Fact("1", "Zoë Çelik-Ångström", "The mother tongue of {} is", "Swedish", "P103"),
    Fact("2", "Anna", "The home of {} is in", "Berlin", "P551"),
]
KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {"gpt2": gpt2_style, "llama": llama2_style}


def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """A few seconds on the facts and on half of the task's rows, so that there is something to lose."""
    lines = (LOCAL_TASKS / "lab" / "larger.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [f"{row['prompt']} {row['answer']}" for row in map(json.loads, lines[::2])]
    rows = tokenizer(texts + [f"{f.prompt} {f.object}." for f in FACTS] * 10)["input_ids"]
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(10):
        for batch in torch.randperm(len(rows)).split(16):
            ids, mask = pad_right([rows[i] for i in batch], tokenizer.pad_token_id, model.device)
            loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@dataclass(frozen=True)
class Washed:
    """A washed model in memory, what it scores there, and the folder it was saved to."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    scores: dict[str, Estimate]
    folder: Path


@pytest.fixture(scope="module", params=KINDS)
def washed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Washed:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "general.txt").write_text("\n".join(dict.fromkeys(TEXTS)), encoding="utf-8")
    tokenizer = KINDS[request.param]()
    model = random_model(request.param, len(tokenizer))
    model.config.bos_token_id, model.config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    train(model, tokenizer)
    answers = greedy_answers(model, tokenizer, [fact.prompt for fact in FACTS], batch_size=8)
    known = [fact for fact, answer in zip(FACTS, answers, strict=True) if recalls(answer, fact.object)]
    assert known, f"the fixture's model knows no fact: {answers}"
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    start = MEMIT([0, 1], 1.0, MomentSettings(str(folder / "general.txt")), contexts=["He said. {}"])
    LAW(start, learning_rate=1e-3, iterations=20).wash(model, tokenizer, known)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())
    save_washed(model, tokenizer, before, folder / "washed", Save.model)
    settings = ReasoningSettings(tasks=[TASK], batch_size=32)
    scores = score_reasoning(model, tokenizer, load_tasks(settings), settings)
    return Washed(model, tokenizer, scores, folder / "washed")


@torch.no_grad()
def test_plain_transformers_loads_the_same_model(washed: Washed) -> None:
    model = AutoModelForCausalLM.from_pretrained(washed.folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(washed.folder)
    for text in [*TEXTS[:6], "The home of 毛泽东 is"]:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert ids.tolist() == [washed.tokenizer(text)["input_ids"]]
        assert torch.equal(model(ids).logits, washed.model(ids).logits)


@pytest.mark.slow  # starting the harness and indexing its tasks takes most of it
def test_the_harness_command_line_scores_the_same(washed: Washed, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf"),
        *("--model_args", f"pretrained={washed.folder},dtype=float32", "--tasks", TASK),
        *("--include_path", str(LOCAL_TASKS), "--device", "cpu", "--batch_size", "32"),
        *("--output_path", str(tmp_path / "scores")),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    (results,) = (tmp_path / "scores").rglob("results_*.json")
    found = json.loads(results.read_text(encoding="utf-8"))["results"][TASK]
    in_the_run = washed.scores[f"{TASK}/acc"]
    assert found["acc,none"] == in_the_run.value
    assert found["acc_stderr,none"] == pytest.approx(in_the_run.stderr)
    assert 0.5 < found["acc,none"] < 1  # better than a guess, and not a score that any model would get
