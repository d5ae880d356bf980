"""Where a Hugging Face decoder keeps its parts, found by structure and not by name.

Legend of shapes used throughout the package:

===========  =====================================================================
``n``        facts
``b``, ``t``  rows of a batch, tokens of a row
``d_model``  width of the residual stream
``d_ff``     width of the MLP's hidden layer, where a key k lives
===========  =====================================================================

W is the MLP's down-projection seen as (d_ff, d_model): the layer adds ``W^T k`` to the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from law.errors import LawError


class Decoder:
    """A view of a causal language model: its blocks and their MLP down-projections.

    Raises:
        LawError: the blocks or a down-projection can't be told from the model's structure.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        count = model.config.num_hidden_layers
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        if not lists:
            raise LawError(
                f"{type(model).__name__} has no list of {count} blocks (config.num_hidden_layers), so its "
                "layers can't be found. Expected a Hugging Face decoder such as GPT-2, GPT-J or Llama."
            )
        self.blocks = lists[0]
        self.head = model.get_output_embeddings()
        self.d_model: int = model.config.hidden_size
        self.down_projections = [self._down_projection(block) for block in self.blocks]

    def _down_projection(self, block: nn.Module) -> nn.Linear | Conv1D:
        """The one projection of a block, outside its attention, that returns to d_model."""
        attention = {
            inner for m in block.modules() if "Attention" in type(m).__name__ for inner in m.modules()
        }
        found = [
            module
            for module in block.modules()
            if isinstance(module, nn.Linear | Conv1D)
            and module not in attention
            and _weight_in_out(module).shape[1] == self.d_model
        ]
        if len(found) != 1:
            raise LawError(
                f"{type(block).__name__} has {len(found)} projections onto {self.d_model} dimensions outside "
                "its attention; expected exactly one, the MLP's down-projection (mixtures of experts are "
                "not supported)."
            )
        return found[0]

    def weight(self, layer: int) -> Tensor:
        """W of a layer as (d_ff, d_model): a view that shares the parameter's storage."""
        return _weight_in_out(self.down_projections[layer])

    def check_layers(self, layers: list[int]) -> None:
        """Refuse a list of layers that is empty, out of order, or beyond the model."""
        count = len(self.blocks)
        if not layers or sorted(set(layers)) != list(layers) or layers[0] < 0 or layers[-1] >= count:
            raise LawError(
                f"The layers to edit are {list(layers)}; expected a rising list of layers between 0 and "
                f"{count - 1}, since {type(self.model).__name__} has {count} blocks."
            )

    @contextmanager
    def capture_keys(self, layers: list[int]) -> Iterator[dict[int, Tensor]]:
        """Collect each layer's key of every token, (b, t, d_ff), during the forward passes inside."""
        keys: dict[int, Tensor] = {}

        def hook_for(layer: int) -> Any:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                keys[layer] = inputs[0].detach()

            return hook

        handles = [self.down_projections[i].register_forward_pre_hook(hook_for(i)) for i in layers]
        try:
            yield keys
        finally:
            for handle in handles:
                handle.remove()

    def hidden_states(self, ids: Tensor, mask: Tensor | None, layer: int) -> Tensor:
        """The output of block ``layer`` for token ids (b, t), (b, t, d_model); later blocks do not run."""
        captured: list[Tensor] = []

        def stop(_: nn.Module, __: Any, output: Tensor | tuple[Tensor, ...]) -> None:
            captured.append(_hidden(output))
            raise _BlockReached

        handle = self.blocks[layer].register_forward_hook(stop)
        try:
            self.model(input_ids=ids, attention_mask=mask, use_cache=False)
        except _BlockReached:
            pass
        finally:
            handle.remove()
        return captured[0]

    def logits_from(
        self, hidden: Tensor, ids: Tensor, mask: Tensor | None, layer: int, at: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Next-token logits (m, vocabulary) when block ``layer`` outputs ``hidden`` (b, t, d_model).

        The blocks up to ``layer`` are passed over, since what they compute is given, and the output
        head runs only at the m places ``at`` = (rows, positions).
        """
        originals = list(self.blocks)
        handle = self.head.register_forward_pre_hook(lambda _, inputs: (inputs[0][at],))
        try:
            for i in range(layer + 1):
                output = hidden if i == layer else None
                self.blocks[i] = _Bypass(originals[i], output, self._blocks_return_tuples)
            return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        finally:
            handle.remove()
            for i in range(layer + 1):
                self.blocks[i] = originals[i]

    @cached_property
    def _blocks_return_tuples(self) -> bool:
        """Blocks of some architectures (GPT-J) return a tuple; most return a tensor."""
        seen: list[bool] = []

        def look(_: nn.Module, __: Any, output: Any) -> None:
            seen.append(isinstance(output, tuple))

        handle = self.blocks[0].register_forward_hook(look)
        with torch.no_grad():
            self.hidden_states(torch.zeros(1, 1, dtype=torch.long, device=self.device), None, 0)
        handle.remove()
        return seen[0]


class _BlockReached(Exception):
    """Leaves a forward pass after the block that was asked for."""


class _Bypass(nn.Module):
    """Stands in for a block: passes its input on, or gives ``output`` instead."""

    def __init__(self, block: nn.Module, output: Tensor | None, returns_tuple: bool) -> None:
        super().__init__()
        self._block = [block]  # in a list, so that it is not registered as a sub-module
        self._output = output
        self._returns_tuple = returns_tuple

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor | tuple[Tensor]:
        output = hidden if self._output is None else self._output
        return (output,) if self._returns_tuple else output

    def __getattr__(self, name: str) -> Any:
        """The model's loop reads attributes of its blocks (which kind of attention, say)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._block[0], name)


def _hidden(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A block's hidden states: a tensor, or the first of a tuple, as the architecture has it."""
    return output if isinstance(output, Tensor) else output[0]


def _weight_in_out(module: nn.Linear | Conv1D) -> Tensor:
    """(inputs, outputs): Conv1D stores its weight so, a Linear the other way round."""
    return module.weight if isinstance(module, Conv1D) else module.weight.T
