"""One fact, whatever data set it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from law.base.errors import LawError


@dataclass(frozen=True, slots=True)
class Question:
    """A whole prompt and the words that answer it."""

    prompt: str
    object: str


@dataclass(frozen=True, slots=True)
class Fact:
    """A (subject, relation, object) triple and the prompts that ask for the object.

    ``template`` is the phrasing that gets washed, with one ``{}`` where the subject stands. The rest
    is used only for scoring: ``paraphrases`` are whole prompts in other phrasings, ``neighbours``
    ask for facts of others that washing must keep, and ``generation_prompts`` start free text
    about the subject.
    """

    id: str
    subject: str
    template: str
    object: str
    relation: str
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[Question, ...] = ()
    generation_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("subject", "object"):
            if not getattr(self, name).strip():
                raise LawError(f"The fact's {name} is empty; expected the words that name it.")
        if self.template.count("{}") != 1:
            raise LawError(
                f"The prompt {self.template!r} has {self.template.count('{}')} places for the subject; "
                "expected exactly one {}, as in 'The mother tongue of {} is'."
            )

    @property
    def prompt(self) -> str:
        """The washed phrasing with the subject filled in."""
        return self.template.replace("{}", self.subject)


def facts_hash(facts: Iterable[Fact]) -> str:
    """SHA-256 of the facts in their order, the same on every machine."""
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(json.dumps(asdict(fact), sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class FactSplit:
    """What a run washes, and what it must keep."""

    wash: Sequence[Fact]
    keep: Sequence[Fact]
