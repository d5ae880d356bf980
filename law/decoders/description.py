"""How a model and its tokenizer are read: what ``experiments/locate.py`` tells before it measures.

Nothing else depends on it: the methods need a decoder's blocks and down-projections alone
(:mod:`law.decoders.structure`), and find a subject's tokens by offsets (:mod:`law.decoders.prompts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from law.decoders.structure import Decoder


@dataclass(frozen=True)
class Anatomy:
    """A decoder's parts, by their names from the model on (the down-projection's from its block on).

    ``orientation`` is how the down-projection's weight is stored; ``parallel`` says that attention and MLP
    read the same input, so that a block's key does not depend on its attention.
    """

    blocks: str
    down_projection: str
    orientation: str
    final_norm: str
    head: str
    parallel: bool


@dataclass(frozen=True)
class Habits:
    """What a tokenizer does to a text: ``begins_with`` are the special tokens that it puts before it (BOS), and
    ``leading_space`` says that it puts a space there, so that a word is the same tokens at the start as later.
    """

    kind: str
    begins_with: str
    leading_space: bool
    padding_side: str


def anatomy(decoder: Decoder) -> Anatomy:
    """The parts of a decoder, found by structure."""
    names = {module: name for name, module in decoder.model.named_modules()}
    inside = {module for block in decoder.blocks for module in block.modules()}
    norms = [
        name
        for module, name in names.items()
        if module not in inside and "Norm" in type(module).__name__ and not list(module.children())
    ]
    down = decoder.down_projection(0)
    return Anatomy(
        blocks=names[decoder.blocks],
        down_projection=names[down].removeprefix(f"{names[decoder.blocks[0]]}."),
        orientation="(d_ff, d_model)" if isinstance(down, Conv1D) else "(d_model, d_ff)",
        final_norm=norms[-1] if norms else "none",
        head=names[decoder.head],
        parallel=_parallel(decoder),
    )


@torch.inference_mode()
def _parallel(decoder: Decoder) -> bool:
    """Whether the first block's key stays as it is when its attention says nothing."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=decoder.device)

    def key() -> Tensor:
        with decoder.capture_keys([0]) as captured:
            decoder.hidden_states(ids, None, 0)
        return captured[0]

    def silence(_: nn.Module, __: Any, output: Any) -> Any:
        return torch.zeros_like(output) if isinstance(output, Tensor) else (0 * output[0], *output[1:])

    attention = decoder.attentions[0]
    before = key()
    handle = attention.register_forward_hook(silence)
    try:
        return torch.equal(before, key())
    finally:
        handle.remove()


def habits(tokenizer: PreTrainedTokenizerBase) -> Habits:
    """What a tokenizer does, told from what it makes of two short texts and from its rules."""
    rules = tokenizer.backend_tokenizer.to_str()
    kinds = (("byte-level", '"ByteLevel"'), ("SentencePiece", "▁"))
    bare, later = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("is", "is is"))
    whole: list[int] = tokenizer("is")["input_ids"]
    return Habits(
        kind=next((kind for kind, mark in kinds if mark in rules), "other"),
        begins_with=str(tokenizer.decode(whole[: len(whole) - len(bare)])) if whole != bare else "",
        leading_space=later == [*bare, *bare],
        padding_side=tokenizer.padding_side,
    )
