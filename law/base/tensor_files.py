"""Files of tensors, apart from other files, so that who only reads facts does not import torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from law.base.files import replacing

log = logging.getLogger(__name__)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name, as safetensors."""
    with replacing(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)


def load_tensors(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file; ``None`` where there is none, or a damaged one, which is logged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        return None
    except SafetensorError as error:
        log.warning("%s is damaged (%s); computing it again", path, error)
        return None
