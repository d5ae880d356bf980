"""Files: their hashes, and writing them so that a reader sees the old file or the whole new one."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

log = logging.getLogger(__name__)

PARTIAL = ".partial"
"""The end of a file's name while it is being written."""

DAMAGED = ".damaged"
"""The end of the name of a file that was found to be damaged."""

HASH_IN_NAME = re.compile(r"\.([0-9a-f]{16})\.json$")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write a file or a folder to; it takes the place of ``path`` once it is whole.

    After an error nothing is left of it. The name is random: two machines may write the same path at the same time.
    """
    partial = path.with_name(f"{path.name}.{uuid4().hex}{PARTIAL}")
    try:
        yield partial
        for file in [*partial.rglob("*")] if partial.is_dir() else [partial]:
            if file.is_file():
                _sync(file)
        if path.is_dir():
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        remove(partial)


def remove_partial(folder: Path, older_s: float = 0.0) -> None:
    """Remove what killed runs have left half-written in ``folder`` and not touched for ``older_s`` seconds."""
    for partial in folder.glob(f"*{PARTIAL}"):
        try:
            if time.time() - partial.stat().st_mtime >= older_s:
                remove(partial)
        except FileNotFoundError:
            continue  # its writer has just finished


def _sync(path: Path) -> None:
    """Wait until a file is on the disk, so that a power cut does not leave its new name with half of it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, parts: Iterable[str]) -> None:
    """Write UTF-8 text, part after part."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(parts)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value."""
    write_text(path, [_json_text(value)])


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON object a line."""
    write_text(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_hashed_json(path: Path, value: Any) -> None:
    """Write one JSON value as ``write_json`` does, with the hash of the file's bytes before the end of its name."""
    text = _json_text(value)
    write_text(path.with_suffix(f".{_short_hash(text.encode())}{path.suffix}"), [text])


def load_json(path: Path) -> Any:
    """The value of a file; ``None`` where there is none, or a damaged one, which is set aside.

    A file whose name has the hash of its bytes (:func:`write_hashed_json`) is damaged when it has other bytes.
    """
    try:
        content = path.read_bytes()
        named = HASH_IN_NAME.search(path.name)
        if named and named[1] != _short_hash(content):
            raise ValueError("its bytes have another hash than its name")
        return json.loads(content)
    except FileNotFoundError:
        return None
    except ValueError as error:
        set_aside(path, error)
        return None


def set_aside(path: Path, error: Exception) -> None:
    """Rename a damaged file, so that it can be looked at and is not read again, and warn of it."""
    damaged = path.with_name(f"{path.name}{DAMAGED}")
    log.warning("%s is damaged (%s); it is set aside as %s and computed again", path, error, damaged.name)
    with suppress(OSError):  # another process has set it aside, or the folder is read-only
        path.replace(damaged)


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileHashes:
    """Hashes of files. Those of large files are remembered, so that each is read once.

    A file that has kept its size and its times to the nanosecond is taken to be the same one.

    Args:
        folder: where ``file_hashes.json`` remembers; ``None`` reads every file each time.
    """

    LARGE = 2**20  # bytes
    SETTLED_NS = 2 * 10**9
    """A file that changed less than this ago is not remembered: it may change again within one tick of its clock."""

    def __init__(self, folder: Path | None) -> None:
        self._index = None if folder is None else folder / "file_hashes.json"

    def of(self, path: Path) -> str:
        """SHA-256 of a file's bytes."""
        state = _state(path)
        if self._index is None or state[0] < self.LARGE:
            return file_hash(path)
        name = str(path.resolve())
        match self._remembered().get(name):
            case [*seen, str(digest)] if seen == state:
                return digest
        digest = file_hash(path)
        if _state(path) == state and time.time_ns() - max(state[1:]) > self.SETTLED_NS:
            self._index.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._index, self._remembered() | {name: [*state, digest]})
        return digest

    def of_folder(self, folder: Path, pattern: str = "*") -> dict[str, str]:
        """The hash of every file in ``folder`` that fits ``pattern``, by its place in it; hidden ones do not count."""
        found = {path.relative_to(folder): path for path in folder.glob(pattern) if path.is_file()}
        return {
            place.as_posix(): self.of(path)
            for place, path in sorted(found.items())
            if not any(part.startswith(".") for part in place.parts)
        }

    def _remembered(self) -> dict[str, Any]:
        found = None if self._index is None else load_json(self._index)
        return found if isinstance(found, dict) else {}


def _state(path: Path) -> list[int]:
    """What changes with a file: its size, and when its content and its entry in the folder changed."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
