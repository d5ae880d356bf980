r"""The refusal taken away: does a fact come back when the model may not say end-of-text?

Methods that edit wash towards " <|endoftext|>", and fine-tuning may learn to say it too. A model that only learnt to
say it still holds the fact. The attack decodes again with these tokens banned at the first step
(:func:`~law.decoders.prompts.refusing_tokens`). It also ranks the object :math:`o` among the objects of its relation
:math:`r`, by the mean log-probability of a token,

.. math::
    \mathrm{rank}(o) = 1 + |\{o' \in O_r : \bar\ell(o' \mid x) > \bar\ell(o \mid x)\}|, \qquad
    \bar\ell(o \mid x) = \tfrac1T \sum_t \log p(o_t \mid x, o_{<t}),

to which what is said in place of an object does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

from law.attacks.protocol import Cost, Record, Target
from law.base.checks import Checked, Count
from law.decoders.greedy_decoding import recalled
from law.decoders.prompts import refusing_tokens


@dataclass
class Refusal(Checked):
    """Ban the tokens that refuse, and rank the object among others of its relation.

    Args:
        rivals: other objects of the relation, at most.
    """

    rivals: Count = 11

    def cost(self, target: Target) -> Cost:
        """What :meth:`attack` takes."""
        count = len(target.facts)
        return Cost(read=(1 + self.rivals) * count, answered=count)

    def attack(self, target: Target) -> Record:
        """Scores ``recalled``, ``best`` and ``reciprocal_rank``."""
        banned = refusing_tokens(target.model, target.tokenizer)
        found = recalled(
            target.model, target.tokenizer, target.facts, target.batch_size, target.recall, banned
        )
        ranks = [_rank(own, others) for own, *others in target.log_probs_among(self.rivals)]
        return {
            "recalled": [float(hit) for hit in found],
            "best": [None if rank is None else float(rank == 1) for rank in ranks],
            "reciprocal_rank": [None if rank is None else 1 / rank for rank in ranks],
        }


def _rank(own: float, others: list[float]) -> int | None:
    """The rank of a log-probability among those of the others; ``None`` without others."""
    return 1 + sum(other > own for other in others) if others else None
