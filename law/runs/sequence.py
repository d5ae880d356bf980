"""One run, from a model and facts to scores and files: the sequence, and nothing else.

What a run leaves in its folder is written so that ``manifest.json`` comes last: a folder without a
finished manifest is an unfinished run.
"""

from __future__ import annotations

import json
import logging
import math
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, set_seed

from law.attacks.attacking import Attacker, Attacks, Records
from law.base.errors import LawError, shortened
from law.base.files import remove, write_json, write_json_lines
from law.base.progress import duration, heard_by
from law.base.settings import OTHER_FACTS, learned_from
from law.base.threads import warn_of_shared_cores
from law.decoders.gguf_files import source_of
from law.decoders.greedy_decoding import Recall, recalls
from law.decoders.loading import ModelSettings, load_model
from law.decoders.prompting import Prompting, put
from law.decoders.saving import Save, save_washed, snapshot
from law.evaluation.known_facts import Kind, count_kinds, kinds_of
from law.evaluation.metrics import describe
from law.evaluation.reasoning import tasks_at_chance
from law.evaluation.scores import EvaluationSettings, Scorer, compare
from law.facts.fact import Fact, FactSplit, facts_hash
from law.facts.source import Known
from law.methods.none import Unwashed
from law.methods.protocol import Method
from law.runs.folder import (
    ATTACKS,
    EARLIER,
    GENERATIONS,
    KEPT,
    MANIFEST,
    METHOD,
    METRICS,
    PREDICTIONS,
    REASONING,
    ROUNDING,
    UNKNOWN_FACTS,
    WASHED,
    clear,
    result_hashes,
)
from law.runs.forecast import forecast
from law.runs.identity import Identity, inputs_of
from law.runs.lines import (
    finite,
    prediction,
    reasoning_items,
    redacted,
    redacted_error,
    unknown_facts,
)
from law.runs.manifest import begin, inputs_entries, now
from law.runs.telling import ProgressFile
from law.runs.tracker import Guarded, Tracker

log = logging.getLogger(__name__)


class Source(Protocol):
    """Where facts come from, and which of them count as known."""

    known: Known

    def load(self) -> FactSplit: ...


@dataclass(frozen=True)
class Job:
    """All that one run is made of."""

    model: ModelSettings
    source: Source
    method: Method
    evaluation: EvaluationSettings
    tracker: Tracker
    save: Save
    folder: Path
    identity: Identity
    prompting: Prompting = field(default_factory=Prompting)
    attacks: Attacks = field(default_factory=Attacks)


def wash_and_score(job: Job) -> dict[str, float]:
    """Wash a model, score it before and after, and leave the run's files in the job's folder.

    Returns the metrics of :mod:`law.evaluation.metrics`. Whatever happens, the tracker is finished and the
    manifest says how the run ended.
    """
    warn_of_shared_cores()
    folder, identity = job.folder, job.identity
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder)
    if identity.redact:
        remove(folder / EARLIER)  # it may hold what is to be left out
        job = replace(job, evaluation=replace(job.evaluation, cache=None))
    guarded, told = Guarded(job.tracker), ProgressFile(folder)
    manifest = begin(identity) | {"recall": job.evaluation.recall.value, "stages_s": {}}
    write_json(folder / MANIFEST, manifest)
    failed = True
    try:
        guarded.start(identity, folder)
        with heard_by(told.step):
            metrics = _run(job, guarded, manifest, told)
        manifest |= {"status": "finished", "ended": now(), "files": result_hashes(folder)}
        write_json(folder / MANIFEST, manifest)
        failed = False
    except BaseException as error:
        if identity.redact and isinstance(error, Exception):
            error = redacted_error(error, manifest["stages_s"])
        problem = f"{type(error).__name__}: {error}"
        failure = {"status": "failed", "error": problem, "ended": now()}
        with suppress(OSError):  # a full disk has no room for it; the log has the error
            write_json(folder / MANIFEST, manifest | failure)
        traceback.clear_frames(error.__traceback__)  # a sweep keeps every error until its end
        raise error
    else:
        guarded.conclude(metrics, folder / PREDICTIONS)
    finally:
        told.close()
        guarded.finish(failed)
    return metrics


