r"""MEMIT, washing by end-of-text (Meng et al., ICLR 2023; docs/explanation/method.md).

The residual is the difference between what block L should output and what it outputs. MEMIT distributes it over the
edited layers :math:`R`. In order, with the updates of the earlier layers in place, the update of layer
:math:`l = R_i` is

.. math::
    r = \frac{z^* - h_L}{|R| - i}, \qquad
    \Delta_l = (\lambda C_l + K K^T)^{-1} K r^T, \qquad
    W_l \leftarrow W_l + \Delta_l,

the least-squares solution of :math:`\Delta^T K = r` that changes little on general text.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.cache import Cache
from law.base.checks import Checked, Count, Layers, Positive, Seed
from law.base.report import Report
from law.base.settings import SAME_RESULTS
from law.decoders.greedy_decoding import Recall, recalled_facts
from law.decoders.restoring import undone_on_failure
from law.decoders.structure import Decoder
from law.editing.contexts import generate_contexts
from law.editing.keys import key_sums, subject_keys, subject_outputs
from law.editing.least_squares import System, add_update
from law.editing.post_norm import input_residual, norm_behind, output_multiplier
from law.editing.published_moments import layer_files
from law.editing.second_moments import MomentSettings, second_moments
from law.editing.sphere import Sphere
from law.editing.target_values import Targets, TargetSettings, target_values
from law.facts.fact import Fact

log = logging.getLogger(__name__)


@dataclass
class MEMIT(Checked):
    """Edit every layer once, towards z*.

    Args:
        layers: R, the edited layers in rising order.
        lam: λ, the weight of general text against the facts (20,000 on GPT-2 XL). It should grow with their number.
        moments: the general text from which C is computed.
        targets: how z* is optimised.
        contexts: texts with ``{}`` in the place of the prompt; ``null`` samples five from the model.
        context_seed: the seed of that sampling; the contexts of a model are the same for every ``seed`` of a sweep.
        batch_size: prompts in a forward pass.
        cache: the folder in which C and z* are kept under the hash of what they depend on; ``null``
            keeps none.
        sphere: what is taken out of the update of each layer, once all layers have theirs.
    """

    layers: Layers
    lam: Positive
    moments: MomentSettings
    targets: TargetSettings = field(default_factory=TargetSettings)
    contexts: list[str] | None = None
    context_seed: Seed = 0
    batch_size: Count = field(default=64, metadata=SAME_RESULTS)
    cache: str | None = field(default=None, metadata=SAME_RESULTS)
    sphere: Sphere = field(default_factory=Sphere)

    def check(self, model: PreTrainedModel) -> None:
        """Refuse layers that the model does not have, and a text or file for second moments that does not exist."""
        decoder = Decoder(model)
        decoder.check_layers(self.layers)
        self.moments.check()
        if self.moments.published is not None:
            layer_files(decoder, self.layers, self.moments.published)

    def open_cache(self) -> Cache:
        """The cache of C and z*."""
        return Cache(Path(self.cache) if self.cache else None)

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Add Δ to the down-projection of every layer in R."""
        self.check(model)
        decoder = Decoder(model)
        weights = [decoder.weight(layer) for layer in self.layers]
        with undone_on_failure(model, weights), self.sphere.projecting(weights):
            problem = self.prepare(model, tokenizer, facts, report, others)
            for update in edit_layers(
                self, problem, lambda _, system, __: (self.lam, system.solve(self.lam))
            ):
                report({"layer": update.layer, "lambda": update.lam, "relative_norm": update.relative_norm})

    def prepare(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report,
        others: Sequence[Fact] = (),
    ) -> Problem:
        """Compute, on the unedited model, all that does not depend on an update."""
        decoder, contexts, cache = Decoder(model), self.contexts, self.open_cache()
        if contexts is None:
            contexts = generate_contexts(model, tokenizer, self.context_seed)
        report({"contexts": contexts})
        moments = second_moments(decoder, tokenizer, self.layers, self.moments, cache)
        targets = aim(self, decoder, tokenizer, facts, contexts, cache, report)
        return Problem(decoder, tokenizer, facts, contexts, moments, targets)


Solve = Callable[[int, System], Tensor]
"""Gives Δ (d_ff, d_model) for the number of a layer and its system."""


