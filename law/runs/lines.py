"""The lines of the JSON Lines files that a run leaves in its folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from law.base.errors import LawError
from law.decoders.greedy_decoding import recalls
from law.evaluation.known_facts import Kind
from law.evaluation.scores import Scores
from law.facts.fact import Fact, FactSplit
from law.runs.folder import REDACTED


def unknown_facts(
    split: FactSplit, known: Set[Fact], answers: Mapping[str, str], kinds: Mapping[Fact, Kind]
) -> Iterator[dict[str, str]]:
    """The lines of ``unknown_facts.jsonl``: the facts that were asked for and do not count as known, with the reason."""
    for name, facts in (("wash", split.wash), ("keep", split.keep)):
        for fact in facts:
            if fact not in known:
                yield {
                    "id": fact.id,
                    "set": name,
                    "reason": kinds[fact].value if fact in kinds else "not_recalled",
                    "prompt": fact.prompt,
                    "object": fact.object,
                    "answer": answers[fact.prompt],
                }


def prediction(
    fact: Fact, known: bool, answers: Mapping[str, str], before: Scores, after: Scores
) -> dict[str, Any]:
    """A line of ``predictions.jsonl`` or ``kept.jsonl``; a fact that does not count as known is not asked for again.

    Facts that are kept are not asked for without the tokens that refuse.
    """
    rule = before.replies.recall
    answer_after = after.replies.answers[fact.prompt] if known else None
    unrefused = after.replies.unrefused.get(fact.prompt) if known else None
    return {
        "id": fact.id,
        "subject": fact.subject,
        "prompt": fact.prompt,
        "object": fact.object,
        "answer_before": answers[fact.prompt],
        "answer_after": answer_after,
        "answer_unrefused": unrefused,
        "known_before": known,
        "known_after": None if answer_after is None else recalls(answer_after, fact.object, rule),
        "known_unrefused": None if unrefused is None else recalls(unrefused, fact.object, rule),
        "log_prob_before": finite(before.replies.log_probs.get(fact.question)),
        "log_prob_after": finite(after.replies.log_probs.get(fact.question)),
    }


def redacted(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same lines, with :data:`REDACTED` in the place of the words of facts and answers. Numbers and ids stay."""
    for row in rows:
        yield {
            key: value if key in ("id", "set", "reason") else _wordless(value) for key, value in row.items()
        }


def _wordless(value: Any) -> Any:
    words = value if isinstance(value, list | tuple) else [value]
    return REDACTED if any(isinstance(word, str) for word in words) else value


def redacted_error(error: Exception, finished: Iterable[str]) -> LawError:
    """An error in the place of one whose text may quote a fact; it has no cause, which a log would show."""
    stages = ", ".join(finished) or "none"
    told = LawError(
        f"The run failed with {type(error).__name__}; its text may quote facts and is left out (redact=true). Stages that "
        f"were finished: {stages}. Expected a run to its end; to read the whole error, repeat the run with redact=false "
        "where that is allowed."
    )
    told.__suppress_context__ = True
    return told


def reasoning_items(before: Scores, after: Scores) -> Iterator[dict[str, Any]]:
    """The lines of ``reasoning.jsonl``: the accuracy of both models on each item of each task."""
    for key, score in after.reasoning.items():
        for item, pair in enumerate(zip(before.reasoning[key].items, score.items, strict=True)):
            yield {
                "task": key.removesuffix("/acc"),
                "item": item,
                **dict(zip(("before", "after"), pair, strict=True)),
            }


def finite(value: Any) -> Any:
    """A JSON-like value with ``None`` for NaN and infinity, which JSON has no words for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
