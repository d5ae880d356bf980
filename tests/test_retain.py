"""What the baselines keep: each retain loss by hand, which rows it is taken over, and that it holds the model."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from conftest import Loaded, TrainedLab
from hypothesis import given, settings
from hypothesis import strategies as st

from law.base.errors import LawError
from law.base.settings import learned_from
from law.editing.second_moments import MomentSettings
from law.facts.counterfact import CounterFact
from law.methods.grad_diff import GradDiff
from law.methods.law import LAW
from law.methods.memit import MEMIT
from law.methods.npo import NPO
from law.methods.rmu import RMU
from law.methods.seul import SeUL
from law.tuning.adapters import Lora
from law.tuning.reference import Reference
from law.tuning.retain import Hold, Retain, RetainSet, jensen_shannon, kl
from law.tuning.training_rows import IGNORED, fact_rows, pad, predicted_logits

# p_θ is (1/4, 3/4) and then (1/2, 1/2); p₀ is (1/2, 1/2) both times. What stands after the last token is not asked.
LOGITS = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0], [9.0, -9.0]]])
BEFORE = torch.zeros(1, 3, 2)
WHOLE, LAST = torch.tensor([[1, 1, 0]]), torch.tensor([[IGNORED, IGNORED, 0]])


def test_the_divergences_worked_out_by_hand() -> None:
    """KL(p₀ ‖ p_θ) = ½ log 2 + ½ log 2/3; with m = (3/8, 5/8) JS halves the sum of KL(p_θ ‖ m) and KL(p₀ ‖ m)."""
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    torch.testing.assert_close(kl(LOGITS, BEFORE, WHOLE), torch.tensor([expected, 0.0]))
    of_tuned = 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    of_before = 0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)
    expected = (of_tuned + of_before) / 2
    torch.testing.assert_close(jensen_shannon(LOGITS, BEFORE, WHOLE), torch.tensor([expected, 0.0]))


def test_only_predicted_tokens_count() -> None:
    assert predicted_logits(LOGITS, LAST).tolist() == [[0.0, 0.0]]
    assert kl(LOGITS, BEFORE, LAST).tolist() == jensen_shannon(LOGITS, BEFORE, LAST).tolist() == [0.0]


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.floats(0.1, 40))
def test_js_is_symmetric_and_bounded_and_kl_is_not_negative(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = scale * torch.randn(2, 1, 3, 5, generator=generator)
    there, back = jensen_shannon(one, other, WHOLE), jensen_shannon(other, one, WHOLE)
    torch.testing.assert_close(there, back, atol=1e-5, rtol=1e-4)
    assert (there > -1e-5).all() and (there < math.log(2) + 1e-5).all()
    assert (kl(one, other, WHOLE) > -1e-5).all()


def test_general_text_and_other_facts_are_terms_of_their_own(
    knowing: Loaded, trained_lab: TrainedLab
) -> None:
    model, tokenizer, facts = knowing
    others = CounterFact(str(trained_lab.facts_path), wash=6, keep=4).load().unscored
    assert others
    kept = Retain(str(trained_lab.text_path), weight=2.0, fact_weight=3.0, documents=5)
    text, told = kept.terms(model, tokenizer, facts, others, Lora())
    assert (text.name, text.weight, told.name, told.weight) == ("retain", 2.0, "retain_facts", 3.0)
    assert len(text.rows) == 5
    assert told.rows == fact_rows(tokenizer, others, object_only=True)
    only_facts = Retain("nowhere.txt", weight=0.0, fact_weight=1.0)
    only_facts.check()  # text that is not read need not be there
    assert [term.name for term in only_facts.terms(model, tokenizer, facts, others, Lora())] == [
        "retain_facts"
    ]
    with pytest.raises(LawError, match=r"retain\.fact_weight is 1, but there are no other facts"):
        only_facts.terms(model, tokenizer, facts, [], Lora())


@pytest.mark.parametrize("hold", [Hold.kl, Hold.js])
@pytest.mark.parametrize("lora", [Lora(), Lora(rank=4, dropout=0.5)], ids=["weights", "LoRA"])
def test_a_divergence_starts_at_zero_and_holds_the_unwashed_model(
    hold: Hold, lora: Lora, knowing: Loaded, trained_lab: TrainedLab
) -> None:
    """All facts in one step: the first epoch's loss is that of the unwashed model, which the second compares with."""
    model, tokenizer, facts = knowing
    reported: list[dict[str, float]] = []
    kept = Retain(str(trained_lab.text_path), loss=hold)
    GradDiff(1e-2, epochs=2, batch_size=6, lora=lora, retain=kept).wash(
        model, tokenizer, facts, reported.append
    )
    first, second = (row["retain"] for row in reported)
    # the dropout of adapters, whose output is zero at first, changes nothing then
    assert first == pytest.approx(0.0, abs=1e-6)
    assert second > 1e-4


