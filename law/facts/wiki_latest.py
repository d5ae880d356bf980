"""Facts that ``experiments/build_wiki.py`` makes from Wikidata's triples, one JSON object a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

from law.base.errors import LawError
from law.facts.fact import Fact
from law.facts.record_files import json_lines, parsed, text_in
from law.facts.source import FactSource

EXPECTED = "a JSON object a line, as experiments/build_wiki.py writes them"
MADE = Path("outputs/datasets/wiki_latest.jsonl")
"""The file that is read while ``dataset.path`` is not set."""
SHAPE = "subject, relation, template (with one {}) and object, all texts"


@dataclass
class WikiLatest(FactSource):
    """A file that ``experiments/build_wiki.py`` wrote, and which facts of it to wash and to keep."""

    def read(self, path: Path) -> list[Fact]:
        return read_wiki(path)

    def fetch(self) -> Path:
        if MADE.is_file():
            return MADE
        raise LawError(
            f"dataset.path is not set, {MADE} does not exist, and no address of Wiki-Latest is known. Expected a "
            f"file of facts. Run `python experiments/build_wiki.py triples.tsv {MADE}` to make one from Wikidata's "
            "triples, or set dataset.path. See docs/datasets.md."
        )


def read_wiki(path: Path) -> list[Fact]:
    """The facts of a file, in its order; a fact's id is its line number, from 1.

    Raises:
        LawError: a record is malformed; names the file and the line.
    """
    return [fact for _, fact in parsed(path, json_lines(path, EXPECTED, parse_float=str), _fact, SHAPE)]


def _fact(line: int, record: Any) -> Fact:
    return Fact(
        id=str(line),
        subject=text_in(record, "subject"),
        template=intern(text_in(record, "template")),  # few templates and relations, many facts
        object=text_in(record, "object"),
        relation=intern(text_in(record, "relation")),
    )
