"""Forgetting and retention: what is left of the facts, from the answers before and after."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from law.facts import Fact
from law.recall import recalls

Answers = Mapping[str, str]
"""What a model says after each prompt."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def qa_f1(answer: str, wanted: str) -> float:
    """Token F1 of SQuAD: lower-cased, articles and punctuation stripped, overlap counted with multiplicity."""
    given, gold = _tokens(answer), _tokens(wanted)
    common = sum((Counter(given) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(given), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def _tokens(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def knowledge_metrics(
    washed: Sequence[Fact], kept: Sequence[Fact], before: Answers, after: Answers
) -> dict[str, float]:
    """The ``facts/``, ``forget/`` and ``retain/`` metrics of :mod:`law.results`.

    ``before`` and ``after`` answer the prompts of all facts, and the paraphrases of the washed ones.
    A metric over no item at all is left out.
    """
    subjects = {fact.subject for fact in washed}
    same_subject = [fact for fact in kept if fact.subject in subjects]
    metrics: dict[str, float | None] = {
        "facts/washed": len(washed),
        "facts/kept": len(kept),
        "facts/kept_same_subject": len(same_subject),
        "retain/same_subject_accuracy": accuracy(same_subject, after),
    }
    for suffix, answers in (("_before", before), ("", after)):
        metrics |= {
            f"forget/accuracy{suffix}": accuracy(washed, answers),
            f"forget/qa_f1{suffix}": _mean([qa_f1(answers[f.prompt], f.object) for f in washed]),
            f"forget/paraphrase_accuracy{suffix}": _mean(
                [recalls(answers[prompt], f.object) for f in washed for prompt in f.paraphrases]
            ),
            f"retain/accuracy{suffix}": accuracy(kept, answers),
        }
    return {key: value for key, value in metrics.items() if value is not None}


def accuracy(facts: Sequence[Fact], answers: Answers) -> float | None:
    """The share of facts recalled in their first phrasing; ``None`` of no fact."""
    return _mean([recalls(answers[fact.prompt], fact.object) for fact in facts])


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
