"""GGUF files, llama.cpp's format: converted once into a plain checkpoint, which is then loaded like any other.

The weights of a GGUF file are mostly stored in few bits. They are dequantised into float32, which is exactly what
llama.cpp computes with, and washed as such.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from law.base.errors import LawError, first_line
from law.base.files import FileHashes, remove_partial, replacing, write_json
from law.base.processes import gathered, rank

log = logging.getLogger(__name__)

SOURCE = "source.json"
"""What a converted checkpoint was made from. It is written last: a folder with it is complete."""

STALE_S = 24 * 3600.0
"""A conversion that nobody has touched for so long was killed."""


def gguf_file(path: str) -> Path | None:
    """The GGUF file that a model's path names: the file itself, or the one in a folder without a checkpoint.

    Raises:
        LawError: the folder has several.
    """
    place = Path(path)
    if place.is_file() and place.suffix == ".gguf":
        return place
    if not place.is_dir() or (place / "config.json").exists():
        return None
    files = sorted(place.glob("*.gguf"))
    if len(files) > 1:
        raise LawError(
            f"The folder {path!r} has {len(files)} GGUF files and no config.json; expected one model. Set model.path to one "
            f"of {', '.join(file.name for file in files)}, with its folder. (Parts of one model: join them with "
            "llama-gguf-split --merge.)"
        )
    return files[0] if files else None


def converted(file: Path, root: Path) -> Path:
    """The plain checkpoint made from a GGUF file, in a folder of ``root`` named after the file's content.

    One process converts, and the others wait for it. A conversion that is killed leaves nothing that looks
    complete.

    Raises:
        LawError: the ``gguf`` package is missing, or the file can't be converted.
    """
    root.mkdir(parents=True, exist_ok=True)
    digest = FileHashes(root).of(file)
    folder = root / digest[:16]
    if rank() == 0:
        _convert(file, digest, folder)
    gathered(None)
    _convert(file, digest, folder)  # on a machine that does not see the first process's disk
    return folder


def source_of(model: PreTrainedModel) -> dict[str, Any] | None:
    """What the checkpoint of a loaded model was converted from; ``None`` where it was not converted."""
    file = Path(str(model.name_or_path)) / SOURCE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _convert(file: Path, digest: str, folder: Path) -> None:
    if (folder / SOURCE).exists():
        return
    if importlib.util.find_spec("gguf") is None:
        raise LawError(
            f"{file} is a GGUF file, and the package that reads it is not installed; expected gguf. Run pip install gguf."
        )
    from gguf import GGUFReader
    from transformers import GgufConfig

    log.info("converting %s into %s, once", file, folder)
    remove_partial(folder.parent, STALE_S)
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    try:
        model, report = load(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        reader = GGUFReader(file)
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, RuntimeError) as error:
        raise LawError(
            f"{file} could not be converted: {first_line(error)}. Expected a GGUF file of an architecture "
            "that transformers can dequantise (Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, Phi-3, GPT-2 and others). "
            "Take the checkpoint that the file was made from."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise LawError(
            f"{file} lacks {len(missing)} weights of its model, {missing[0]} among them; expected all of them in one file. "
            "Join the parts of a model with llama-gguf-split --merge."
        )
    general = {name: reader.get_field(f"general.{name}") for name in ("name", "architecture", "quantized_by")}
    source = {
        "file": file.name,
        "sha256": digest,
        **{name: field.contents() for name, field in general.items() if field is not None},
        "tensors": dict(Counter(tensor.tensor_type.name for tensor in reader.tensors).most_common()),
        "versions": {package: version(package) for package in ("transformers", "gguf")},
    }
    with replacing(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_json(partial / SOURCE, source)