@dataclass(kw_only=True)
class BatchedEditor(MEMIT, ABC):
    """What AlphaEdit, ENCORE and sparing wash share: MEMIT's stages with another system, for one batch of facts after the other.

    Each batch is edited on the model that the batches before it have left, and its z* are optimised there. The keys of
    those batches stay in the system as K_p K_pᵀ with the residual zero, so that a batch undoes little of theirs.

    Args:
        facts_at_once: facts in a batch; ``null`` edits all facts at once.
        rounds: how often the batches are gone through, from the second time on with the facts that are still recalled.
        recall: when an answer recalls an object; the command line takes ``evaluation.recall``.
    """

    facts_at_once: Count | None = 100
    rounds: Count = 1
    recall: Recall = Recall.substring

    @abstractmethod
    def solver(self, moments: dict[int, Tensor]) -> Solve:
        """How a layer's system, whose G is K Kᵀ + K_p K_pᵀ, is solved; ``moments`` are C of each layer."""

    def batches(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]
    ) -> Iterator[Sequence[Fact]]:
        """The batches of all rounds; who is still recalled is asked of the model as it then is."""
        left = facts
        for number in range(self.rounds):
            if number:
                left = recalled_facts(model, tokenizer, facts, self.batch_size, self.recall)
                log.info("%d of %d facts are still recalled after %d rounds", len(left), len(facts), number)
            size = self.facts_at_once or max(1, len(left))
            yield from (left[first : first + size] for first in range(0, len(left), size))

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Add Δ to the down-projection of every layer in R, once for each batch of facts."""
        self.check(model)
        decoder = Decoder(model)
        weights = [decoder.weight(layer) for layer in self.layers]
        with undone_on_failure(model, weights):
            earlier: dict[int, Tensor] = {}  # K Kᵀ + K_p K_pᵀ, in the CPU's memory: one (d_ff, d_ff) a layer

            def find(layer: int, system: System, _: Tensor) -> tuple[float, Tensor]:
                if layer in earlier:
                    system = replace(system, G=system.G + earlier[layer].to(system.G.device))
                earlier[layer] = system.G.cpu()
                return self.lam, solve(layer, system)

            for number, batch in enumerate(self.batches(model, tokenizer, facts)):
                if number == 0:
                    problem = self.prepare(model, tokenizer, batch, report, others)
                    solve = self.solver(problem.moments)
                else:
                    cache = self.open_cache()
                    targets = aim(self, decoder, tokenizer, batch, problem.contexts, cache, report)
                    problem = replace(problem, facts=batch, targets=targets)
                with self.sphere.projecting(weights):
                    for update in edit_layers(self, problem, find):
                        found = {"layer": update.layer, "relative_norm": update.relative_norm}
                        report({"batch": number, "facts": len(batch), **found})


@dataclass(frozen=True)
class Problem:
    """What MEMIT and LAW start from: the decoder, the facts, C, z* and the contexts."""

    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase
    facts: Sequence[Fact]
    contexts: list[str]
    moments: dict[int, Tensor]  # C of each layer, (d_ff, d_ff)
    targets: Targets


def aim(
    settings: MEMIT,
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    contexts: list[str],
    cache: Cache,
    report: Report,
) -> Targets:
    """z* of every fact, on the model as it is now."""
    targets = target_values(decoder, tokenizer, facts, contexts, settings.layers[-1], settings.targets, cache)
    nll = torch.stack([trace.nll.sum(1) for trace in targets.traces()]).sum(0) / len(facts)  # (steps)
    first, last = nll[0].item(), nll[-1].item()
    log.info("z*: mean NLL of end-of-text %.2f → %.2f", first, last)
    report({"targets/first_nll": first, "targets/last_nll": last, "spared_s": cache.spared_s})
    return targets


@dataclass(frozen=True)
class Update:
    """One layer's update, made with weight λ."""

    layer: int
    lam: float
    delta: Tensor  # (d_ff, d_model), float64
    relative_norm: float  # ‖Δ‖ / ‖W‖, with W before the update


def edit_layers(
    settings: MEMIT, problem: Problem, find: Callable[[int, System, Tensor], tuple[float, Tensor]]
) -> Iterator[Update]:
    """Edit the layers in order; ``find`` gives (λ, Δ) for a layer, its system and its W (d_ff, d_model)."""
    for i, layer in enumerate(settings.layers):
        weight = problem.decoder.weight(layer)
        lam, delta = find(layer, layer_system(settings, problem, i), weight)
        relative_norm = add_update(weight, delta)
        log.info("layer %d: λ = %g, ‖Δ‖/‖W‖ = %.3f", layer, lam, relative_norm)
        yield Update(layer, lam, delta, relative_norm)


@torch.no_grad()
def layer_system(settings: MEMIT, problem: Problem, i: int) -> System:
    """What layer R_i solves, with the weights as they are now."""
    decoder, tokenizer, facts = problem.decoder, problem.tokenizer, problem.facts
    layer, last, size = settings.layers[i], settings.layers[-1], settings.batch_size

    norm_after = norm_behind(decoder, layer)  # Gemma 2 and 3
    multiplier = 1.0 if norm_after else output_multiplier(decoder, layer)  # 0.22 in Granite 3

    def residual(chunk: Sequence[int]) -> Tensor:
        asked = [facts[j] for j in chunk]
        h = subject_outputs(decoder, tokenizer, asked, last, size)
        z = problem.targets.of(chunk).to(h.device)
        r = (z - h) / (len(settings.layers) - i)  # (d_model, chunk)
        if norm_after is None:
            return r / multiplier
        k = subject_keys(decoder, tokenizer, asked, [], [layer], size)[layer]  # (d_ff, chunk)
        u = decoder.down_projection(layer)(k.T.to(h.dtype)).T  # (chunk, d_ff) @ (d_ff, d_model), transposed
        return input_residual(norm_after, u, r)

    sums = key_sums(decoder, tokenizer, facts, problem.contexts, layer, size, residual)
    return System(problem.moments[layer].double(), sums.gram, sums.right, sums.residual)
