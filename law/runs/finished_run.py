"""A run that has finished, read again from its folder: what it was made with, its scores, and both of its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.cache import model_hash
from law.base.errors import LawError
from law.decoders.loading import load_model
from law.decoders.saving import DELTA, load_delta
from law.runs.configuration import recorded
from law.runs.folder import MANIFEST, METRICS, WASHED, read_object


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Args:
        config: its model, data set, evaluation and prompting (:func:`~law.runs.configuration.recorded`).
    """

    folder: Path
    manifest: Mapping[str, Any]
    metrics: Mapping[str, float]
    config: Mapping[str, Any]

    @property
    def unwashed(self) -> bool:
        """Whether it washed nothing (``method=none``)."""
        return bool(self.manifest["choices"]["method"] == "none")

    def load_unwashed(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model before washing, and its tokenizer.

        Raises:
            LawError: the model is not the one that the run was made with.
        """
        model, tokenizer = load_model(self.config["model"])
        self.refuse_changed("model_hash", model_hash(model))
        return model, tokenizer

    def wash_again(self, unwashed: PreTrainedModel) -> PreTrainedModel:
        """The washed model, from the weights that the run kept; ``unwashed`` becomes it if these are a delta.

        Raises:
            LawError: the weights are not those that were scored.
        """
        kept = self.folder / WASHED
        if (kept / DELTA).exists():
            load_delta(unwashed, kept / DELTA)
            model = unwashed
        else:
            model = load_model(replace(self.config["model"], path=str(kept)))[0]
        self.refuse_changed("washed_hash", model_hash(model))
        return model

    def refuse_changed(self, what: str, found: str) -> None:
        """Refuse a model or facts whose hash is not the one in the manifest."""
        if self.manifest.get(what) != found:
            raise LawError(
                f"The {what} of {self.folder} is {self.manifest.get(what)} in its manifest.json, and {found} now; expected the "
                "weights and the facts that the run was made with. Put them back, or repeat the run's command."
            )


def finished_run(folder: Path) -> FinishedRun:
    """The finished run in ``folder``, which has kept its washed model unless it washed nothing.

    Raises:
        LawError: there is no such run.
    """
    manifest, metrics = read_object(folder / MANIFEST), read_object(folder / METRICS)
    if manifest is None or metrics is None or manifest.get("status") != "finished":
        raise LawError(
            f"{folder} is no finished run; expected its manifest.json with the status 'finished', and metrics.json. Finish "
            "it with `python experiments/wash.py`."
        )
    run = FinishedRun(folder, manifest, metrics, recorded(folder))
    if not (run.unwashed or (folder / WASHED).is_dir()):
        raise LawError(
            f"{folder} has kept no washed model (save={manifest.get('save')}); expected {folder / WASHED}. Repeat its command "
            "with save=delta: what the cache holds is not computed again."
        )
    return run
