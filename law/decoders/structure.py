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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from law.base.errors import LawError
from law.decoders.adapters import refuse_adapters
from law.decoders.kv_cache import Past, inputs_after
from law.decoders.other_paths import hidden_in, other_paths
from law.decoders.parts import (
    Parts,
    find_attention_inputs,
    find_blocks,
    find_down_projection,
    weight_in_out,
)
from law.decoders.prompts import check_length


class Decoder:
    """A view of a causal language model: its blocks, their MLP down-projections and the output head.

    A part that :func:`~law.decoders.parts.name_parts` named is taken by its name. Otherwise the blocks are the
    list as long as the text decoder is deep, and the down-projection is a block's one projection onto d_model
    outside its attention.

    What no method reads is not looked for: the final norm and soft-capping run inside
    :meth:`logits_from`, and neither a key nor a block's output hangs on whether attention and MLP run in
    parallel (GPT-J, GPT-NeoX, Phi). In Gemma 2 and 3, ``W^T k`` passes a norm before it joins the stream;
    :mod:`law.editing.post_norm` takes that into account.

    Raises:
        LawError: the model has adapters, no output head, or no blocks that can be told from its structure.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        refuse_adapters(model)
        self.model = model
        self.device = model.device
        self.parts: Parts = getattr(model, "law_parts", Parts())
        config = model.config.get_text_config()
        self.d_model: int = config.hidden_size
        self.head = model.get_output_embeddings()
        if self.head is None:
            raise LawError(
                f"{type(model).__name__}.get_output_embeddings() gives nothing; expected the output head of a "
                "causal language model. Load it with AutoModelForCausalLM, or define that method."
            )
        self.blocks = find_blocks(model, self.parts, config.num_hidden_layers)
        self._blocks_name = next(name for name, module in model.named_modules() if module is self.blocks)

    def down_projection(self, layer: int) -> nn.Linear | Conv1D:
        """The last projection of a block's MLP.

        Raises:
            LawError: the block has none or several, and none was named.
        """
        return find_down_projection(self.blocks[layer], self.parts, self.d_model, self._blocks_name)

    @property
    def attentions(self) -> list[nn.Module]:
        """The attention of every block: its outermost module with ``Attention`` in the name of its class."""
        return [next(m for m in block.modules() if "Attention" in type(m).__name__) for block in self.blocks]

    def attention_inputs(self) -> list[str]:
        """Names, from the model on, of every block's query and value projections (which LoRA adapts).

        Raises:
            LawError: as :func:`~law.decoders.parts.find_attention_inputs` does.
        """
        names = {module: name for name, module in self.model.named_modules()}
        return [names[module] for block in self.blocks for module in find_attention_inputs(block, self.parts)]

    def weight(self, layer: int) -> Tensor:
        """W of a layer as (d_ff, d_model): a view that shares the parameter's storage."""
        return weight_in_out(self.down_projection(layer))

    def check_layers(self, layers: Sequence[int]) -> None:
        """Refuse layers that are empty, out of order, beyond the model, or that can't be edited.

        Raises:
            LawError: with the layers that there are, or with those that can be edited.
        """
        count = len(self.blocks)
        if not layers or sorted(set(layers)) != list(layers) or layers[0] < 0 or layers[-1] >= count:
            raise LawError(
                f"The layers to edit are {list(layers)}; expected a rising list of layers between 0 and "
                f"{count - 1}, since {type(self.model).__name__} has {count} blocks."
            )
        if problems := self._problems(layers):
            good = [layer for layer in range(count) if layer not in self._problems(range(count))]
            hint = (
                f" These layers can be edited: {good}; choose the method's layers among them." if good else ""
            )
            raise LawError(problems[min(problems)] + hint)

    def _problems(self, layers: Sequence[int]) -> dict[int, str]:
        """The layers without a down-projection that everything but attention passes, and why."""
        problems: dict[int, str] = {}
        parts: dict[int, tuple[nn.Module, nn.Module]] = {}
        for layer in layers:
            try:
                down = self.down_projection(layer)
            except LawError as error:
                problems[layer] = str(error)
                continue
            parts[layer] = (self.blocks[layer], down)
        if parts:
            ids = torch.zeros(1, 2, dtype=torch.long, device=self.device)
            problems |= other_paths(parts, lambda: self.hidden_states(ids, None, max(parts)))
        return problems

    @contextmanager
    def capture_keys(self, layers: list[int]) -> Iterator[dict[int, Tensor]]:
        """Collect each layer's key of every token, (b, t, d_ff), during the forward passes inside."""
        keys: dict[int, Tensor] = {}

        def hook_for(layer: int) -> Any:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                keys[layer] = inputs[0].detach().to(self.device)

            return hook

        handles = [self.down_projection(i).register_forward_pre_hook(hook_for(i)) for i in layers]
        try:
            yield keys
        finally:
            for handle in handles:
                handle.remove()

    def hidden_states(self, ids: Tensor, mask: Tensor | None, layer: int, past: Past | None = None) -> Tensor:
        """The output of block ``layer`` for token ids (b, t), (b, t, d_model); later blocks do not run."""
        check_length(self.model, ids.shape[1], "A prompt")
        captured: list[Tensor] = []

        def stop(_: nn.Module, __: Any, output: Tensor | tuple[Tensor, ...]) -> None:
            captured.append(hidden_in(output))
            raise _BlockReached

        handle = self.blocks[layer].register_forward_hook(stop)
        try:
            self.model(input_ids=ids, attention_mask=mask, **inputs_after(past))
        except _BlockReached:
            pass
        finally:
            handle.remove()
        return captured[0].to(self.device)

    def logits_from(
        self,
        hidden: Tensor,
        ids: Tensor,
        mask: Tensor | None,
        layer: int,
        at: tuple[Tensor, Tensor],
        past: Past | None = None,
    ) -> Tensor:
        """Next-token logits (m, vocabulary) when block ``layer`` outputs ``hidden`` (b, t, d_model).

        The blocks up to ``layer`` are passed over, since what they compute is given, and the output
        head runs only at the m places ``at`` = (rows, positions).
        """
        originals = list(self.blocks)
        handle = self.head.register_forward_pre_hook(
            lambda _, inputs: (inputs[0][tuple(index.to(inputs[0].device) for index in at)],)
        )
        try:
            for i in range(layer + 1):
                output = hidden if i == layer else None
                self.blocks[i] = _Bypass(originals[i], output, self._blocks_return_tuples)
            return self.model(input_ids=ids, attention_mask=mask, **inputs_after(past)).logits.to(self.device)
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
        try:
            with torch.no_grad():
                self.hidden_states(torch.zeros(1, 1, dtype=torch.long, device=self.device), None, 0)
        finally:
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
