"""Saving what washing changed: the changed tensors, or a whole checkpoint."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Save(Enum):
    """What a run keeps of the washed model: nothing, the changed tensors, or a whole checkpoint."""

    nothing = "nothing"
    delta = "delta"
    model = "model"


def snapshot(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of every weight, tied ones once, in the CPU's memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.named_parameters()}


def save_washed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    unwashed: dict[str, Tensor],
    folder: Path,
    what: Save,
) -> None:
    """Save the tensors that washing changed (``delta.safetensors``), the whole checkpoint, or nothing."""
    if what is Save.nothing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if what is Save.model:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return
    changed = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.named_parameters()
        if not torch.equal(tensor.cpu(), unwashed[name])
    }
    save_file(changed, folder / "delta.safetensors")
