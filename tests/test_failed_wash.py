"""A wash that fails midway leaves the model as it was, or says that it could not."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeModel
from small import weights
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from law.base.errors import LawError
from law.editing.second_moments import MomentSettings
from law.editing.target_values import EarlyTargets, TargetSettings
from law.facts.fact import Fact
from law.lab.world import LabWorld
from law.methods.alphaedit import AlphaEdit, NullSpace
from law.methods.encore import ENCORE
from law.methods.finetune import FineTuning
from law.methods.gradient_ascent import GradientAscent
from law.methods.jensun import JensUn
from law.methods.law import LAW
from law.methods.memit import MEMIT
from law.methods.npo import NPO
from law.methods.protocol import Method
from law.methods.rmu import RMU
from law.methods.ultraedit import UltraEdit
from law.methods.undial import UNDIAL
from law.methods.woh import WOH
from law.methods.zerounlearn import ZeroUnlearn
from law.tuning.adapters import Lora
from law.tuning.retain import Hold, Retain, RetainSet

FACTS = [Fact(str(i), name, "{} lives in", "Boston", "") for i, name in enumerate(("Anna", "Bert", "Carla"))]
LORA = Lora(rank=2, dropout=0.0)

Make = Callable[[Path], Method]


def memit(text: Path) -> MEMIT:
    return MEMIT([0, 1], 1e3, MomentSettings(str(text)), TargetSettings(steps=2), contexts=[])


def law(text: Path) -> LAW:
    return LAW(memit(text), learning_rate=1e-3, iterations=2)


RESTORING: dict[str, Make] = {
    "memit": memit,
    "law": law,
    "alphaedit": lambda text: AlphaEdit(
        **vars(memit(text)), facts_at_once=2, null_space=NullSpace(threshold=1e3)
    ),
    "encore": lambda text: ENCORE(
        **(vars(memit(text)) | {"targets": EarlyTargets(steps=2, likeliest=1)}), facts_at_once=2
    ),
    "ultraedit": lambda _: UltraEdit([0, 1], 1e-2, facts_at_once=2),
    "zerounlearn": lambda text: ZeroUnlearn(**vars(memit(text)), rank=2),
    "rmu": lambda text: RMU(
        learning_rate=1e-2, epochs=2, layers=[0, 1], steering=3.0, retain=RetainSet(str(text))
    ),
    "undial": lambda text: UNDIAL(learning_rate=1e-2, epochs=2, retain=Retain(str(text))),
    "woh": lambda _: WOH(learning_rate=1e-2, epochs=2, reinforce_learning_rate=1e-2),
    "woh with LoRA": lambda _: WOH(learning_rate=1e-2, epochs=2, reinforce_learning_rate=1e-2, lora=LORA),
    "finetune with LoRA": lambda _: FineTuning(learning_rate=1e-2, epochs=2, lora=LORA),
}
PARTLY: dict[str, Make] = {
    "gradient_ascent": lambda _: GradientAscent(learning_rate=1e-2, epochs=2),
    "jensun": lambda text: JensUn(learning_rate=1e-2, epochs=2, retain=Retain(str(text), loss=Hold.js)),
    "npo": lambda text: NPO(learning_rate=1e-2, epochs=2, retain=Retain(str(text))),
}


class Stopped(Exception):
    """What a report raises here, as a full disk might."""


def stopping(at: int) -> Callable[[dict[str, Any]], None]:
    """A report that fails the ``at``-th time, counted from 1."""
    calls = iter(range(1, 1000))

    def report(_: dict[str, Any]) -> None:
        if next(calls) == at:
            raise Stopped

    return report


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "general.txt"
    path.write_text("\n".join(islice(LabWorld().general_documents(random.Random(0)), 60)))
    return path


@pytest.fixture
def model(tiny_model: PreTrainedModel) -> PreTrainedModel:
    """In training mode but for one block, and with a weight that is not trainable."""
    tiny_model.train()
    tiny_model.transformer.h[1].eval()
    tiny_model.lm_head.bias.requires_grad_(False)
    return tiny_model


def state(model: PreTrainedModel) -> tuple[dict[str, bool], dict[str, bool], list[str]]:
    """The mode of each module, whether each weight is trainable, and the weights with a gradient."""
    return (
        {name: module.training for name, module in model.named_modules()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        [name for name, parameter in model.named_parameters() if parameter.grad is not None],
    )


def same_weights(model: PreTrainedModel, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(weight, before[name]) for name, weight in weights(model).items())


@pytest.mark.parametrize("name", [*RESTORING, *PARTLY])
def test_a_failure_leaves_the_model_as_it_was(
    name: str, model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, text: Path
) -> None:
    """Wherever it fails, at each of its reports; where weights stay changed, the error says so."""
    method, before = (RESTORING | PARTLY)[name](text), weights(model)
    was, changed, at = state(model), [], 0
    while True:
        at += 1
        try:
            method.wash(model, tiny_tokenizer, FACTS, stopping(at))
        except Stopped as error:
            assert state(model) == was
            assert not hasattr(model, "peft_config")
            if name in PARTLY:
                changed.append(not same_weights(model, before))
                assert "Load the model again" in "".join(getattr(error, "__notes__", []))
                model.load_state_dict(before)
            else:
                assert same_weights(model, before)
                assert not hasattr(error, "__notes__")
        else:
            break
    assert at > 2
    assert all(changed)
    # it was not the failure that kept it from washing
    assert not same_weights(model, before)
    assert not model.training


def test_a_wash_leaves_what_was_trainable_so(
    model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, text: Path
) -> None:
    weight = model.transformer.h[0].mlp.fc_out.weight.requires_grad_(False)
    was = state(model)[1]
    RESTORING["rmu"](text).wash(model, tiny_tokenizer, FACTS, lambda _: None)
    assert state(model)[1] == was
    assert not weight.requires_grad and not model.lm_head.bias.requires_grad


def test_a_search_for_lambda_that_gives_up_takes_earlier_layers_back(
    model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, method, calls = weights(model), law(text), iter(range(100))

    def find(self: LAW, layer: int, system: Any, _: Any) -> tuple[float, torch.Tensor]:
        if next(calls) == 1:
            raise LawError("The search for λ gave up.")
        return 1.0, system.solve(1e3)

    monkeypatch.setattr(LAW, "_find", find)
    with pytest.raises(LawError, match="gave up"):
        method.wash(model, tiny_tokenizer, FACTS)
    assert same_weights(model, before)


@pytest.mark.parametrize("lora", [Lora(), LORA], ids=["weights", "adapters"])
def test_no_room_for_a_step_is_told_and_not_tried_again(
    model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    lora: Lora,
) -> None:
    """AdamW decays the weights before it asks for memory, so that a step taken again would decay them twice."""
    before, steps = weights(model), []

    def step(self: torch.optim.AdamW) -> None:
        steps.append(1)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(0.9)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(
        LawError, match=r"a step of AdamW; .* method.lora.rank=8, .* model.dtype=bfloat16"
    ) as told:
        GradientAscent(learning_rate=1e-2, lora=lora).wash(model, tiny_tokenizer, FACTS)
    assert len(steps) == 1
    assert same_weights(model, before) is (lora.rank > 0)
    assert hasattr(told.value, "__notes__") is (lora.rank == 0)


def test_adapters_that_can_not_be_made_are_removed(
    make_model: MakeModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device's memory ends in the middle of the blocks."""
    from peft.tuners.lora import LoraModel

    model = make_model()
    before, made, real = weights(model), [], LoraModel._create_and_replace

    def create(*arguments: Any, **named: Any) -> None:
        made.append(1)
        if len(made) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(*arguments, **named)

    monkeypatch.setattr(LoraModel, "_create_and_replace", create)
    with pytest.raises(torch.OutOfMemoryError):
        GradientAscent(learning_rate=1e-2, lora=LORA).wash(model, tiny_tokenizer, FACTS)
    assert len(made) == 3
    assert list(weights(model)) == list(before) and same_weights(model, before)
    assert all(parameter.requires_grad for parameter in model.parameters())
