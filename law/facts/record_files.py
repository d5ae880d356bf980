"""Records of a file with the line each begins on, so that whatever is wrong with one can be found.

The ``datasets`` library reads the same formats, but it names no line of a malformed record and gives a
column of mixed values one type, so the reading is done here.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from law.base.errors import LawError

log = logging.getLogger(__name__)

T = TypeVar("T")


def require_file(path: Path, expected: str) -> None:
    """Raise unless the file is there; ``expected`` says what should lie in it."""
    if not path.is_file():
        raise LawError(
            f"The facts file {path} does not exist; expected {expected}. Set dataset.path to such a file."
        )


def read_text(path: Path, expected: str) -> str:
    """The text of a UTF-8 file, less a byte order mark.

    Raises:
        LawError: there is no such file, or it is not UTF-8; names the line.
    """
    require_file(path, expected)
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise LawError(
            f"{path}, line {line} is not UTF-8 text ({error.reason} at byte {error.start}). Expected "
            f"{expected}; save it as UTF-8."
        ) from error


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file that are not blank, read one at a time, without their ends.

    Raises:
        LawError: it is not UTF-8.
    """
    with path.open(encoding="utf-8") as lines:
        try:
            yield from (line.rstrip("\n") for line in lines if line.strip())
        except UnicodeDecodeError as error:
            raise LawError(
                f"{path} is not UTF-8 text ({error.reason}). Expected one document a line; save it as UTF-8."
            ) from error


def json_lines(path: Path, expected: str) -> Iterator[tuple[int, Any]]:
    """The JSON value of every line that is not blank, read one at a time.

    Raises:
        LawError: there is no such file, or a line is not JSON; names the line.
    """
    require_file(path, expected)
    with path.open("rb") as file:
        for line, data in enumerate(file, start=1):
            if not data.strip():
                continue
            try:
                yield line, json.loads(data)
            except ValueError as error:  # not JSON, or not UTF-8
                raise LawError(
                    f"{path}, line {line}: not valid JSON ({error}). Expected {expected}; mend or remove "
                    "that line."
                ) from error


def json_list(path: Path, expected: str) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON list with the line that each begins on.

    Raises:
        LawError: there is no such file, or it is not a JSON list; names the line.
    """
    text = read_text(path, expected)
    decoder = json.JSONDecoder()
    line = 1
    counted = 0  # characters whose line ends are already in ``line``
    at = _skip(text, 0)
    try:
        if not text.startswith("[", at):
            raise json.JSONDecodeError("expected a list, which begins with [", text, at)
        at = _skip(text, at + 1)
        while not text.startswith("]", at):
            line += text.count("\n", counted, at)
            counted = at
            record, at = decoder.raw_decode(text, at)
            yield line, record
            at = _skip(text, at)
            if text.startswith(",", at):
                at = _skip(text, at + 1)
            elif not text.startswith("]", at):
                raise json.JSONDecodeError("expected a comma or ]", text, at)
        at = _skip(text, at + 1)
        if at != len(text):
            raise json.JSONDecodeError("expected nothing after the list", text, at)
    except json.JSONDecodeError as error:
        raise LawError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}). Expected {expected}; mend the file "
            "or fetch it again."
        ) from error


def parsed(
    path: Path, records: Iterable[tuple[int, Any]], parse: Callable[[int, Any], T], shape: str
) -> Iterator[tuple[int, T]]:
    """What ``parse(line, record)`` makes of each record, with its line.

    Raises:
        LawError: ``parse`` raised one; this one adds the file, the line and the ``shape`` expected.
    """
    for line, record in records:
        try:
            value = parse(line, record)
        except LawError as error:
            raise LawError(
                f"{path}, line {line}: the record is malformed: {error} Expected {shape}. Mend or remove "
                "that record."
            ) from error
        yield line, value


def value_in(record: Any, key: str) -> Any:
    """A record's value, which has to be there."""
    if not isinstance(record, dict):
        raise LawError(f"{json.dumps(record)[:60]} stands where an object with {key!r} should.")
    if key not in record:
        raise LawError(f"it has no {key!r}.")
    return record[key]


def text_in(record: Any, key: str) -> str:
    """A record's text, which has to be there."""
    value = value_in(record, key)
    if not isinstance(value, str):
        raise LawError(f"its {key!r} is {json.dumps(value)[:60]}, not a text.")
    return value


def texts_in(record: Any, key: str) -> tuple[str, ...]:
    """A record's list of texts, which has to be there."""
    value = value_in(record, key)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise LawError(f"its {key!r} is {json.dumps(value)[:60]}, not a list of texts.")
    return tuple(value)


class LeftOut:
    """Records that a reader leaves out: how many for which reason, and where the first is."""

    def __init__(self) -> None:
        self.lines: dict[str, list[int]] = defaultdict(list)

    def add(self, reason: str, line: int) -> None:
        self.lines[reason].append(line)

    def log(self, path: Path) -> None:
        """Tell each reason in one line of the log."""
        for reason, lines in self.lines.items():
            log.warning(
                "%s: left out %d records: %s; the first on line %d", path, len(lines), reason, lines[0]
            )


def _skip(text: str, at: int) -> int:
    """The next place that is not white space."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
