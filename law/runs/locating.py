"""Which layers to edit in a model that nobody has published settings for, and with which λ.

1. *Known facts* are looked for in the data set until there are enough of them.
2. *Causal tracing* (:mod:`law.editing.causal_tracing`) tells which blocks carry a subject to the answer. Above the
   layer where the subject's last token stops moving the answer, an edit comes too late. Tracing proposes candidates
   for R, the edited layers.
3. *Trial washes.* For each candidate and each λ, MEMIT washes a sample of the known facts. What is left of them, and
   what is kept of another sample, is measured, and the weights are put back. The proposal is the trial with the
   largest harmonic mean of facts forgotten and facts kept.

The facts used here should be neither washed nor reported elsewhere: ``dataset.part=validation``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import harmonic_mean

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Checked, Count, Counts, Positives, Seed
from law.base.errors import LawError
from law.decoders.greedy_decoding import Recall, recalled, recalled_facts
from law.decoders.structure import Decoder
from law.editing.causal_tracing import Effect, Interchange, interchange, noise_tracing
from law.editing.second_moments import MomentSettings
from law.editing.target_values import TargetSettings
from law.facts.fact import Fact
from law.methods.memit import MEMIT

log = logging.getLogger(__name__)

FEW = 30
"""Below this many facts or pairs, a reading is marked as resting on few."""


@dataclass
class LocateSettings(Checked):
    """How settings are proposed.

    Args:
        moments: the general text from which C is computed.
        targets: how z* is optimised.
        known: how many known facts are looked for in the data set.
        traced: how many of the known facts are traced.
        samples: draws of the noise for each traced fact.
        window: blocks whose MLPs or attentions are put back together in noise tracing. ``null``: a third of all, and 10, as in
            ROME, at most. A window of nearly all blocks says the same of every layer.
        wash: known facts washed in each trial.
        keep: other known facts, which measure what each trial keeps.
        candidates: how many layers are tried as the last edited layer.
        widths: how many layers are edited, up to the last edited one.
        lambdas: the values of λ that are tried.
        seed: the seed of the noise.
        batch_size: prompts in a forward pass.
        cache: the folder in which C and z* are kept; ``null`` keeps none.
        recall: when an answer recalls an object.
    """

    moments: MomentSettings
    targets: TargetSettings = field(default_factory=TargetSettings)
    known: Count = 200
    traced: Count = 60
    samples: Count = 3
    window: Count | None = None
    wash: Count = 50
    keep: Count = 50
    candidates: Count = 3
    widths: Counts = field(default_factory=lambda: [1, 5])
    lambdas: Positives = field(default_factory=lambda: [30.0, 300.0, 3_000.0, 30_000.0])
    seed: Seed = 0
    batch_size: Count = 64
    cache: str | None = None
    recall: Recall = Recall.substring


@dataclass(frozen=True)
class Tracing:
    """The readings of every layer: interchange, and noise with three kinds of states put back."""

    interchange: Interchange
    traced: int
    block: list[Effect]
    mlp: list[Effect]
    attention: list[Effect]


@dataclass(frozen=True)
class Trial:
    """One trial wash: shares of facts between 0 and 1, of ``washed`` and ``others`` facts."""

    layers: list[int]
    lam: float
    left: float
    kept: float
    washed: int
    others: int

    @property
    def score(self) -> float:
        """The harmonic mean of facts forgotten and facts kept."""
        return harmonic_mean([1 - self.left, self.kept])

    @staticmethod
    def error(share: float, count: int) -> float:
        """The standard error of a share of ``count`` facts."""
        return math.sqrt(share * (1 - share) / max(1, count - 1))


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the largest score; of equal ones the first."""
    return max(trials, key=lambda trial: trial.score)