def _run(job: Job, tracker: Tracker, manifest: dict[str, Any], told: ProgressFile) -> dict[str, float]:
    """The stages of a run; writes its results and fills in the manifest's hashes and times."""
    folder, seed = job.folder, job.identity.seed
    stages: dict[str, float] = manifest["stages_s"]
    timed = partial(_timed, stages, told)

    def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        write_json_lines(path, redacted(rows) if job.identity.redact else rows)

    set_seed(seed)
    with timed("load"):
        split = job.source.load()
        scorer = Scorer(job.evaluation)  # an unknown task is refused before a model is loaded
        manifest["reasoning_tasks"] = [*scorer.tasks]
        model, tokenizer = load_model(job.model)
        if source := source_of(model):
            manifest["model_source"] = source
        job.method.check(model)
        unwashed = snapshot(model) if job.save is Save.delta else {}
        # what was fetched or made only now is here at last
        parts = {
            "model": job.model,
            "dataset": job.source,
            "method": job.method,
            "evaluation": job.evaluation,
        }
        manifest |= inputs_entries(inputs_of(parts, job.evaluation.cache))
        manifest["facts_hash"] = facts_hash([*split.wash, *split.keep])
        manifest["learned_from"] = sources = learned_from(job.method)
        if OTHER_FACTS in sources and not split.unscored:
            raise LawError(
                f"method ({type(job.method).__name__}) learns from other facts, which are neither washed nor scored, but the draw "
                "leaves none whose subject no scored prompt names. Lower dataset.wash or dataset.keep, or choose a "
                "method that does not learn from them."
            )
        split, reader = put(split, tokenizer, job.prompting)

    with timed("score_before"):
        examined = scorer.on(model, reader, cached=True)
        manifest["model_hash"] = examined.hash
        log.info("%s", forecast(job.method, job.attacks, split, scorer, examined, model, reader))
        answers = examined.answers([fact.prompt for fact in (*split.wash, *split.keep)])
        rule = job.evaluation.recall
        washed, kept = _known(split.wash, answers, rule), _known(split.keep, answers, rule)
        kinds = kinds_of([*washed, *kept], [*split.wash, *split.keep, *split.others], examined.answers, rule)
        counts = count_kinds(washed, kinds)
        others = split.unscored if OTHER_FACTS in sources else []
        pool = [*split.wash, *split.keep, *split.others]
        split = FactSplit(
            split.wash, split.keep
        )  # the rest of a large file is not held while the method runs
        log.info(
            "facts to wash that are recalled, by kind (docs/glossary.md, known fact, kinds of): %s",
            {k.removeprefix("facts/known_"): n for k, n in counts.items()},
        )
        if job.source.known is Known.subject:
            washed, kept = ([f for f in facts if kinds[f] is Kind.subject] for facts in (washed, kept))
        write_lines(folder / UNKNOWN_FACTS, unknown_facts(split, {*washed, *kept}, answers, kinds))
        log.info(
            "%d of %d facts to wash and %d of %d facts to keep are known; those that are not are listed in %s",
            *(len(washed), len(split.wash), len(kept), len(split.keep), folder / UNKNOWN_FACTS),
        )
        if not washed:
            first = split.wash[0].prompt
            raise LawError(
                f"The model knows none of the {len(split.wash)} facts to wash (dataset.known={job.source.known.value}), "
                f"so there is nothing to wash. Expected a model that knows some of them. To {shortened(first)!r} it answered "
                f"{shortened(answers[first])!r}; {folder / UNKNOWN_FACTS} lists all answers. Check model.path and "
                "dataset.path, set prompting.chat_template=true for a chat model, or raise dataset.wash."
            )
        before = examined.scores(washed, kept, kinds)
        manifest["tasks_at_chance"] = guessed = tasks_at_chance(before.reasoning, scorer.chance)
        if guessed:
            log.warning(
                "not above chance before washing, and left out of reasoning/mean: %s", ", ".join(guessed)
            )

    attacker = Attacker(job.attacks, job.evaluation, washed, kept, pool)
    del pool
    attacked: Records = {}
    if attacker.chosen:
        with timed("attack_before"):
            attacked = attacker.on_washed_facts(model, reader, examined.hash)
    unrounded = attacker.copied(model)

    spared: list[float] = []
    # a log that grows while the method runs, a line at a time: it also says how far a run came that failed
    with timed("wash"), (folder / METHOD).open("w", encoding="utf-8", buffering=1) as lines:

        def report(values: dict[str, Any]) -> None:
            spared.append(values.get("spared_s", 0.0))
            for line in redacted([values]) if job.identity.redact else [values]:
                lines.write(json.dumps(finite(line), ensure_ascii=False) + "\n")
            numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
            if numbers:
                tracker.log(numbers)

        set_seed(seed)  # scoring has drawn from the generators, or a cache has spared it
        job.method.wash(model, reader, washed, report, others)
    _refuse_non_finite(model)

    with timed("score_after"):
        reexamined = scorer.on(model, reader, cached=False)
        unchanged = reexamined.hash == examined.hash
        manifest["washed_hash"] = reexamined.hash
        if unchanged and not isinstance(job.method, Unwashed):
            raise _nothing_changed(job)
        after = before if unchanged else reexamined.scores(washed, kept, kinds)

    metrics: dict[str, float] = {"facts/known": len(washed), **counts}
    metrics |= compare(washed, kept, kinds, before, after, scorer.chance)
    if attacker.chosen:
        with timed("attack_after"):
            left = attacker.on_washed_facts(model, reader, reexamined.hash)
            control = attacker.on_control(model, reader, reexamined.hash)
            rounding = attacker.rounded_update(unrounded, model)
        metrics |= attacker.metrics(attacked, left, control, rounding)
        write_lines(folder / ATTACKS, attacker.lines(attacked, left))
        if rounding:
            write_json_lines(folder / ROUNDING, rounding)
    metrics["time/wash_s"] = stages["wash"] + sum(spared)
    metrics["time/cached_s"] = sum(spared)
    for name, value in list(metrics.items()):
        describe(name)  # a metric that law/evaluation/metrics.py does not document is a mistake
        if not math.isfinite(value):
            log.warning("%s is %s and left out of metrics.json", name, value)
            del metrics[name]
    scored = {*washed}
    predictions = (prediction(fact, fact in scored, answers, before, after) for fact in split.wash)
    others_kept = (prediction(fact, True, answers, before, after) for fact in kept)
    texts = ({"prompt": p, "before": before.texts[p], "after": after.texts[p]} for p in before.texts)
    with timed("save"):
        save_washed(model, tokenizer, unwashed, folder / WASHED, job.save)
        write_lines(folder / PREDICTIONS, predictions)
        write_lines(folder / KEPT, others_kept)
        write_json_lines(folder / REASONING, reasoning_items(before, after))  # it has no words of facts
        write_lines(folder / GENERATIONS, texts)
        write_json(folder / METRICS, metrics)
    return metrics


