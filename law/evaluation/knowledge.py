"""Forgetting and retention: what is left of the facts, from what a model says before and after."""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from law.decoders.greedy_decoding import recalls
from law.evaluation.estimates import Estimate, clustered_mean, entries
from law.facts.fact import Fact, Question

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Replies:
    """What one model says: ten greedy tokens after each prompt, and how likely it finds each object.

    ``log_probs`` are means over the object's tokens, in nats (:mod:`law.evaluation.likelihood`).
    """

    answers: Mapping[str, str]
    log_probs: Mapping[Question, float]


@dataclass(frozen=True, slots=True)
class Probe:
    """A question of a fact; the questions of one fact count as one cluster."""

    question: Question
    fact: int


def qa_f1(answer: str, wanted: str) -> float:
    """Token F1 of SQuAD: lower-cased, articles and punctuation stripped, overlap counted with multiplicity."""
    given, gold = _tokens(answer), _tokens(wanted)
    common = sum((Counter(given) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(given), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def exact_match(answer: str, wanted: str) -> bool:
    """Exact match of SQuAD: the whole answer is the object, both normalised as for :func:`qa_f1`.

    An answer that goes on after the object does not match; ten tokens mostly do go on.
    """
    return _tokens(answer) == _tokens(wanted)


def _tokens(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _answer(measure: Callable[[str, str], float]) -> Callable[[Question, Replies], float]:
    return lambda question, replies: measure(replies.answers[question.prompt], question.object)


MEASURES: dict[str, Callable[[Question, Replies], float]] = {
    "accuracy": _answer(recalls),
    "qa_f1": _answer(qa_f1),
    "exact_match": _answer(exact_match),
    "log_prob": lambda question, replies: replies.log_probs[question],
}

REPORTED = {
    "forget/": ("accuracy", "qa_f1", "exact_match", "log_prob"),
    "forget/paraphrase_": ("accuracy", "qa_f1", "exact_match", "log_prob"),
    "retain/": ("accuracy", "log_prob"),
    "retain/same_subject_": ("accuracy",),
    "retain/same_relation_": ("accuracy",),
    "retain/neighbour_": ("accuracy",),
}
"""Which measures are reported of which set of questions; together they are a metric's key."""


def probe_sets(washed: Sequence[Fact], kept: Sequence[Fact]) -> dict[str, list[Probe]]:
    """The questions that are put to a model, by the sets of :data:`REPORTED`."""
    subjects = {fact.subject for fact in washed}
    relations = {fact.relation for fact in washed} - {""}  # what is not known is not the same
    others = [fact for fact in kept if fact.relation in relations and fact.subject not in subjects]
    return {
        "forget/": _asked(washed),
        "forget/paraphrase_": [
            Probe(Question(prompt, fact.object), i)
            for i, fact in enumerate(washed)
            for prompt in fact.paraphrases
        ],
        "retain/": _asked(kept),
        "retain/same_subject_": _asked([fact for fact in kept if fact.subject in subjects]),
        "retain/same_relation_": _asked(others),
        "retain/neighbour_": _neighbours(washed),
    }


def _asked(facts: Sequence[Fact]) -> list[Probe]:
    return [Probe(Question(fact.prompt, fact.object), i) for i, fact in enumerate(facts)]


def _neighbours(washed: Sequence[Fact]) -> list[Probe]:
    """The neighbours, each once, without those that ask for a washed fact in words of their own."""
    subjects: dict[str, set[str]] = defaultdict(set)
    for fact in washed:
        subjects[fact.object].add(fact.subject)
    found: dict[Question, int] = {}
    for i, fact in enumerate(washed):
        for question in fact.neighbours:
            if question not in found and not any(s in question.prompt for s in subjects[question.object]):
                found[question] = i
    return [Probe(question, i) for question, i in found.items()]


def knowledge_metrics(
    washed: Sequence[Fact], kept: Sequence[Fact], before: Replies, after: Replies
) -> dict[str, float]:
    """The ``facts/``, ``forget/`` and ``retain/`` metrics of :mod:`law.evaluation.metrics`.

    ``before`` and ``after`` reply to all of :func:`probe_sets`. Neighbours that the unwashed model
    answers wrong are left out, as unknown facts are. A metric over no item at all is left out.
    """
    sets = probe_sets(washed, kept)
    knows = MEASURES["accuracy"]
    sets["retain/neighbour_"] = [p for p in sets["retain/neighbour_"] if knows(p.question, before)]
    metrics: dict[str, float] = {
        "facts/washed": len(washed),
        "facts/kept": len(kept),
        "facts/kept_same_subject": len(sets["retain/same_subject_"]),
    }
    for name, measures in REPORTED.items():
        for measure in measures:
            scores = [_score(sets[name], measure, replies) for replies in (before, after)]
            metrics |= entries(f"{name}{measure}", *scores)
    return metrics


def _score(probes: Sequence[Probe], measure: str, replies: Replies) -> Estimate | None:
    values = [float(MEASURES[measure](probe.question, replies)) for probe in probes]
    return clustered_mean(values, [probe.fact for probe in probes])
