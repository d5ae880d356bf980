r"""Multiple choice: is the object likelier than three others of its relation?

The model need not say the object, only prefer it. It chooses by the mean log-probability of a token, and guessing is
right in one of four cases:

.. math::
    \arg\max_{o' \in \{o, o_1, o_2, o_3\}} \tfrac1T \sum_t \log p(o'_t \mid x, o'_{<t}).

The reversed question asks for the subject by the object, behind examples written ``object: subject``. It is asked
where objects tell subjects apart: each object of the relation is that of one subject, as far as the facts shown and
asked go.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from law.attacks.protocol import Cost, Record, Target, framed, relation_of
from law.base.checks import Checked, Count
from law.decoders.greedy_decoding import folded, recalled
from law.facts.fact import Fact, Question


@dataclass
class Choice(Checked):
    """Offer the object among others of its relation, and ask for the subject by the object.

    Args:
        rivals: other objects offered. A fact whose relation has fewer is left out.
        examples: facts of the relation shown before a reversed question.
    """

    rivals: Count = 3
    examples: Count = 5

    def cost(self, target: Target) -> Cost:
        """What :meth:`attack` takes."""
        count = len(target.facts)
        return Cost(read=(1 + self.rivals) * count, answered=count)

    def attack(self, target: Target) -> Record:
        """Scores ``right``, for the choice, and ``reversed``."""
        found = target.log_probs_among(self.rivals)
        right = [float(own > max(others)) if len(others) == self.rivals else None for own, *others in found]
        return {"right": right, "reversed": self._reversed(target)}

    def _reversed(self, target: Target) -> list[float | None]:
        counts = Counter((relation_of(f), folded(f.object)) for f in (*target.shown, *target.facts))
        several = {relation for (relation, _), count in counts.items() if count > 1}
        asked = {
            i: question
            for i, fact in enumerate(target.facts)
            if relation_of(fact) not in several and (question := self._question(fact, target))
        }
        if not asked:
            return [None] * len(target.facts)
        hits = recalled(target.model, target.tokenizer, [*asked.values()], target.batch_size, target.recall)
        found = dict(zip(asked, map(float, hits), strict=True))
        return [found.get(i) for i in range(len(target.facts))]

    def _question(self, fact: Fact, target: Target) -> Question | None:
        """The reversed question; ``None`` if there are too few examples, or if it is too long for the model."""
        same = [other for other in target.shown if relation_of(other) == relation_of(fact)]
        if len(same) < self.examples:
            return None
        drawn = random.Random(fact.prompt).sample(same, self.examples)
        lines = "".join(f"{other.object}: {other.subject}\n" for other in drawn)
        question = Question(framed(fact, f"{lines}{fact.object}:"), fact.subject, fact.gap)
        return question if target.fits(question.prompt) else None
