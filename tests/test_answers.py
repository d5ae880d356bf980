"""What a model answers, and how likely it finds given words."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch
from conftest import TrainedLab
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from law.base.errors import LawError
from law.decoders.greedy_decoding import Recall, greedy_answers, recalled, recalls
from law.decoders.loading import ModelSettings, load_model
from law.decoders.prompts import refusing_tokens
from law.evaluation.likelihood import object_log_probs, text_log_probs
from law.facts.counterfact import CounterFact
from law.facts.fact import Question

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


def test_a_banned_token_begins_no_answer_and_may_follow(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """With end-of-text the likeliest token everywhere, each answer is its first token that is not banned."""
    banned = refusing_tokens(tiny_model, tiny_tokenizer)
    assert [*map(tiny_tokenizer.decode, banned)] == [tiny_tokenizer.eos_token, " "]
    with torch.no_grad():
        tiny_model.lm_head.bias[banned] += torch.tensor([200.0, 100.0])
        rows = [tiny_tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in PROMPTS]
        second = [tiny_model(input_ids=row).logits[0, -1].argsort()[-3].item() for row in rows]
    assert greedy_answers(tiny_model, tiny_tokenizer, PROMPTS, 2) == [""] * 7
    unrefused = [tiny_tokenizer.decode([token]) for token in second]
    assert greedy_answers(tiny_model, tiny_tokenizer, PROMPTS, 2, banned=banned) == unrefused
    asked = [Question(p, answer.strip() or "x") for p, answer in zip(PROMPTS, unrefused, strict=True)]
    expected = [recalls(answer, q.object) for answer, q in zip(unrefused, asked, strict=True)]
    assert recalled(tiny_model, tiny_tokenizer, asked, 2, banned=banned) == expected and any(expected)
    assert not any(recalled(tiny_model, tiny_tokenizer, asked, 2))


@torch.no_grad()
def log_probs_alone(model: PreTrainedModel, ids: list[int], given: int) -> list[float]:
    """The log-probability of each token of a row from index ``given`` on."""
    log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return [log_p[i - 1, ids[i]].item() for i in range(given, len(ids))]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_log_probs_of_objects(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    objects = ["Oslo", "French", "the college of Kelton", "Xyzzy-Quux", "French", " piano ", "A"]
    questions = [Question(prompt, word) for prompt, word in zip(PROMPTS, objects, strict=True)]
    questions[1] = Question(questions[1].prompt + " ", "French")  # a prompt's last space is the object's
    found = object_log_probs(tiny_model, tiny_tokenizer, questions, batch_size)
    for prompt, word, value in zip(PROMPTS, objects, found, strict=True):
        given = tiny_tokenizer(prompt)["input_ids"]
        ids = tiny_tokenizer(f"{prompt} {word.strip()}")["input_ids"]
        assert ids[: len(given)] == given
        alone = log_probs_alone(tiny_model, ids, len(given))
        assert value == pytest.approx(sum(alone) / len(alone), abs=1e-5)
    assert object_log_probs(tiny_model, tiny_tokenizer, [], batch_size) == []


def test_log_probs_in_a_script_without_spaces(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    given, ids = (tiny_tokenizer(text)["input_ids"] for text in ("法国的首都是", "法国的首都是巴黎"))
    assert ids[: len(given)] == given and len(ids) > len(given)
    alone = log_probs_alone(tiny_model, ids, len(given))
    for prompt in ("法国的首都是", "法国的首都是 "):
        found = object_log_probs(tiny_model, tiny_tokenizer, [Question(prompt, "巴黎")], 1)
        assert found == [pytest.approx(sum(alone) / len(alone), abs=1e-5)]


def test_log_probs_where_a_token_covers_prompt_and_object(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["首都"])  # a token of its own, wherever it stands
    tiny_model.resize_token_embeddings(len(tokenizer))
    given, ids = (tokenizer(text)["input_ids"] for text in ("法国的", "法国的首都巴黎"))
    assert ids[: len(given) + 1] == [*given, len(tokenizer) - 1]
    alone = log_probs_alone(tiny_model, ids, len(given))  # 首都 ends the prompt and counts as the object's
    found = object_log_probs(tiny_model, tokenizer, [Question("法国的首", "都巴黎")], 1)
    assert found == [pytest.approx(sum(alone) / len(alone), abs=1e-5)]
    # a text's first token is not predicted: of its two, the second is left
    found = object_log_probs(tiny_model, tokenizer, [Question("首", "都A")], 1)
    ids = tokenizer("首都A")["input_ids"]
    assert found == pytest.approx(log_probs_alone(tiny_model, ids, 1), abs=1e-5)
    with pytest.raises(LawError, match="'都' and its prompt '首' make one token"):
        object_log_probs(tiny_model, tokenizer, [Question("首", "都")], 1)


def test_a_whole_word_is_settled_at_the_answers_end(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The first letters of an answer stand alone for a moment, until the next token goes on with the word."""
    prompts = PROMPTS[:3]
    answers = dict(zip(prompts, greedy_answers(tiny_model, tiny_tokenizer, prompts, 8), strict=True))
    beginnings = [(prompt, answers[prompt][:end].strip()) for prompt in prompts for end in range(1, 9)]
    asked = [Question(prompt, wanted) for prompt, wanted in beginnings if wanted]
    for rule in Recall:
        expected = [recalls(answers[question.prompt], question.object, rule) for question in asked]
        assert recalled(tiny_model, tiny_tokenizer, asked, 64, rule) == expected
        assert all(expected) if rule is Recall.substring else {*expected} == {True, False}


def test_log_probs_of_texts(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["Anna walked to the mill.", "", "Ben", "Because of the rain " * 60, "Given A > B and"]
    found = text_log_probs(tiny_model, tiny_tokenizer, texts, batch_size=2)
    rows = [tiny_tokenizer(text)["input_ids"][:128] for text in texts]
    expected = [(sum(log_probs_alone(tiny_model, row, 1)), len(row) - 1) for row in rows if len(row) > 1]
    assert max(n for _, n in expected) == 127  # cut at the model's 128 positions
    by_tokens = dict(sorted((n, total) for total, n in found))
    assert by_tokens == pytest.approx(dict(sorted((n, total) for total, n in expected)), rel=1e-5)


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
