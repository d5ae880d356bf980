r"""LAW, large-scale washing (Wang et al., ICLR 2025; method.md, sections 3 and 4).

MEMIT's update answers "put z* there"; washing only asks that the old value goes. LAW starts from
MEMIT's update and, in each layer, moves the output at the facts' keys as far as general text
allows:

.. math::
    \max_\Delta\; \lVert \Delta^T K \rVert_F^2
    \quad\text{subject to}\quad
    \frac{\operatorname{tr}(\Delta^T C \Delta)}{\operatorname{tr}(C)} \le \beta,
    \qquad
    \beta = \rho_\beta\,\frac{\operatorname{tr}(\Delta_0^T C \Delta_0)}{\operatorname{tr}(C)}

by Adam, scaling Δ back onto the constraint after each step. With :math:`G = K K^T` the objective
is :math:`\operatorname{tr}(\Delta^T G \Delta)` and its gradient :math:`2 G \Delta`, so that an
iteration costs the same however many facts there are. The best *feasible* iterate is kept: Adam's
steps soon lose what the first ones gained.

*Successive elimination*: after a layer, only the facts that are still recalled go on to the next.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import trange
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.errors import LawError
from law.facts import Fact
from law.keys import subject_keys
from law.methods import Report
from law.methods.memit import MEMIT, Problem, System, add_update, check_finite, edit_layers, prepare
from law.recall import greedy_answers, recalls

log = logging.getLogger(__name__)


@dataclass
class SearchWindow:
    """The window that λ is searched for: ``low · ‖W‖ ≤ ‖Δ‖ ≤ high · ‖W‖``.

    Args:
        low, high: the window; the authors' is 1/3 to 3/4.
        step: added to λ while Δ is too large.
        decay: λ is multiplied by it while Δ is too small.
        attempts: solutions tried before the search gives up (the authors' can run for ever).
    """

    low: float = 1 / 3
    high: float = 3 / 4
    step: float = 100_000.0
    decay: float = 0.75
    attempts: int = 200


@dataclass
class LAW:
    """MEMIT's update, then constrained ascent, layer by layer.

    Args:
        initial: MEMIT's settings: layers, λ, moments, targets, contexts.
        learning_rate: of Adam's ascent (1e-7 on GPT-2 XL).
        boundary_learning_rate: takes its place from the first iterate beyond the constraint on.
        iterations: steps of the ascent.
        beta_ratio: ρ, the constraint as a multiple of what the initial update takes.
        search: look for λ, from MEMIT's on; without, MEMIT's λ is kept.
        window: what the search looks for.
        eliminate: hand only the facts still recalled to the next layer.
    """

    initial: MEMIT
    learning_rate: float
    boundary_learning_rate: float | None = None
    iterations: int = 1000
    beta_ratio: float = 1.1
    search: bool = False
    window: SearchWindow = field(default_factory=SearchWindow)
    eliminate: bool = True

    def check(self, model: PreTrainedModel) -> None:
        """Refuse what MEMIT, the start, would refuse, and a constraint that the start breaks."""
        if self.beta_ratio < 1:
            raise LawError(
                f"LAW's beta_ratio is {self.beta_ratio}; expected at least 1, so that the ascent starts within "
                "its constraint (the paper has 1.1)."
            )
        self.initial.check(model)

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
    ) -> None:
        """Add Δ to the down-projection of the layers in R, until no fact is recalled."""
        problem = prepare(self.initial, model, tokenizer, facts, report)
        starts = self._initialise(problem, report)

        left = list(facts)
        for layer in self.initial.layers:
            keys = subject_keys(
                problem.decoder, tokenizer, left, problem.contexts, [layer], self.initial.batch_size
            )
            K = keys[layer].double()  # (d_ff, n)
            ascent = ascend(starts[layer], problem.moments[layer].double(), K, self, report, layer)
            weight = problem.decoder.weight(layer)
            relative_norm = (ascent.delta.norm() / weight.norm()).item()
            add_update(weight, check_finite(ascent.delta))
            # the original facts are asked again, since a later layer can bring one back
            answers = greedy_answers(model, tokenizer, [f.prompt for f in facts], self.initial.batch_size)
            recalled = [f for f, answer in zip(facts, answers, strict=True) if recalls(answer, f.object)]
            report(
                {
                    "layer": layer,
                    "relative_norm": relative_norm,
                    "objective_before": ascent.objective_before,
                    "objective": ascent.objective,
                    "constraint_before": ascent.constraint_before,
                    "constraint": ascent.constraint,
                    "beta": ascent.beta,
                    "facts_used": len(left),
                    "facts_left": len(recalled),
                }
            )
            log.info(
                "layer %d: objective %.4g → %.4g, constraint %.4g → %.4g (β %.4g), %d of %d facts left",
                layer,
                ascent.objective_before,
                ascent.objective,
                ascent.constraint_before,
                ascent.constraint,
                ascent.beta,
                len(recalled),
                len(facts),
            )
            if self.eliminate:
                left = recalled
            if not left:
                break

    def _initialise(self, problem: Problem, report: Report) -> dict[int, Tensor]:
        """MEMIT's Δ of every layer, (d_ff, d_model) each; the weights are as before afterwards."""
        weights = {layer: problem.decoder.weight(layer) for layer in self.initial.layers}
        kept = {layer: weight.detach().clone() for layer, weight in weights.items()}
        starts = {}
        for update in edit_layers(self.initial, problem, self._find):
            starts[update.layer] = update.delta
            report(
                {
                    "layer": update.layer,
                    "lambda": update.lam,
                    "initial_relative_norm": update.relative_norm,
                }
            )
        with torch.no_grad():
            for layer, weight in weights.items():
                weight.copy_(kept[layer])
        return starts

    def _find(self, system: System, weight: Tensor) -> tuple[float, Tensor]:
        """λ and Δ: MEMIT's own λ, moved until ‖Δ‖ lies in the window of the search."""
        lam, delta = self.initial.lam, system.solve(self.initial.lam)
        if not self.search:
            return lam, delta
        size = weight.norm().double()
        for _ in range(self.window.attempts):
            if delta.norm() > self.window.high * size:
                lam += self.window.step
            elif delta.norm() < self.window.low * size:
                lam *= self.window.decay
            else:
                return lam, delta
            delta = system.solve(lam)
        raise LawError(
            f"The search for λ gave up after {self.window.attempts} attempts at λ = {lam:g}, where ‖Δ‖/‖W‖ = "
            f"{(delta.norm() / size).item():.3g}; expected between {self.window.low:.3g} and "
            f"{self.window.high:.3g}. Start from another λ, widen the window, or turn the search off."
        )


@dataclass(frozen=True)
class Ascent:
    """The update found in one layer, with what it gained and what it takes."""

    delta: Tensor  # (d_ff, d_model), float64
    objective_before: float
    objective: float
    constraint_before: float
    constraint: float
    beta: float


def ascend(start: Tensor, C: Tensor, K: Tensor, settings: LAW, report: Report, layer: int) -> Ascent:
    """Maximise ‖ΔᵀK‖² from ``start`` (d_ff, d_model) within tr(ΔᵀCΔ)/tr(C) ≤ β.

    C is (d_ff, d_ff) and K (d_ff, n), both float64. Returns the best feasible iterate.
    """
    G = K @ K.T  # (d_ff, n) @ (n, d_ff)
    trace = C.trace()

    def constraint_of(delta: Tensor) -> Tensor:
        return (delta * (C @ delta)).sum() / trace  # (d_ff, d_ff) @ (d_ff, d_model)

    delta = start.clone()
    G_delta = G @ delta  # (d_ff, d_ff) @ (d_ff, d_model)
    objective = objective_before = (delta * G_delta).sum()
    constraint = constraint_before = constraint_of(delta)
    beta = settings.beta_ratio * constraint
    best = (delta.clone(), objective, constraint)
    optimizer = torch.optim.Adam([delta], lr=settings.learning_rate, maximize=True)
    every = max(1, settings.iterations // 50)
    for iteration in trange(settings.iterations, desc=f"ascent, layer {layer}", leave=False, disable=None):
        delta.grad = 2 * G_delta
        optimizer.step()
        constraint = constraint_of(delta)
        if constraint > beta:
            delta.mul_((beta / constraint).sqrt())
            constraint = beta
            if settings.boundary_learning_rate is not None:
                optimizer.param_groups[0]["lr"] = settings.boundary_learning_rate
        G_delta = G @ delta
        objective = (delta * G_delta).sum()
        if objective > best[1]:
            best = (delta.clone(), objective, constraint)
        if (iteration + 1) % every == 0:
            report({f"ascent/layer_{layer}": objective.item()})
    best_delta, best_objective, best_constraint = best
    return Ascent(
        best_delta,
        objective_before.item(),
        best_objective.item(),
        constraint_before.item(),
        best_constraint.item(),
        beta.item(),
    )
