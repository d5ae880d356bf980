r"""LAW, large-scale washing (Wang et al., ICLR 2025; docs/explanation/method.md).

MEMIT moves each fact to the particular value z*. Washing only asks that the old value goes. LAW starts from
MEMIT's update and, in each layer, moves the output at the facts' keys as far as possible under a limit on the
change of general text:

.. math::
    \max_\Delta\; \lVert \Delta^T K \rVert_F^2
    \quad\text{subject to}\quad
    \frac{\operatorname{tr}(\Delta^T C \Delta)}{\operatorname{tr}(C)} \le \beta,
    \qquad
    \beta = \rho_\beta\,\frac{\operatorname{tr}(\Delta_0^T C \Delta_0)}{\operatorname{tr}(C)}

Adam performs the ascent. When a step breaks the constraint, Δ is scaled back onto it. With :math:`G = K K^T` the
objective is :math:`\operatorname{tr}(\Delta^T G \Delta)` and its gradient is :math:`2 G \Delta`, so that an
iteration costs the same for any number of facts. The best *feasible* iterate is kept, because later steps often lose
what the first ones gained.

*Successive elimination*: after a layer, only the facts that are still recalled go on to the next.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import AtLeastOne, Checked, Count, Decay, Natural, Positive
from law.base.errors import LawError
from law.base.progress import tracked
from law.base.report import Report
from law.decoders.greedy_decoding import Recall, recalled_facts
from law.decoders.restoring import undone_on_failure
from law.decoders.structure import Decoder
from law.editing.keys import key_sums
from law.editing.least_squares import System, add_update, check_finite, norm
from law.facts.fact import Fact
from law.methods.memit import MEMIT, BatchedEditor, Problem, edit_layers

log = logging.getLogger(__name__)

BLOCKS = 8
"""Products with C are computed in this many rows of blocks. C is symmetric, so 9 of 16 products suffice."""


class Iterate(Enum):
    """Which iterate of the ascent becomes the update.

    ``best`` is the best feasible one, and ``last`` is the last one. ``literal`` is what the authors' code returns:
    an alias of the matrix after the step from the best iterate, which later steps go on changing
    (docs/fidelity.md).
    """

    best = "best"
    last = "last"
    literal = "literal"


class Start(Enum):
    """Where the ascent begins: MEMIT's update, or (an ablation) a random matrix that takes as much of the constraint."""

    memit = "memit"
    random = "random"


@dataclass
class SearchWindow(Checked):
    """The window that λ is searched for: ``low · ‖W‖ ≤ ‖Δ‖ ≤ high · ‖W‖``.

    Args:
        low: the lower end of the window (1/3 in the authors' code).
        high: the upper end of the window (3/4 in the authors' code).
        step: what is added to λ while Δ is too large.
        decay: what λ is multiplied by while Δ is too small.
        attempts: values of λ tried before the search gives up (the authors' search can run for ever).
    """

    low: Positive = 1 / 3
    high: Positive = 3 / 4
    step: Positive = 100_000.0
    decay: Decay = 0.75
    attempts: Count = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise LawError(
                f"method.window has low={self.low:g} and high={self.high:g}; expected low below high."
            )


