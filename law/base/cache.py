"""Results kept under the hash of what they were computed from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.errors import LawError
from law.base.files import FileHashes, load_json, remove_partial, write_hashed_json
from law.base.processes import gathered
from law.base.tensor_files import load_tensors, save_tensors, update_hash

log = logging.getLogger(__name__)

T = TypeVar("T")

COMPUTING = ("torch", "transformers", "tokenizers")
"""The packages that every cached result is computed with: their versions are part of every key."""

STALE_S = 3600.0
"""A half-written file that nobody has touched for so long was left by a killed run."""

SECONDS = "seconds"
"""Under this name a file of the cache keeps how long its tensors took to compute."""


def content_hash(value: Any) -> str:
    """SHA-256 of a JSON-like value; mappings count whatever their order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def model_hash(model: PreTrainedModel) -> str:
    """SHA-256 of a model's configuration and of its weights, names and dtypes included."""
    config = {
        k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    update_hash(digest, model.state_dict())
    return digest.hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what a tokenizer makes of text: its vocabulary, and rules where it is a fast one."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    # how the last call padded and cut is kept in there too
    rules = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    return content_hash([tokenizer.get_vocab(), rules, tokenizer.eos_token])


def seconds_of(path: Path | None) -> float:
    """How long the tensors of a file took to compute; 0 where there is none, or one that does not tell."""
    if path is None:
        return 0.0
    try:
        with safe_open(path, framework="pt") as file:
            return float(file.get_tensor(SECONDS))
    except (FileNotFoundError, SafetensorError):
        return 0.0


def _everywhere(found: T | None) -> TypeGuard[T]:
    """Whether every process has found it: what is computed together can't be computed by some alone."""
    return all(gathered(found is not None))


def _named(path: Path) -> list[Path]:
    """The files of what is kept under ``path``: with a hash in their names or, from earlier versions, without."""
    return [*sorted(path.parent.glob(f"{path.stem}.*{path.suffix}")), *([path] if path.exists() else [])]


def _first(path: Path) -> Any:
    """The value of the first of these files that is whole; ``None`` where none is."""
    return next((found for file in _named(path) if (found := load_json(file)) is not None), None)


def load_again(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that was whole a while ago."""
    if (tensors := load_tensors(path)) is None:
        raise LawError(
            f"{path} has gone or was damaged while this run needed it; expected nobody to touch a run's cache. "
            "Start the run again: what is missing is computed again."
        )
    return tensors


class Cache:
    """Results kept under the hash of what they were computed from.

    A key holds the content of all inputs and the ``VERSION`` of the module that computes the result; the
    versions of :data:`COMPUTING` are added here. ``spared_s`` adds up the seconds that the tensors taken from
    the cache once took to compute, in whole or in part. ``hashes`` remembers the hashes of large files there.

    Args:
        folder: where the results lie; ``None`` keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.spared_s = 0.0
        self.hashes = FileHashes(folder)
        for place in [] if folder is None else [folder, *folder.glob("*.items")]:
            remove_partial(place, STALE_S)

    def json(self, name: str, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """The JSON value kept under ``key``, computed when there is none."""
        path = self.path(name, key, "json")
        # every process asks the others once, however many files it sees
        if path is not None and _everywhere(found := _first(path)):
            log.info("%s: taken from %s", name, path)
            return found
        value = compute()
        if path is not None:
            write_hashed_json(path, value)
        return value

    def holds_json(self, name: str, key: Mapping[str, Any]) -> bool:
        """Whether a JSON value is kept under ``key``; a damaged one counts, too."""
        path = self.path(name, key, "json")
        return path is not None and bool(_named(path))

    def tensors(self, name: str, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """The tensors kept under ``key``; ``None`` where there are none, or a damaged file."""
        path = self.path(name, key, "safetensors")
        if path is None or not _everywhere(found := load_tensors(path)):
            return None
        log.info("%s: taken from %s", name, path)
        self.spared_s += found.pop(SECONDS).item()
        return found

    def keep(self, name: str, key: Mapping[str, Any], tensors: Mapping[str, Tensor], seconds: float) -> None:
        """Keep tensors that took ``seconds`` to compute under ``key``."""
        path = self.path(name, key, "safetensors")
        if path is not None:
            save_tensors(path, {**tensors, SECONDS: torch.tensor(seconds)})

    def path(self, name: str, key: Mapping[str, Any], suffix: str) -> Path | None:
        """Where what ``name`` means under ``key`` lies; ``None`` where nothing is kept."""
        if self.folder is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        packages = {package: version(package) for package in COMPUTING}
        return self.folder / f"{name}-{content_hash({**key, 'packages': packages})[:16]}.{suffix}"
