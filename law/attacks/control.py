"""Facts that no model ever knew: what guessing gives.

Each has the relation, the phrasings and the object of a washed fact, and the subject of another fact, of which the data
set tells nothing with this relation. So the two differ in what the model has learnt of the subject, and in nothing else.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from law.attacks.protocol import relation_of
from law.facts.fact import Fact


def control_facts(washed: Sequence[Fact], pool: Sequence[Fact]) -> list[Fact]:
    """A control for each washed fact for which the pool has a subject.

    Args:
        washed: the facts that are washed.
        pool: facts of the data set. Subjects of washed facts are not taken, since washing changes them.
    """
    told: dict[str, set[str]] = defaultdict(set)
    for fact in (*washed, *pool):
        told[fact.subject].add(relation_of(fact))
    taken = {fact.subject for fact in washed}
    subjects = [*dict.fromkeys(fact.subject for fact in pool if fact.subject not in taken)]
    found = []
    for fact in washed:
        # from a place drawn by the fact, the first subject that fits
        first = random.Random(fact.prompt).randrange(max(1, len(subjects)))
        candidates = (subjects[(first + i) % len(subjects)] for i in range(len(subjects)))
        stranger = next((name for name in candidates if relation_of(fact) not in told[name]), None)
        if stranger is not None:
            told[stranger].add(relation_of(fact))  # each is asked for one object of a relation
            found.append(_about(stranger, fact))
    return found


def _about(subject: str, fact: Fact) -> Fact:
    """The fact with another subject; paraphrases that do not name the subject are left out."""
    paraphrases = [text.replace(fact.subject, subject) for text in fact.paraphrases if fact.subject in text]
    return replace(
        fact, subject=subject, paraphrases=tuple(paraphrases), neighbours=(), generation_prompts=()
    )
