"""Files of tensors, apart from other files, so that who only reads facts does not import torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from law.base.files import replacing, set_aside

SHA256 = "sha256"
"""Under this name the header of a file keeps the hash of its tensors."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name, as safetensors, with their hash in the header."""
    with replacing(path) as partial:
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, partial, {SHA256: tensors_hash(whole)})


def load_tensors(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file; ``None`` where there is none, or a damaged one, which is set aside.

    Earlier versions wrote no hash; of their files only the structure is checked.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            stated = (file.metadata() or {}).get(SHA256)
        if stated not in (None, tensors_hash(tensors)):
            raise SafetensorError("its tensors have another hash than its header")
    except FileNotFoundError:
        return None
    except SafetensorError as error:
        set_aside(path, error)
        return None
    return tensors


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, in whatever order the tensors come."""
    digest = hashlib.sha256()
    update_hash(digest, {name: tensors[name] for name in sorted(tensors)})
    return digest.hexdigest()


def update_hash(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    """Take names, dtypes, shapes and values into a hash, one tensor after another."""
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
