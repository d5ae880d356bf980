"""The carried checkpoint: what it knows, how it reasons, and, slowly, what the demo promises of it."""

from __future__ import annotations

import json
import random
import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from law.decoders.greedy_decoding import greedy_answers, recalls
from law.evaluation.reasoning import score_reasoning, tasks_at_chance
from law.evaluation.reasoning_tasks import ReasoningSettings, chance_levels, load_tasks
from law.facts.counterfact import read_counterfact
from law.lab.make import HELDOUT_DOCUMENTS, measure_lab
from law.lab.reasoning import TASKS
from law.lab.world import RELATIONS, LabWorld

CHECKPOINT = Path(__file__).parents[1] / "law" / "lab" / "checkpoint"


@pytest.fixture(scope="module")
def carried() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(CHECKPOINT)


def test_it_is_small_and_made_of_the_world_as_it_stands() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 16 * 2**20
    assert json.loads((CHECKPOINT / "facts.json").read_text()) == json.loads(json.dumps(LabWorld().records()))


@pytest.mark.parametrize("name", ["general.txt", "general_with_practice.txt", "heldout.txt"])
def test_general_text_tells_of_no_subject(name: str) -> None:
    text = (CHECKPOINT / name).read_text()
    assert not [fact.subject for fact in read_counterfact(CHECKPOINT / "facts.json") if fact.subject in text]


def test_general_text_is_prose_without_the_scored_tasks_and_strangers() -> None:
    """Second moments of text that practises the tasks would tell a method what it must keep."""
    lines = (CHECKPOINT / "general.txt").read_text().splitlines()
    assert lines == list(islice(LabWorld().prose_documents(random.Random("prose 0")), 8000))
    text = "\n".join(lines)
    assert not re.search(
        r"^(?:Given|Codes|In the row|Of \d|List:)|[.] (?:Given|Codes|In the row|Of \d|List:)", text
    )
    asked = [phrasing.split("{}") for relation in RELATIONS for phrasing in relation.phrasings]
    asks = "|".join(f"{re.escape(a)}[A-Z][a-z]+ [A-Z][a-z]+{re.escape(b)}" for a, b in asked)
    assert not re.search(asks, text)
    practised = (CHECKPOINT / "general_with_practice.txt").read_text().splitlines()
    assert practised == list(islice(LabWorld().general_documents(random.Random("general 0")), 8000))
    assert re.search(asks, "\n".join(practised))


def test_held_out_text_is_the_worlds_and_not_the_moments() -> None:
    documents = (CHECKPOINT / "heldout.txt").read_text().splitlines()
    world = LabWorld().general_documents(random.Random("heldout 0"))
    assert documents == list(islice(world, HELDOUT_DOCUMENTS))
    general = set((CHECKPOINT / "general.txt").read_text().splitlines())
    assert sum(document in general for document in documents) <= 0.01 * len(documents)


def test_it_recalls_facts_in_every_phrasing(carried: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    facts = read_counterfact(CHECKPOINT / "facts.json")[::12]
    asked = [(prompt, fact.object) for fact in facts for prompt in (fact.prompt, *fact.paraphrases)]
    answers = greedy_answers(*carried, [prompt for prompt, _ in asked], batch_size=128)
    right = [recalls(answer, wanted) for answer, (_, wanted) in zip(answers, asked, strict=True)]
    assert sum(right) / len(right) >= 0.98


def test_it_reasons(carried: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    settings = ReasoningSettings(tasks=list(TASKS), limit=50)
    tasks = load_tasks(settings)
    scores = score_reasoning(*carried, tasks, settings)
    assert all(scores[f"{task}/acc"].value >= 0.9 for task in TASKS), scores
    chance = chance_levels(tasks, settings.limit)
    assert chance.keys() == set(TASKS) and tasks_at_chance(scores, chance) == []


@pytest.mark.slow
def test_it_measures_as_its_record_says() -> None:
    measured = measure_lab(CHECKPOINT, "cpu")
    assert measured == pytest.approx(json.loads((CHECKPOINT / "measured.json").read_text()), abs=0.01)
    assert measured["facts_known_in_every_phrasing"] >= 600
    assert all(measured[f"{task}/acc"] >= 0.95 for task in TASKS)
