"""One fact, whatever data set it came from."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from law.base.errors import LawError, shortened

UNSPACED = re.compile(
    "["
    "\u0e00-\u0fff"  # Thai, Lao, Tibetan
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff\u19e0-\u19ff"  # Khmer
    "\u2e80-\u312f\u3190-\u9fff\uf900-\ufaff"  # Han, Hiragana, Katakana, Bopomofo, their punctuation
    "\ufe30-\ufe4f\uff00-\uff9f\uffe0-\uffef"  # their upright and full-width forms
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"  # rarer Kana and Han
    "]"
)
"""A character of a script that is written without spaces between words."""

PUT = ("lead", "gap", "tail")
"""Fields of facts and questions that say how they are put to a model, and are the same in every data set."""

_SPACES_AT_END = re.compile(r"[^\S\n]+\Z")


@dataclass(frozen=True, slots=True)
class Question:
    """A whole prompt and the words that answer it.

    White space around the object and at the prompt's end is dropped, except for line breaks of the prompt.
    ``gap`` is as in :func:`joined`.
    """

    prompt: str
    object: str
    gap: str | None = None

    def __post_init__(self) -> None:
        if not (self.prompt.strip() and self.object.strip()):
            raise LawError(
                f"A question has the prompt {shortened(self.prompt)!r} and the object {shortened(self.object)!r}; "
                "expected words in both."
            )
        object.__setattr__(self, "prompt", trimmed(self.prompt))
        object.__setattr__(self, "object", self.object.strip())


@dataclass(frozen=True, slots=True)
class Fact:
    """A (subject, relation, object) triple and the prompts that ask for the object.

    ``template`` is the prompt that is washed, with one ``{}`` in the subject's place. The other prompts
    are only scored: ``paraphrases`` ask for the object in other words, ``neighbours`` ask for facts about
    other subjects, which washing must keep, and ``generation_prompts`` begin free text about the subject.
    ``relation`` is empty where the data set names none.
    White space at the end of the template is dropped, except for line breaks.

    ``lead`` is the length of what stands at the template's beginning for all facts alike, such as the opening of a
    chat (:mod:`law.decoders.prompting`). A method that puts a text before the prompt puts it behind the lead.
    ``tail`` is the length of what stands at the template's end for all facts alike.
    ``gap`` is what stands between any of the prompts and the object (:func:`joined`).
    """

    id: str
    subject: str
    template: str
    object: str
    relation: str
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[Question, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    lead: int = 0
    gap: str | None = None
    tail: int = 0

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
        object.__setattr__(self, "template", trimmed(self.template))
        if self.template.endswith("{}"):
            object.__setattr__(self, "subject", self.subject.rstrip())

    @property
    def prompt(self) -> str:
        """The template with the subject filled in."""
        return self.template.replace("{}", self.subject)

    @property
    def question(self) -> Question:
        """The prompt with the object that answers it."""
        return Question(self.prompt, self.object, self.gap)


def trimmed(prompt: str) -> str:
    """A prompt without white space at its end; line breaks stay.

    A space there would be a token of its own, which no text has where a word follows.
    """
    return _SPACES_AT_END.sub("", prompt)


def joined(prompt: str, answer: str, gap: str | None = None) -> tuple[str, int]:
    """The text in which an object follows its prompt, and the index of the object's first character.

    White space at the prompt's end (except for line breaks) and around the object is dropped. Then ``gap`` stands
    between the two: in a chat, what the chat template writes there. Where it is ``None``, this is one space, but
    nothing where

    - the last character of the prompt or the first of the object belongs to a script that is written without
      spaces (:data:`UNSPACED`: Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar, Tibetan),
    - the prompt ends in a line break, or in ``|>``, the end of a special token, as in a chat,
    - the prompt ends in an opening bracket or an opening quotation mark. A quotation mark opens where it begins
      the prompt or where white space or an opening bracket stands before it.
    """
    prompt, answer = trimmed(prompt), answer.strip()
    if gap is None:
        gap = "" if _unspaced(prompt, answer) else " "
    text = f"{prompt}{gap}{answer}"
    return text, len(text) - len(answer)


def _unspaced(prompt: str, answer: str) -> bool:
    """Whether no space stands between a prompt and its object."""
    if not prompt or prompt.endswith(("\n", "|>", "\uff5c>")):
        return True
    if UNSPACED.match(prompt[-1]) or UNSPACED.match(answer):
        return True
    last, before = prompt[-1], prompt[-2:-1]
    quotes = last in "\"'" or unicodedata.category(last) in ("Pi", "Pf")
    begins = before.strip() == "" or unicodedata.category(before) == "Ps"
    return unicodedata.category(last) == "Ps" or (quotes and begins)


def facts_hash(facts: Iterable[Fact]) -> str:
    """SHA-256 of the facts of a data set in their order, the same on every machine."""
    digest = hashlib.sha256()
    for fact in facts:
        told = asdict(fact, dict_factory=lambda items: {k: v for k, v in items if k not in PUT})
        digest.update(json.dumps(told, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class FactSplit:
    """The facts that a run washes, those that it must keep, and the others of the file.

    The others come in the order of the draw. Those that nothing could be drawn from (``relations``, ``part`` and
    ``ids`` of the data set) come last. ``unscored`` are those of the others that a method may learn from
    (:func:`~law.facts.source.unscored`).
    """

    wash: Sequence[Fact]
    keep: Sequence[Fact]
    others: Sequence[Fact] = ()
    unscored: Sequence[Fact] = ()
