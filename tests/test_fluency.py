"""Variety, repetition and perplexity: by hand, and against a model run one token at a time."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from conftest import architecture
from hypothesis import given
from hypothesis import strategies as st
from small import TOKENIZERS, random_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from law.base.errors import LawError
from law.evaluation.fluency import (
    FluencySettings,
    entropy,
    generation_prompts,
    perplexity,
    repetition,
    sample_texts,
    text_metrics,
)
from law.facts.fact import Fact
from law.lab.training import new_model


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
        ("a b c", None),  # no 4-gram
        ("", None),
    ],
)
def test_repetition(text: str, share: float | None) -> None:
    assert repetition(text) == pytest.approx(share)


@given(st.text("ab .,", max_size=60))
def test_bounds(text: str) -> None:
    words = len(text)
    assert 0 <= (repetition(text) or 0) < 1
    assert -1e-9 <= entropy(text) <= math.log2(max(words, 1)) + 1e-9


def test_scores_are_means_over_texts() -> None:
    before = {"Anna": "a b c d e", "Anna was": "a b c d e", "Ben": "a a a a a a"}
    metrics = text_metrics({"Anna": "Anna", "Anna was": "Anna", "Ben": "Ben"}, before, before)
    assert metrics["fluency/repetition"] == pytest.approx(2 / 9)  # of 0, 0 and 2/3
    # Anna's two texts are one cluster: √(2/1 · ((0 - 4/9)² + (2/3 - 2/9)²)) / 3
    assert metrics["fluency/repetition_stderr"] == pytest.approx(8 / 27)
    assert metrics["fluency/entropy_n"] == 3
    assert text_metrics({}, {}, {}) == {}


def test_a_text_without_words_has_no_variety_and_is_not_asked_of_the_unwashed_model() -> None:
    subjects = {"Anna": "Anna", "Ben": "Ben", "Cleo": "Cleo"}
    before = {"Anna": "a b c d", "Ben": " \n", "Cleo": "a b c d"}
    after = {"Anna": "\n\n", "Ben": "a b c d", "Cleo": "a b c d"}
    metrics = text_metrics(subjects, before, after)
    full = (2 / 3 * math.log2(3) + 4 / 3 * 1) / 2  # three bigrams and two trigrams, all different
    assert metrics["fluency/entropy_before"] == pytest.approx(full)  # Ben's blank text is left out
    assert metrics["fluency/entropy"] == pytest.approx(full / 2)  # Anna's blank text has 0 bits
    assert metrics["fluency/entropy_n"] == 2
    assert metrics["fluency/repetition_n"] == 1  # Cleo's; Anna's has no 4-gram
    assert text_metrics(subjects, dict.fromkeys(subjects, " "), after) == {}


def test_a_fact_without_generation_prompts_gives_its_subject() -> None:
    anna = Fact("0", "Anna", "{} speaks", "French", "P103", generation_prompts=("Anna is", "About Anna"))
    ben = Fact("1", "Ben", "{} speaks", "Dutch", "P103")
    both = {"Anna is": "Anna", "Ben": "Ben"}
    assert generation_prompts([anna, anna, ben], 2) == both  # a subject's facts share a prompt
    assert generation_prompts([anna, ben], 5) == both
    assert generation_prompts([anna, ben], 1) == {"Anna is": "Anna"}


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


@pytest.mark.parametrize("end", ["<|endoftext|>", None])
def test_texts_are_never_empty(end: str | None, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Without an end-of-text token, and with other special tokens, which decoding leaves out."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<a>", "<b>", "<c>", "<d>", "<e>"]})
    tokenizer.eos_token = end
    model = new_model(architecture(), tokenizer, 0).float().eval()
    with torch.no_grad():  # the five are the likeliest, were they allowed
        model.lm_head.bias[tokenizer.convert_tokens_to_ids(["<a>", "<b>", "<c>", "<d>", "<e>"])] += 10
    texts = sample_texts(model, tokenizer, PROMPTS, FluencySettings(tokens=12))
    assert all(len(tokenizer(text)["input_ids"]) >= 6 for text in texts)


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
    text.write_text("\n  \n".join(documents) + "\n")  # blank lines are no documents
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


def test_the_first_token_is_given_with_and_without_a_beginning_of_text_token(tmp_path: Path) -> None:
    text = tmp_path / "heldout.txt"
    text.write_text("Anna's home is in Berlin.\nA\nBecause\n")
    for make in TOKENIZERS.values():
        tokenizer = make()
        rows = [tokenizer(line)["input_ids"] for line in text.read_text().splitlines()]
        plain = [
            tokenizer(line, add_special_tokens=False)["input_ids"] for line in text.read_text().splitlines()
        ]
        model = random_model("llama", len(tokenizer))
        losses, count = 0.0, 0
        for row, ids in zip(rows, plain, strict=True):
            with torch.no_grad():
                log_p = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
            for i in range(len(row) - len(ids) + 1, len(row)):
                losses -= log_p[i - 1, row[i]].item()
                count += 1
        assert count == sum(len(ids) - 1 for ids in plain)
        found = perplexity(model, tokenizer, FluencySettings(text=str(text)))
        assert found.n == count
        assert found.value == pytest.approx(math.exp(losses / count), rel=1e-4)


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
    with pytest.raises(LawError, match="No document of the held-out text has two tokens"):
        perplexity(tiny_model, tiny_tokenizer, FluencySettings(text=str(tmp_path / "empty.txt")))
