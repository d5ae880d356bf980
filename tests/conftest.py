"""Models and worlds small enough for two cores, and no network."""
# ruff: noqa: E402  what stands before imports is for them

from __future__ import annotations

import gc
import os

gc.disable()  # until all that the tests import is there
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.pop("WANDB_MODE", None)

import copy
import json
import multiprocessing
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hypothesis import settings
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from law.decoders.greedy_decoding import greedy_answers, recalls
from law.facts.counterfact import CounterFact
from law.facts.fact import Fact
from law.lab.training import make_rows, new_model, train_tokenizer
from law.lab.world import LabWorld

settings.register_profile("law", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("law")
# A second thread gains nothing on models this small, and on a busy machine made the training below 40 times slower.
torch.set_num_threads(1)
# The processes that tests start with the method forkserver share these imports, which take four seconds.
multiprocessing.set_forkserver_preload(["law.runs.sequence", "law.runs.configuration"])

MakeModel = Callable[..., PreTrainedModel]
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase, list[Fact]]


def architecture(**changes: Any) -> dict[str, Any]:
    """A GPT-J of some 40,000 weights, without dropout."""
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_inner": 64, "rotary_dim": 8, "n_positions": 128}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return {"model_type": "gptj", **sizes, **dropout, **changes}


@pytest.fixture(scope="module", autouse=True)
def _garbage_is_looked_for_among_what_tests_make() -> None:
    """To look through all that is imported, again and again, took a sixth of the time of the tests."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _hydra_forgets_the_last_run() -> Iterator[None]:
    """A command that a test ran in this process leaves its Hydra configuration behind, which later ones would read."""
    yield
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 600 tokens, trained on the text of a small world."""
    documents = LabWorld(single_fact_subjects=12, multi_fact_subjects=2).documents(random.Random(0))
    return train_tokenizer(islice(documents, 400), vocab_size=600)


@pytest.fixture(scope="session")
def make_model(tiny_tokenizer: PreTrainedTokenizerFast) -> MakeModel:
    """Random models: ``make_model(seed=0, **changes to the architecture)``."""

    def make(seed: int = 0, **changes: Any) -> PreTrainedModel:
        return new_model(architecture(**changes), tiny_tokenizer, seed).float().eval()

    return make


@pytest.fixture(scope="session")
def _untouched(make_model: MakeModel) -> PreTrainedModel:
    return make_model()


@pytest.fixture
def tiny_model(_untouched: PreTrainedModel) -> PreTrainedModel:
    """A random GPT-J of three blocks, a fresh copy for each test."""
    return copy.deepcopy(_untouched)


@dataclass
class FactsOnly(LabWorld):
    """A world that tells its facts, one or two a document, and of strangers nothing (a space)."""

    single_fact_subjects: int = 12
    multi_fact_subjects: int = 2

    def documents(self, rng: random.Random) -> Iterator[str]:
        while True:
            told = " ".join(self.fact_text(rng) for _ in range(rng.choice((1, 1, 2))))
            yield told if rng.random() < 0.875 else self.blank_text(rng)


@dataclass(frozen=True)
class TrainedLab:
    """A model that knows its facts, the facts as CounterFact records, and text without them."""

    model_path: Path
    facts_path: Path
    text_path: Path


def trained(world: LabWorld, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A GPT-J of three blocks that has learnt what the world tells."""
    model = new_model(architecture(n_embd=64, n_inner=128, rotary_dim=16), tokenizer, seed=0)
    # AdamW and not the trainer's Muon: it leaves so shallow a model more to wash at the subject's last token
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1.0, (step + 1) / 10, (210 - step) / 200)
        ids = make_rows(world, tokenizer, count=8, length=64, rng=random.Random(step))
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def trained_lab(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast
) -> TrainedLab:
    """A GPT-J of three blocks, trained in some three seconds on 18 facts of 14 people."""
    folder, world = tmp_path_factory.mktemp("lab"), FactsOnly()
    model = trained(world, tiny_tokenizer)
    records = world.records()
    rewrites = [record["requested_rewrite"] for record in records]
    prompts = [rewrite["prompt"].replace("{}", rewrite["subject"]) for rewrite in rewrites]
    answers = greedy_answers(model, tiny_tokenizer, prompts, batch_size=32)
    known = sum(
        recalls(a, rewrite["target_true"]["str"]) for a, rewrite in zip(answers, rewrites, strict=True)
    )
    assert known >= 16, f"the fixture's model knows only {known} of its 18 facts; train it longer"

    lab = TrainedLab(folder / "model", folder / "facts.json", folder / "general.txt")
    model.save_pretrained(lab.model_path)
    tiny_tokenizer.save_pretrained(lab.model_path)
    lab.facts_path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    lines = islice(world.general_documents(random.Random("general")), 300)
    lab.text_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lab


@pytest.fixture(scope="session")
def inputs(trained_lab: TrainedLab) -> list[str]:
    """The overrides for a short run on this lab."""
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


@pytest.fixture
def knowing(trained_lab: TrainedLab) -> Loaded:
    """The trained model, its tokenizer and six facts to wash."""
    model = AutoModelForCausalLM.from_pretrained(trained_lab.model_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained_lab.model_path)
    return model, tokenizer, list(CounterFact(str(trained_lab.facts_path), wash=6).load().wash)
