"""Adapters of PEFT (LoRA and its relatives): merged into the weights when a model is loaded, refused elsewhere.

An adapter leaves a weight as it was and adds something beside it. An editing method would change the one and
not the other, and ``save_pretrained`` would write the adapter alone.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections import defaultdict
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from law.base.errors import LawError, first_line

log = logging.getLogger(__name__)

WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")
"""A folder with one of these holds a whole checkpoint, whatever adapter lies beside it."""


def find_adapter(path: str, local: bool) -> Path | None:
    """The ``adapter_config.json`` of a folder, or of a model on the hub; ``None`` where there is no adapter."""
    found = find_adapter_config_file(path, local_files_only=local)
    return None if found is None else Path(found)


def base_of(adapter: Path, path: str) -> str:
    """Where the weights lie that an adapter changes: beside it, or where its configuration says.

    Raises:
        LawError: its configuration names no model.
    """
    if any(next(adapter.parent.glob(pattern), None) for pattern in WEIGHT_FILES):
        return path
    base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise LawError(
            f"The adapter {path!r} does not name the model that it changes; expected base_model_name_or_path in "
            f"{adapter}, a folder or a name on the hub. Write it there."
        )
    return str(base)


def merge_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The model with an adapter added to its weights: a plain one, every weight trainable.

    Raises:
        LawError: the adapter's kind can't be merged, it was made for another model, or it changes one of two tied layers.
    """
    from peft import PeftModel  # it takes seconds to import
    from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME

    unused: list[str] = []
    # peft drops the weights that fit no module, and does not tell
    hook = model.register_load_state_dict_post_hook(lambda _, keys: unused.extend(keys.unexpected_keys))
    try:
        if not (
            adapter.parent / SAFETENSORS_WEIGHTS_NAME
        ).is_file():  # peft would take a pickle, which can run code
            raise OSError(f"there is no {SAFETENSORS_WEIGHTS_NAME}")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            adapted = PeftModel.from_pretrained(model, str(adapter.parent))
        _refuse_tied(adapted, adapter.parent)
        kind = adapted.peft_type
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, TypeError, RuntimeError, AttributeError, UserWarning) as error:
        raise LawError(
            f"The adapter {adapter.parent} could not be merged into {type(model).__name__} "
            f"({model.name_or_path}): {first_line(error)}. Expected adapter_config.json and "
            "adapter_model.safetensors of a kind that merges, as LoRA does (prompt and prefix tuning do not), made for "
            "this model. Set model.path to a checkpoint without an adapter, or mend base_model_name_or_path."
        ) from error
    finally:
        hook.remove()
    if unused:
        raise LawError(
            f"The adapter {adapter.parent} has weights that fit no module of {type(model).__name__} "
            f"({model.name_or_path}): {', '.join(sorted(unused)[:3])} ({len(unused)} in all). Expected a module for every "
            "weight, since the others would be left out. Mend base_model_name_or_path in adapter_config.json: it must "
            "name the model that the adapter was trained on."
        )
    refuse_adapters(merged)
    log.info("the adapter %s (%s) is merged into the weights of %s", adapter.parent, kind, model.name_or_path)
    return merged.requires_grad_(True)


def _refuse_tied(adapted: nn.Module, folder: Path) -> None:
    """Refuse an adapter of one of two layers that share a weight: merged, it would change the other layer too.

    Raises:
        LawError: with the names of the weight in both layers.
    """
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: module for name, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)}
    names_of: defaultdict[Tensor, list[str]] = defaultdict(list)
    for name, parameter in adapted.named_parameters(remove_duplicate=False):
        names_of[parameter].append(name)
    for names in names_of.values():
        around = [[n for n in layers if name.startswith(f"{n}.base_layer.")] for name in names]
        # peft puts new rows of an embedding into every layer that shares it
        rows_alone = all(
            found and all(isinstance(layers[n], TrainableTokensLayer) for n in found) for found in around
        )
        if len(names) > 1 and any(around) and not rows_alone:
            tied = " and ".join(n.removeprefix("base_model.model.").replace(".base_layer", "") for n in names)
            raise LawError(
                f"The adapter {folder} changes a weight that layers share ({tied} are tied); expected adapters of weights "
                "that one layer has, since merging would change the other layers too. Train the adapter again without "
                "these layers in target_modules, or with modules_to_save=[lm_head], or on a model saved with "
                "tie_word_embeddings=False."
            )


def refuse_adapters(model: nn.Module) -> None:
    """Refuse a model that holds adapters.

    Raises:
        LawError: with the first module that is one.
    """
    for name, module in model.named_modules():
        if isinstance(getattr(module, "base_layer", None), nn.Module):
            raise LawError(
                f"{type(model).__name__} has an adapter at {name}; expected plain weights, since an adapter would be "
                "neither edited nor saved with them. Load the model with law.decoders.loading.load_model, which "
                "merges it, or call merge_and_unload() of the PeftModel."
            )