@dataclass
class LAW(Checked):
    """MEMIT's update, then constrained ascent, layer by layer.

    Args:
        initial: MEMIT's settings: layers, λ, moments, targets, contexts; its ``sphere`` projects LAW's update.
        learning_rate: the learning rate of Adam's ascent (1e-7 on GPT-2 XL).
        boundary_learning_rate: the learning rate after the first iterate that breaks the constraint; ``null``: the same.
        iterations: steps of the ascent; 0 keeps the start.
        beta_ratio: ρ, the limit of the constraint divided by the initial update's value of it; from 1 on, so that
            the ascent starts within its constraint.
        search: search for λ, starting at MEMIT's; otherwise MEMIT's λ is used.
        window: the norm of the update at which the search ends.
        eliminate: continue in the next layer only with the facts that are still recalled.
        start: where the ascent begins.
        iterate: which iterate of the ascent becomes the update.
        single_precision: ascend in float32, for a device slow in float64 (docs/performance.md has the error).
        recall: when an answer recalls an object; the command line takes ``evaluation.recall``.
    """

    initial: MEMIT
    learning_rate: Positive
    boundary_learning_rate: Positive | None = None
    iterations: Natural = 1000
    beta_ratio: AtLeastOne = 1.1
    search: bool = False
    window: SearchWindow = field(default_factory=SearchWindow)
    eliminate: bool = True
    start: Start = Start.memit
    iterate: Iterate = Iterate.best
    single_precision: bool = False
    recall: Recall = Recall.substring

    def check(self, model: PreTrainedModel) -> None:
        """Refuse what MEMIT would refuse, since LAW starts from it, and an editor of several updates."""
        if isinstance(self.initial, BatchedEditor):
            raise LawError(f"method.initial is {type(self.initial).__name__}; expected MEMIT, of one update.")
        self.initial.check(model)

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Add Δ to the down-projection of the layers in R, until no fact is recalled."""
        self.check(model)
        decoder = Decoder(model)
        weights = [decoder.weight(layer) for layer in self.initial.layers]
        with undone_on_failure(model, weights), self.initial.sphere.projecting(weights):
            problem = self.initial.prepare(model, tokenizer, facts, report, others)
            self._wash_layers(problem, self._initialise(problem, report), report)

    def _wash_layers(self, problem: Problem, starts: dict[int, Tensor], report: Report) -> None:
        """Ascend from each layer's start (d_ff, d_model), and add what is found to the layer's weights."""
        decoder, tokenizer, facts = problem.decoder, problem.tokenizer, problem.facts
        dtype = torch.float32 if self.single_precision else torch.float64
        left = facts
        for layer in self.initial.layers:
            G = key_sums(decoder, tokenizer, left, problem.contexts, layer, self.initial.batch_size).gram
            C = problem.moments[layer].to(dtype)
            start = starts[layer].to(dtype)
            if self.start is Start.random:
                drawn = torch.randn(start.shape, dtype=dtype).to(start.device)
                start = drawn * (taken_of(C, start) / taken_of(C, drawn)).sqrt()
            ascent = ascend(start, C, G.to(dtype), self, layer)
            every = max(1, self.iterations // 50)
            for objective in ascent.trace[::every].tolist():
                report({f"ascent/layer_{layer}": objective})
            relative_norm = add_update(decoder.weight(layer), check_finite(ascent.delta))
            # the original facts are asked again, since a later layer can bring one back
            still = recalled_facts(decoder.model, tokenizer, facts, self.initial.batch_size, self.recall)
            names = ("objective_before", "objective", "constraint_before", "constraint", "beta")
            gained = {name: getattr(ascent, name) for name in names}
            counts = {"facts_used": len(left), "facts_left": len(still)}
            report({"layer": layer, "relative_norm": relative_norm, **gained, **counts})
            log.info(
                "layer %d: objective %.4g → %.4g, constraint %.4g → %.4g (β %.4g), %d of %d facts left",
                *(layer, *gained.values(), len(still), len(facts)),
            )
            if self.eliminate:
                left = still
            if not left:
                break

    def _initialise(self, problem: Problem, report: Report) -> dict[int, Tensor]:
        """MEMIT's Δ of every layer, (d_ff, d_model) each; the weights are as before afterwards."""
        weights = {layer: problem.decoder.weight(layer) for layer in self.initial.layers}
        kept = {layer: weight.detach().clone() for layer, weight in weights.items()}
        starts = {}
        for update in edit_layers(self.initial, problem, self._find):
            starts[update.layer] = update.delta
            found = {"lambda": update.lam, "initial_relative_norm": update.relative_norm}
            report({"layer": update.layer, **found})
        with torch.no_grad():
            for layer, weight in weights.items():
                weight.copy_(kept[layer])
        return starts

    def _find(self, layer: int, system: System, weight: Tensor) -> tuple[float, Tensor]:
        """λ and Δ: MEMIT's own λ, moved until ‖Δ‖ lies in the window of the search."""
        lam = self.initial.lam
        if not self.search:
            return lam, system.solve(lam)
        size, size_at = norm(weight), system.size_by_lambda()
        for _ in range(self.window.attempts):
            if (found := size_at(lam)) > self.window.high * size:
                lam += self.window.step
            elif found < self.window.low * size:
                lam *= self.window.decay
            else:
                return lam, system.solve(lam)
        raise LawError(
            f"The search for λ gave up after {self.window.attempts} attempts at λ = {lam:g}, where ‖Δ‖/‖W‖ = "
            f"{size_at(lam) / size:.3g}; expected between {self.window.low:.3g} and "
            f"{self.window.high:.3g}. Set another λ to start from (method.initial.lam), a wider method.window, or "
            "method.search=false."
        )


