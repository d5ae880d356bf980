"""Facts in a file of the user's own: a table with a header (CSV, TSV), or a JSON object a line."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from law.base.errors import LawError, did_you_mean, shortened
from law.facts.fact import Fact, Question
from law.facts.record_files import LeftOut, as_text, json_lines, quoted, read_text
from law.facts.source import FactSource
from law.facts.subject import places, template
from law.facts.zsre import ask

log = logging.getLogger(__name__)

COLUMNS = (
    "id", "subject", "prompt", "object", "question", "answer", "relation", "paraphrases", "neighbours",
)  # fmt: skip
PAIRS = (("prompt", "object"), ("question", "answer"))
"""What asks, and what answers it. A row has one pair; the rows of a table may have different ones."""
LISTS = ("paraphrases", "neighbours")
EXPECTED = (
    "a table with a header (.csv, .tsv), or a JSON object a line (.jsonl), with subject, prompt and object"
)
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
SEPARATOR = "|"
ANSWERED = " => "


@dataclass
class Custom(FactSource):
    """A file of facts, or of questions and answers, and which of them to wash and to keep."""

    def read(self, path: Path) -> list[Fact]:
        return read_custom(path)

    def fetch(self) -> Path:
        raise LawError(f"dataset.path is not set. Expected {EXPECTED}. Set dataset.path to such a file.")


def read_custom(path: Path) -> list[Fact]:
    """The facts of a ``.csv``, ``.tsv`` or ``.jsonl`` file, in its order.

    A fact that repeats the prompt and the object of an earlier one is left out, and the log counts it.

    Raises:
        LawError: names the file, the line and the column of the first fault.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl"):
        raise LawError(
            f"The name of {path} ends in none of .csv, .tsv and .jsonl. Expected {EXPECTED}. Rename the file."
        )
    facts: list[Fact] = []
    ids: dict[str, int] = {}
    left_out = LeftOut()
    for line, row in _json_rows(path) if suffix == ".jsonl" else _table_rows(path, suffix):
        try:
            fact = _fact(row, default_id=str(line))
            if fact.id in ids:
                raise _wrong(
                    "id", f"line {ids[fact.id]} has the id {shortened(fact.id)!r} too; expected another"
                )
        except LawError as error:
            raise LawError(f"{path}, line {line}, {error}") from error
        ids[fact.id] = line
        if not left_out.add_repeat(fact, line):
            facts.append(fact)
    left_out.log(path)
    return facts


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, row in json_lines(path, EXPECTED, parse_float=str):
        if not isinstance(row, dict):
            raise LawError(f"{path}, line {line}: {quoted(row)} is not a JSON object. Expected {EXPECTED}.")
        yield line, {key: value for key, value in row.items() if value not in (None, "", [])}


