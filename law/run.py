"""One run, from a model and facts to scores and files: the sequence, and nothing else.

What a run leaves in its folder is written so that ``manifest.json`` comes last: a folder without a
finished manifest is an unfinished run.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import logging
import platform
import subprocess
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from law.errors import LawError
from law.evaluation.knowledge import knowledge_metrics
from law.evaluation.reasoning import ReasoningSettings, load_tasks, score_reasoning, tasks_key
from law.facts import Fact, FactSplit, facts_hash
from law.methods import Method
from law.models import ModelSettings, Save, load_model, save_washed, snapshot
from law.recall import greedy_answers, recalls
from law.results import describe
from law.store import Cache, content_hash, model_hash, tokenizer_hash, write_json
from law.tracking import Guarded, Tracker

log = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "lm_eval", "datasets", "hydra-core", "omegaconf", "wandb", "safetensors")


@dataclass
class EvaluationSettings:
    """What is scored before and after washing.

    Args:
        batch_size: prompts a forward pass when facts are asked for.
        reasoning: the harness tasks.
        cache: where the unwashed model's scores are kept for other runs; ``null`` keeps none.
    """

    batch_size: int = 128
    reasoning: ReasoningSettings = field(default_factory=ReasoningSettings)
    cache: str | None = None


class Source(Protocol):
    """Where facts come from."""

    def load(self) -> FactSplit: ...


@dataclass(frozen=True)
class Identity:
    """Which run this is: what the table groups by, and what makes it the same run again."""

    name: str  # the sweep it belongs to
    choices: Mapping[str, str]  # which model, dataset and method were chosen
    settings: Mapping[str, str]  # what the command line or the sweep set besides
    seed: int
    config: Mapping[str, Any]  # resolved
    inputs: str  # which files the model and the facts are


def finished(folder: Path, identity: Identity) -> dict[str, float] | None:
    """The metrics of a finished run of the same configuration over the same files, or ``None``."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["status"] != "finished" or manifest["inputs"] != identity.inputs:
            return None
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError):
        return None


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


def wash_and_score(job: Job) -> dict[str, float]:
    """Wash a model, score it before and after, and leave the run's files in the job's folder.

    Returns the metrics of :mod:`law.results`. Whatever happens, the tracker is finished and the
    manifest says how the run ended.
    """
    folder, identity = job.folder, job.identity
    folder.mkdir(parents=True, exist_ok=True)
    guarded = Guarded(job.tracker)
    manifest: dict[str, Any] = {
        "status": "running",
        **{k: v for k, v in asdict(identity).items() if k != "config"},
        "config_hash": content_hash(identity.config),
        "started": _now(),
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "stages_s": {},
    }
    write_json(folder / "manifest.json", manifest)
    failed = True
    try:
        guarded.start(folder.name, identity.name, folder, identity.config)
        metrics, predictions = _run(job, guarded, manifest)
        write_json(folder / "manifest.json", manifest | {"status": "finished", "ended": _now()})
        failed = False
    except BaseException as error:
        problem = f"{type(error).__name__}: {error}"
        failure = {"status": "failed", "error": problem, "ended": _now()}
        write_json(folder / "manifest.json", manifest | failure)
        # a sweep tells only its first failure, and keeps every error until its end
        log.error("%s failed: %s", folder.name, problem, exc_info=not isinstance(error, LawError))
        traceback.clear_frames(error.__traceback__)
        raise
    else:
        guarded.conclude(metrics, predictions)
    finally:
        guarded.finish(failed)
    return metrics


