"""Sections 3 and 4 of the method, for one layer: MEMIT's update, its λ, and LAW's ascent; in float64.

Every Δ is (d_ff, d_model), K (d_ff, n), C (d_ff, d_ff) and the residual r (d_model, n).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def solve(lam: float, C: Tensor, K: Tensor, r: Tensor) -> Tensor:
    """Δ = (λ C + K Kᵀ)⁻¹ K rᵀ."""
    C, K, r = C.double(), K.double(), r.double()
    left = torch.linalg.solve(lam * C + K @ K.T, K)  # (d_ff, d_ff)⁻¹ @ (d_ff, n)
    return left @ r.T  # (d_ff, n) @ (n, d_model)


def search(
    lam: float,
    C: Tensor,
    K: Tensor,
    r: Tensor,
    weight: Tensor,
    step: float = 100_000.0,
    decay: float = 0.75,
    attempts: int = 200,
) -> tuple[Tensor, list[tuple[float, float]]]:
    """Δ with ⅓‖W‖ ≤ ‖Δ‖ ≤ ¾‖W‖, and the trail of (λ, ‖Δ‖) that led to it."""
    size = weight.double().norm()
    delta = solve(lam, C, K, r)
    trail = [(lam, delta.norm().item())]
    for _ in range(attempts):
        if delta.norm() > 3 / 4 * size:
            lam = lam + step
        elif delta.norm() < 1 / 3 * size:
            lam = lam * decay
        else:
            return delta, trail
        delta = solve(lam, C, K, r)
        trail.append((lam, delta.norm().item()))
    raise ArithmeticError(f"no λ found in {attempts} attempts; the last was {lam:g}")


def objective(delta: Tensor, K: Tensor) -> Tensor:
    """‖ΔᵀK‖²_F."""
    return (delta.T @ K).square().sum()  # (d_model, d_ff) @ (d_ff, n)


def constraint(delta: Tensor, C: Tensor) -> Tensor:
    """tr(Δᵀ C Δ) / tr(C)."""
    return torch.trace(delta.T @ C @ delta) / torch.trace(C)


@dataclass(frozen=True)
class Ascent:
    """What an ascent passes through.

    ``best`` is the best feasible iterate, the start included: what the method means. ``last`` is the
    last iterate. ``literal`` is what the authors' code returns: when an iterate is the best so far,
    the matrix *after* its step is remembered without a copy, and Adam goes on changing it until a
    projection puts a new matrix in the parameter's place. ``snapshot`` is that matrix, copied.
    """

    best: Tensor
    last: Tensor
    literal: Tensor
    snapshot: Tensor
    beta: float
    trace: Tensor  # (iterations,): the objective at each iteration's start
    best_iteration: int  # the last one whose start was better than all before
    projections: list[int]  # iterations that ended with a projection


def ascend(
    start: Tensor,
    C: Tensor,
    K: Tensor,
    learning_rate: float,
    boundary_learning_rate: float | None,
    iterations: int,
    beta_ratio: float = 1.1,
) -> Ascent:
    """Maximise ‖ΔᵀK‖² within tr(ΔᵀCΔ)/tr(C) ≤ β by Adam, its gradient taken through K itself."""
    C, K = C.double(), K.double()
    parameter = torch.nn.Parameter(start.double().clone())
    optimizer = torch.optim.Adam([parameter], lr=learning_rate)
    beta = beta_ratio * constraint(parameter.data, C)
    best = start.double().clone()
    highest = -torch.inf
    trace: list[float] = []
    projections: list[int] = []
    for iteration in range(iterations):
        value = objective(parameter, K)
        trace.append(value.item())
        better = trace[-1] > highest
        if better:
            highest, best_iteration, best = trace[-1], iteration, parameter.data.clone()
        optimizer.zero_grad()
        (-value).backward()
        optimizer.step()
        ratio = constraint(parameter.data, C)
        if ratio > beta:
            parameter.data = parameter.data * (beta / ratio).sqrt()  # a new matrix: aliases stay behind
            projections.append(iteration)
            if boundary_learning_rate is not None:
                optimizer.param_groups[0]["lr"] = boundary_learning_rate
        if better:
            literal, snapshot = parameter.data, parameter.data.clone()
    if objective(parameter.data, K) > highest:
        best = parameter.data.clone()
    return Ascent(
        best,
        parameter.data.clone(),
        literal.clone(),
        snapshot,
        beta.item(),
        torch.tensor(trace, dtype=torch.float64),
        best_iteration,
        projections,
    )
