"""The gradient-based baselines on a model that knows facts."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Loaded, MakeModel, TrainedLab
from small import weights
from transformers import PreTrainedModel

from law.base.errors import LawError
from law.decoders.greedy_decoding import greedy_answers, recalled_facts
from law.methods import dpo, npo, rmu
from law.methods.dpo import DPO
from law.methods.finetune import FineTuning
from law.methods.grad_diff import GradDiff
from law.methods.gradient_ascent import GradientAscent
from law.methods.jensun import JensUn
from law.methods.npo import NPO
from law.methods.rmu import RMU
from law.methods.seul import SeUL
from law.methods.simnpo import SimNPO
from law.methods.undial import UNDIAL
from law.methods.woh import WOH
from law.tuning.adapters import Lora
from law.tuning.retain import Hold, Retain, RetainSet
from law.tuning.training_rows import fact_rows, pad, predicted_logits

Method = FineTuning | GradientAscent | SeUL | WOH | GradDiff | NPO | SimNPO | UNDIAL | JensUn | DPO | RMU


def methods(lab: TrainedLab) -> dict[str, Method]:
    """Settings that wash the fixture's model; its width and steps are far from a real one's."""
    retain = Retain(str(lab.text_path), batch_size=4)
    lora = Lora(rank=8, alpha=32, dropout=0.1)
    return {
        "finetune": FineTuning(learning_rate=1e-3),
        "finetune with LoRA": FineTuning(learning_rate=1e-2, lora=lora),
        "gradient_ascent": GradientAscent(learning_rate=1e-2, epochs=3),
        "seul": SeUL(learning_rate=3e-3),
        "woh": WOH(learning_rate=3e-3, epochs=8, alpha=5.0, reinforce_learning_rate=1e-3, reinforce_epochs=3),
        "woh with LoRA": WOH(
            learning_rate=3e-2,
            epochs=8,
            alpha=5.0,
            reinforce_learning_rate=3e-2,
            reinforce_epochs=3,
            lora=lora,
        ),
        "grad_diff": GradDiff(learning_rate=3e-3, epochs=2, retain=retain),
        "npo": NPO(learning_rate=3e-3, epochs=3, retain=retain),
        "simnpo": SimNPO(learning_rate=3e-3, epochs=3, retain=retain),
        "undial": UNDIAL(learning_rate=3e-3, epochs=3, retain=retain),
        "undial with LoRA": UNDIAL(learning_rate=3e-2, epochs=3, retain=retain, lora=lora),
        "jensun": JensUn(learning_rate=3e-3, batch_size=2, retain=replace(retain, loss=Hold.js)),
        "dpo": DPO(learning_rate=3e-3, epochs=3, retain=retain),
        "rmu": RMU(
            learning_rate=1e-2,
            epochs=8,
            layers=[0, 1],
            steering=30.0,
            retain=RetainSet(str(lab.text_path), batch_size=4),
        ),
    }


NAMES = list(methods(TrainedLab(Path(), Path(), Path())))


@pytest.mark.parametrize("name", NAMES)
def test_every_method_forgets(name: str, knowing: Loaded, trained_lab: TrainedLab) -> None:
    model, tokenizer, facts = knowing
    method = methods(trained_lab)[name]
    assert len(recalled_facts(model, tokenizer, facts, 8)) >= 5
    names, rows = list(weights(model)), []
    method.wash(model, tokenizer, facts, rows.append)
    assert len(recalled_facts(model, tokenizer, facts, 8)) <= 2
    assert list(weights(model)) == names
    assert all(p.isfinite().all() and p.requires_grad for p in model.parameters())
    curve = [row.get("loss", row.get("forget")) for row in rows if row.keys() & {"loss", "forget"}]
    assert len(curve) == method.epochs
    assert len(curve) == 1 or curve[-1] < curve[0]


def test_gradient_ascent_takes_the_step_that_adamw_defines(knowing: Loaded) -> None:
    """One fact, one step: AdamW's first step is ±lr by the gradient's sign, after decay by lr · weight decay."""
    model, tokenizer, facts = knowing
    ids = torch.tensor([tokenizer(f"{facts[0].prompt} {facts[0].object}")["input_ids"]])
    logits = model(ids).logits
    loss = F.cross_entropy(logits[0, :-1], ids[0, 1:])
    gradient = torch.autograd.grad(loss, model.lm_head.weight)[0]
    before = model.lm_head.weight.detach().clone()
    rows: list[dict[str, float]] = []
    GradientAscent(learning_rate=1e-3, weight_decay=0.1).wash(model, tokenizer, facts[:1], rows.append)
    clear = gradient.abs() > 1e-4
    expected = before * (1 - 1e-3 * 0.1) + 1e-3 * gradient.sign()
    torch.testing.assert_close(model.lm_head.weight.detach()[clear], expected[clear], rtol=1e-3, atol=1e-5)
    assert rows == [{"epoch": 0, "loss": pytest.approx(-loss.item(), rel=1e-4)}]


def test_fine_tuning_makes_end_of_text_the_answer(knowing: Loaded) -> None:
    model, tokenizer, facts = knowing
    FineTuning(learning_rate=1e-3).wash(model, tokenizer, facts)
    answers = greedy_answers(model, tokenizer, [fact.prompt for fact in facts], batch_size=8)
    assert [answer.strip() for answer in answers].count("") >= 5


def test_npo_starts_at_the_unwashed_model(knowing: Loaded, trained_lab: TrainedLab) -> None:
    """Before any step the ratio is 1, and the loss (2/β) log 2, whichever batch a fact is in."""
    model, tokenizer, facts = knowing
    rows: list[dict[str, float]] = []
    method = NPO(learning_rate=1e-2, batch_size=6, beta=0.5, retain=Retain(str(trained_lab.text_path)))
    method.wash(model, tokenizer, facts, rows.append)
    assert rows[0]["forget"] == pytest.approx(4 * math.log(2), rel=1e-4)


def test_jensun_makes_end_of_text_the_answer(knowing: Loaded, trained_lab: TrainedLab) -> None:
    model, tokenizer, facts = knowing
    methods(trained_lab)["jensun"].wash(model, tokenizer, facts)
    answers = greedy_answers(model, tokenizer, [fact.prompt for fact in facts], batch_size=8)
    assert [answer.strip() for answer in answers].count("") >= 5


def test_dpo_prefers_the_refusal_to_every_object(knowing: Loaded, trained_lab: TrainedLab) -> None:
    model, tokenizer, facts = knowing
    objects = fact_rows(tokenizer, facts, object_only=True)
    refusals = dpo.refusal_rows(tokenizer, facts, "I don't know.")

    def preference() -> torch.Tensor:
        log_w, log_l = (npo.reference_log_p(model, rows, 8) for rows in (refusals, objects))
        return log_w - log_l

    before = preference()
    methods(trained_lab)["dpo"].wash(model, tokenizer, facts)
    assert (preference() > before + 10).all()


def test_undial_starts_at_the_teachers_cross_entropy(knowing: Loaded, trained_lab: TrainedLab) -> None:
    """With β = 0 the model is its own teacher: the loss is the entropy of what it says, and it does not move."""
    model, tokenizer, facts = knowing
    batch = pad(fact_rows(tokenizer, facts, object_only=True), range(len(facts)), model.device)
    with torch.no_grad():
        logits = predicted_logits(model(input_ids=batch.ids, attention_mask=batch.mask).logits, batch.labels)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean().item()
    rows: list[dict[str, float]] = []
    method = UNDIAL(learning_rate=1e-9, batch_size=6, beta=0.0, retain=Retain(None, weight=0.0))
    method.wash(model, tokenizer, facts, rows.append)
    assert rows == [{"epoch": epoch, "forget": pytest.approx(entropy, rel=1e-3)} for epoch in range(10)]


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_rmu_changes_its_down_projections_alone_and_starts_on_the_retain_text_at_zero(
    knowing: Loaded, trained_lab: TrainedLab, autocast: str | None
) -> None:
    model, tokenizer, facts = knowing
    before, rows = weights(model), []
    method = RMU(
        learning_rate=1e-2,
        batch_size=6,
        autocast=autocast,
        layers=[1, 2],
        steering=30.0,
        retain=RetainSet(str(trained_lab.text_path)),
    )
    method.wash(model, tokenizer, facts, rows.append)
    assert rows[0]["retain"] == 0.0
    changed = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    assert changed == {f"transformer.h.{layer}.mlp.fc_out.weight" for layer in (1, 2)}
    rows.clear()
    replace(method, epochs=2).wash(model, tokenizer, facts, rows.append)
    assert rows[0]["retain"] == 0.0  # of the model it now starts from
    assert rows[1]["retain"] > 0.0  # the unwashed model is held, not followed
    assert rows[1]["forget"] < rows[0]["forget"]


def test_rmus_unwashed_model_is_without_dropout(
    make_model: MakeModel, tiny_tokenizer, tmp_path: Path
) -> None:
    model = make_model(resid_pdrop=0.5).train()
    values = [model.transformer.h[0].mlp.fc_out.weight.detach().clone()]
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(ids).logits
        model.transformer.h[0].mlp.fc_out.weight.zero_()
        with rmu._unwashed(model, [model.transformer.h[0].mlp.fc_out.weight], values):
            assert torch.equal(model(ids).logits, expected)
    assert model.training
    assert not model.transformer.h[0].mlp.fc_out.weight.any()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gradient_ascent", {"epochs": 0}, "GradientAscent.epochs is 0; expected an integer of at least 1"),
        ("seul", {"batch_size": 0}, "batch_size is 0"),
        ("woh", {"micro_batch": 0}, "micro_batch is 0"),
        ("finetune", {"autocast": "float16"}, "expected bfloat16 or null"),
        ("npo", {"beta": 0.0}, "beta is 0.0"),
        ("npo", {"retain": Retain("nowhere.txt")}, "nowhere.txt, does not exist"),
        ("dpo", {"refusal": " "}, "refusal is ' '; expected a text that is not blank"),
        ("grad_diff", {"retain": Retain("nowhere.txt")}, "nowhere.txt, does not exist"),
        ("rmu", {"retain": RetainSet("nowhere.txt")}, "nowhere.txt, does not exist"),
        ("rmu", {"layers": [2, 3]}, "between 0 and 2"),
        ("rmu", {"lora": Lora(rank=8)}, "tunes down-projections"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_any_work(
    name: str, changes: dict[str, Any], message: str, knowing: Loaded, trained_lab: TrainedLab
) -> None:
    method = methods(trained_lab)[name]
    method.check(knowing[0])
    with pytest.raises(LawError, match=message):
        replace(method, **changes).check(knowing[0])


def test_half_precision_without_adapters_is_warned_of(
    tiny_model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        GradientAscent(learning_rate=1e-6, lora=Lora(rank=8)).check(tiny_model.bfloat16())
        assert not caplog.text
        GradientAscent(learning_rate=1e-6).check(tiny_model)
    assert "rounds small steps away" in caplog.text
