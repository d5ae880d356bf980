"""CounterFact (Meng et al., NeurIPS 2022), and other files whose records have its shape, as the lab's."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from sys import intern
from typing import Any

from law.base.errors import LawError
from law.base.settings import SAME_RESULTS
from law.facts.download import Download
from law.facts.fact import Fact, Question
from law.facts.record_files import as_text, json_list, parsed, quoted, text_in, texts_in, value_in
from law.facts.source import FactSource

log = logging.getLogger(__name__)

EXPECTED = "a JSON list of CounterFact records"
SHAPE = (
    "CounterFact's shape: case_id, requested_rewrite with prompt, subject, relation_id and "
    "target_true.str, and paraphrase_prompts"
)


class Selection(Enum):
    """All facts of a file, or only those that contradict no other, as in multi-CounterFact."""

    all = "all"
    multi = "multi"


@dataclass
class CounterFact(FactSource):
    """A JSON list of CounterFact records, and which of them to wash and to keep.

    Args:
        selection: with a ``path``, which facts of that file to take. With a ``path`` of ``null``, which
            published file to fetch; all facts of that file are taken.
        download: the address of the published files, and the folder for them.
    """

    selection: Selection = Selection.all
    download: Download = field(default_factory=Download, metadata=SAME_RESULTS)

    def read(self, path: Path) -> list[Fact]:
        return read_counterfact(path, Selection.all if self.path is None else self.selection)

    def fetch(self) -> Path:
        multi = self.selection is Selection.multi
        return self.download.get("multi_counterfact.json" if multi else "counterfact.json")


def read_counterfact(path: Path, selection: Selection = Selection.all) -> list[Fact]:
    """The facts of a file, in its order.

    Raises:
        LawError: a record is malformed; names the file and the line.
    """
    records = [value for _, value in parsed(path, json_list(path, EXPECTED), _record, SHAPE)]
    facts = [fact for fact, _ in records]
    if selection is Selection.all:
        return facts
    objects: dict[tuple[str, str], set[str]] = defaultdict(set)
    for fact in facts:
        objects[_pair(fact)].add(fact.object)
    chosen = [
        fact for fact, marked in records if (len(objects[_pair(fact)]) == 1 if marked is None else marked)
    ]
    log.info(
        "%s: %d of %d facts belong to the multi-CounterFact selection (the file marks %d facts)",
        path,
        len(chosen),
        len(facts),
        sum(marked is not None for _, marked in records),
    )
    return chosen


def _pair(fact: Fact) -> tuple[str, str]:
    """Subject and relation; facts that share both and differ in the object contradict each other.

    The template takes the place of a relation that is not known.
    """
    return fact.subject, fact.relation or fact.template


def _record(_: int, record: Any) -> tuple[Fact, bool | None]:
    """A record's fact, and whether the file marks it as one of multi-CounterFact; ``None``: no mark."""
    rewrite = value_in(record, "requested_rewrite")
    object = text_in(value_in(rewrite, "target_true"), "str")
    known = value_in(rewrite, "relation_id") is not None
    marked = record.get("mcf_like")
    if marked is not None and not isinstance(marked, bool):
        raise LawError(f"its 'mcf_like' is {quoted(marked)}, not true or false.")
    fact = Fact(
        id=text_in(record, "case_id"),
        subject=text_in(rewrite, "subject"),
        template=intern(text_in(rewrite, "prompt")),
        object=object,
        relation=intern(text_in(rewrite, "relation_id")) if known else "",
        paraphrases=texts_in(record, "paraphrase_prompts"),
        neighbours=tuple(_neighbour(entry, object) for entry in _list(record, "neighborhood_prompts")),
        generation_prompts=texts_in(record, "generation_prompts") if "generation_prompts" in record else (),
    )
    return fact, marked


def _list(record: Any, key: str) -> list[Any]:
    """The list under a record's key; an empty one where the record has no such key."""
    value = record.get(key, [])
    if not isinstance(value, list):
        raise LawError(f"its {key!r} is {quoted(value)}, not a list.")
    return value


def _neighbour(entry: Any, object: str) -> Question:
    """A neighbourhood prompt with its own answer, or with the record's object if it has none."""
    if (prompt := as_text(entry)) is not None:
        return Question(prompt, object)
    return Question(text_in(entry, "prompt"), text_in(entry, "target"))


def to_record(fact: Fact) -> dict[str, Any]:
    """The record that :func:`read_counterfact` reads back as ``fact``."""
    return {
        "case_id": fact.id,
        "requested_rewrite": {
            "prompt": fact.template,
            "relation_id": fact.relation or None,
            "target_true": {"str": fact.object},
            "subject": fact.subject,
        },
        "paraphrase_prompts": list(fact.paraphrases),
        "neighborhood_prompts": [
            asked.prompt if asked.object == fact.object else {"prompt": asked.prompt, "target": asked.object}
            for asked in fact.neighbours
        ],
        "generation_prompts": list(fact.generation_prompts),
    }
