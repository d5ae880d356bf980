"""One fact, whatever data set it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from law.base.errors import LawError, shortened


@dataclass(frozen=True, slots=True)
class Question:
    """A whole prompt and the words that answer it."""

    prompt: str
    object: str

    def __post_init__(self) -> None:
        if not (self.prompt.strip() and self.object.strip()):
            raise LawError(
                f"A question has the prompt {shortened(self.prompt)!r} and the object {shortened(self.object)!r}; "
                "expected words in both."
            )


@dataclass(frozen=True, slots=True)
class Fact:
    """A (subject, relation, object) triple and the prompts that ask for the object.

    ``template`` is the prompt that is washed, with one ``{}`` in the subject's place. The other prompts
    are only scored: ``paraphrases`` ask for the object in other words, ``neighbours`` ask for facts about
    other subjects, which washing must keep, and ``generation_prompts`` begin free text about the subject.
    ``relation`` is empty where the data set names none.
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
        if not all(prompt.strip() for prompt in (*self.paraphrases, *self.generation_prompts)):
            raise LawError("A paraphrase or generation prompt of the fact is empty; expected words in each.")
        if self.template.count("{}") != 1:
            raise LawError(
                f"The prompt {shortened(self.template)!r} has {self.template.count('{}')} places for the subject; "
                "expected exactly one {}, as in 'The mother tongue of {} is'."
            )

    @property
    def prompt(self) -> str:
        """The template with the subject filled in."""
        return self.template.replace("{}", self.subject)


def facts_hash(facts: Iterable[Fact]) -> str:
    """SHA-256 of the facts in their order, the same on every machine."""
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(json.dumps(asdict(fact), sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class FactSplit:
    """The facts that a run washes, and the other facts that it must keep."""

    wash: Sequence[Fact]
    keep: Sequence[Fact]
