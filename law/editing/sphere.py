r"""SPHERE, which takes a part of an update out of the directions that the weights use most (zjunlp/EasyEdit, ``models/SPHERE``).

The columns of W are the weights of the layer's outputs. With each of them scaled to length 1, :math:`\hat W`, and U the
leading eigenvectors of :math:`\hat W \hat W^T` that hold a share of its energy, an update becomes

.. math:: \Delta \leftarrow (I - \alpha\, U U^T)\, \Delta

so that the directions of the columns stay apart as they were. It is done once all layers are edited, as in the published code.
There W is (d_model, d_ff), except in GPT-2, whose W the code takes as it lies, so that it projects the outputs of that model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from law.base.checks import Checked, Decay, Fraction


@dataclass
class Sphere(Checked):
    """How much of an update leaves the leading directions of the weights.

    Args:
        strength: α; 0 leaves updates as they are (0.5 in the published code).
        energy: the share of the energy up to which directions are leading ones; the one that crosses it is the last.
    """

    strength: Fraction = 0.0
    energy: Decay = 0.5

    @contextmanager
    def projecting(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """What is added inside to ``weights``, W (d_ff, d_model) each, is projected at the end."""
        if not self.strength:
            yield
            return
        starts = [weight.detach().to("cpu", copy=True) for weight in weights]
        yield
        with torch.no_grad():
            for weight, values in zip(weights, starts, strict=True):
                start = values.to(weight.device, torch.float64)
                U = self.leading(start)
                delta = weight.double() - start  # (d_ff, d_model)
                # (d_ff, r) @ (r, d_ff) @ (d_ff, d_model)
                weight.copy_(start + delta - self.strength * (U @ (U.T @ delta)))

    def leading(self, W: Tensor) -> Tensor:
        """U (d_ff, r) of W (d_ff, d_model), in float64. They are found from the smaller matrix ŴᵀŴ."""
        unit = F.normalize(W.double(), dim=0)
        values, vectors = torch.linalg.eigh(
            unit.T @ unit
        )  # (d_model, d_ff) @ (d_ff, d_model), in rising order
        values, vectors = values.flip(0), vectors.flip(1)
        r = int((values.cumsum(0) <= self.energy * values.sum()).sum()) + 1
        return unit @ (vectors[:, :r] / values[:r].sqrt())  # (d_ff, d_model) @ (d_model, r)
