r"""The strength of memory: how far the model prefers the object's own tokens (teacher forcing).

With the prompt x, the object's tokens :math:`y_1 \dots y_T` and :math:`p_t = p(y_t \mid x, y_{<t})`:

- **exact memorisation** (Tirumala et al. 2022): the share of tokens that are the likeliest one in their place;
- **extraction strength** (Carlini et al. 2021): :math:`1 - k/T` for the fewest tokens k that must be given so that all
  that follow are the likeliest ones;
- **probability** :math:`\bar p(y) = \exp(\tfrac1T \sum_t \log p_t)`;
- **truth ratio**: with :math:`R` the mean of :math:`\bar p` over other objects of the relation, divided by
  :math:`\bar p(y)` (TOFU, Maini et al. 2024), the score is :math:`1 / (1 + R)`. It is 1/2 if the object is as likely as
  others are on average, and 1 if it is far likelier.

The definitions are those that OpenUnlearning (Dorna et al. 2025) reports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from law.attacks.protocol import Cost, Record, Target
from law.base.checks import Checked, Count
from law.evaluation.likelihood import object_tokens


@dataclass
class Memory(Checked):
    """Read each object behind its prompt, and others of its relation in its place.

    Args:
        rivals: other objects of the relation for the truth ratio, at most.
    """

    rivals: Count = 5

    def cost(self, target: Target) -> Cost:
        """What :meth:`attack` takes."""
        return Cost(read=(2 + self.rivals) * len(target.facts))

    def attack(self, target: Target) -> Record:
        """Scores ``exact``, ``extraction``, ``probability`` and ``truth_ratio``."""
        questions = [fact.question for fact in target.facts]
        tokens = object_tokens(target.model, target.tokenizer, questions, target.batch_size)
        among = target.log_probs_among(self.rivals)
        return {
            "exact": [fmean(object.likeliest) for object in tokens],
            "extraction": [extraction_strength(object.likeliest) for object in tokens],
            "probability": [math.exp(fmean(object.log_probs)) for object in tokens],
            "truth_ratio": [truth_ratio(own, others) for own, *others in among],
        }


def extraction_strength(likeliest: Sequence[bool]) -> float:
    """1 − k/T, with k tokens given of T so that all that follow are the likeliest."""
    tokens = len(likeliest)
    given = next((k for k in range(tokens) if all(likeliest[k:])), tokens)
    return 1 - given / tokens


def truth_ratio(own: float, others: Sequence[float]) -> float | None:
    """1 / (1 + R) from mean log-probabilities of a token, in nats; ``None`` without others."""
    if not others:
        return None
    # R in the logarithm first, since a washed object's probability may underflow
    log_ratio = math.log(fmean(math.exp(other - max(others)) for other in others)) + max(others) - own
    return 1 / (1 + math.exp(min(log_ratio, 700)))
