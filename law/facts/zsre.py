"""zsRE (Levy et al., CoNLL 2017) as MEND's evaluation split has it: one question about each subject."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from law.base.settings import SAME_RESULTS
from law.facts.download import Download
from law.facts.fact import Fact, Question
from law.facts.record_files import LeftOut, json_list, parsed, text_in, texts_in, value_in
from law.facts.source import FactSource
from law.facts.subject import places, template

EXPECTED = "a JSON list of zsRE records in MEND's schema"
SHAPE = "MEND's schema: subject, src, rephrase, answers (a list), loc and loc_ans"
NEIGHBOUR_PREFIX = "nq question: "


@dataclass
class ZsRE(FactSource):
    """MEND's zsRE records, and which of them to wash and to keep.

    Args:
        download: the address of the published file, and the folder for it.
    """

    download: Download = field(default_factory=Download, metadata=SAME_RESULTS)

    def read(self, path: Path) -> list[Fact]:
        return read_zsre(path)

    def fetch(self) -> Path:
        return self.download.get("zsre_mend_eval.json")


@dataclass(frozen=True)
class _Entry:
    """A record of the right shape, whose texts may still give no fact."""

    subject: str
    src: str
    rephrase: str
    answers: tuple[str, ...]
    loc: str | None
    loc_ans: str | None


def read_zsre(path: Path) -> list[Fact]:
    """The facts of a file, in its order; a fact's id is the index of its record in the file, from 0.

    A record of the right shape may still give no fact: its question does not name the subject exactly once,
    it has no answer, or it repeats another record. Such a record is left out, and the log counts it.

    Raises:
        LawError: a record is malformed; names the file and the line.
    """
    facts: list[Fact] = []
    left_out = LeftOut()
    entries = parsed(path, json_list(path, EXPECTED), _entry, SHAPE)
    for number, (line, entry) in enumerate(entries):
        if reason := _blemish(entry):
            left_out.add(reason, line)
        elif not left_out.add_repeat(fact := _fact(str(number), entry), line):
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
    """Why a record gives no fact; ``None`` if it gives one."""
    if not entry.subject:
        return "there is no subject"
    if not entry.answers or not entry.answers[0]:
        return "there is no answer"
    if "{}" in entry.src or len(places(entry.subject, entry.src)) != 1:
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
        template=ask(template(entry.subject, entry.src, places(entry.subject, entry.src)[0])),
        object=entry.answers[0],
        relation="",  # the schema has none
        paraphrases=(ask(entry.rephrase),) if entry.rephrase else (),
        neighbours=neighbours,
    )


def ask(question: str) -> str:
    """The prompt that asks a language model a question."""
    return f"{question} Answer:"
