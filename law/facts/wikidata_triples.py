"""Wikidata's triples made into facts: phrased by relation, no duplicates, one object a question.

Sixteen million triples do not fit into memory, so they are shared out to files by a hash of subject and
relation, and compared one file at a time. What is kept does not depend on the number of files.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from law.base.errors import LawError
from law.facts.record_files import text_in

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).with_name("templates.json")
FALLBACK = "The {relation} of {} is"
FALLBACK_STATEMENT = re.compile(r"The (.+?) of (.+) is")
EXPECTED = (
    "triples: a .tsv of subject, relation and object, or a .jsonl of objects with these keys or with the "
    "context and continuation of a statement"
)


class Triple(NamedTuple):
    """A subject, its relation's label, and the object."""

    subject: str
    relation: str
    object: str


@dataclass(frozen=True)
class Counts:
    """What became of the rows: ``read`` is the sum of the others but ``pairs`` and ``first_malformed``."""

    read: int  # rows that are not blank
    malformed: int
    duplicates: int  # rows that repeat a triple
    ambiguous: int  # different triples that share subject and relation with another
    pairs: int  # (subject, relation) pairs that these belong to
    written: int
    first_malformed: str  # its line and what is wrong with it; empty if none is


def read_templates(path: Path = TEMPLATES) -> dict[str, str]:
    """How each relation is phrased, with ``{}`` for the subject; others get :data:`FALLBACK`.

    Raises:
        LawError: the file is not a JSON object of such templates.
    """
    try:
        templates = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LawError(f"{path} can't be read ({error}). Expected a JSON object of templates.") from error
    if not isinstance(templates, dict):
        raise LawError(f"{path} holds no JSON object; expected one of templates by relation.")
    for relation, template in templates.items():
        if not isinstance(template, str) or template.count("{}") != 1:
            raise LawError(
                f"{path}: the template of {relation!r} is {template!r}; expected a text with exactly one {{}}, "
                "as in 'The mother tongue of {} is'."
            )
    return templates


def template_of(relation: str, templates: dict[str, str]) -> str:
    """The phrasing of a relation."""
    return templates.get(relation) or FALLBACK.replace("{relation}", relation)


def build_facts(
    source: Path, output: Path, templates: dict[str, str], partitions: int = 64, scratch: Path | None = None
) -> Counts:
    """Write the facts that the triples of ``source`` make, in its order, as JSON lines.

    A (subject, relation) pair with several objects is left out whole. A malformed row is left out and
    counted. Memory is that of one partition's triples, and one byte a row.

    Args:
        source: see :data:`EXPECTED`; UTF-8.
        output: written whole or not at all.
        templates: of :func:`read_templates`.
        partitions: temporary files that the rows are shared out to.
        scratch: a folder with room for about the size of ``source``; ``None`` takes the system's.

    Raises:
        LawError: no such file or no known format, a number of partitions below 1, or no row gives a fact.
    """
    parse = _parser(source, templates)
    if partitions < 1:
        raise LawError(f"{partitions} partitions were asked for; expected at least 1.")
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        parts = [Path(folder) / str(number) for number in range(partitions)]
        read, malformed, first, last = _share_out(source, parse, parts)
        log.info("%s: %d rows shared out to %d files", source, read, partitions)
        kept = bytearray(last + 1)  # by line: 1 if its fact is written
        found = [_settle(part, kept) for part in parts]
    duplicates, ambiguous, pairs = (sum(column) for column in zip(*found, strict=True))
    counts = Counts(read, malformed, duplicates, ambiguous, pairs, sum(kept), first)
    if not counts.written:
        raise LawError(f"{source} gives no fact ({asdict(counts)}). Expected {EXPECTED}.")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial_output = output.with_name(f"{output.name}.{os.getpid()}.partial")
    with partial_output.open("w", encoding="utf-8") as file:
        for line, data in _rows(source):
            if kept[line]:
                triple = parse(data)
                fact = triple._asdict() | {"template": template_of(triple.relation, templates)}
                file.write(json.dumps(fact, ensure_ascii=False) + "\n")
    partial_output.replace(output)
    return counts


