"""Makes facts from Wikidata's triples: a template for each relation, no duplicates, one object per question.

Sixteen million triples do not fit into memory. A hash of subject and relation distributes them to
temporary files, which are compared one at a time. The result does not depend on the number of files.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from law.base.errors import LawError
from law.base.files import write_json_lines
from law.facts.record_files import clean, quoted, text_in

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
    """How many rows were read, and what each was: read = malformed + duplicates + ambiguous + written."""

    read: int  # rows that are not blank
    malformed: int
    duplicates: int  # rows that repeat a triple
    ambiguous: int  # distinct triples whose subject and relation occur with several objects
    pairs: int  # (subject, relation) pairs of the ambiguous triples
    written: int
    first_malformed: str  # the line of the first malformed row and what is wrong; empty if there is none


def read_templates(path: Path = TEMPLATES) -> dict[str, str]:
    """The template of each relation, with one ``{}`` in the subject's place, from a JSON object.

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
                f"{path}: the template of {relation!r} is {quoted(template)}; expected a text with exactly one {{}}, "
                "as in 'The mother tongue of {} is'."
            )
    return templates


def template_of(relation: str, templates: dict[str, str]) -> str:
    """The template of a relation; :data:`FALLBACK` for a relation that has none."""
    return templates.get(relation) or FALLBACK.replace("{relation}", relation)


def build_facts(
    source: Path, output: Path, templates: dict[str, str], partitions: int = 64, scratch: Path | None = None
) -> Counts:
    """Write a fact for each triple of ``source``, in its order, as JSON lines.

    All triples of a (subject, relation) pair that occurs with several objects are left out, and so are
    malformed rows. Memory holds the triples of one partition, and one byte per row.

    Args:
        source: see :data:`EXPECTED`; UTF-8.
        output: the file to write. After an error it is as it was before.
        templates: those of :func:`read_templates`.
        partitions: the number of temporary files.
        scratch: a folder for the temporary files, which are about as large as ``source``; ``None``: the
            system's folder.

    Raises:
        LawError: there is no such file, its format is not known, ``partitions`` is below 1, or no row
            gives a fact.
    """
    parse = _parser(source, templates)
    if partitions < 1:
        raise LawError(f"{partitions} partitions were asked for; expected at least 1.")
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        parts = [Path(folder) / str(number) for number in range(partitions)]
        read, malformed, first, last = _distribute(source, parse, parts)
        log.info("%s: %d rows distributed to %d files", source, read, partitions)
        kept = bytearray(last + 1)  # 1 at the number of a line whose fact is written
        found = [_settle(part, kept) for part in parts]
    duplicates, ambiguous, pairs = (sum(column) for column in zip(*found, strict=True))
    counts = Counts(read, malformed, duplicates, ambiguous, pairs, sum(kept), first)
    if not counts.written:
        raise LawError(f"{source} gives no fact ({asdict(counts)}). Expected {EXPECTED}.")
    output.parent.mkdir(parents=True, exist_ok=True)
    triples = (parse(data) for line, data in _rows(source) if kept[line])
    write_json_lines(
        output, (t._asdict() | {"template": template_of(t.relation, templates)} for t in triples)
    )
    return counts


def _rows(source: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1."""
    with source.open("rb") as file:
        for line, data in enumerate(file, start=1):
            if data.removeprefix(BOM_UTF8).strip():
                yield line, data.removeprefix(BOM_UTF8)


def _distribute(
    source: Path, parse: Callable[[bytes], Triple], parts: list[Path]
) -> tuple[int, int, str, int]:
    """Write the line number and the triple of every well-formed row to the file of its (subject, relation) pair.

    Returns the numbers of rows read and of malformed rows, a description of the first malformed row, and
    the number of the last line.
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
    """Set ``kept`` to 1 for one file's facts; returns its numbers of duplicates, ambiguous triples and pairs."""
    first: dict[str, tuple[str, str]] = {}  # line and object of the first triple of each pair
    others: dict[str, set[str]] = {}  # the further objects of each ambiguous pair
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
    """The function that reads a line of the file, chosen by the end of its name."""
    if not source.is_file():
        raise LawError(f"The file {source} does not exist. Expected {EXPECTED}.")
    if source.suffix.lower() == ".tsv":
        return _parse_tsv
    if source.suffix.lower() == ".jsonl":
        # the longest first: 'The country of citizenship of {} is' before 'The country of {} is'
        longest = sorted(templates.items(), key=lambda item: -len(item[1]))
        phrases = [(relation, *template.partition("{}")[::2]) for relation, template in longest]
        return partial(_parse_json, phrases=phrases)
    raise LawError(f"{source} is neither .tsv nor .jsonl; expected {EXPECTED}.")


def _parse_tsv(data: bytes) -> Triple:
    cells = _decoded(data).rstrip("\r\n").split("\t")
    if len(cells) != 3:
        raise LawError(f"it has {len(cells)} columns, not 3.")
    return _checked(*map(clean, cells))


def _parse_json(data: bytes, phrases: list[tuple[str, str, str]]) -> Triple:
    try:
        row: Any = json.loads(_decoded(data), parse_float=str)
    except ValueError as error:
        raise LawError(f"it is not valid JSON ({error}).") from error
    if isinstance(row, dict) and "context" in row:
        subject, relation = _parse_statement(text_in(row, "context"), phrases)
        return _checked(clean(subject), clean(relation), text_in(row, "continuation"))
    return _checked(*(text_in(row, key) for key in Triple._fields))


def _parse_statement(context: str, phrases: list[tuple[str, str, str]]) -> tuple[str, str]:
    """Subject and relation of a statement without its object, such as 'The capital of Italy is'."""
    for relation, before, after in phrases:
        if context.startswith(before) and context.endswith(after) and len(context) > len(before) + len(after):
            return context[len(before) : len(context) - len(after)], relation
    if match := FALLBACK_STATEMENT.fullmatch(context):
        return match[2], match[1]
    raise LawError(f"the statement {quoted(context)} has the form of no known template.")


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise LawError(f"it is not UTF-8 text ({error.reason}).") from error


def _checked(subject: str, relation: str, object: str) -> Triple:
    """The triple, if each label fits into a line of a temporary file and the relation into a template."""
    triple = Triple(subject, relation, object)
    for name, label in zip(Triple._fields, triple, strict=True):
        if "\t" in label or len(label.splitlines()) != 1:
            raise LawError(f"its {name} {quoted(label)} is not one line of text.")
    if "{}" in triple.relation:
        raise LawError(f"its relation {quoted(triple.relation)} holds {{}}.")
    return triple
