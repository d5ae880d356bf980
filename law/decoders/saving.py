"""Saving what washing changed: the changed tensors, or a whole checkpoint; what was saved is read again and compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.errors import LawError
from law.base.files import replacing
from law.base.tensor_files import save_tensors

DELTA = "delta.safetensors"

HOW_WRITTEN = ("_name_or_path", "architectures", "dtype", "transformers_version")


class Save(Enum):
    """What a run keeps of the washed model: nothing, the changed tensors, or a whole checkpoint."""

    nothing = "nothing"
    delta = "delta"
    model = "model"


class SavedTensors:
    """The tensors of a checkpoint, read one at a time, under the names that the checkpoint has for them."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Path] = {}
        for file in sorted(folder.glob("model*.safetensors")):
            with safe_open(file, framework="pt") as saved:
                self.files |= dict.fromkeys(saved.keys(), file)

    def read(self, name: str) -> Tensor:
        """One tensor, in the CPU's memory."""
        with safe_open(self.files[name], framework="pt") as saved:
            tensor: Tensor = saved.get_tensor(name)
            return tensor


def tensors_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every parameter and every buffer that is saved, tied ones once, under the first of their names."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    names = [name for name, tensor in state.items() if first.setdefault(id(tensor), name) == name]
    return {name: state[name].detach() for name in names}


def snapshot(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of :func:`tensors_of` in the CPU's memory."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors_of(model).items()}


def save_washed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    unwashed: dict[str, Tensor],
    folder: Path,
    what: Save,
) -> None:
    """Save the tensors that washing changed (``delta.safetensors``), the whole checkpoint, or nothing.

    Raises:
        LawError: what was saved is not the model in memory, with the first tensor that differs.
    """
    if what is Save.nothing:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as partial:
        partial.mkdir()
        if what is Save.model:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            check_checkpoint(model, partial)
            return
        changed = {
            name: tensor.cpu()
            for name, tensor in tensors_of(model).items()
            if not _same(tensor, unwashed[name])
        }
        save_tensors(partial / DELTA, changed)
        check_delta(model, unwashed, partial / DELTA)


def load_delta(model: PreTrainedModel, file: Path) -> None:
    """Give the unwashed model the tensors that washing changed (``delta.safetensors``), in place."""
    own = tensors_of(model)
    with safe_open(file, framework="pt") as saved:
        for name in saved.keys():  # noqa: SIM118  it is no mapping
            own[name].copy_(saved.get_tensor(name))


def check_delta(model: PreTrainedModel, unwashed: Mapping[str, Tensor], file: Path) -> None:
    """Refuse a file that does not turn the unwashed model into the washed one; one tensor is read at a time.

    Raises:
        LawError: with the first tensor that differs.
    """
    with safe_open(file, framework="pt") as saved:
        changed = set(saved.keys())
        _compare(model, lambda name: saved.get_tensor(name) if name in changed else unwashed[name])


def check_checkpoint(model: PreTrainedModel, folder: Path) -> None:
    """Refuse a checkpoint that transformers does not load as the model in memory.

    The model is first loaded without its weights, which shows how transformers understands the folder. The
    weights are then read one at a time. Only where transformers stores them under other names (mixtures of experts
    and wrappers of several towers) is the checkpoint loaded as a whole.

    Raises:
        LawError: with the first tensor or setting that differs.
    """
    load: Callable[..., Any] = type(model).from_pretrained
    empty, report = load(folder, dtype=model.dtype, device_map="meta", output_loading_info=True)
    for problem, names in report.items():
        if names:
            raise _differs(f"transformers reports {problem}: {sorted(map(str, names))[:3]}")
    if tensors_of(empty).keys() != tensors_of(model).keys():
        other = sorted(tensors_of(empty).keys() ^ tensors_of(model).keys())
        raise _differs(f"{other[0]} is in one of both alone, or tied in one of both alone")
    ours, theirs = _settings(model), _settings(empty)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise _differs(f"{key} in config.json is {theirs.get(key)}, not {ours.get(key)}")
    saved = SavedTensors(folder)
    if tensors_of(model).keys() <= saved.files.keys():
        _compare(model, saved.read)
    else:
        _compare(model, tensors_of(load(folder, dtype=model.dtype)).__getitem__)


def _compare(model: PreTrainedModel, saved: Callable[[str], Tensor]) -> None:
    for name, tensor in tensors_of(model).items():
        if not _same(tensor, found := saved(name)):
            raise _differs(
                f"{name} is {found.dtype} {tuple(found.shape)} there and {tensor.dtype} {tuple(tensor.shape)} in "
                "memory, with other values"
            )


def _differs(what: str) -> LawError:
    return LawError(
        f"What was saved is not the washed model that was scored: {what}. Expected the same weights and settings; what "
        "save_washed wrote is removed. Set save=delta or save=nothing, and report this with the model's name."
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())


def _settings(model: PreTrainedModel) -> dict[str, Any]:
    """A model's configuration as JSON, less what says where and how it was written, in nested ones too."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items() if key not in HOW_WRITTEN}
        return value

    settings: dict[str, Any] = plain(json.loads(model.config.to_json_string(use_diff=False)))
    return settings
