"""The unwashed model, which a loss compares the tuned one with while it is being tuned."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel

from law.tuning.adapters import Lora, adapters_off
from law.tuning.training_rows import Batch, token_logits


class Reference:
    """The model as it was before tuning.

    Adapters can be turned off, so that a model tuned by them is its own reference. Otherwise this is a copy, which takes
    the memory of all weights once more.

    Args:
        model: the unwashed model.
        lora: the adapters that it is going to be tuned by.
    """

    def __init__(self, model: PreTrainedModel, lora: Lora) -> None:
        self._model = model if lora.rank else copy.deepcopy(model)
        self.copies = None if lora.rank else [*self._model.parameters()]
        """The weights before tuning, where they are copies: :func:`law.tuning.loop.tune` restores them on a failure."""

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Next-token logits of the unwashed model, (b, t, vocabulary), without dropout."""
        with adapters_off(self._model):
            return token_logits(self._model, batch)
