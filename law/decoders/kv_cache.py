"""What a model has read already: keys and values kept, so that only what follows runs."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel


@dataclass(frozen=True)
class Past:
    """Tokens read, and where the tokens to come stand. A forward pass after it leaves it as it is.

    Args:
        cache: keys and values of the p tokens read, of b rows.
        positions: of the tokens to come, (b, t), since rows padded on the left begin later. The mask that
            goes with them is (b, p + t).
    """

    cache: Cache
    positions: Tensor

    def rows(self, index: Tensor) -> Past:
        """The past of some rows only."""
        cache = _fork(self.cache)
        cache.batch_select_indices(index)
        return Past(cache, self.positions[index])


def can_read_on(model: PreTrainedModel) -> bool:
    """Whether a model takes keys and values of tokens read before, and the positions of those to come."""
    return {"past_key_values", "position_ids"} <= set(inspect.signature(model.forward).parameters)


@torch.no_grad()
def read(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Cache:
    """Keys and values of token ids (b, p), padded on the left; the output head does not run."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    output = model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True)
    cache: Cache = output.past_key_values
    return cache


def inputs_after(past: Past | None) -> dict[str, Any]:
    """What a forward pass takes besides token ids and mask when they come after ``past``, or after nothing."""
    if past is None:
        return {"use_cache": False}
    return {"past_key_values": _fork(past.cache), "position_ids": past.positions, "use_cache": True}


def _fork(cache: Cache) -> Cache:
    """A cache that grows on its own: its layers replace their tensors and never write into them."""
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    return forked
