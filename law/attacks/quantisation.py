r"""Quantisation: does a fact come back when the weights are rounded?

A wash that moves weights by less than a step of the grid is undone by rounding (Zhang et al. 2024, "Catastrophic failure
of LLM unlearning via quantization"). Every linear layer but the output head is rounded, in the model's own dtype, so
that it runs on every device:

- **int8**: each output's weights w, to the nearest of :math:`s\,q` with :math:`q \in \{-127 \dots 127\}` and
  :math:`s = \max |w| / 127`;
- **nf4** (Dettmers et al. 2023): blocks of 64 weights, each to the nearest of :math:`a\,c_i` with
  :math:`a = \max |w|` of the block and the sixteen levels :math:`c_i` of :data:`NF4`.

How much more is recalled than before rounding is the difference from ``forget/accuracy``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from law.attacks.protocol import Record, Target
from law.base.checks import Checked
from law.decoders.greedy_decoding import recalled
from law.decoders.parts import weight_in_out

BLOCK = 64

NF4 = (
    *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
)
"""The levels of NormalFloat4, in rising order."""


@dataclass
class Quantisation(Checked):
    """Round the weights of the linear layers, and ask for each fact in the washed phrasing."""

    def attack(self, target: Target) -> Record:
        """A score ``int8`` and one ``nf4``: the facts recalled by the rounded model."""
        return {"int8": _recalled(target, int8), "nf4": _recalled(target, nf4)}


def _recalled(target: Target, rounding: Callable[[Tensor], Tensor]) -> list[float]:
    with rounded(target.model, rounding):
        hits = recalled(target.model, target.tokenizer, target.facts, target.batch_size, target.recall)
    return [float(hit) for hit in hits]


@contextmanager
def rounded(model: PreTrainedModel, rounding: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The model with rounded linear layers inside; afterwards its weights are what they were."""
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    originals = [layer.weight.detach().to("cpu", copy=True) for layer in layers]
    try:
        with torch.no_grad():
            for layer in layers:
                weight = weight_in_out(layer).T  # (outputs, inputs)
                weight.copy_(rounding(weight.float()))
        yield
    finally:
        with torch.no_grad():
            for layer, original in zip(layers, originals, strict=True):
                layer.weight.copy_(original)


def int8(weight: Tensor) -> Tensor:
    """A matrix (outputs, inputs) rounded to 255 steps for each output."""
    step = weight.abs().amax(1, keepdim=True) / 127  # (outputs, 1)
    return (weight / step.clamp(min=torch.finfo(weight.dtype).tiny)).round() * step


def nf4(weight: Tensor) -> Tensor:
    """A matrix (outputs, inputs) rounded to NF4 in blocks of 64 weights, row after row; the last block may be shorter."""
    flat = weight.flatten()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)  # (blocks, 1)
    levels = torch.tensor(NF4, dtype=weight.dtype, device=weight.device)
    scaled = blocks / largest.clamp(min=torch.finfo(weight.dtype).tiny)
    nearest = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2)  # the midpoints part the levels
    return (levels[nearest] * largest).flatten()[: len(flat)].view_as(weight)