def test_the_reference_is_the_model_before_tuning(knowing: Loaded) -> None:
    model, tokenizer, facts = knowing
    batch = pad(fact_rows(tokenizer, facts), range(len(facts)), model.device)
    with torch.no_grad():
        expected = copy.deepcopy(model)(input_ids=batch.ids, attention_mask=batch.mask).logits
    reference = Reference(model, Lora())
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    torch.testing.assert_close(reference.logits(batch), expected)
    assert reference.copies is not None and all(one.any() for one in reference.copies[:1])
    assert Reference(model, Lora(rank=2)).copies is None


@pytest.mark.parametrize("name", ["grad_diff", "npo", "rmu"])
def test_other_facts_that_are_retained_are_forgotten_less(
    name: str, knowing: Loaded, trained_lab: TrainedLab
) -> None:
    """The loss on the retained facts ends lower with their term than with the same wash on general text alone."""
    model, tokenizer, facts = knowing
    others = CounterFact(str(trained_lab.facts_path), wash=6, keep=4).load().unscored
    batch = pad(fact_rows(tokenizer, others, object_only=True), range(len(others)), model.device)

    def distance(weight: float, fact_weight: float) -> float:
        washed = copy.deepcopy(model)
        settings = {"text": str(trained_lab.text_path), "weight": weight, "fact_weight": fact_weight}
        method = {
            "grad_diff": GradDiff(3e-3, epochs=3, retain=Retain(**settings)),
            "npo": NPO(3e-3, epochs=3, retain=Retain(**settings)),
            "rmu": RMU(1e-2, epochs=8, layers=[0, 1], steering=30.0, retain=RetainSet(**settings)),
        }[name]
        method.wash(washed, tokenizer, facts, lambda _: None, others)
        with torch.no_grad():
            after, before = (
                one(input_ids=batch.ids, attention_mask=batch.mask).logits for one in (washed, model)
            )
        return kl(after, before, batch.labels).mean().item()

    assert distance(1.0, 1.0) < 0.75 * distance(1.0, 0.0)


def test_what_a_method_learned_from_is_read_off_its_settings() -> None:
    start = MEMIT([0], 1.0, MomentSettings("general.txt"))
    assert learned_from(LAW(start, learning_rate=1.0)) == learned_from(start) == ["general text"]
    assert learned_from(SeUL(1.0)) == []
    for weights, expected in (
        ((1.0, 0.0), ["general text"]),
        ((0.0, 1.0), ["other facts"]),
        ((1.0, 1.0), ["general text", "other facts"]),
        ((0.0, 0.0), []),
    ):
        kept = RetainSet("general.txt", weight=weights[0], fact_weight=weights[1])
        assert learned_from(RMU(1.0, layers=[0], steering=1.0, retain=kept)) == expected


def test_rmu_takes_no_loss_of_its_retain_set(tmp_path: Path) -> None:
    """It holds hidden states: a loss of next-token distributions would be ignored."""
    with pytest.raises(TypeError, match="loss"):
        RetainSet(str(tmp_path), loss=Hold.kl)  # type: ignore[call-arg]
