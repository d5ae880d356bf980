"""Forgetting and retention: which facts a model still answers, from its replies before and after washing."""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from law.decoders.greedy_decoding import Recall, folded, recalls
from law.evaluation.estimates import Estimate, clustered_mean, entries
from law.evaluation.known_facts import Kind
from law.facts.fact import Fact, Question
from law.facts.subject import places

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Replies:
    """The replies of one model.

    Args:
        answers: for each prompt the text of ten greedy tokens.
        log_probs: for each question the mean log-probability of its object's tokens, in nats
            (:mod:`law.evaluation.likelihood`).
        unrefused: as ``answers``, where the first token must be none of
            :func:`~law.decoders.prompts.refusing_tokens`.
        recall: when an answer counts as right.
    """

    answers: Mapping[str, str]
    log_probs: Mapping[Question, float]
    unrefused: Mapping[str, str]
    recall: Recall = Recall.substring

    def right(self, question: Question) -> bool:
        """Whether the answer to a question recalls its object."""
        return recalls(self.answers[question.prompt], question.object, self.recall)

    def right_unrefused(self, question: Question) -> bool:
        """Whether the answer that may not begin by refusing recalls the object."""
        return recalls(self.unrefused[question.prompt], question.object, self.recall)


@dataclass(frozen=True, slots=True)
class Probe:
    """A question, and the cluster it belongs to in standard errors (:mod:`law.evaluation.estimates`)."""

    question: Question
    cluster: Hashable


def qa_f1(answer: str, wanted: str) -> float:
    """Token F1 of SQuAD 2.0, over lower-cased words without articles and punctuation.

    A word counts as often as it occurs in both. Two texts without any word agree: 1.
    """
    given, gold = _tokens(answer), _tokens(wanted)
    if not given or not gold:
        return float(given == gold)
    common = sum((Counter(given) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(given), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def exact_match(answer: str, wanted: str) -> bool:
    """Exact match of SQuAD: the whole answer is the object, both normalised as in :func:`qa_f1`.

    An answer that continues after the object does not match. Most answers of ten tokens continue.
    """
    return _tokens(answer) == _tokens(wanted)


def _tokens(text: str) -> list[str]:
    return _ARTICLES.sub(" ", folded(text).translate(_PUNCTUATION)).split()


def _answer(measure: Callable[[str, str], float]) -> Callable[[Question, Replies], float]:
    return lambda question, replies: measure(replies.answers[question.prompt], question.object)


MEASURES: dict[str, Callable[[Question, Replies], float]] = {
    "accuracy": lambda question, replies: replies.right(question),
    "unrefused_accuracy": lambda question, replies: replies.right_unrefused(question),
    "qa_f1": _answer(qa_f1),
    "exact_match": _answer(exact_match),
    "log_prob": lambda question, replies: replies.log_probs[question],
}

REPORTED = {
    "forget/": ("accuracy", "unrefused_accuracy", "qa_f1", "exact_match", "log_prob"),
    "forget/paraphrase_": ("accuracy", "qa_f1", "exact_match", "log_prob"),
    "retain/": ("accuracy", "log_prob"),
    "retain/same_subject_": ("accuracy",),
    "retain/same_relation_": ("accuracy",),
    "retain/neighbour_": ("accuracy",),
    "forget/of_subject_": ("accuracy",),
    "retain/of_subject_": ("accuracy",),
}
"""The measures of each set of questions. A metric's key is the set's name followed by the measure's."""

ASKED_IF_KNOWN = ("forget/paraphrase_", "retain/neighbour_")
"""Sets from which a question is left out if the unwashed model does not answer it."""


def probe_sets(
    washed: Sequence[Fact], kept: Sequence[Fact], kinds: Mapping[Fact, Kind]
) -> dict[str, list[Probe]]:
    """The questions that are put to a model, by the sets of :data:`REPORTED`; ``kinds`` are those of all facts.

    Questions about one subject form a cluster; for neighbours see :func:`_neighbours`.
    """
    subjects = {fact.subject for fact in washed}
    relations = {fact.relation for fact in washed} - {""}  # two facts without a relation do not share one
    others = [fact for fact in kept if fact.relation in relations and fact.subject not in subjects]
    return {
        "forget/": _asked(washed),
        "forget/paraphrase_": [
            Probe(Question(prompt, fact.object, fact.gap), fact.subject)
            for fact in washed
            for prompt in fact.paraphrases
        ],
        "retain/": _asked(kept),
        "retain/same_subject_": _asked([fact for fact in kept if fact.subject in subjects]),
        "retain/same_relation_": _asked(others),
        "retain/neighbour_": _neighbours(washed),
        "forget/of_subject_": _asked([fact for fact in washed if kinds.get(fact) is Kind.subject]),
        "retain/of_subject_": _asked([fact for fact in kept if kinds.get(fact) is Kind.subject]),
    }


def weighed(sets: Mapping[str, Sequence[Probe]]) -> set[Question]:
    """The questions of these sets whose objects' log-probabilities are reported."""
    return _measured(sets, "log_prob")


def unrefusing(sets: Mapping[str, Sequence[Probe]]) -> set[str]:
    """The prompts of these sets that are also asked without the tokens that refuse."""
    return {question.prompt for question in _measured(sets, "unrefused_accuracy")}


def _measured(sets: Mapping[str, Sequence[Probe]], measure: str) -> set[Question]:
    return {probe.question for name in sets if measure in REPORTED[name] for probe in sets[name]}


def _asked(facts: Sequence[Fact]) -> list[Probe]:
    return [Probe(fact.question, fact.subject) for fact in facts]


def _neighbours(washed: Sequence[Fact]) -> list[Probe]:
    """The neighbours, each once, without those that ask for a washed fact in another phrasing.

    Such a neighbour has a washed fact's object, and names its subject as a whole word behind the lead.
    Two neighbours of one washed fact belong to one cluster. So do two that are linked by a chain of
    neighbours in which each shares a washed fact with the next.
    """
    subjects: dict[str, set[str]] = defaultdict(set)
    listed: dict[Question, list[int]] = defaultdict(list)  # the washed facts that list each neighbour
    for i, fact in enumerate(washed):
        subjects[fact.object].add(fact.subject)
        for question in fact.neighbours:
            listed[question].append(i)

    def asks_for_washed(question: Question, lead: int) -> bool:
        return any(places(subject, question.prompt[lead:]) for subject in subjects[question.object])

    found = {
        question: facts
        for question, facts in listed.items()
        if not asks_for_washed(question, washed[facts[0]].lead)
    }
    parents = [*range(len(washed))]  # a forest of washed facts; each tree becomes a cluster
    for facts in found.values():
        for i in facts:
            parents[_root(parents, i)] = _root(parents, facts[0])
    return [Probe(question, _root(parents, facts[0])) for question, facts in found.items()]


def _root(parents: list[int], i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]  # shortens the path for the next search
        i = parents[i]
    return i


def knowledge_metrics(
    washed: Sequence[Fact],
    kept: Sequence[Fact],
    kinds: Mapping[Fact, Kind],
    before: Replies,
    after: Replies,
) -> dict[str, float]:
    """The ``facts/``, ``forget/`` and ``retain/`` metrics of :mod:`law.evaluation.metrics`.

    ``before`` and ``after`` hold replies to all of :func:`probe_sets`. A metric over no question is
    left out.
    """
    sets = probe_sets(washed, kept, kinds)
    knows = MEASURES["accuracy"]
    for name in ASKED_IF_KNOWN:
        sets[name] = [probe for probe in sets[name] if knows(probe.question, before)]
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
    return clustered_mean(values, [probe.cluster for probe in probes])
