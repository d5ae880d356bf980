"""Facts that a user writes down: a CSV with a header, or a JSON object a line."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from law.base.errors import LawError
from law.facts.fact import Fact, Question
from law.facts.record_files import LeftOut, json_lines, read_text
from law.facts.source import FactSource
from law.facts.zsre import ask

COLUMNS = (
    "id", "subject", "prompt", "object", "question", "answer", "relation", "paraphrases", "neighbours",
)  # fmt: skip
LISTS = ("paraphrases", "neighbours")
EXPECTED = "a CSV with a header (.csv), or a JSON object a line (.jsonl), with subject, prompt and object"
SEPARATOR = "|"
ANSWERED = " => "


@dataclass
class Custom(FactSource):
    """A CSV or JSONL file of facts, or of questions and answers, and which of them to wash and to keep."""

    def read(self, path: Path) -> list[Fact]:
        return read_custom(path)

    def fetch(self) -> Path:
        raise LawError(f"dataset.path is not set; expected {EXPECTED}. Set dataset.path to such a file.")


def read_custom(path: Path) -> list[Fact]:
    """The facts of a ``.csv`` or ``.jsonl`` file, in its order.

    A fact that repeats another, prompt and object, is left out and counted in the log.

    Raises:
        LawError: names the file, the line and the column of what is wrong first.
    """
    if path.suffix not in (".csv", ".jsonl"):
        raise LawError(f"{path} ends neither in .csv nor in .jsonl; expected {EXPECTED}.")
    facts: list[Fact] = []
    seen: set[tuple[str, str]] = set()
    ids: dict[str, int] = {}
    left_out = LeftOut()
    for line, row in _json_rows(path) if path.suffix == ".jsonl" else _csv_rows(path):
        try:
            fact = _fact(row, default_id=str(line))
            if fact.id in ids:
                raise _wrong("id", f"{fact.id!r} is the fact of line {ids[fact.id]} too; expected its own")
        except LawError as error:
            raise LawError(f"{path}, line {line}, {error}") from error
        ids[fact.id] = line
        if (fact.prompt, fact.object) in seen:
            left_out.add("the prompt and its object have occurred before", line)
            continue
        seen.add((fact.prompt, fact.object))
        facts.append(fact)
    left_out.log(path)
    return facts


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, row in json_lines(path, EXPECTED):
        if not isinstance(row, dict):
            raise LawError(
                f"{path}, line {line}: {json.dumps(row)[:60]} is no JSON object. Expected {EXPECTED}."
            )
        yield line, {key: value for key, value in row.items() if value not in (None, "", [])}


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows with the line that each begins on; an empty cell is as good as none."""
    reader = csv.reader(io.StringIO(read_text(path, EXPECTED), newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                pass
            elif not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    raise LawError(f"{path}, line {line}: the header {header} names a column twice.")
            elif len(cells) != len(header):
                raise LawError(
                    f"{path}, line {line}: it has {len(cells)} columns; expected {len(header)} as in the header: "
                    f"{', '.join(header)}. Quote a cell that holds a comma."
                )
            else:
                pairs = ((name, cell.strip()) for name, cell in zip(header, cells, strict=True))
                yield line, {name: _cell(name, cell) for name, cell in pairs if cell}
            line = reader.line_num + 1
    except csv.Error as error:
        raise LawError(f"{path}, line {line}: not valid CSV ({error}). Expected {EXPECTED}.") from error


def _cell(name: str, cell: str) -> Any:
    """A cell's text, or its list in the shape that JSONL gives it."""
    if name not in LISTS:
        return cell
    parts = [part.strip() for part in cell.split(SEPARATOR) if part.strip()]
    if name == "paraphrases":
        return parts
    neighbours = []
    for part in parts:
        prompt, arrow, object = part.rpartition(ANSWERED)
        # without an arrow it is left a text, which is refused with the others that are no neighbours
        neighbours.append({"prompt": prompt.strip(), "object": object.strip()} if arrow else part)
    return neighbours


def _fact(row: dict[str, Any], default_id: str) -> Fact:
    """Raises a LawError that begins with the column."""
    for name in row:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise _wrong(name, f"no such column is known.{hint} Expected some of {', '.join(COLUMNS)}")
    asked, told = ("question", "answer") if "question" in row else ("prompt", "object")
    if other := {"prompt", "object", "question", "answer"} & row.keys() - {asked, told}:
        raise _wrong(
            min(other), f"it stands beside {asked!r}; expected prompt and object, or question and answer"
        )
    subject, template = _place(_text(row, asked), asked, row)
    paraphrases = [text.replace("{}", subject) for text in _texts(row, "paraphrases")]
    neighbours = [_neighbour(entry) for entry in _list(row, "neighbours")]
    if asked == "question":
        template, paraphrases = ask(template), [ask(text) for text in paraphrases]
        neighbours = [Question(ask(question.prompt), question.object) for question in neighbours]
    return Fact(
        id=_id(row, default_id),
        subject=subject,
        template=template,
        object=_text(row, told),
        relation=_text(row, "relation") if "relation" in row else "",
        paraphrases=tuple(paraphrases),
        neighbours=tuple(neighbours),
    )


def _place(text: str, column: str, row: dict[str, Any]) -> tuple[str, str]:
    """The subject, and the text with ``{}`` in its place."""
    marked = re.findall(r"\[\[(.+?)\]\]", text)
    if len(marked) > 1 or (marked and "{}" in text) or text.count("{}") > 1:
        raise _wrong(column, f"{text!r} marks more than one place for the subject; expected one")
    if marked:
        if row.get("subject", marked[0]) != marked[0]:
            raise _wrong("subject", f"it is {row['subject']!r}, but {column!r} marks [[{marked[0]}]]")
        return marked[0], text.replace(f"[[{marked[0]}]]", "{}")
    if "subject" not in row:
        raise _wrong("subject", f"it is empty; expected the subject, or [[subject]] marked in {column!r}")
    subject = _text(row, "subject")
    if "{}" in text:
        return subject, text
    if (count := text.count(subject)) != 1:
        raise _wrong(
            column,
            f"the subject {subject!r} occurs {count} times in {text!r}; expected once. Write {{}} where it stands",
        )
    return subject, text.replace(subject, "{}")


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise _wrong(column, f"it is {'empty' if value is None else repr(value)}; expected a text")
    return value


def _id(row: dict[str, Any], default: str) -> str:
    """A number in JSON is as good an id as a text."""
    value = row.get("id", default)
    return str(value) if isinstance(value, int) else _text({"id": value}, "id")


def _list(row: dict[str, Any], column: str) -> list[Any]:
    value = row.get(column, [])
    if not isinstance(value, list):
        raise _wrong(column, f"it is {value!r}; expected a list")
    return value


def _texts(row: dict[str, Any], column: str) -> list[str]:
    return [_text({column: value}, column) for value in _list(row, column)]


def _neighbour(entry: Any) -> Question:
    try:
        return Question(_text(entry, "prompt"), _text(entry, "object"))
    except (AttributeError, LawError):
        raise _wrong(
            "neighbours",
            f"{entry!r} is no prompt with its object; expected 'The capital of Italy is => Rome' in a CSV, "
            '{"prompt": ..., "object": ...} in JSON',
        ) from None


def _wrong(column: str, problem: str) -> LawError:
    return LawError(f"column {column!r}: {problem}.")
