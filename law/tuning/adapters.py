"""Low-rank adapters (LoRA, by peft): put into a model, tuned, and merged into its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from law.base.checks import Accepted, Checked, Count, Natural
from law.decoders.structure import Decoder

Dropout = Annotated[float, Accepted("a number of at least 0 and below 1", lambda x: 0 <= x < 1)]


@dataclass
class Lora(Checked):
    """Low-rank adapters on the query and value projections, merged into the weights at the end.

    Args:
        rank: r, the width of an adapter (8 in the paper); 0 uses no adapters and tunes the weights.
        alpha: an adapter is scaled by alpha / rank.
        dropout: the dropout of an adapter's input during tuning.
    """

    rank: Natural = 0
    alpha: Count = 32
    dropout: Dropout = 0.1


@contextmanager
def adapters(model: PreTrainedModel, lora: Lora) -> Iterator[list[Tensor]]:
    """The adapters' weights, to be tuned inside. Afterwards they are merged; after a failure, they are removed.

    Every other weight is frozen, and stays frozen afterwards. The caller makes them trainable again, as
    :func:`law.tuning.loop.tune` does.
    """
    from peft import LoraConfig, get_peft_model  # it takes seconds to import

    names = Decoder(model).attention_inputs()
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=names,
        fan_in_fan_out=isinstance(model.get_submodule(names[0]), Conv1D),
    )
    try:
        adapted = get_peft_model(model, config)
        yield [parameter for parameter in model.parameters() if parameter.requires_grad]
        with may_be_partly_tuned():
            adapted.merge_and_unload()
    except BaseException:
        _remove(model)
        raise


def _remove(model: PreTrainedModel) -> None:
    """Put the projections back in place of their adapters, as they were."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, module in adapted.items():
        model.set_submodule(name, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """The model as it was before its adapters, without dropout, while they are being tuned."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    model.eval()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        model.train()


@contextmanager
def may_be_partly_tuned() -> Iterator[None]:
    """An error inside carries a note: the weights are changed in place, and no copy of them is kept."""
    try:
        yield
    except BaseException as error:
        error.add_note(
            "The model's weights may be partly tuned, and no copy of them is kept. Load the model again before you "
            "use it."
        )
        raise