def _run(
    job: Job, tracker: Tracker, manifest: dict[str, Any]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The stages of a run; writes its results and fills in the manifest's hashes and times."""
    evaluation, folder, seed = job.evaluation, job.folder, job.identity.seed
    stages: dict[str, float] = manifest["stages_s"]
    set_seed(seed)
    with _timed(stages, "load"):
        split = job.source.load()
        if evaluation.reasoning.tasks:
            load_tasks(evaluation.reasoning)  # an unknown task is refused before a model is loaded
        model, tokenizer = load_model(job.model)
        job.method.check(model)
        unwashed = snapshot(model) if job.save is Save.delta else {}
        unwashed_hash = model_hash(model)
        manifest["model_hash"] = unwashed_hash
        manifest["facts_hash"] = facts_hash([*split.wash, *split.keep])

    cache = Cache(Path(evaluation.cache) if evaluation.cache else None)
    with _timed(stages, "score_before"):
        before = _score(
            model, tokenizer, [*split.wash, *split.keep], split.wash, evaluation, unwashed_hash, cache
        )
    washed, kept = _known(split.wash, before["answers"]), _known(split.keep, before["answers"])
    log.info("%d of %d facts to wash are known", len(washed), len(split.wash))
    if not washed:
        raise LawError(
            f"The model recalls none of the {len(split.wash)} facts to wash, so there is nothing to wash. "
            f"Expected a model that knows some of them; it answered {before['answers'][split.wash[0].prompt]!r} "
            f"to {split.wash[0].prompt!r}. Check model.path and dataset.path, or raise dataset.wash."
        )

    with _timed(stages, "wash"), (folder / "method.jsonl").open("w", encoding="utf-8") as lines:

        def report(values: dict[str, float]) -> None:
            lines.write(json.dumps(values) + "\n")
            tracker.log(values)

        set_seed(seed)  # scoring has drawn from the generators, or a cache has spared it
        job.method.wash(model, tokenizer, washed, report)
    _refuse_non_finite(model)

    with _timed(stages, "score_after"):
        washed_hash = model_hash(model)
        after = before
        if washed_hash != unwashed_hash:
            known = [*washed, *kept]
            after = _score(model, tokenizer, known, washed, evaluation, washed_hash, Cache(None))

    metrics: dict[str, float] = {"facts/known": len(washed)}
    metrics |= knowledge_metrics(washed, kept, before["answers"], after["answers"])
    metrics |= _reasoning_metrics(before["reasoning"], after["reasoning"])
    metrics["time/wash_s"] = stages["wash"]
    for name in metrics:
        describe(name)  # a metric that law/results.py does not document is a mistake
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as lines:
        predictions = [_prediction(f, before["answers"], after["answers"]) for f in split.wash]
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
    write_json(folder / "metrics.json", metrics)
    save_washed(model, tokenizer, unwashed, folder / "washed", job.save)
    return metrics, predictions


def _score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    paraphrased: Sequence[Fact],
    evaluation: EvaluationSettings,
    weights: str,
    cache: Cache,
) -> dict[str, Any]:
    """Answers to the facts' prompts and to the paraphrases of some, and the reasoning scores, kept under the hash ``weights``."""
    prompts = [fact.prompt for fact in facts] + [p for fact in paraphrased for p in fact.paraphrases]
    unique = sorted(set(prompts))
    key = {"model": weights, "tokenizer": tokenizer_hash(tokenizer)}

    def ask() -> dict[str, str]:
        answers = greedy_answers(model, tokenizer, unique, evaluation.batch_size)
        return dict(zip(unique, answers, strict=True))

    return {
        "answers": cache.json("answers", key | {"prompts": unique}, ask),
        "reasoning": cache.json(
            "reasoning",
            key | {"tasks": tasks_key(evaluation.reasoning)},
            lambda: score_reasoning(model, tokenizer, evaluation.reasoning),
        ),
    }


def _known(facts: Sequence[Fact], answers: Mapping[str, str]) -> list[Fact]:
    return [fact for fact in facts if recalls(answers[fact.prompt], fact.object)]


def _reasoning_metrics(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """``reasoning/<task>/...`` and the means over tasks."""
    metrics: dict[str, float] = {}
    tasks = [key.removesuffix("/acc") for key in after if key.endswith("/acc")]
    for task in tasks:
        metrics[f"reasoning/{task}/acc_before"] = before[f"{task}/acc"]
        metrics[f"reasoning/{task}/acc"] = after[f"{task}/acc"]
        if f"{task}/acc_stderr" in after:
            metrics[f"reasoning/{task}/acc_stderr"] = after[f"{task}/acc_stderr"]
    if tasks:
        metrics["reasoning/mean_before"] = sum(before[f"{task}/acc"] for task in tasks) / len(tasks)
        metrics["reasoning/mean"] = sum(after[f"{task}/acc"] for task in tasks) / len(tasks)
    return metrics


def _prediction(fact: Fact, before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, Any]:
    """A line of ``predictions.jsonl``; a fact the model never knew is not asked for again."""
    answer_after = after.get(fact.prompt)
    return {
        "id": fact.id,
        "prompt": fact.prompt,
        "object": fact.object,
        "answer_before": before[fact.prompt],
        "answer_after": answer_after,
        "known_before": recalls(before[fact.prompt], fact.object),
        "known_after": None if answer_after is None else recalls(answer_after, fact.object),
    }


def _refuse_non_finite(model: PreTrainedModel) -> None:
    """A method that made a weight NaN or infinite has failed, whatever it would score."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise LawError(
                f"Washing left {name} with values that are not finite; expected finite weights. Lower the "
                "learning rate, if the method has one, or set model.dtype=float32."
            )


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    """Wall time of a stage in seconds; work queued on the device is waited for."""
    start = time.perf_counter()
    yield
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    stages[name] = time.perf_counter() - start


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _git_revision() -> str | None:
    """The revision of the code that runs, marked when it has uncommitted changes."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
