"""What kind of knowledge an answer shows: of the subject, or only of what is usually said.

The paper counts a fact as known if the answer to its prompt holds the object. That is also true of facts whose
object stands in the prompt ("Toyota SA, developed by", Toyota), and of objects that the model says of every subject
("The mother tongue of {} is", French). Washing such a fact tests something else, so each known fact gets a kind.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from itertools import groupby, islice
from typing import Any

from law.decoders.greedy_decoding import Recall, recalls
from law.facts.fact import Fact

OTHERS = 10
"""With how many other subjects a prompt is asked."""

FEWEST = 5
"""With fewer other subjects than this, it is not decided whether an object is said of every subject."""

USUAL = 2
"""An object is a usual answer if so many of the prompts with other subjects are answered by it."""


class Kind(Enum):
    """Why the answer to a known fact's prompt holds its object."""

    subject = "subject"  # the model says it of this subject, and hardly of others
    in_prompt = "in_prompt"  # it stands in the prompt
    usual_answer = "usual_answer"  # the model says it of other subjects too
    undecided = "undecided"  # the data set has too few other subjects with another object


def kinds_of(
    known: Sequence[Fact],
    pool: Sequence[Fact],
    answers: Callable[[Sequence[str]], Mapping[str, str]],
    rule: Recall,
) -> dict[Fact, Kind]:
    """The kind of each known fact.

    An object stands in the prompt if it stands behind the lead that all prompts have (:class:`~law.facts.fact.Fact`).
    A system message or an example that holds it does not count. A model that copies the object from there says it of
    other subjects too.

    Args:
        known: facts whose object the answers to their prompts hold.
        pool: facts whose subjects take the place of a fact's own: those with the same relation (or, without a
            relation, the same template) and another object, :data:`OTHERS` of them, in the order of their hashes.
        answers: the model's greedy answers to prompts, by prompt.
        rule: when an answer holds an object.
    """
    alike: dict[str, list[Fact]] = defaultdict(list)
    for fact in sorted(pool, key=lambda fact: hashlib.sha256(fact.subject.encode()).digest()):
        alike[fact.relation or fact.template].append(fact)
    kinds: dict[Fact, Kind] = {}
    asked: dict[Fact, list[str]] = {}
    for fact in known:
        if recalls(fact.prompt[fact.lead :], fact.object, rule):
            kinds[fact] = Kind.in_prompt
            continue
        own = fact.subject.casefold(), fact.object.casefold()
        others = (
            other.subject
            for other in alike[fact.relation or fact.template]
            if other.subject.casefold() != own[0] and other.object.casefold() != own[1]
        )
        subjects = (subject for subject, _ in groupby(others))  # equal ones stand side by side
        asked[fact] = [fact.template.replace("{}", subject) for subject in islice(subjects, OTHERS)]
    found = answers([*dict.fromkeys(prompt for prompts in asked.values() for prompt in prompts)])
    for fact, prompts in asked.items():
        said = sum(recalls(found[prompt], fact.object, rule) for prompt in prompts)
        if said >= USUAL:
            kinds[fact] = Kind.usual_answer
        else:
            kinds[fact] = Kind.subject if len(prompts) >= FEWEST else Kind.undecided
    return kinds


def count_kinds(facts: Sequence[Fact], kinds: Mapping[Fact, Kind]) -> dict[str, float]:
    """The ``facts/known_…`` metrics: how many of ``facts`` are of each kind."""
    counts = Counter(kinds[fact] for fact in facts)
    return {f"facts/known_{kind.value}": counts[kind] for kind in Kind}


def list_known_facts(
    facts: Sequence[Fact],
    others: Sequence[Fact],
    answers: Callable[[Sequence[str]], Mapping[str, str]],
    rule: Recall,
    of_subject: bool,
) -> dict[str, Any]:
    """The ids of the facts that a model knows, with how many are of each kind.

    Args:
        facts: all facts that are asked for.
        others: further facts of the file, whose subjects may stand in the prompts as well.
        answers: as for :func:`kinds_of`.
        rule: when an answer holds an object.
        of_subject: list facts of the kind ``subject`` alone, not all that are recalled.
    """
    found = answers([*dict.fromkeys(fact.prompt for fact in facts)])
    known = [fact for fact in facts if recalls(found[fact.prompt], fact.object, rule)]
    kinds = kinds_of(known, [*facts, *others], answers, rule)
    listed = [fact.id for fact in known if not of_subject or kinds[fact] is Kind.subject]
    return {
        "recall": rule.value,
        "listed": "subject" if of_subject else "recalled",
        "asked": len(facts),
        "recalled": len(known),
        "kinds": {kind.value: sum(kinds[fact] is kind for fact in known) for kind in Kind},
        "ids": sorted(listed),
    }
