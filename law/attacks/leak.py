r"""Sampling: how likely is it that one of k samples holds the object? (leak@k, Reisizadeh et al. 2025.)

Greedy decoding shows the likeliest answer alone. With n samples, c of which hold the object, an unbiased estimate of
the probability that at least one of k does is

.. math::
    \mathrm{leak@}k = 1 - \binom{n-c}{k} \Big/ \binom nk.

If the object is one token, its probability p behind the prompt is known, so that nothing is sampled:
:math:`\mathrm{leak@}k = 1 - (1 - p)^k`. This counts a sample that begins with the object; a sample of a longer object
may hold it anywhere in ten tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from law.attacks.protocol import Cost, Record, Target
from law.base.checks import Checked, Counts, Seed
from law.base.errors import LawError
from law.decoders.greedy_decoding import NEW_TOKENS, recalled_in_samples
from law.decoders.prompts import answered_prompts
from law.evaluation.likelihood import object_tokens


@dataclass
class Leak(Checked):
    """Draw samples at temperature 1.

    Args:
        at: the values of k. As many samples are drawn as the largest of them.
        seed: of the samples.
    """

    at: Counts = field(default_factory=lambda: [1, 2, 4, 8, 16])
    seed: Seed = 0

    def cost(self, target: Target) -> Cost:
        """What :meth:`attack` takes."""
        rows = answered_prompts(target.tokenizer, target.facts)
        longer = sum(len(row.ids) - row.object > 1 for row in rows)
        return Cost(read=len(rows), answered=max(self.at) * longer)

    def attack(self, target: Target) -> Record:
        """A score ``at_k`` for each k."""
        facts = target.facts
        tokens = object_tokens(
            target.model, target.tokenizer, [fact.question for fact in facts], target.batch_size
        )
        longer = [i for i, object in enumerate(tokens) if len(object.log_probs) > 1]
        n, right = max(self.at), self._samples(target, longer)
        return {
            f"at_{k}": [
                leak_at(k, n, right[i]) if i in right else exact_leak_at(k, math.exp(tokens[i].log_probs[0]))
                for i in range(len(facts))
            ]
            for k in self.at
        }

    def _samples(self, target: Target, facts: list[int]) -> dict[int, int]:
        """By the number of a fact, how many of its samples hold the object."""
        if not facts:
            return {}
        generator = torch.Generator().manual_seed(self.seed)
        draws = torch.rand(len(facts), max(self.at), NEW_TOKENS, generator=generator)
        asked = [target.facts[i] for i in facts]
        found = recalled_in_samples(
            target.model, target.tokenizer, asked, draws, target.batch_size, target.recall
        )
        return dict(zip(facts, map(sum, found), strict=True))


def leak_at(k: int, n: int, right: int) -> float:
    """leak@k from n samples, of which ``right`` hold the object.

    Raises:
        LawError: k is larger than n.
    """
    if k > n:
        raise LawError(f"leak@{k} of {n} samples is not defined; expected k of at most {n}.")
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def exact_leak_at(k: int, probability: float) -> float:
    """leak@k of an object that a sample holds with this probability."""
    return 1 - (1 - probability) ** k
