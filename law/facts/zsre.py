"""zsRE (Levy et al., CoNLL 2017) as MEND's evaluation split has it: one question about each subject."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from law.facts.download import Download
from law.facts.fact import Fact, Question
from law.facts.record_files import LeftOut, json_list, parsed, text_in, texts_in, value_in
from law.facts.source import FactSource

EXPECTED = "a JSON list of zsRE records in MEND's schema"
SHAPE = "MEND's schema: subject, src, rephrase, answers (a list), loc and loc_ans"
NEIGHBOUR_PREFIX = "nq question: "


@dataclass
class ZsRE(FactSource):
    """MEND's zsRE records, and which of them to wash and to keep.

    Args:
        download: where the published file comes from.
    """

    download: Download = field(default_factory=Download)

    def read(self, path: Path) -> list[Fact]:
        return read_zsre(path)

    def fetch(self) -> Path:
        return self.download.get("zsre_mend_eval.json")


@dataclass(frozen=True)
class _Entry:
    """A record of the right shape, its words not yet looked at."""

    subject: str
    src: str
    rephrase: str
    answers: tuple[str, ...]
    loc: str | None
    loc_ans: str | None


def read_zsre(path: Path) -> list[Fact]:
    """The facts of a file, in its order; a fact's id is its record's place in the file, from 0.

    A record of the right shape that gives no fact (its subject stands not once in the question, it has
    no answer, or it repeats another) is left out, and counted in the log.

    Raises:
        LawError: names the file and the line of the first record that is malformed.
    """
    facts: list[Fact] = []
    seen: set[tuple[str, str]] = set()
    left_out = LeftOut()
    entries = parsed(path, json_list(path, EXPECTED), _entry, SHAPE)
    for number, (line, entry) in enumerate(entries):
        if reason := _blemish(entry):
            left_out.add(reason, line)
            continue
        fact = _fact(str(number), entry)
        if (fact.prompt, fact.object) in seen:
            left_out.add("the question and its answer have occurred before", line)
            continue
        seen.add((fact.prompt, fact.object))
        facts.append(fact)
    left_out.log(path)
    return facts


def _entry(_: int, record: Any) -> _Entry:
    loc, answer = value_in(record, "loc"), value_in(record, "loc_ans")
    return _Entry(
        text_in(record, "subject"),
        text_in(record, "src"),
        text_in(record, "rephrase"),
        texts_in(record, "answers"),
        None if loc is None else text_in(record, "loc"),
        None if answer is None else text_in(record, "loc_ans"),
    )


def _blemish(entry: _Entry) -> str | None:
    """Why a record gives no fact, if it doesn't."""
    if not entry.subject.strip():
        return "there is no subject"
    if not entry.answers or not entry.answers[0].strip():
        return "there is no answer"
    if "{}" in entry.src or entry.src.count(entry.subject) != 1:
        return "the question does not name the subject once"
    return None


def _fact(id: str, entry: _Entry) -> Fact:
    neighbours: tuple[Question, ...] = ()
    if entry.loc and entry.loc_ans:
        question = entry.loc.removeprefix(NEIGHBOUR_PREFIX).removesuffix("?")
        neighbours = (Question(ask(f"{question}?"), entry.loc_ans),)
    return Fact(
        id=id,
        subject=entry.subject,
        template=ask(entry.src.replace(entry.subject, "{}")),
        object=entry.answers[0],
        relation="",  # the schema has none
        paraphrases=(ask(entry.rephrase),) if entry.rephrase.strip() else (),
        neighbours=neighbours,
    )


def ask(question: str) -> str:
    """The prompt that a language model answers a question after."""
    return f"{question} Answer:"
