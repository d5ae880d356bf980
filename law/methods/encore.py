r"""ENCORE, editing many facts for long (Gupta et al., 2025, arXiv 2502.01636), towards end-of-text.

It changes MEMIT (:mod:`law.methods.memit`) in two places, since many edits made by MEMIT overfit their targets, and let the
norm of W grow. Each update has a ridge μ, and z* is optimised less:

.. math::
    \Delta = (\lambda C + \mu I + K_p K_p^T + K K^T)^{-1} K r^T

with K_p the keys of the batches edited before. The steps towards z* of a fact end when every token of the target has been the
likeliest one in every context at c evaluations (:class:`law.editing.target_values.EarlyTargets`). The published code counts in the sampled
contexts alone, and its targets have one token. With μ = 0, one batch and no such end, ENCORE is MEMIT.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from law.base.checks import NonNegative
from law.editing.least_squares import System
from law.editing.target_values import EarlyTargets
from law.methods.memit import BatchedEditor, Solve


@dataclass(kw_only=True)
class ENCORE(BatchedEditor):
    """Edit every layer with a ridge, towards a z* that is left early.

    Published for GPT-2 XL: λ 20,000 (``lam``), μ 10, c 4.

    Args:
        targets: how z* is optimised, and when it is left.
        mu: μ, the weight of ‖Δ‖² against the facts.
    """

    targets: EarlyTargets = field(default_factory=EarlyTargets)
    mu: NonNegative = 10.0

    def solver(self, moments: dict[int, Tensor]) -> Solve:
        """Solve with the ridge beside the keys."""
        return lambda _, system: with_ridge(system, self.mu).solve(self.lam)


def with_ridge(system: System, mu: float) -> System:
    """The system with μ I added to G, which is (d_ff, d_ff)."""
    G = system.G.clone()
    G.diagonal().add_(mu)
    return replace(system, G=G)
