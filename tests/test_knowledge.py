from __future__ import annotations

import itertools
import json

import pytest
import torch
from conftest import TrainedLab
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from law.datasets.counterfact import CounterFact
from law.evaluation.knowledge import accuracy, knowledge_metrics, qa_f1
from law.facts import Fact
from law.models import ModelSettings, load_model
from law.recall import greedy_answers, recalls
from law.results import METRICS


@pytest.mark.parametrize(
    ("answer", "wanted", "f1"),
    [
        ("Paris", "Paris", 1),
        (" paris.\n", "Paris", 1),
        ("The U.S.A.!", "usa", 1),  # articles and punctuation go
        ("the city of Paris", "Paris", 0.5),  # 1 of 3 and 1 of 1: 2 · 1/3 / (4/3)
        ("York", "New York", 2 / 3),  # 1 of 1 and 1 of 2: 2 · 1/2 / (3/2)
        ("new new York", "New York", 0.8),  # 2 of 3 and 2 of 2: 2 · 2/3 / (5/3)
        ("York York", "New York", 0.5),  # one York counts: 1 of 2 and 1 of 2
        ("New York", "York York York", 0.4),  # 1 of 2 and 1 of 3: 2 · 1/6 / (5/6)
        ("Thea an other", "the other a", 2 / 3),  # thea, other and other: 1 of 2 and 1 of 1
        ("well-known", "well known", 0),  # the hyphen goes, and one word is left
        ("London", "Paris", 0),
        ("", "Paris", 0),
        ("...", "Paris", 0),
        ("ZÜRICH", "Zürich", 1),
    ],
)
def test_qa_f1(answer: str, wanted: str, f1: float) -> None:
    assert qa_f1(answer, wanted) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "wanted", "recalled"),
    [
        (" French, and", "French", True),
        (" FRENCH", "french", True),
        (" the Frenchman", " French ", True),
        (" new\u00a0york", "New York", False),
        (" Fren", "French", False),
        ("", "French", False),
        (" ÉCLAIR", "éclair", True),
    ],
)
def test_recalls(answer: str, wanted: str, recalled: bool) -> None:
    assert recalls(answer, wanted) is recalled


ANNA = Fact("0", "Anna", "{} speaks", "French", "P103", ("In Anna's tongue", "Anna says it in"))
BEN = Fact("1", "Ben", "{} lives in", "Oslo", "P551", ("At home in Ben's",))
ANNAS_PIANO = Fact("2", "Anna", "{} plays the", "piano", "P1303")
CLEO = Fact("3", "Cleo", "{} plays the", "lute", "P1303", ("never asked",))
DORA = Fact("4", "Dora", "{} competes in", "chess", "P641")
EMIL = Fact("5", "Emil", "{} competes in", "golf", "P641")

BEFORE = {
    "Anna speaks": " French.",
    "Ben lives in": " the city of Oslo",  # F1 1/2
    "In Anna's tongue": " french",
    "Anna says it in": " French",
    "At home in Ben's": " Rome",
    "Anna plays the": " piano",
    "Cleo plays the": " lute",
    "Dora competes in": " chess",
    "Emil competes in": " golf",
}
AFTER = {
    "Anna speaks": "",
    "Ben lives in": " Oslo",
    "In Anna's tongue": "",
    "Anna says it in": " French",
    "At home in Ben's": "",
    "Anna plays the": " flute",
    "Cleo plays the": " lute",
    "Dora competes in": " chess",
    "Emil competes in": " judo",
}


def test_knowledge_metrics() -> None:
    metrics = knowledge_metrics([ANNA, BEN], [ANNAS_PIANO, CLEO, DORA, EMIL], BEFORE, AFTER)
    assert metrics == pytest.approx(
        {
            "facts/washed": 2,
            "facts/kept": 4,
            "facts/kept_same_subject": 1,
            "forget/accuracy_before": 1,
            "forget/accuracy": 1 / 2,
            "forget/qa_f1_before": 3 / 4,
            "forget/qa_f1": 1 / 2,
            "forget/paraphrase_accuracy_before": 2 / 3,
            "forget/paraphrase_accuracy": 1 / 3,
            "retain/accuracy_before": 1,
            "retain/accuracy": 2 / 4,
            "retain/same_subject_accuracy": 0,
        }
    )
    assert metrics.keys() <= {metric.key for metric in METRICS}