def taken_of(C: Tensor, delta: Tensor) -> Tensor:
    """What an update takes of the constraint: tr(ΔᵀCΔ) / tr(C).

    C is symmetric, so the blocks above the diagonal count twice, and those below it are not multiplied.
    """
    taken, size = delta.new_zeros(()), math.ceil(len(C) / BLOCKS)
    for first in range(0, len(C), size):
        own, after = slice(first, first + size), slice(first + size, None)
        diagonal = C[own, own] @ delta[own]  # (size, size) @ (size, d_model)
        # (size, d_ff - first - size) @ (d_ff - first - size, d_model)
        taken += (delta[own] * torch.addmm(diagonal, C[own, after], delta[after], alpha=2)).sum()
    return taken / C.trace()


@dataclass(frozen=True)
class Ascent:
    """The update found in one layer, with what it gained and what it takes."""

    delta: Tensor  # (d_ff, d_model)
    objective_before: float
    objective: float
    constraint_before: float
    constraint: float
    beta: float
    trace: Tensor  # the objective of every iterate from the start on, (1 + iterations)


def ascend(start: Tensor, C: Tensor, G: Tensor, settings: LAW, layer: int) -> Ascent:
    """Maximise tr(ΔᵀGΔ) = ‖ΔᵀK‖² from ``start`` (d_ff, d_model) within tr(ΔᵀCΔ)/tr(C) ≤ β.

    C and G = K Kᵀ are (d_ff, d_ff). Every decision is a ``where``, so that no step waits for the device.
    """
    delta = start.clone()
    G_delta = G @ delta  # (d_ff, d_ff) @ (d_ff, d_model)
    objective = (delta * G_delta).sum()
    constraint_before = taken_of(C, delta)
    beta = settings.beta_ratio * constraint_before
    best = delta.clone()
    best_objective = objective if settings.iterate is Iterate.best else torch.full_like(objective, -torch.inf)
    trace = objective.new_empty(1 + settings.iterations)
    trace[0] = objective
    beyond = aliased = torch.zeros((), dtype=torch.bool, device=delta.device)
    # Adam's step is proportional to its rate: another rate is another share of the same step
    share = (settings.boundary_learning_rate or settings.learning_rate) / settings.learning_rate
    optimizer = torch.optim.Adam([delta], lr=settings.learning_rate, maximize=True)
    for iteration in tracked(range(settings.iterations), f"ascent, layer {layer}", "iterations"):
        at_start = objective
        delta.grad = 2 * G_delta
        unstepped = delta.clone() if share != 1 else delta
        optimizer.step()
        if share != 1:
            delta.lerp_(unstepped, beyond.to(delta.dtype) * (1 - share))
        stepped = delta.clone() if settings.iterate is Iterate.literal else delta
        constraint = taken_of(C, delta)
        projected = constraint > beta
        beyond = beyond | projected
        delta.mul_(torch.where(projected, (beta / constraint).sqrt(), 1.0))
        G_delta = G @ delta
        objective = trace[iteration + 1] = (delta * G_delta).sum()
        if settings.iterate is Iterate.best:
            better = objective > best_objective
            best_objective = torch.where(better, objective, best_objective)
            best = torch.where(better, delta, best)
        elif settings.iterate is Iterate.literal:
            # what was kept is an alias, which Adam's steps move until a projection makes a new matrix
            better = at_start > best_objective
            best_objective = torch.where(better, at_start, best_objective)
            best = torch.where(better, delta, torch.where(aliased, stepped, best))
            aliased = better | (aliased & ~projected)
    if settings.iterate is Iterate.last:
        best = delta
    return Ascent(
        best,
        trace[0].item(),
        (best * (G @ best)).sum().item(),
        constraint_before.item(),
        taken_of(C, best).item(),
        beta.item(),
        trace,
    )
