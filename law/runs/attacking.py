"""Attack the model of a run that has finished, from what the run kept of it: nothing is washed again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from law.attacks.attacking import Attacker, Attacks
from law.base.cache import model_hash
from law.base.files import remove, write_json, write_json_lines
from law.decoders.prompting import put
from law.facts.fact import Fact, facts_hash
from law.runs.finished_run import finished_run
from law.runs.folder import (
    ATTACKS,
    MANIFEST,
    METRICS,
    PREDICTIONS,
    ROUNDING,
    UNKNOWN_FACTS,
    read_lines,
    result_hashes,
)
from law.runs.manifest import now


def attack_run(folder: Path, attacks: Attacks) -> dict[str, float]:
    """Attack the washed model of a finished run, and put the scores in the place of those of earlier attacks.

    ``metrics.json``, ``attacks.jsonl`` and ``rounding.jsonl`` are written, and ``attacked`` in the manifest.

    Returns:
        The ``attack/`` metrics.

    Raises:
        LawError: the run kept no weights, or its model, facts or configuration are no longer what they were.
    """
    run = finished_run(folder)
    model, tokenizer = run.load_unwashed()
    config, before = run.config, model_hash(model)
    split = config["dataset"].load()
    run.refuse_changed("facts_hash", facts_hash([*split.wash, *split.keep]))
    split, reader = put(split, tokenizer, config["prompting"])
    known = {row["id"] for row in read_lines(folder / PREDICTIONS) if row["known_before"]}
    unknown = {row["id"] for row in read_lines(folder / UNKNOWN_FACTS) if row["set"] == "keep"}
    washed = [fact for fact in split.wash if fact.id in known]
    kept = [fact for fact in split.keep if fact.id not in unknown]
    pool: Sequence[Fact] = [*split.wash, *split.keep, *split.others]
    attacker = Attacker(attacks, config["evaluation"], washed, kept, pool)
    found = attacker.on_washed_facts(model, reader, before)
    unrounded = attacker.copied(model)
    if not run.unwashed:
        model = run.wash_again(model)
    after = model_hash(model)
    left, control = (
        attack(model, reader, after) for attack in (attacker.on_washed_facts, attacker.on_control)
    )
    rounding = attacker.rounded_update(unrounded, model)
    scores = attacker.metrics(found, left, control, rounding)
    others = {key: value for key, value in run.metrics.items() if not key.startswith("attack/")}
    write_json_lines(folder / ATTACKS, attacker.lines(found, left))
    remove(folder / ROUNDING)
    if rounding:
        write_json_lines(folder / ROUNDING, rounding)
    write_json(folder / METRICS, others | scores)
    write_json(folder / MANIFEST, {**run.manifest, "attacked": now(), "files": result_hashes(folder)})
    return scores
