"""Reads record files: each record with its line, each text in one normal form.

The ``datasets`` library reads the same formats. It is not used, because its errors name no line, and
because it casts a column of mixed values to one type.
"""

from __future__ import annotations

import json
import logging
from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from unicodedata import normalize

from law.base.errors import LawError, shortened
from law.facts.fact import Fact

log = logging.getLogger(__name__)

T = TypeVar("T")


def require_file(path: Path, expected: str) -> None:
    """Raise a LawError unless the file can be opened; ``expected`` says what it should hold."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise LawError(
            f"The facts file {path} can't be read: {error.strerror}. Expected {expected}. Set dataset.path to "
            "such a file."
        ) from error


def clean(text: str) -> str:
    """A text as facts hold it: in composed Unicode (NFC), without outer white space.

    Both matter to a tokenizer. A decomposed letter has other tokens than the same letter composed, and a
    prompt that ends in a space has one token more than the same prompt without it.

    Raises:
        LawError: the text holds a lone surrogate, as JSON's escape ``\\ud800`` makes it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LawError(f"{shortened(ascii(text))} is not Unicode text ({error.reason}).") from error
    return normalize("NFC", text).strip()


def as_text(value: Any) -> str | None:
    """A JSON value as a clean text; a number counts as its text. ``None``: it is neither text nor number."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return clean(value) if isinstance(value, str) else None


def quoted(value: Any) -> str:
    """A JSON value for a message: as JSON writes it, without the middle of a long one."""
    return shortened(json.dumps(value, ensure_ascii=False)).encode(errors="backslashreplace").decode()


def decoded(path: Path, data: bytes, line: int = 1) -> str:
    """The text of the UTF-8 bytes ``data``, which begin on ``line`` of a file; without a byte order mark.

    Raises:
        LawError: it is not UTF-8; names the line and the byte.
    """
    data = data.removeprefix(BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, byte = line + before.count(b"\n"), len(before) - before.rfind(b"\n")
        raise LawError(
            f"{path}, line {line}, byte {byte} of that line: 0x{data[error.start]:02x} is not UTF-8 text. Save the "
            "file as UTF-8."
        ) from error


def read_text(path: Path, expected: str) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        LawError: the file can't be read, or it is not UTF-8.
    """
    require_file(path, expected)
    return decoded(path, path.read_bytes())


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file that are not blank, read one at a time, without line ends and byte order mark.

    Raises:
        LawError: it is not UTF-8.
    """
    with path.open(encoding="utf-8-sig") as lines:
        try:
            yield from (line.rstrip("\n") for line in lines if line.strip())
        except UnicodeDecodeError as error:
            raise LawError(
                f"{path} is not UTF-8 text ({error.reason}). Expected one document a line; save it as UTF-8."
            ) from error


def json_lines(
    path: Path, expected: str, parse_float: Callable[[str], Any] = float
) -> Iterator[tuple[int, Any]]:
    """The JSON value of every line that is not blank, with its line number; reads one line at a time.

    Args:
        parse_float: makes a value of a number with a point or an exponent. ``str`` keeps it as written.

    Raises:
        LawError: the file can't be read, or a line is not JSON; names the line.
    """
    require_file(path, expected)
    with path.open("rb") as file:
        for line, data in enumerate(file, start=1):
            text = decoded(path, data, line)
            if not text.strip():
                continue
            try:
                yield line, json.loads(text, parse_float=parse_float)
            except (ValueError, RecursionError) as error:
                raise LawError(
                    f"{path}, line {line}: not valid JSON ({error}). Expected {expected}. Mend or remove that line."
                ) from error


def json_list(path: Path, expected: str) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON list, with the line that each begins on.

    A number with a point or an exponent is given as its text, as written.

    Raises:
        LawError: the file can't be read, or it is not a JSON list; names the line.
    """
    text = read_text(path, expected)
    decoder = json.JSONDecoder(parse_float=str)
    line = 1
    counted = 0  # ``line`` counts the line ends before this character
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
    except (ValueError, RecursionError) as error:
        line, problem = (
            (error.lineno, error.msg) if isinstance(error, json.JSONDecodeError) else (line, error)
        )
        raise LawError(
            f"{path}, line {line}: not valid JSON ({problem}). Expected {expected}. Mend the file or "
            "fetch it again."
        ) from error


def parsed(
    path: Path, records: Iterable[tuple[int, Any]], parse: Callable[[int, Any], T], shape: str
) -> Iterator[tuple[int, T]]:
    """What ``parse(line, record)`` makes of each record, with the record's line.

    Raises:
        LawError: that of ``parse``, with the file, the line and the expected ``shape`` added.
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
    """The value of a record's required key."""
    if not isinstance(record, dict):
        raise LawError(f"{quoted(record)} is not a JSON object with {key!r}.")
    if key not in record:
        raise LawError(f"it has no {key!r}.")
    return record[key]


def text_in(record: Any, key: str) -> str:
    """The clean text of a record's required key."""
    text = as_text(value := value_in(record, key))
    if text is None:
        raise LawError(f"its {key!r} is {quoted(value)}, not a text.")
    return text


def texts_in(record: Any, key: str) -> tuple[str, ...]:
    """The clean texts in the list of a record's required key."""
    value = value_in(record, key)
    texts = [as_text(entry) for entry in value] if isinstance(value, list) else [None]
    if None in texts:
        raise LawError(f"its {key!r} is {quoted(value)}, not a list of texts.")
    return tuple(text for text in texts if text is not None)


class LeftOut:
    """Counts the records that a reader leaves out, by reason, and knows the line of each."""

    def __init__(self) -> None:
        self.lines: dict[str, list[int]] = defaultdict(list)
        self._before: set[tuple[str, str]] = set()

    def add(self, reason: str, line: int) -> None:
        self.lines[reason].append(line)

    def add_repeat(self, fact: Fact, line: int) -> bool:
        """Leave out a fact that has the prompt and the object of an earlier one; whether that was so."""
        if (told := (fact.prompt, fact.object)) in self._before:
            self.add("the prompt and its object have occurred before", line)
            return True
        self._before.add(told)
        return False

    def log(self, path: Path) -> None:
        """Write one line to the log for each reason."""
        for reason, lines in self.lines.items():
            log.warning(
                "%s: left out %d records: %s; the first on line %d", path, len(lines), reason, lines[0]
            )


def _skip(text: str, at: int) -> int:
    """The first index from ``at`` on that is not white space."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
