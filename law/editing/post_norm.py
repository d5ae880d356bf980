r"""The residual of an MLP whose output passes a norm before it joins the stream (Gemma 2 and 3).

There a block adds :math:`y = g \odot u / \mathrm{rms}(u)` to the stream, with :math:`u = W^T k` the down-projection's
output and g the norm's gain. Moving u by r does not move y by r. :func:`input_residual` gives what to move u by.

The norm leaves y on an ellipsoid: :math:`v = u / \mathrm{rms}(u)` has length :math:`\sqrt{d}`, whatever u is. So y + r
cannot be reached in general. The nearest reachable point to it solves

.. math:: \min_v \lVert g \odot v - (y + r) \rVert^2 \quad\text{with}\quad \lVert v \rVert^2 = d,

and is :math:`v = g \odot (y + r) / (g^2 + \mu)` for the :math:`\mu > -\min g^2` that gives v its length. The
down-projection's output keeps its size: it moves from u to :math:`\mathrm{rms}(u)\, v`.

Without a norm, a block may still multiply the output by a constant (Granite): :func:`output_multiplier` measures it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from law.base.errors import LawError
from law.decoders.structure import Decoder

HALVINGS = 60  # of the interval that holds μ: beyond the precision of float64
TOLERANCE = 1e-2  # of the direction of the norm's output against g u: half precision rounds to 0.8 %


@torch.inference_mode()
def norm_behind(decoder: Decoder, layer: int) -> nn.Module | None:
    """The norm of block ``layer`` that reads the down-projection's output; ``None`` where the stream reads it."""
    block, down = decoder.blocks[layer], decoder.down_projection(layer)
    outputs: list[Any] = []
    found: list[nn.Module] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if outputs and inputs and inputs[0] is outputs[0]:
            found.append(module)
        if module is down:
            outputs.append(output)

    handles = [m.register_forward_hook(note) for m in block.modules() if not list(m.children())]
    try:
        decoder.hidden_states(torch.zeros(1, 2, dtype=torch.long, device=decoder.device), None, layer)
    finally:
        for handle in handles:
            handle.remove()
    return next((module for module in found if "Norm" in type(module).__name__), None)


@torch.inference_mode()
def output_multiplier(decoder: Decoder, layer: int) -> float:
    """What a block multiplies the down-projection's output by where no norm is behind it: 1, but 0.22 in Granite 3.

    It is measured: the output is moved by a vector, and the block's output should move by a multiple of it.

    Raises:
        LawError: the block's output moves in another direction.
    """
    ids = torch.zeros(1, 2, dtype=torch.long, device=decoder.device)
    before = decoder.hidden_states(ids, None, layer)
    signs = 1 - 2 * (torch.arange(decoder.d_model, device=before.device) % 2)  # (d_model)
    push = before.abs().max() * signs  # as large as the stream, so that rounding hides little of it
    handle = decoder.down_projection(layer).register_forward_hook(lambda _, __, out: out + push.to(out))
    try:
        moved = (decoder.hidden_states(ids, None, layer) - before).double()  # (1, 2, d_model)
    finally:
        handle.remove()
    multiplier = (moved * push).sum().item() / (2 * push.double().square().sum().item())
    if (moved - multiplier * push).norm() > 0.05 * moved.norm():
        raise LawError(
            f"{type(decoder.model).__name__} changes the direction of the down-projection's output of layer {layer} "
            "before it joins the stream; expected a block that adds it, a multiple of it, or its RMS norm. A residual "
            "cannot be carried through it. Choose a method that does not edit down-projections towards z*."
        )
    return 1.0 if abs(multiplier - 1) < 0.01 else multiplier


@torch.inference_mode()
def input_residual(norm: nn.Module, u: Tensor, r: Tensor) -> Tensor:
    """What to move the norm's input by, so that its output moves as near to r as it can.

    Args:
        norm: the norm behind the down-projection.
        u: the down-projection's outputs, (d_model, n).
        r: the wanted move of the norm's output, (d_model, n).

    Returns:
        The move of u, (d_model, n), in float64.

    Raises:
        LawError: the module is no RMS norm.
    """
    rows = u.T.double()
    y = norm(u.T).double()  # (n, d_model)
    gain = norm(torch.ones_like(u[:, 0])).double()  # g: ones have an rms of 1
    rms = rows.square().mean(1, keepdim=True).sqrt()  # (n, 1)
    straight = gain * rows  # an RMS norm's output has this direction; its ε may shorten it where u is small
    along = (y * straight).sum(1, keepdim=True) / straight.square().sum(1, keepdim=True)
    if (
        not (along * straight - y).norm() <= TOLERANCE * y.norm()
    ):  # NaN where g is 0: a norm that takes the mean off
        raise LawError(
            f"{type(norm).__name__} stands behind the down-projection and is no RMS norm; expected one, or no norm "
            "there. A residual cannot be carried through it."
        )
    v = nearest_on_ellipsoid(gain, y + r.T.double())
    return (rms * v - rows).T


def nearest_on_ellipsoid(gain: Tensor, wanted: Tensor) -> Tensor:
    """The v of length √d for which g ⊙ v is nearest to each row of ``wanted``: gain (d), wanted and v (n, d)."""
    square, pull = gain.square(), gain * wanted
    d = len(gain)
    length = pull.norm(dim=1, keepdim=True) / d**0.5
    # ‖pull / (g² + μ)‖ falls with μ; it is above √d at the low end and below √d at the high end
    largest = pull.abs().max(1, keepdim=True)
    low = (largest.values / d**0.5 - square[largest.indices]).clamp(min=-square.min().item())
    high = length - square.min()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        too_long = (pull / (square + middle)).norm(dim=1, keepdim=True) > d**0.5
        low, high = torch.where(too_long, middle, low), torch.where(too_long, high, middle)
    v = pull / (square + high)
    return v * d**0.5 / v.norm(dim=1, keepdim=True)