def known_facts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Iterable[Fact],
    settings: LocateSettings,
) -> tuple[list[Fact], int]:
    """The first ``settings.known`` facts that the model recalls, and how many were asked to find them.

    Raises:
        LawError: it recalls fewer than two of them.
    """
    known: list[Fact] = []
    asked, left = 0, iter(facts)
    while len(known) < settings.known and (chunk := list(islice(left, 4 * settings.batch_size))):
        known += recalled_facts(model, tokenizer, chunk, settings.batch_size, settings.recall)
        asked += len(chunk)
        log.info("known facts: %d of %d asked", len(known), asked)
    if len(known) < 2:
        raise LawError(
            f"The model recalls {len(known)} of {asked} facts; expected at least two, one to wash and one to keep. "
            "Check model.path and dataset.path, or give more facts."
        )
    return known[: settings.known], asked


def trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    settings: LocateSettings,
) -> Tracing:
    """Both causal readings; the log warns of one that rests on few facts."""
    decoder = Decoder(model)
    exchanged = interchange(decoder, tokenizer, facts, settings.batch_size)
    if exchanged.pairs < FEW:
        log.warning(
            "the interchange rests on %d pairs of facts, fewer than %d; expected known facts that share a template and "
            "differ in their objects. Raise locate.known, or read the noise tracing alone",
            exchanged.pairs,
            FEW,
        )
    traced, window = facts[: settings.traced], settings.window or min(10, max(1, len(decoder.blocks) // 3))
    if len(traced) < FEW:
        log.warning("the noise tracing rests on %d facts, fewer than %d", len(traced), FEW)
    block, mlp, attention = (
        noise_tracing(
            decoder,
            tokenizer,
            traced,
            kind,
            window,
            settings.samples,
            settings.seed,
            settings.batch_size,
        )
        for kind in ("block", "mlp", "attention")
    )
    return Tracing(exchanged, len(traced), block, mlp, attention)


def candidate_layers(tracing: Tracing, settings: LocateSettings) -> list[list[int]]:
    """The candidates for R.

    Each ends at one of the ``settings.candidates`` layers whose MLPs restore the answer most, and has one of
    ``settings.widths`` layers, as far as there are that many below.
    """
    strongest = sorted(range(len(tracing.mlp)), key=lambda layer: -tracing.mlp[layer].mean)
    ends = sorted(strongest[: settings.candidates])
    found = [list(range(max(0, end + 1 - width), end + 1)) for end in ends for width in settings.widths]
    return [layers for i, layers in enumerate(found) if layers not in found[:i]]


def trial_washes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    candidates: Sequence[list[int]],
    settings: LocateSettings,
) -> list[Trial]:
    """Wash a sample with MEMIT for each candidate and λ, measure, and put the weights back.

    With fewer known facts than ``settings.wash`` and ``settings.keep`` ask for, both samples shrink in proportion.
    """
    wash = min(settings.wash, len(facts) * settings.wash // (settings.wash + settings.keep))
    washed, others = facts[: max(1, wash)], facts[max(1, wash) :][: settings.keep]
    if len(washed) < FEW or len(others) < FEW:
        log.warning(
            "the trials wash %d facts and keep %d, fewer than %d of a kind", len(washed), len(others), FEW
        )
    decoder = Decoder(model)
    trials = []
    for layers in candidates:
        originals = {layer: decoder.weight(layer).detach().clone() for layer in layers}
        memit = MEMIT(
            layers,
            1.0,
            settings.moments,
            settings.targets,
            batch_size=settings.batch_size,
            cache=settings.cache,
        )
        for lam in settings.lambdas:
            try:
                replace(memit, lam=lam).wash(model, tokenizer, washed)
                found = recalled(model, tokenizer, [*washed, *others], settings.batch_size, settings.recall)
            finally:
                with torch.no_grad():
                    for layer, weight in originals.items():
                        decoder.weight(layer).copy_(weight)
            left, kept = found[: len(washed)], found[len(washed) :]
            trial = Trial(layers, lam, sum(left) / len(left), sum(kept) / len(kept), len(left), len(kept))
            log.info(
                "layers %s, λ = %g: %.0f %% left, %.0f %% kept",
                layers,
                lam,
                100 * trial.left,
                100 * trial.kept,
            )
            trials.append(trial)
    return trials