def _rows(source: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1."""
    with source.open("rb") as file:
        for line, data in enumerate(file, start=1):
            if line == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")  # the byte order mark
            if not data.isspace() and data:
                yield line, data


def _share_out(
    source: Path, parse: Callable[[bytes], Triple], parts: list[Path]
) -> tuple[int, int, str, int]:
    """Write line, pair and object of every good row to the file of its pair.

    Returns the rows read, the malformed, what the first of them is, and the number of the last line.
    """
    read, malformed, first, line = 0, 0, "", 0
    with ExitStack() as stack:
        files = [stack.enter_context(part.open("w", encoding="utf-8", newline="\n")) for part in parts]
        for line, data in _rows(source):
            read += 1
            try:
                triple = parse(data)
            except LawError as error:
                malformed += 1
                first = first or f"line {line}: {error}"
                continue
            pair = f"{triple.subject}\t{triple.relation}"
            files[crc32(pair.encode()) % len(files)].write(f"{line}\t{pair}\t{triple.object}\n")
    return read, malformed, first, line


def _settle(part: Path, kept: bytearray) -> tuple[int, int, int]:
    """Mark the lines of one file's facts; returns its duplicate rows, ambiguous triples and pairs."""
    first: dict[str, tuple[str, str]] = {}  # the line and the object that a pair occurs with first
    others: dict[str, set[str]] = {}  # an ambiguous pair's further objects
    duplicates = 0
    with part.open(encoding="utf-8", newline="\n") as file:
        for row in file:
            line, rest = row.split("\t", 1)
            pair, _, object = rest.rpartition("\t")
            if pair not in first:
                first[pair] = line, object
            elif object == first[pair][1] or object in others.get(pair, ()):
                duplicates += 1
            else:
                others.setdefault(pair, set()).add(object)
    for pair, (line, _) in first.items():
        if pair not in others:
            kept[int(line)] = 1
    return duplicates, sum(1 + len(objects) for objects in others.values()), len(others)


def _parser(source: Path, templates: dict[str, str]) -> Callable[[bytes], Triple]:
    """How a line of the file is read, by its name."""
    if not source.is_file():
        raise LawError(f"The file {source} does not exist; expected {EXPECTED}.")
    if source.suffix == ".tsv":
        return _parse_tsv
    if source.suffix == ".jsonl":
        # the longest first: 'The country of citizenship of {} is' before 'The country of {} is'
        longest = sorted(templates.items(), key=lambda item: -len(item[1]))
        phrases = [(relation, *template.partition("{}")[::2]) for relation, template in longest]
        return partial(_parse_json, phrases=phrases)
    raise LawError(f"{source} is neither .tsv nor .jsonl; expected {EXPECTED}.")


def _parse_tsv(data: bytes) -> Triple:
    cells = _decoded(data).rstrip("\r\n").split("\t")
    if len(cells) != 3:
        raise LawError(f"it has {len(cells)} columns, not 3.")
    return _checked(*cells)


def _parse_json(data: bytes, phrases: list[tuple[str, str, str]]) -> Triple:
    try:
        row: Any = json.loads(_decoded(data))
    except ValueError as error:
        raise LawError(f"it is not valid JSON ({error}).") from error
    if isinstance(row, dict) and "context" in row:
        subject, relation = _parse_statement(text_in(row, "context").strip(), phrases)
        triple = _checked(subject, relation, text_in(row, "continuation"))
    else:
        triple = _checked(*(text_in(row, key) for key in Triple._fields))
    try:
        "".join(triple).encode()
    except UnicodeEncodeError as error:  # half of a pair of escapes, which no UTF-8 file holds
        raise LawError(f"it is no text ({error.reason}).") from error
    return triple


def _parse_statement(context: str, phrases: list[tuple[str, str, str]]) -> tuple[str, str]:
    """Subject and relation of a statement less its object, by the phrase it is made with."""
    for relation, before, after in phrases:
        if context.startswith(before) and context.endswith(after) and len(context) > len(before) + len(after):
            return context[len(before) : len(context) - len(after)], relation
    if match := FALLBACK_STATEMENT.fullmatch(context):
        return match[2], match[1]
    raise LawError(f"the statement {context!r} is made with no template that is known.")


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise LawError(f"it is not UTF-8 text ({error.reason}).") from error


def _checked(subject: str, relation: str, object: str) -> Triple:
    """A triple of labels that a temporary file's line holds and a template takes."""
    triple = Triple(subject.strip(), relation.strip(), object.strip())
    for name, label in zip(Triple._fields, triple, strict=True):
        if "\t" in label or len(label.splitlines()) != 1:
            raise LawError(f"its {name} {label!r} is not one line of text.")
    if "{}" in triple.relation:
        raise LawError(f"its relation {triple.relation!r} holds {{}}.")
    return triple
