r"""The least-squares system of one layer (MEMIT, equation 14; docs/explanation/method.md).

.. math:: (\lambda C + K K^T)\, \Delta = K r^T

Its solution moves the output at the keys K by the residual r, and changes little on general text, from which C is computed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from law.base.errors import LawError

log = logging.getLogger(__name__)

BACKWARD_ERROR = 1e-10
"""The largest residual of a solution, as a share of ‖λC + KKᵀ‖ ‖Δ‖ + ‖K rᵀ‖."""

LARGE = 3.0
"""‖Δ‖/‖W‖ from which on an update is worth a warning; LAW's search for λ aims at 1/3 to 3/4."""

ROUNDED = 0.05
"""The share of an update's norm from which on its rounding is worth a warning."""


@dataclass(frozen=True)
class System:
    """The least-squares problem of one layer, in float64: (λ C + G) Δ = K rᵀ."""

    C: Tensor  # (d_ff, d_ff)
    G: Tensor  # K Kᵀ, (d_ff, d_ff)
    right: Tensor  # K rᵀ, (d_ff, d_model)
    residual: float  # ‖r‖²

    def placed(self, delta: Tensor) -> float:
        """The share of r that an update places at the keys: 1 − ‖r − ΔᵀK‖² / ‖r‖²."""
        gain = (
            2 * (delta * self.right).sum() - (delta * (self.G @ delta)).sum()
        )  # (d_ff, d_ff) @ (d_ff, d_model)
        return gain.item() / self.residual

    def solve(self, lam: float) -> Tensor:
        """Δ = (λ C + K Kᵀ)⁻¹ K rᵀ, (d_ff, d_model), its residual checked.

        Raises:
            LawError: the system is not positive definite, or too near to singular to be solved.
        """
        matrix = lam * self.C + self.G
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            raise LawError(
                f"λC + KKᵀ is not positive definite at λ = {lam:g}: the text for second moments leaves some "
                f"of the {len(self.C)} directions of a key unused. Give more text (moments.documents), or "
                "a larger λ."
            )
        delta = check_finite(torch.cholesky_solve(self.right, factor))
        residual = (matrix @ delta - self.right).norm()  # (d_ff, d_ff) @ (d_ff, d_model)
        if residual > BACKWARD_ERROR * (matrix.norm() * delta.norm() + self.right.norm()):
            raise LawError(
                f"λC + KKᵀ is too near to singular at λ = {lam:g}: its solution misses K rᵀ by "
                f"{(residual / self.right.norm()).item():.1e} of its norm. Give more text "
                "(moments.documents), or a larger λ."
            )
        return delta

    def size_by_lambda(self) -> Callable[[float], float]:
        """‖Δ‖ as a function of λ, by one eigendecomposition instead of one factorisation for each λ.

        With C = L Lᵀ and L⁻¹ G L⁻ᵀ = Q Γ Qᵀ, Δ(λ) = L⁻ᵀ Q (λ + Γ)⁻¹ Qᵀ L⁻¹ K rᵀ.

        Raises:
            LawError: C is not positive definite.
        """
        L, failed = torch.linalg.cholesky_ex(self.C)
        if failed:
            raise LawError(
                f"The second moments C are not positive definite: the text leaves some of the {len(self.C)} "
                "directions of a key unused, so λ can't be searched for. Give more text (moments.documents)."
            )
        half = torch.linalg.solve_triangular(L, self.G, upper=False)  # L⁻¹ G
        gamma, Q = torch.linalg.eigh(torch.linalg.solve_triangular(L, half.T, upper=False))
        right = Q.T @ torch.linalg.solve_triangular(
            L, self.right, upper=False
        )  # (d_ff, d_ff) @ (d_ff, d_model)
        left = torch.linalg.solve_triangular(L.T, Q, upper=True)  # L⁻ᵀ Q
        # (d_ff, d_ff) @ (d_ff, d_model)
        return lambda lam: (left @ (right / (lam + gamma)[:, None])).norm().item()


def norm(matrix: Tensor) -> float:
    """‖·‖_F, summed in float64, since half precision would round it to three digits."""
    return torch.linalg.vector_norm(matrix, dtype=torch.float64).item()


@torch.no_grad()
def add_update(weight: Tensor, delta: Tensor) -> float:
    """W ← W + Δ, in W's own dtype and on its device; both (d_ff, d_model). Returns ‖Δ‖/‖W‖, with W before the update.

    Warns of a Δ that is much larger than W, and of a W whose rounding takes much of Δ.
    """
    before = weight.clone()
    weight += delta.to(weight)
    lost, size = norm((weight - before).to(delta) - delta), norm(delta)
    relative_norm = size / norm(before)
    if relative_norm > LARGE:
        log.warning(
            "an update is %.3g times as large as the weights it is added to (‖Δ‖/‖W‖), so that little of the "
            "model is left in that layer; expected at most %g. The usual causes are a λ that is too small (lam) "
            "and second moments of too few documents, or of text unlike the model's (moments)",
            relative_norm,
            LARGE,
        )
    if lost > ROUNDED * size:
        log.warning(
            "an update is added to weights in %s, whose rounding moves it by %.0f %%; set model.dtype=float32",
            str(weight.dtype).removeprefix("torch."),
            100 * lost / size,
        )
    return relative_norm


def check_finite(delta: Tensor) -> Tensor:
    """The update itself.

    Raises:
        LawError: it holds NaN or infinity.
    """
    if not delta.isfinite().all():
        raise LawError(
            "The update of a layer is not finite. Expected finite weights, moments and target values; the "
            "usual causes are a model in half precision (take float32) or too large a learning rate."
        )
    return delta
