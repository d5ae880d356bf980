"""Loading the model to wash: plain, unquantised weights and a tokenizer that fits them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from law.base.checks import Checked
from law.base.errors import LawError, first_line
from law.base.files import FileHashes
from law.base.hub_access import hub_reachable
from law.base.processes import device_number
from law.base.settings import FILES, SAME_RESULTS
from law.decoders.adapters import base_of, find_adapter, merge_adapter
from law.decoders.gguf_files import converted, gguf_file
from law.decoders.parts import Parts, name_parts
from law.decoders.vocabulary import fit_tokenizer

log = logging.getLogger(__name__)

NO_ADAPTER = {"subfolder": "no-adapter"}
"""Where transformers is made to look for an adapter, so that it attaches none: it is merged here."""


@dataclass
class ModelSettings(Checked):
    """Which model to wash, and how to hold it.

    Args:
        path: a local folder, a GGUF file, or a name on the Hugging Face hub.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu``, ``cuda``, ..., or ``auto`` for the first accelerator of the machine.
        device_map: spread the blocks over several devices, for a model larger than one of them:
            ``auto``, ``balanced`` or ``sequential`` (accelerate's); ``device`` is then ignored.
        parts: the names of the blocks and the down-projection, for a model whose structure is not recognised.
        converted: where the checkpoints that GGUF files are converted into are kept.
        package: a Python package that carries the weights. ``model=packaged`` makes the path of it and of ``file``.
        file: a GGUF file, or a folder, in that package.
        trust_remote_code: run the Python code that the checkpoint brings along, for an architecture that transformers lacks.
            Such code can do anything that the user can.
    """

    path: str = field(metadata=FILES)
    dtype: str = "float32"
    device: str = field(default="auto", metadata=SAME_RESULTS)
    device_map: str | None = field(default=None, metadata=SAME_RESULTS)
    parts: Parts = field(default_factory=Parts)
    converted: str = field(default="outputs/models", metadata=SAME_RESULTS)
    package: str | None = field(default=None, metadata=SAME_RESULTS)  # the path that they make counts
    file: str | None = field(default=None, metadata=SAME_RESULTS)
    trust_remote_code: bool = False

    def content(self, hashes: FileHashes) -> Any:
        """What the model's files hold, and those of the model that an adapter changes; ``None`` where they are not here."""
        try:
            if file := gguf_file(self.path):
                return hashes.of(file)
            adapter = find_adapter(self.path, local=True)
            base = base_of(adapter, self.path) if adapter else self.path
        except (OSError, ValueError, LawError):
            return None
        found = [_content(path, hashes) for path in dict.fromkeys((self.path, base))]
        return None if None in found else found


def _content(path: str, hashes: FileHashes) -> dict[str, str] | str | None:
    """The files of a local folder with their hashes, or the revision in the hub's cache; ``None`` without either."""
    if Path(path).is_dir():
        return hashes.of_folder(Path(path))
    revision = _cached(path) / "refs" / "main"
    return revision.read_text() if revision.is_file() else None


def load_model(settings: ModelSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in evaluation mode, and its tokenizer, which pads with something.

    Weights are read from safetensors and GGUF files only: other formats can run code when they are read.

    Raises:
        LawError: no such model, dtype or device, with what was looked for; a model that can't be washed.
    """
    dtype = getattr(torch, settings.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise LawError(f"model.dtype is {settings.dtype!r}; expected float32, bfloat16 or float16.")
    device = find_device(settings.device)
    file = gguf_file(settings.path)
    path = base = settings.path if file is None else str(converted(file, Path(settings.converted)))
    local = {base: _is_here(base)}
    trusted = settings.trust_remote_code
    if trusted:
        log.warning(
            "model.trust_remote_code=true: the Python code of %s runs, with all rights of this user", base
        )
    try:
        if adapter := find_adapter(base, local[base]):
            base = base_of(adapter, base)
            local.setdefault(base, _is_here(base))
        config, _ = PreTrainedConfig.get_config_dict(base, local_files_only=local[base])
        refuse_quantised(config, base)
        load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
        model, report = load(
            base,
            dtype=dtype,
            device_map=settings.device_map,
            local_files_only=local[base],
            adapter_kwargs=NO_ADAPTER if adapter else None,
            output_loading_info=True,
            trust_remote_code=trusted,
            use_safetensors=True,
        )
        tokenizer = _tokenizer(local, trusted)
    except (OSError, ValueError, SafetensorError) as error:
        changed = f" (the adapter {path} changes it)" if base != path else ""
        raise LawError(
            f"The model {base!r}{changed} could not be loaded: {_what_is_there(base, local[base])}. Expected "
            "config.json, model.safetensors and tokenizer.json in a local folder, or a model's name on a hub "
            f"within reach. {_mend(base, error)} ({first_line(error)})"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise LawError(
            f"The model {base!r} lacks {len(missing)} weights, {missing[0]} among them, which would be random; expected "
            "every weight in its files. Download it again, or take a checkpoint of a whole causal language model."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise LawError(
            f"The model {path!r} does not fit on the devices that model.device_map={settings.device_map} "
            "spreads it over; expected room for every weight, since what is offloaded can't be edited. Take "
            "model.dtype=bfloat16, or more devices."
        )
    if adapter is not None:
        model = merge_adapter(model, adapter)
    fit_tokenizer(tokenizer, model, config, path)
    name_parts(model, settings.parts)
    if settings.device_map is None:
        model.to(device)
    return model.eval(), tokenizer


def _mend(path: str, error: Exception) -> str:
    """What to do about a model that could not be loaded."""
    if "trust_remote_code" in str(error):
        return "It needs Python code of its own. Read that code, then set model.trust_remote_code=true to run it."
    if any(Path(path).glob("*.bin")):
        return (
            "Files that end in .bin can run code when they are read. Where you trust them, convert them once: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(other_folder), and the tokenizer likewise."
        )
    return "Set model.path=/some/folder."


def _is_here(path: str) -> bool:
    """Whether to look on this machine alone: in a folder, or, with no hub within reach, in the hub's cache.

    The hub is not asked for the rest of what lies here, since it is slow to say no.
    """
    return Path(path).is_dir() or not hub_reachable()


def _tokenizer(places: Mapping[str, bool], trusted: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of the first place that has one: an adapter, or else its base."""
    *others, last = places.items()
    for path, local in others:
        try:
            return AutoTokenizer.from_pretrained(path, local_files_only=local, trust_remote_code=trusted)
        except (OSError, ValueError):
            continue
    path, local = last
    return AutoTokenizer.from_pretrained(path, local_files_only=local, trust_remote_code=trusted)


def refuse_quantised(config: Mapping[str, Any], path: str) -> None:
    """Refuse a checkpoint whose weights are stored in few bits: an update of them would be rounded away.

    Raises:
        LawError: with the method of quantisation, and where unquantised weights come from.
    """
    for part in (config, config.get("text_config") or {}):
        found = part.get("quantization_config") or part.get("compression_config")
        if found:
            raise LawError(
                f"The model {path!r} is quantised ({found.get('quant_method', 'by an unknown method')}); expected weights "
                "in float32, bfloat16 or float16, since quantised ones can't take an update. Set model.path to the "
                "checkpoint that it was made from: its model card names it as base_model, and it is often called the "
                "same without GPTQ, AWQ, FP8, bnb or 4bit."
            )


def _cached(path: str) -> Path:
    """Where the hub's cache keeps a model."""
    return Path(constants.HF_HUB_CACHE) / f"models--{path.replace('/', '--')}"


def _what_is_there(path: str, local: bool) -> str:
    """What was found where a model was looked for."""
    folder = Path(path)
    if folder.is_dir():
        return f"that folder holds {', '.join(sorted(f.name for f in folder.iterdir())) or 'nothing'}"
    cached = _cached(path)
    hub = "the hub can't be reached" if local else "the hub did not give it"
    return f"there is no folder {path}, {hub}, and its cache has no complete copy in {cached}"


def find_device(name: str) -> torch.device:
    """The configured device; ``auto`` is an accelerator, or the CPU. Processes are spread over several of a kind.

    Raises:
        LawError: no such device on this machine.
    """
    try:
        if name == "auto":
            found = torch.accelerator.current_accelerator()
            # updates are solved in float64, which Apple's devices lack
            name = "cpu" if found is None or found.type == "mps" else found.type
        device = torch.device(name)
        if device.type == "cpu":
            return device
        if device.index is None:
            device = torch.device(device.type, device_number(max(1, torch.accelerator.device_count())))
        torch.empty(0, device=device)  # refused where there is none
        torch.accelerator.set_device_index(device.index)  # the one that is waited for
        return device
    except (RuntimeError, AssertionError) as error:
        raise LawError(
            f"The device {name!r} can't be used here ({first_line(error)}). Expected cpu, auto, or "
            "an accelerator that this machine has; set model.device."
        ) from error
