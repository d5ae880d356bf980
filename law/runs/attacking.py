"""Attack the model of a run that has finished, from what the run kept of it: nothing is washed again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from law.attacks.attacking import Attacker, Attacks
from law.base.cache import model_hash
from law.base.errors import LawError
from law.base.files import write_json, write_json_lines
from law.decoders.loading import load_model
from law.decoders.prompting import put
from law.decoders.saving import DELTA, load_delta
from law.facts.fact import Fact, facts_hash
from law.runs.configuration import recorded
from law.runs.folder import (
    ATTACKS,
    MANIFEST,
    METRICS,
    PREDICTIONS,
    UNKNOWN_FACTS,
    WASHED,
    read_lines,
    read_object,
)
from law.runs.manifest import now

log = logging.getLogger(__name__)


def attack_run(folder: Path, attacks: Attacks) -> dict[str, float]:
    """Attack the washed model of a finished run, and put the scores in the place of those of earlier attacks.

    ``metrics.json`` and ``attacks.jsonl`` are written, and ``attacked`` in the manifest.

    Returns:
        The ``attack/`` metrics.

    Raises:
        LawError: the run kept no weights, or its model, facts or configuration are no longer what they were.
    """
    manifest, metrics = read_object(folder / MANIFEST), read_object(folder / METRICS)
    if manifest is None or metrics is None or manifest.get("status") != "finished":
        raise LawError(
            f"{folder} is no finished run; expected its manifest.json with the status 'finished', and metrics.json. Finish "
            "it with `python experiments/wash.py`."
        )
    unwashed = manifest["choices"]["method"] == "none"
    if not (unwashed or (folder / WASHED).is_dir()):
        raise LawError(
            f"{folder} has kept no washed model (save={manifest.get('save')}); expected {folder / WASHED}. Repeat its command "
            "with save=delta: what the cache holds is not computed again."
        )
    config = recorded(folder)
    model, tokenizer = load_model(config["model"])
    split = config["dataset"].load()
    _refuse_changed("model_hash", manifest, before := model_hash(model), folder)
    _refuse_changed("facts_hash", manifest, facts_hash([*split.wash, *split.keep]), folder)
    split, reader = put(split, tokenizer, config["prompting"])
    known = {row["id"] for row in read_lines(folder / PREDICTIONS) if row["known_before"]}
    unknown = {row["id"] for row in read_lines(folder / UNKNOWN_FACTS) if row["set"] == "keep"}
    washed = [fact for fact in split.wash if fact.id in known]
    kept = [fact for fact in split.keep if fact.id not in unknown]
    pool: Sequence[Fact] = [*split.wash, *split.keep, *split.others]
    attacker = Attacker(attacks, config["evaluation"], washed, kept, pool)
    found = attacker.on_washed_facts(model, reader, before)
    if not unwashed:
        model = _washed(model, config, folder / WASHED)
    after = model_hash(model)
    left, control = (
        attack(model, reader, after) for attack in (attacker.on_washed_facts, attacker.on_control)
    )
    scores = attacker.metrics(found, left, control)
    others = {key: value for key, value in metrics.items() if not key.startswith("attack/")}
    write_json_lines(folder / ATTACKS, attacker.lines(found, left))
    write_json(folder / METRICS, others | scores)
    write_json(folder / MANIFEST, manifest | {"attacked": now()})
    return scores


def _washed(model: PreTrainedModel, config: dict[str, Any], folder: Path) -> PreTrainedModel:
    """The model that ``save=delta`` or ``save=model`` has kept."""
    if (folder / DELTA).exists():
        load_delta(model, folder / DELTA)
        return model
    return load_model(replace(config["model"], path=str(folder)))[0]


def _refuse_changed(what: str, manifest: dict[str, Any], found: str, folder: Path) -> None:
    if manifest.get(what) != found:
        raise LawError(
            f"The {what} of {folder} is {manifest.get(what)} in its manifest.json, and {found} now; expected the model and the "
            "facts that the run was made with. Put them back, or repeat the run's command with attack=all."
        )
