"""Results of single items, such as the target value of a fact, kept in files of many.

An item's result is computed once, whatever other items are asked for with it: a sweep over the number of facts, over
λ or over the seed computes each fact once. Each file holds the items of one computation; none is written again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from law.base.cache import SECONDS, Cache, load_again
from law.base.files import load_json, write_hashed_json
from law.base.processes import gathered
from law.base.tensor_files import load_tensors, save_tensors

log = logging.getLogger(__name__)

DIGESTS = "digests"
"""Under this name a file of tensors keeps the digests of its items, (items, 16) bytes."""

Place = tuple[int, int]
"""Where an item's result lies: the number of a file, and the row in it."""


class TensorItems:
    """Tensors of items, in files whose tensors have one row for each item.

    Args:
        cache: where the files lie; the seconds that it spares are added up there.
        name: of the result.
        key: what the results of all items depend on, besides the item.
    """

    def __init__(self, cache: Cache, name: str, key: Mapping[str, Any]) -> None:
        self._cache = cache
        self._folder = cache.path(name, key, "items")
        self.files: list[Callable[[], dict[str, Tensor]]] = []
        self._places: dict[bytes, Place] = {}  # of the items of earlier runs
        self._seconds: list[float] = []  # for one item of each file
        for path in [] if self._folder is None else sorted(self._folder.glob("*.safetensors")):
            self._index(path)
        if self._places:
            log.info("%s: %d items are kept in %s", name, len(self._places), self._folder)

    def get(self, items: Sequence[str], compute: Callable[[list[int]], Mapping[str, Tensor]]) -> list[Place]:
        """Where the result of each item lies; ``compute`` gives those of the items that are missing, by their indices."""
        digests = [hashlib.sha256(item.encode()).digest()[:16] for item in items]
        first = {digest: i for i, digest in reversed([*enumerate(digests)])}
        own = [i for digest, i in first.items() if digest not in self._places]
        # what one process lacks is computed by all together
        missing = sorted(set().union(*gathered(own)))
        new: dict[bytes, Place] = {}
        if missing:
            began = perf_counter()
            tensors = dict(compute(missing))
            number = self._add([digests[i] for i in missing], tensors, perf_counter() - began)
            new = {digests[i]: (number, row) for row, i in enumerate(missing)}
        kept = [self._places[digest] for digest in first if digest not in new]
        self._cache.spared_s += sum(self._seconds[number] for number, _ in kept)
        return [new.get(digest) or self._places[digest] for digest in digests]

    def _add(self, digests: Sequence[bytes], tensors: dict[str, Tensor], seconds: float) -> int:
        """Keep the rows of these items; returns the file's number."""
        if self._folder is None:
            self.files.append(lambda: tensors)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{hashlib.sha256(b''.join(digests)).hexdigest()[:16]}.safetensors"
            rows = torch.tensor([list(digest) for digest in digests], dtype=torch.uint8)
            save_tensors(path, {**tensors, DIGESTS: rows, SECONDS: torch.tensor(seconds)})
            self.files.append(partial(load_again, path))
        self._seconds.append(seconds / len(digests))
        return len(self.files) - 1

    def _index(self, path: Path) -> None:
        """Note which items a file holds; a damaged one holds none."""
        if (tensors := load_tensors(path)) is None:
            return
        digests, seconds = tensors[DIGESTS], tensors[SECONDS].item()
        self._places |= {bytes(row): (len(self.files), i) for i, row in enumerate(digests.tolist())}
        self.files.append(partial(load_again, path))
        self._seconds.append(seconds / max(1, len(digests)))


def json_items(
    cache: Cache,
    name: str,
    key: Mapping[str, Any],
    items: Sequence[str],
    compute: Callable[[list[str]], Sequence[Any]],
) -> list[Any]:
    """The JSON value of each item; ``compute`` gives those of the items that are missing."""
    folder = cache.path(name, key, "items")
    found = kept_items(cache, name, key)
    own = [item for item in dict.fromkeys(items) if item not in found]
    missing = sorted(set().union(*gathered(own)))
    if missing:
        new = dict(zip(missing, compute(missing), strict=True))
        found |= new
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256("\0".join(missing).encode()).hexdigest()[:16]
            write_hashed_json(folder / f"{digest}.json", new)
    if folder is not None and len(missing) < len(set(items)):
        log.info("%s: %d of %d taken from %s", name, len({*items} - {*missing}), len({*items}), folder)
    return [found[item] for item in items]


def kept_items(cache: Cache, name: str, key: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON value of each item that is kept; a damaged file holds none."""
    folder = cache.path(name, key, "items")
    found: dict[str, Any] = {}
    for path in [] if folder is None else sorted(folder.glob("*.json")):
        if isinstance(values := load_json(path), dict):
            found |= values
    return found