def _known(facts: Sequence[Fact], answers: Mapping[str, str], rule: Recall) -> list[Fact]:
    return [fact for fact in facts if recalls(answers[fact.prompt], fact.object, rule)]


def _refuse_non_finite(model: PreTrainedModel) -> None:
    """A method that made a weight NaN or infinite has failed, whatever it would score."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise LawError(
                f"Washing left {name} with values that are not finite; expected finite weights. Lower the "
                "learning rate, if the method has one, or set model.dtype=float32."
            )


def _nothing_changed(job: Job) -> LawError:
    """The error of a method that left every weight as it was."""
    return LawError(
        f"{type(job.method).__name__} changed no weight of the model; expected a washed model, since only method=none may "
        f"leave it as it is. In {job.model.dtype}, a small step is rounded away: raise the learning rate (or lower λ), or "
        "set model.dtype=float32. A method without steps (no epochs, no iterations) changes nothing either."
    )


@contextmanager
def _timed(stages: dict[str, float], told: ProgressFile, name: str) -> Iterator[None]:
    """Tell when a stage begins and ends, and keep its wall time in seconds; work queued on the device is waited for."""
    log.info("%s: begins", name.replace("_", " "))
    told.stage(name)
    start = time.perf_counter()
    yield
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    stages[name] = time.perf_counter() - start
    log.info("%s: took %s", name.replace("_", " "), duration(stages[name]))