def test_a_metric_over_nothing_is_left_out() -> None:
    washed = [Fact("0", "Anna", "{} speaks", "French", "P103")]
    counts = {"facts/washed": 1, "facts/kept": 0, "facts/kept_same_subject": 0}
    forget = {
        "forget/accuracy_before": 1,
        "forget/accuracy": 0,
        "forget/qa_f1_before": 1,
        "forget/qa_f1": 0,
    }
    assert knowledge_metrics(washed, [], BEFORE, AFTER) == pytest.approx(counts | forget)
    retain = {"retain/accuracy_before": 1, "retain/accuracy": 1}
    assert knowledge_metrics(washed, [CLEO], BEFORE, AFTER) == pytest.approx(
        counts | {"facts/kept": 1} | forget | retain
    )


def test_accuracy_of_nothing() -> None:
    assert accuracy([], {}) is None
    assert accuracy([CLEO, EMIL], AFTER) == 0.5


PROMPTS = [
    "Anna",
    "The mother tongue of Kladai Breastom is",
    "Because of the rain",
    "Nobody at the mill knew Anna, who sold bread and",
    "Ben",
    "Anna",
    "Given A > B and",
]


def decode_alone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """Ten times the likeliest next token, or fewer and an end-of-text."""
    ids = tokenizer(prompt)["input_ids"]
    given = len(ids)
    while len(ids) < given + 10 and tokenizer.eos_token_id not in ids[given:]:
        with torch.no_grad():
            ids = [*ids, model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()]
    return ids[given:]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_answers_do_not_depend_on_the_batch(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    tiny_model.train()  # there is no dropout; the answers are taken in evaluation mode all the same
    answers = greedy_answers(tiny_model, tiny_tokenizer, PROMPTS, batch_size)
    assert not tiny_model.training
    alone = [decode_alone(tiny_model, tiny_tokenizer, prompt) for prompt in PROMPTS]
    assert {len(ids) for ids in alone} == {10}
    assert answers == [tiny_tokenizer.decode(ids) for ids in alone]
    assert len({*answers}) > 1


def test_answers_end_at_end_of_text(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    end = tiny_tokenizer.eos_token_id
    # Raise the end's logit step by step until some prompts run into it and others don't.
    for _ in range(100):
        alone = [decode_alone(tiny_model, tiny_tokenizer, prompt) for prompt in PROMPTS]
        ended = [ids[-1] == end for ids in alone]
        if any(ended):
            break
        with torch.no_grad():
            tiny_model.lm_head.bias[end] += 0.01
    assert any(ended) and not all(ended)
    expected = [tiny_tokenizer.decode([i for i in ids if i != end]) for ids in alone]
    assert greedy_answers(tiny_model, tiny_tokenizer, PROMPTS, batch_size=64) == expected

    with torch.no_grad():
        tiny_model.lm_head.bias[end] += 100
    assert greedy_answers(tiny_model, tiny_tokenizer, PROMPTS, batch_size=2) == [""] * 7


def test_no_prompt_no_answer(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert greedy_answers(tiny_model, tiny_tokenizer, [], batch_size=4) == []


def test_a_trained_model_knows_its_facts(trained_lab: TrainedLab) -> None:
    model, tokenizer = load_model(ModelSettings(str(trained_lab.model_path), device="cpu"))
    split = CounterFact(str(trained_lab.facts_path), wash=18).load()
    prompts = [fact.prompt for fact in split.wash]
    answers = greedy_answers(model, tokenizer, prompts, batch_size=32)
    assert sum(f.object in answer for f, answer in zip(split.wash, answers, strict=True)) >= 16
    # It answers from the subject: another's object is no answer.
    others = itertools.pairwise(split.wash)
    assert sum(b.object in answers[i] for i, (a, b) in enumerate(others) if a.object != b.object) <= 2
    text = trained_lab.text_path.read_text()
    assert len(text.splitlines()) == 300
    subjects = {r["requested_rewrite"]["subject"] for r in json.loads(trained_lab.facts_path.read_text())}
    assert len(subjects) == 14 and not any(subject in text for subject in subjects)
