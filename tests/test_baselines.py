"""The gradient-based baselines: each loss by hand, the loop they share, and each on a model that knows facts."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Loaded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from law.base.errors import LawError
from law.methods import (
    dpo,
    finetune,
    grad_diff,
    gradient_ascent,
    jensun,
    npo,
    rmu,
    seul,
    simnpo,
    undial,
    woh,
)
from law.tuning.retain import RetainSet, jensen_shannon, told_facts
from law.tuning.training_rows import IGNORED, fact_rows

# --- losses by hand -----------------------------------------------------------------------------

# After token 0 the model gives (1/4, 3/4), after token 1 (1/2, 1/2); what it says after the last is not asked.
LOGITS = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0], [9.0, -9.0]]])
WHOLE, SPAN = torch.tensor([[1, 1, 0]]), torch.tensor([[IGNORED, IGNORED, 0]])


@pytest.mark.parametrize(
    ("loss", "labels", "expected"),
    [
        (finetune.loss, WHOLE, [math.log(4 / 3), math.log(2)]),
        (gradient_ascent.loss, WHOLE, [math.log(3 / 4), math.log(1 / 2)]),
        (grad_diff.loss, WHOLE, [math.log(3 / 4), math.log(1 / 2)]),
        (seul.loss, SPAN, [math.log(1 / 2)]),
    ],
)
def test_token_losses_worked_out_by_hand(
    loss: Callable[[Tensor, Tensor], Tensor], labels: Tensor, expected: list[float]
) -> None:
    """−log p of the labels 1 and 0 is −log 3/4 and −log 1/2; ascent takes the other sign; SeUL the span alone."""
    torch.testing.assert_close(loss(LOGITS, labels), torch.tensor(expected))


def test_npo_worked_out_by_hand() -> None:
    """log π of tokens 1, 0 is log 3/4 · 1/2; against π₀ = 3/2 the ratio is 1/4, and 2/½ log(1 + √¼) = 4 log 1.5."""
    log_p = npo.span_log_p(LOGITS, WHOLE)
    torch.testing.assert_close(log_p, torch.tensor([math.log(3 / 8)]))
    torch.testing.assert_close(npo.span_log_p(LOGITS, SPAN), torch.tensor([math.log(1 / 2)]))
    found = npo.loss(log_p, torch.tensor([math.log(3 / 2)]), beta=0.5)
    torch.testing.assert_close(found, torch.tensor([4 * math.log(1.5)]))


def test_simnpo_worked_out_by_hand() -> None:
    """Mean log π of tokens 1, 0 is ½ log 3/8; with β = 2 and δ = 0, −2/2 log σ(−2 · ½ log 3/8) = log(1 + 3/8)."""
    log_p = simnpo.mean_log_p(LOGITS, WHOLE)
    torch.testing.assert_close(log_p, torch.tensor([0.5 * math.log(3 / 8)]))
    torch.testing.assert_close(simnpo.mean_log_p(LOGITS, SPAN), torch.tensor([math.log(1 / 2)]))
    torch.testing.assert_close(simnpo.loss(log_p, 2.0, 0.0), torch.tensor([math.log(11 / 8)]))
    # δ = log 2 multiplies the likelihood of a token by 2: 1 + 4 · 3/8
    torch.testing.assert_close(simnpo.loss(log_p, 2.0, math.log(2)), torch.tensor([math.log(5 / 2)]))


@settings(max_examples=30)
@given(st.floats(-20, 0), st.floats(0.01, 5))
def test_simnpo_of_one_token_is_npo_against_a_certain_reference(log_p: float, beta: float) -> None:
    """π₀ = 1 leaves the likelihood itself, and one token is its own mean."""
    value = torch.tensor([log_p], dtype=torch.double)
    torch.testing.assert_close(simnpo.loss(value, beta, 0.0), npo.loss(value, torch.zeros_like(value), beta))


def test_undial_worked_out_by_hand() -> None:
    """The teacher says (1/4, 3/4) and (1/2, 1/2); β = log 3 divides the odds of tokens 1 and 0 by 3."""
    wanted = undial.target(LOGITS, WHOLE, math.log(3))
    torch.testing.assert_close(wanted, torch.tensor([[1 / 2, 1 / 2], [1 / 4, 3 / 4]]))
    student = torch.tensor([[[0.0, 0.0], [0.0, math.log(3)], [9.0, -9.0]]])  # (1/2, 1/2), (1/4, 3/4)
    expected = [math.log(2), -0.25 * math.log(1 / 4) - 0.75 * math.log(3 / 4)]
    torch.testing.assert_close(undial.loss(student, wanted, WHOLE), torch.tensor(expected))
    torch.testing.assert_close(undial.target(LOGITS, SPAN, math.log(3)), torch.tensor([[1 / 4, 3 / 4]]))


def test_jensun_worked_out_by_hand() -> None:
    """p = 3/4 and 1/2; m of the first is (1/8, 7/8), so JS = ½ (¼ log 2 + ¾ log 6/7 + log 8/7)."""
    of_first = (0.25 * math.log(2) + 0.75 * math.log(6 / 7) + math.log(8 / 7)) / 2
    of_second = (0.5 * math.log(2) + 0.5 * math.log(2 / 3) + math.log(4 / 3)) / 2
    torch.testing.assert_close(jensun.loss(LOGITS, WHOLE), torch.tensor([of_first, of_second]))


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.1, 30))
def test_jensun_is_the_divergence_from_a_one_hot_distribution_and_bounded(seed: int, scale: float) -> None:
    logits = scale * torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(seed))
    certain = torch.full((1, 3, 2), -1e4)
    certain[0, [0, 1], [1, 1]] = 0.0  # what WHOLE wants after tokens 0 and 1 ...
    certain[0, 1] = certain[0, 1].flip(0)  # ... is 1 and then 0
    found = jensun.loss(logits, WHOLE)
    torch.testing.assert_close(found, jensen_shannon(logits, certain, WHOLE), atol=1e-5, rtol=1e-4)
    assert (found > -1e-6).all() and (found < math.log(2) + 1e-6).all()


def test_dpo_worked_out_by_hand() -> None:
    """The refusal is twice as likely as before and the object half: 2/½ log(1 + (½ / 2)^½) = 4 log 1.5."""
    found = dpo.loss(torch.tensor([math.log(2)]), torch.tensor([math.log(1 / 2)]), beta=0.5)
    torch.testing.assert_close(found, torch.tensor([4 * math.log(1.5)]))


@settings(max_examples=30)
@given(st.floats(-20, 20), st.floats(0.01, 5))
def test_dpo_without_the_refusal_is_npo(ratio: float, beta: float) -> None:
    lost, zero = torch.tensor([ratio], dtype=torch.double), torch.zeros(1, dtype=torch.double)
    torch.testing.assert_close(dpo.loss(zero, lost, beta), npo.loss(lost, zero, beta))


def test_the_refusal_ends_the_text(knowing: Loaded) -> None:
    _, tokenizer, facts = knowing
    for fact, row in zip(facts, dpo.refusal_rows(tokenizer, facts, "I don't know."), strict=True):
        assert tokenizer.decode(row.ids) == f"{fact.prompt} I don't know.{tokenizer.eos_token}"
        span = [label for label in row.labels if label != IGNORED]
        assert tokenizer.decode(span).strip() == f"I don't know.{tokenizer.eos_token}"
        assert row.ids[-len(span) :] == span


def test_woh_worked_out_by_hand() -> None:
    """v₀ = (1, 2), v₊ = (3, 1), α = ½: only the first is raised, by 2, so v* = (0, 2); from (2, 2) that is 4/2."""
    wanted = woh.target(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 1.0]]]), alpha=0.5)
    assert wanted.tolist() == [[[0.0, 2.0]]]
    logits, padded = torch.tensor([[[2.0, 2.0], [7.0, 7.0]]]), torch.cat([wanted, wanted], 1)
    assert woh.loss(logits, padded, torch.tensor([[1, 0]])).tolist() == [2.0]


def test_rmu_worked_out_by_hand() -> None:
    """h = (3, 4) against c u = (1, 0): (2² + 4²) / 2 = 10; the second token is padding."""
    hidden, mask = torch.tensor([[[3.0, 4.0], [9.0, 9.0]]]), torch.tensor([[1, 0]])
    assert rmu.loss(hidden, torch.tensor([1.0, 0.0]), mask).tolist() == [10.0]
    assert rmu.loss(hidden, hidden, mask).tolist() == [0.0]


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 9))
def test_a_small_step_makes_a_text_likelier_by_fine_tuning_and_less_likely_by_the_others(
    seed: int, length: int, vocabulary: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, length, vocabulary, generator=generator, dtype=torch.double).requires_grad_()
    labels = torch.randint(vocabulary, (1, length), generator=generator)
    reference = npo.span_log_p(logits, labels).detach() - 1.0

    def after(loss: Tensor) -> float:
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        return npo.span_log_p(logits.detach() - 1e-3 * gradient, labels).item()

    before = npo.span_log_p(logits, labels)
    assert after(finetune.loss(logits, labels)) > before.item()
    assert after(gradient_ascent.loss(logits, labels)) < before.item()
    assert after(npo.loss(before, reference, 0.1)) < before.item()


@settings(max_examples=50)
@given(st.floats(-50, 50), st.floats(0.01, 5))
def test_npo_weighs_gradient_ascent_by_how_likely_the_answer_still_is(ratio: float, beta: float) -> None:
    """Its derivative by log π is 2 r^β / (1 + r^β): 1 at the start, towards 0 as the answer goes."""
    log_p = torch.tensor([ratio], dtype=torch.double, requires_grad=True)
    npo.loss(log_p, torch.zeros(1, dtype=torch.double), beta).sum().backward()
    assert log_p.grad is not None
    assert log_p.grad.item() == pytest.approx(2 / (1 + math.exp(-beta * ratio)), rel=1e-6)


# --- rows ---------------------------------------------------------------------------------------


def test_the_span_is_the_object_and_nothing_else(knowing: Loaded) -> None:
    _, tokenizer, facts = knowing
    facts = [*facts, replace(facts[0], object=" two words, and more"), replace(facts[0], object="7")]
    for fact, whole, row in zip(
        facts, fact_rows(tokenizer, facts), fact_rows(tokenizer, facts, object_only=True), strict=True
    ):
        assert whole.ids == whole.labels == row.ids
        assert tokenizer.decode(whole.ids) == f"{fact.prompt} {fact.object.strip()}"
        span = [label for label in row.labels if label != IGNORED]
        assert tokenizer.decode(span).strip() == fact.object.strip()
        assert row.labels == [IGNORED] * (len(row.ids) - len(span)) + span


def test_documents_that_tell_a_washed_fact_are_not_retained(
    knowing: Loaded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer, facts = knowing
    subject, wanted = facts[0].subject, facts[0].object
    texts = [
        "A quiet day.",
        f"They say that {subject.upper()} has to do with {wanted}.",
        f"{subject} slept.",
        "x" * 900,
    ]
    assert told_facts(texts, facts) == [0, 1, 0, 0]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        rows = RetainSet(str(path), tokens=7).text_rows(model, tokenizer, facts)
    assert "1 of 4 documents" in caplog.text
    assert [row.ids for row in rows] == [tokenizer(texts[i])["input_ids"][:7] for i in (0, 2, 3)]
    assert all(row.labels == row.ids for row in rows)

    plain = path.with_suffix(".txt")
    plain.write_text("\n".join(texts), encoding="utf-8")
    assert RetainSet(str(plain), tokens=7).text_rows(model, tokenizer, facts) == rows
    assert len(RetainSet(str(plain), documents=1).text_rows(model, tokenizer, facts)) == 1
    plain.write_text(texts[1], encoding="utf-8")
    with pytest.raises(LawError, match="leaves none of its 1 documents"):
        RetainSet(str(plain)).text_rows(model, tokenizer, facts)
    path.write_text('{"text": "a"}\n["b"]\n', encoding="utf-8")
    with pytest.raises(LawError, match=r"line 2, holds no text in 'text'"):
        RetainSet(str(path)).text_rows(model, tokenizer, facts)
