r"""Quantisation: does a fact come back when the weights are rounded?

A wash that moves weights by less than a step of the grid is undone by rounding (Zhang et al. 2024, "Catastrophic failure
of LLM unlearning via quantization"). Every linear layer but the output head is rounded, in the model's own dtype, so
that it runs on every device:

- **int8**: each output's weights w, to the nearest of :math:`s\,q` with :math:`q \in \{-127 \dots 127\}` and
  :math:`s = \max |w| / 127`;
- **nf4** (Dettmers et al. 2023): blocks of 64 weights, each to the nearest of :math:`a\,c_i` with
  :math:`a = \max |w|` of the block and the sixteen levels :math:`c_i` of :data:`NF4`.

The share of the forgotten facts that rounding brings back is

.. math::
    \frac{\mathrm{acc}_q - \mathrm{acc}_{washed}}{\mathrm{acc}_{unwashed} - \mathrm{acc}_{washed}},

with :math:`\mathrm{acc}_q` of the washed model rounded. It is negative where rounding loses facts.

How much of the update Δ of a layer W is left once both models are rounded by Q is told by two numbers,

.. math::
    \mathrm{moved} = \frac{\|Q(W+\Delta) - Q(W)\|}{\|\Delta\|}, \qquad
    \mathrm{survives} = \frac{\langle Q(W+\Delta) - Q(W), \Delta \rangle}{\|\Delta\|^2}.

Both are 1 if Δ is far larger than a step of the grid, and 0 if no weight reaches another level. In between, few weights move, and each
by a whole step. Then ``moved`` is above 1, although hardly anything else than noise may be left: ``survives`` counts what points along Δ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from law.attacks.protocol import Cost, Record, Target
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

    def cost(self, target: Target) -> Cost:
        """What :meth:`attack` takes."""
        return Cost(answered=(1 + len(ROUNDINGS)) * len(target.facts))

    def attack(self, target: Target) -> Record:
        """A score ``int8`` and one ``nf4``: the facts recalled by the rounded model; ``unrounded``: by the model itself."""
        found = {"unrounded": _recalled(target)}
        for grid, rounding in ROUNDINGS.items():
            with rounded(target.model, rounding):
                found[grid] = _recalled(target)
        return found


def _recalled(target: Target) -> list[float]:
    hits = recalled(target.model, target.tokenizer, target.facts, target.batch_size, target.recall)
    return [float(hit) for hit in hits]


def recovered_share(before: Record, after: Record) -> dict[str, float]:
    """The share of the forgotten facts that each rounding brings back; none where no fact was forgotten."""

    left = sum(filter(None, after["unrounded"]))
    forgotten = sum(filter(None, before["unrounded"])) - left
    if forgotten <= 0:
        return {}
    return {
        f"attack/quantisation/{grid}_recovered": (sum(filter(None, after[grid])) - left) / forgotten
        for grid in ROUNDINGS
    }


@contextmanager
def rounded(model: PreTrainedModel, rounding: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The model with rounded linear layers inside; afterwards its weights are what they were."""
    weights, originals = linear_weights(model), copied_weights(model)
    try:
        for weight in weights.values():
            weight.copy_(rounding(weight.float()))
        yield
    finally:
        for name, weight in weights.items():
            weight.copy_(originals[name])


def linear_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weight of every linear layer but the output head, (outputs, inputs), by the layer's name; they share the model's memory."""
    head = model.get_output_embeddings()
    return {
        name: weight_in_out(module).detach().T
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def copied_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of :func:`linear_weights` in the CPU's memory."""
    return {name: weight.to("cpu", copy=True) for name, weight in linear_weights(model).items()}


def survival(unwashed: Mapping[str, Tensor], model: PreTrainedModel) -> list[dict[str, Any]]:
    """For each layer that washing changed its name, ‖Δ‖ as ``update``, and ``moved`` and ``survives`` of each grid.

    Args:
        unwashed: the :func:`copied_weights` before washing.
        model: the washed model.
    """
    lines: list[dict[str, Any]] = []
    for name, weight in linear_weights(model).items():
        after = weight.float()  # (outputs, inputs)
        before = unwashed[name].to(after)
        update = after - before
        size = update.norm().item()
        if not size:
            continue
        line: dict[str, Any] = {"layer": name, "update": size}
        for grid, rounding in ROUNDINGS.items():
            difference = rounding(after) - rounding(before)
            line[f"{grid}_moved"] = difference.norm().item() / size
            line[f"{grid}_survives"] = (difference * update).sum().item() / size**2
        lines.append(line)
    return lines


def survival_metrics(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The same of the updates of all layers as one vector, from the lines of :func:`survival`."""
    found: dict[str, float] = {}
    squares = [line["update"] ** 2 for line in lines]
    for grid in ROUNDINGS if lines else ():
        moved = sum(square * line[f"{grid}_moved"] ** 2 for square, line in zip(squares, lines, strict=True))
        along = sum(square * line[f"{grid}_survives"] for square, line in zip(squares, lines, strict=True))
        found[f"attack/quantisation/{grid}_moved"] = math.sqrt(moved / sum(squares))
        found[f"attack/quantisation/{grid}_survives"] = along / sum(squares)
    return found


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


ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {"int8": int8, "nf4": nf4}
