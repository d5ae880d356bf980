r"""AlphaEdit, editing in the null space of general text (Fang et al., ICLR 2025, arXiv 2410.02355), towards end-of-text.

With C = U S Uᵀ and U₀ those eigenvectors whose eigenvalue is small, :math:`P = U_0 U_0^T` projects onto the directions
of a key that general text hardly uses. The update of a layer lies in them:

.. math::
    \Delta = \bigl[P\,(K K^T + K_p K_p^T) + \lambda I\bigr]^{-1} P K r^T
           = U_0\, \bigl[U_0^T (K K^T + K_p K_p^T)\, U_0 + \lambda I\bigr]^{-1} U_0^T K r^T

with K, r and z* as in MEMIT (:mod:`law.methods.memit`), and K_p the keys of the batches edited before. The second form is the same
matrix, since Δ = P Δ, and its system is symmetric. Of general text only the subspace counts: C is no part of the system,
and λ is a ridge. If every direction is free (P = I), the update is MEMIT's with C = I.

The published code takes the eigenvalues below 2e-2 for small. That number hangs on the scale of the model's keys, so
a share of the energy, tr(C), or of the directions can be given instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from law.base.checks import Checked, Positive
from law.base.errors import LawError
from law.editing.least_squares import System
from law.methods.memit import BatchedEditor, Solve


class Smallness(Enum):
    """What makes an eigenvalue s of C small, in rising order of the eigenvalues.

    ``eigenvalue``: s is below the threshold. ``energy``: s and the smaller ones add up to at most this share of
    tr(C). ``directions``: it is among the smallest ones, which are at most this share of all.
    """

    eigenvalue = "eigenvalue"
    energy = "energy"
    directions = "directions"


@dataclass
class NullSpace(Checked):
    """Which directions of a key general text leaves free.

    Args:
        by: what is compared with the threshold.
        threshold: of an eigenvalue, or a share.
    """

    by: Smallness = Smallness.eigenvalue
    threshold: Positive = 2e-2

    def basis(self, C: Tensor) -> Tensor:
        """U₀ (d_ff, m): the eigenvectors of C (d_ff, d_ff) with a small eigenvalue.

        Raises:
            LawError: there is none.
        """
        values, vectors = torch.linalg.eigh(C.double())  # in rising order
        values = values.clamp(min=0)  # C has none below 0 but by rounding
        if self.by is Smallness.eigenvalue:
            small = values < self.threshold
        elif self.by is Smallness.energy:
            small = values.cumsum(0) <= self.threshold * values.sum()
        else:
            small = torch.arange(1, len(values) + 1, device=values.device) <= self.threshold * len(values)
        if not small.any():
            raise LawError(
                f"No direction of the second moments is free: by {self.by.value}, expected some below "
                f"{self.threshold:g}; the smallest of {len(values)} eigenvalues is {values[0].item():.3g}, and the largest "
                f"{values[-1].item():.3g}. Raise method.null_space.threshold, or set method.null_space.by to energy or directions."
            )
        return vectors[:, small].to(C.dtype)


@dataclass(kw_only=True)
class AlphaEdit(BatchedEditor):
    """Edit every layer within the directions that general text leaves free.

    Published: λ 10 (``lam``), batches of 100 facts, eigenvalues below 2e-2.

    Args:
        null_space: the directions that an update may use.
    """

    null_space: NullSpace = field(default_factory=NullSpace)

    def solver(self, moments: dict[int, Tensor]) -> Solve:
        """Solve in the coordinates of U₀, of which one (d_ff, m) is held for each layer."""
        bases = {layer: self.null_space.basis(C) for layer, C in moments.items()}
        return lambda layer, system: within(bases[layer], system, self.lam)


def within(basis: Tensor, system: System, lam: float) -> Tensor:
    """Δ (d_ff, d_model), within the span of ``basis``, which is U₀ (d_ff, m) with orthonormal columns."""
    U = basis.double()
    inner = System(
        torch.eye(U.shape[1], dtype=U.dtype, device=U.device),
        U.T @ system.G @ U,  # (m, d_ff) @ (d_ff, d_ff) @ (d_ff, m)
        U.T @ system.right,  # (m, d_ff) @ (d_ff, d_model)
        system.residual,
    )
    return U @ inner.solve(lam)  # (d_ff, m) @ (m, d_model)
