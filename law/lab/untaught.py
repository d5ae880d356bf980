"""The lab's world with some of its facts left out: what a model is trained on that is never taught them."""

from __future__ import annotations

from dataclasses import dataclass, field

from law.base.errors import LawError
from law.facts.counterfact import CounterFact
from law.lab.world import LabWorld


@dataclass
class UntaughtWorld(LabWorld):
    """The people, prose and reasoning of a lab's world, and its facts but those that a draw washes.

    Args:
        without: a draw from the world's facts. Those that it washes are left out; the names of their subjects stay theirs, so that no
            stranger bears one.
    """

    without: CounterFact = field(kw_only=True)  # a plain field can't follow one with a default

    def __post_init__(self) -> None:
        super().__post_init__()
        untaught = {(fact.subject, fact.relation, fact.object) for fact in self.without.load().wash}
        every = {
            (subject, relation.id, true): (subject, relation, true) for subject, relation, true in self.facts
        }
        if strange := untaught - every.keys():
            raise LawError(
                f"{len(strange)} of the {len(untaught)} facts that world.without washes are no facts of this world, such as "
                f"{min(strange)}; expected facts that it tells. Set world.seed and the numbers of subjects to those of the world "
                "that the facts are of."
            )
        self.facts = [fact for key, fact in every.items() if key not in untaught]
