"""Variety, repetition and perplexity: by hand, and against a model run one token at a time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from law.base.errors import LawError
from law.evaluation.fluency import (
    FluencySettings,
    entropy,
    generation_prompts,
    perplexity,
    repetition,
    sample_texts,
    text_scores,
)
from law.facts.fact import Fact


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        # bigrams ab ba ab: 2/3 and 1/3; trigrams aba bab: one bit
        ("a b a b", (2 / 3 * (math.log2(3) - 2 / 3) + 4 / 3 * 1) / 2),
        ("a a a a a", 0),
        ("a b c d e", (2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2),  # 4 bigrams and 3 trigrams, all different
        ("Yes, no.", (2 / 3 * math.log2(3) + 4 / 3 * 1) / 2),  # four words, marks included
        ("a b", 0),  # a single bigram, no trigram
        ("", 0),
    ],
)
def test_entropy(text: str, bits: float) -> None:
    assert entropy(text) == pytest.approx(bits)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("a b c d e", 0),
        ("a b c d a b c d", 1 / 5),  # five 4-grams: abcd bcda cdab dabc abcd
        ("a a a a a a", 2 / 3),  # three, all alike
        ("a b c", 0),
        ("", 0),
    ],
)
def test_repetition(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


@given(st.text("ab .,", max_size=60))
def test_bounds(text: str) -> None:
    words = len(text)
    assert 0 <= repetition(text) < 1
    assert -1e-9 <= entropy(text) <= math.log2(max(words, 1)) + 1e-9


def test_scores_are_means_over_texts() -> None:
    scores = text_scores(["a a a a a a", "a b c d e"])
    assert scores["repetition"].value == pytest.approx(1 / 3)
    assert scores["repetition"].stderr == pytest.approx(1 / 3)  # of 2/3 and 0
    assert scores["entropy"].n == 2
    assert text_scores([]) == {}


def test_a_fact_without_generation_prompts_gives_its_subject() -> None:
    anna = Fact("0", "Anna", "{} speaks", "French", "P103", generation_prompts=("Anna is", "About Anna"))
    ben = Fact("1", "Ben", "{} speaks", "Dutch", "P103")
    assert generation_prompts([anna, anna, ben], 2) == ["Anna is", "Ben"]  # a subject's facts share a prompt
    assert generation_prompts([anna, ben], 5) == ["Anna is", "Ben"]
    assert generation_prompts([anna, ben], 1) == ["Anna is"]


PROMPTS = ["Anna is", "Because of the rain", "Ben", "Anna was", "The mother tongue of Kladai Breastom is"]


@torch.no_grad()
def sample_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, draws: torch.Tensor
) -> str:
    """The same draws by a plain inverse of the distribution function, without a cache of keys and values."""
    ids = tokenizer(prompt)["input_ids"]
    given = len(ids)
    for draw in draws.tolist():
        probabilities = model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        probabilities[tokenizer.eos_token_id] = 0
        likeliest = probabilities.argsort(descending=True)[:5].tolist()
        mass, total = 0.0, sum(probabilities[i].item() for i in likeliest)
        for token in likeliest:
            mass += probabilities[token].item() / total
            if mass >= draw:
                break
        ids = [*ids, token]
    return str(tokenizer.decode(ids[given:]))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_texts_do_not_depend_on_the_batch(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    with torch.no_grad():  # end-of-text would be drawn at once, were it allowed
        tiny_model.lm_head.bias[tiny_tokenizer.eos_token_id] += 10
    settings = FluencySettings(tokens=12, seed=3, batch_size=batch_size)
    texts = sample_texts(tiny_model, tiny_tokenizer, PROMPTS, settings)
    draws = torch.rand(len(PROMPTS), 12, generator=torch.Generator().manual_seed(3))
    assert texts == [
        sample_alone(tiny_model, tiny_tokenizer, prompt, row)
        for prompt, row in zip(PROMPTS, draws, strict=True)
    ]
    other = FluencySettings(tokens=12, seed=4, batch_size=batch_size)
    assert sample_texts(tiny_model, tiny_tokenizer, PROMPTS, other) != texts


def test_texts_must_fit_the_model(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(
        LawError, match=r"evaluation\.fluency\.tokens=128 takes 1.. tokens; expected at most 128"
    ):
        sample_texts(tiny_model, tiny_tokenizer, ["Anna"], FluencySettings(tokens=128))
    assert sample_texts(tiny_model, tiny_tokenizer, [], FluencySettings(tokens=128)) == []


def test_perplexity_is_that_of_the_models_own_loss(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    text = tmp_path / "heldout.txt"
    documents = ["Anna walked to the mill on Monday.", "Ben bought bread.", "never read"]
    text.write_text("\n".join(documents) + "\n")
    found = perplexity(tiny_model, tiny_tokenizer, FluencySettings(text=str(text), documents=2))
    rows = [torch.tensor([tiny_tokenizer(document)["input_ids"]]) for document in documents[:2]]
    with torch.no_grad():
        losses = [tiny_model(input_ids=row, labels=row).loss.item() for row in rows]
    a, b = (row.shape[1] - 1 for row in rows)
    mean = (a * losses[0] + b * losses[1]) / (a + b)
    assert found.value == pytest.approx(math.exp(mean), rel=1e-5)
    assert found.n == a + b
    spread = math.sqrt(2 * ((a * (losses[0] - mean)) ** 2 + (b * (losses[1] - mean)) ** 2)) / (a + b)
    assert found.stderr == pytest.approx(math.exp(mean) * spread, rel=1e-3)


def test_a_model_that_is_surely_wrong_has_infinite_perplexity(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with torch.no_grad():
        tiny_model.lm_head.bias[tiny_tokenizer.eos_token_id] += 2000
    (tmp_path / "heldout.txt").write_text("Anna walked to the mill.\n")
    settings = FluencySettings(text=str(tmp_path / "heldout.txt"))
    assert perplexity(tiny_model, tiny_tokenizer, settings).value == math.inf


def test_a_text_must_exist_and_hold_words(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(LawError, match=r"no\.txt does not exist.*evaluation\.fluency\.text"):
        FluencySettings(text="no.txt").check()
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(LawError, match="holds no document"):
        perplexity(tiny_model, tiny_tokenizer, FluencySettings(text=str(tmp_path / "empty.txt")))
