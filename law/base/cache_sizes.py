"""How large the caches are, by what they keep, and how to remove what nobody has used for a while."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from law.base.errors import LawError

DAY_S = 86_400.0

ENTRY = re.compile(r"(\w+)-[0-9a-f]{16}\..+")
"""The name of a cache entry, a file or a folder of items: what it keeps, the hash of its key, and a suffix."""


@dataclass(frozen=True)
class Kept:
    """A file of a cache, the name of what it keeps, its size in bytes, and how long nobody has used it, in seconds."""

    path: Path
    name: str
    size: int
    unused_s: float


@dataclass(frozen=True)
class Size:
    """All files of one name: how many, their bytes, and the bytes of those that would be removed."""

    name: str
    files: int
    size: int
    unused: int


def kept_files(folder: Path) -> Iterator[Kept]:
    """The files of all entries of a cache; others, such as ``file_hashes.json``, are left out.

    A file counts as used when it was read or written. Where the file system does not note reading (``noatime``), only
    writing counts.

    Raises:
        LawError: there is no such folder.
    """
    if not folder.is_dir():
        raise LawError(
            f"There is no folder {folder}; expected a cache, such as outputs/cache. Name the folder that holds it."
        )
    now = time.time()
    for entry in sorted(folder.iterdir()):
        if named := ENTRY.fullmatch(entry.name):
            for path in sorted(entry.iterdir()) if entry.is_dir() else [entry]:
                stat = path.stat()
                yield Kept(path, named[1], stat.st_size, now - max(stat.st_atime, stat.st_mtime))


def sizes(files: list[Kept], unused_s: float) -> list[Size]:
    """What the files of each name take, the largest first."""
    grouped = defaultdict[str, list[Kept]](list)
    for file in files:
        grouped[file.name].append(file)
    found = [
        Size(name, len(own), sum(f.size for f in own), sum(f.size for f in own if f.unused_s >= unused_s))
        for name, own in grouped.items()
    ]
    return sorted(found, key=lambda size: -size.size)


def prune(files: list[Kept], unused_s: float) -> int:
    """Remove the files that nobody has used for so long, and folders that become empty. Returns the bytes removed."""
    freed = 0
    for file in files:
        if file.unused_s >= unused_s:
            file.path.unlink(missing_ok=True)
            freed += file.size
            if ENTRY.fullmatch(file.path.parent.name) and not any(file.path.parent.iterdir()):
                file.path.parent.rmdir()
    return freed