def _table_rows(path: Path, suffix: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows, with the line that each begins on. An empty cell is left out of its row."""
    text = read_text(path, EXPECTED)
    delimiter = "\t" if suffix == ".tsv" else _delimiter(text)
    if suffix == ".csv" and delimiter != ",":
        log.info("%s: %s separate the columns", path, DELIMITERS[delimiter])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                pass
            elif not header:
                header = [cell.strip() for cell in cells]
                _check_columns(filter(None, header), f"{path}, line {line}, ")
                if len(set(header)) < len(header):
                    raise LawError(f"{path}, line {line}: the header {quoted(header)} names a column twice.")
                if not any({*pair} <= {*header} for pair in PAIRS):
                    _pair(header, f"{path}, line {line}, ")  # refuses it, as it would each row
            elif len(cells) != len(header):
                raise LawError(
                    f"{path}, line {line}: it has {len(cells)} columns; expected {len(header)} as in the header, "
                    f"{quoted(header)}, separated by {DELIMITERS[delimiter]}. Put quotation marks around a cell that "
                    "holds the delimiter."
                )
            else:
                pairs = ((name, cell.strip()) for name, cell in zip(header, cells, strict=True))
                yield line, {name: _cell(name, cell) for name, cell in pairs if cell}
            line = reader.line_num + 1
    except csv.Error as error:
        raise LawError(f"{path}, line {line}: not a valid table ({error}). Expected {EXPECTED}.") from error


def _delimiter(text: str) -> str:
    """The delimiter by which the first line that is not blank names the most known columns."""
    header = next((line for line in text.splitlines() if line.strip(' ",;\t')), "")
    return max(DELIMITERS, key=lambda each: sum(cell.strip(' "') in COLUMNS for cell in header.split(each)))


def _cell(name: str, cell: str) -> Any:
    """What JSONL has in place of a cell: its text, or a list."""
    if name not in LISTS:
        return cell
    parts = [part.strip() for part in cell.split(SEPARATOR) if part.strip()]
    if name == "paraphrases":
        return parts
    neighbours = []
    for part in parts:
        prompt, arrow, object = part.rpartition(ANSWERED)
        # a part without an arrow stays a text, which _neighbour refuses
        neighbours.append({"prompt": prompt.strip(), "object": object.strip()} if arrow else part)
    return neighbours


def _check_columns(names: Iterable[str], where: str = "") -> None:
    for name in names:
        if name not in COLUMNS:
            raise LawError(
                f"{where}column {shortened(name)!r}: there is no such column."
                f"{did_you_mean(name, COLUMNS)} Expected some of "
                f"{', '.join(COLUMNS)}."
            )


def _pair(names: Collection[str], where: str = "") -> tuple[str, str]:
    """The columns that ask and answer."""
    expected = "expected prompt and object, or question and answer"
    (asked, told), other = sorted(PAIRS, key=lambda pair: [name in names for name in pair], reverse=True)
    for column in other:
        if column in names:
            beside = asked if asked in names else told
            hint = f" Did you mean {told!r}?" if column == other[1] and told not in names else ""
            raise LawError(f"{where}column {column!r}: {beside!r} stands beside it; {expected}.{hint}")
    for column in (asked, told):
        if column not in names:
            raise LawError(f"{where}column {column!r}: it is missing or empty; {expected}.")
    return asked, told


def _fact(row: dict[str, Any], default_id: str) -> Fact:
    """The fact of a row. The message of a LawError begins with the column."""
    _check_columns(row)
    asked, told = _pair(row)
    subject, prompt = _place(_text(row, asked), asked, row)
    paraphrases = [text.replace("{}", subject) for text in _texts(row, "paraphrases")]
    neighbours = [_neighbour(entry) for entry in _list(row, "neighbours")]
    if asked == "question":
        prompt, paraphrases = ask(prompt), [ask(text) for text in paraphrases]
        neighbours = [Question(ask(question.prompt), question.object) for question in neighbours]
    return Fact(
        id=_text(row, "id") if "id" in row else default_id,
        subject=subject,
        template=prompt,
        object=_text(row, told),
        relation=_text(row, "relation") if "relation" in row else "",
        paraphrases=tuple(paraphrases),
        neighbours=tuple(neighbours),
    )


def _place(text: str, column: str, row: dict[str, Any]) -> tuple[str, str]:
    """The subject, and the text with ``{}`` in its place."""
    marked = re.findall(r"\[\[(.+?)\]\](?!\])", text)
    if len(marked) > 1 or (marked and "{}" in text) or text.count("{}") > 1:
        raise _wrong(column, f"{shortened(text)!r} marks more than one place for the subject; expected one")
    if marked:
        subject = _text({"subject": marked[0]}, "subject")
        if "subject" in row and (given := _text(row, "subject")) != subject:
            raise _wrong(
                "subject", f"it is {shortened(given)!r}, but {column!r} marks [[{shortened(subject)}]]"
            )
        return subject, text.replace(f"[[{marked[0]}]]", "{}")
    if "subject" not in row:
        raise _wrong(
            "subject", f"it is missing or empty; expected the subject, or [[subject]] marked in {column!r}"
        )
    subject = _text(row, "subject")
    if "{}" in text:
        return subject, text
    found = places(subject, text)
    if len(found) != 1:
        raise _wrong(
            column,
            f"the subject {shortened(subject)!r} occurs {len(found)} times as a whole word in {shortened(text)!r}; "
            "expected once. Write {} in its place",
        )
    return subject, template(subject, text, found[0])


def _text(row: dict[str, Any], column: str) -> str:
    text = as_text(value := row.get(column))
    if not text:
        raise _wrong(
            column, f"it is {'missing or empty' if value is None else quoted(value)}; expected a text"
        )
    return text


def _list(row: dict[str, Any], column: str) -> list[Any]:
    value = row.get(column, [])
    if not isinstance(value, list):
        raise _wrong(column, f"it is {quoted(value)}; expected a list")
    return value


def _texts(row: dict[str, Any], column: str) -> list[str]:
    return [_text({column: value}, column) for value in _list(row, column)]


def _neighbour(entry: Any) -> Question:
    try:
        return Question(_text(entry, "prompt"), _text(entry, "object"))
    except (AttributeError, LawError):
        raise _wrong(
            "neighbours",
            f"{quoted(entry)} is not a prompt with its object; expected 'The capital of Italy is => Rome' in a table, "
            '{"prompt": ..., "object": ...} in JSON',
        ) from None


def _wrong(column: str, problem: str) -> LawError:
    return LawError(f"column {column!r}: {problem}.")
