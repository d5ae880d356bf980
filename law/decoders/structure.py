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
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from law.base.errors import LawError
from law.decoders.kv_cache import Past, inputs_after
from law.decoders.prompts import check_length

T = TypeVar("T", bound=nn.Module)


@dataclass
class Parts:
    """Dotted names of a decoder's parts; what is left empty is found by structure.

    Args:
        blocks: the list of blocks, from the model on, as in ``model.layers``.
        down_projection: the MLP's down-projection, from a block on, as in ``mlp.down_proj``.
        attention_inputs: the query and value projections (or the one that fuses them), from a block on;
            only the baselines with LoRA ask for them.
    """

    blocks: str = ""
    down_projection: str = ""
    attention_inputs: list[str] = field(default_factory=list)


def name_parts(model: PreTrainedModel, parts: Parts) -> None:
    """Tell every :class:`Decoder` made of ``model`` from here on; the names are not saved with it."""
    model.law_parts = parts  # type: ignore[assignment]


class Decoder:
    """A view of a causal language model: its blocks, their MLP down-projections and the output head.

    A part that :func:`name_parts` named is taken by its name. Otherwise the blocks are the first list as
    long as the model is deep, and the down-projection is a block's one projection onto d_model
    outside its attention; only the attention is told by a name, ``Attention`` in that of its class.

    What no method reads is not looked for: the final norm and soft-capping run inside
    :meth:`logits_from`, and neither a key nor a block's output hangs on whether attention and MLP run in
    parallel (GPT-J, GPT-NeoX, Phi). In Gemma 2 and 3, ``W^T k`` passes a norm before it joins the stream;
    :mod:`law.editing.post_norm` takes that into account.

    Raises:
        LawError: the blocks or a down-projection can't be told from the model's structure.
    """

    def __init__(self, model: PreTrainedModel) -> None:
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
        self.blocks = self._blocks(config.num_hidden_layers)
        self.down_projections = [self._down_projection(block) for block in self.blocks]

    def _blocks(self, count: int) -> nn.ModuleList:
        lists = {name: m for name, m in self.model.named_modules() if isinstance(m, nn.ModuleList)}
        if self.parts.blocks:
            return _pick(self.model, lists, self.parts.blocks, "blocks")
        for found in lists.values():
            if len(found) == count:
                return found
        raise LawError(
            f"{type(self.model).__name__} has no list of {count} blocks (config.num_hidden_layers); its lists "
            f"are: {', '.join(lists) or 'none'}. Expected a decoder such as GPT-2, GPT-J or Llama. "
            + _mapping("model.layers", "mlp.down_proj")
        )

    def _down_projection(self, block: nn.Module) -> nn.Linear | Conv1D:
        onto = {n: m for n, m in _projections(block).items() if _weight_in_out(m).shape[1] == self.d_model}
        if self.parts.down_projection:
            return _pick(block, onto, self.parts.down_projection, "down_projection")
        attention = _attention(block)
        found = {name: module for name, module in onto.items() if module not in attention}
        if len(found) != 1:
            blocks = next(name for name, module in self.model.named_modules() if module is self.blocks)
            raise LawError(
                f"{type(block).__name__} has {len(found)} projections onto {self.d_model} dimensions outside "
                f"its attention ({', '.join(found) or 'none'}); expected exactly one, the MLP's down-projection "
                "(mixtures of experts are not supported). "
                + _mapping(blocks, next(reversed(found), "mlp.down_proj"))
            )
        return next(iter(found.values()))

    @property
    def attentions(self) -> list[nn.Module]:
        """The attention of every block: its outermost module with ``Attention`` in the name of its class."""
        return [next(m for m in block.modules() if "Attention" in type(m).__name__) for block in self.blocks]

    def attention_inputs(self) -> list[str]:
        """Names, from the model on, of every block's query and value projections (which LoRA adapts).

        Where one projection gives queries, keys and values (GPT-2, GPT-NeoX, Phi-3), that one. Separate
        ones are told by the first letter of their names, since nothing else tells keys from values.

        Raises:
            LawError: an attention has neither two projections nor four, and none were named.
        """
        names = {module: name for name, module in self.model.named_modules()}
        return [names[module] for block in self.blocks for module in self._attention_inputs(block)]

    def _attention_inputs(self, block: nn.Module) -> list[nn.Linear | Conv1D]:
        inside = _projections(block)
        if self.parts.attention_inputs:
            return [_pick(block, inside, n, "attention_inputs") for n in self.parts.attention_inputs]
        attention = _attention(block)
        found = {name: module for name, module in inside.items() if module in attention}
        if len(found) == 2:
            one, other = found.values()
            # the fused one gives more than the output projection takes; the other gives d_model, no more
            fused = _weight_in_out(one).shape[1] > _weight_in_out(other).shape[0]
            return [one if fused else other]
        chosen = [module for name, module in found.items() if name.rpartition(".")[2][0] in "qv"]
        if len(found) != 4 or len(chosen) != 2:
            raise LawError(
                f"The query and value projections of {type(block).__name__} can't be told among: "
                f"{', '.join(found) or 'none'}; expected two projections (one of them fused) or four. Name "
                "them, as in model.parts.attention_inputs=[attn.q,attn.v]."
            )
        return chosen

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
                keys[layer] = inputs[0].detach().to(self.device)

            return hook

        handles = [self.down_projections[i].register_forward_pre_hook(hook_for(i)) for i in layers]
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
            captured.append(_hidden(output))
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


def _attention(block: nn.Module) -> set[nn.Module]:
    """Every module inside a block's attention."""
    return {inner for m in block.modules() if "Attention" in type(m).__name__ for inner in m.modules()}


def _projections(block: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    return {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear | Conv1D)}


def _pick(owner: nn.Module, choices: dict[str, T], name: str, part: str) -> T:
    """The module that ``model.parts`` names."""
    if name not in choices:
        raise LawError(
            f"{type(owner).__name__} has no {name!r} that could be its {part}; expected one of: "
            f"{', '.join(choices) or 'none'}. Set model.parts.{part}."
        )
    return choices[name]


def _mapping(blocks: str, down_projection: str) -> str:
    """What to write so that a decoder's parts are known."""
    return (
        f"Name the parts: model.parts.blocks={blocks} model.parts.down_projection={down_projection}, or in "
        f"Python name_parts(model, Parts(blocks={blocks!r}, down_projection={down_projection!r})), each the model's own."
    )


def _hidden(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A block's hidden states: a tensor, or the first of a tuple, as the architecture has it."""
    return output if isinstance(output, Tensor) else output[0]


def _weight_in_out(module: nn.Linear | Conv1D) -> Tensor:
    """(inputs, outputs): Conv1D stores its weight so, a Linear the other way round."""
    return module.weight if isinstance(module, Conv1D) else module.weight.T
