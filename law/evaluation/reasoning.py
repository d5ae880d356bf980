"""Reasoning accuracy, measured by the lm-evaluation-harness (Gao et al.) on the model in memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.errors import LawError
from law.base.processes import gathered, rank
from law.decoders.prompting import undated_template
from law.decoders.prompts import positions, token_ids
from law.evaluation.estimates import Estimate
from law.evaluation.reasoning_tasks import ReasoningSettings

log = logging.getLogger(__name__)

VERSION = 2
"""Of the code that asks the harness: raise it with every change to the scores."""

CPU_BATCH = 16
BOOTSTRAPS = 2  # the least that the harness accepts for LAMBADA's perplexity, which is not reported
EXAMPLES_SEED = 1234  # the harness's default
ABOVE_CHANCE = 2
"""Standard errors of guessing by which an accuracy must exceed the chance level."""


def score_reasoning(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, Any],
    settings: ReasoningSettings,
) -> dict[str, Estimate]:
    """Accuracy of each loaded task: ``<task>/acc`` with its items, and ``<task>/acc_norm`` for tasks that have it.

    Standard errors are the harness's. With several processes only the first runs the harness, which
    gives results to no other.

    Raises:
        LawError: a continuation is longer than the model's context.
    """
    if not tasks:
        return {}
    return gathered({} if rank() else _ask_harness(model, tokenizer, tasks, settings))[0]


def _ask_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, Any],
    settings: ReasoningSettings,
) -> dict[str, Estimate]:
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    for task in tasks.values():
        task.set_fewshot_seed(EXAMPLES_SEED)
    measured = CPU_BATCH if model.device.type == "cpu" else "auto"
    try:
        lm = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=settings.batch_size or measured,
            chat_template_args={"chat_template": undated_template(tokenizer)}
            if settings.chat_template
            else None,
        )
        # simple_evaluate would spend seconds on a list of the installed packages
        found = evaluate(
            lm=lm,
            task_dict=dict(tasks),
            limit=settings.limit,
            apply_chat_template=settings.chat_template,
            fewshot_as_multiturn=settings.chat_template,
            system_instruction=settings.system,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=True,  # for the accuracy of each item
        )
    except AssertionError as error:  # the harness's check that a continuation fits into the model's context
        raise LawError(
            f"The harness refused a row of the reasoning tasks {', '.join(tasks)}; expected continuations of at "
            f"most {positions(model)} tokens, the model's positions. Take the task with longer ones out of "
            "evaluation.reasoning.tasks (piqa or hellaswag, if the model is as small as the lab's)."
        ) from error
    scores: dict[str, Estimate] = {}
    for name, task in tasks.items():
        _warn_of_cut_prompts(name, task, tokenizer, positions(model))
        result = found["results"][name]
        for metric in ("acc", "acc_norm"):
            if f"{metric},none" in result:
                stderr = result[f"{metric}_stderr,none"]  # "N/A" of a single item
                known = isinstance(stderr, float) and math.isfinite(stderr)
                n = found["n-samples"][name]["effective"]
                rows = (
                    sorted(found["samples"][name], key=lambda row: row["doc_id"]) if metric == "acc" else []
                )
                scores[f"{name}/{metric}"] = Estimate(
                    float(result[f"{metric},none"]),
                    stderr if known else None,
                    n,
                    [float(row[metric]) for row in rows],
                )
    return scores


def _warn_of_cut_prompts(
    name: str, task: Any, tokenizer: PreTrainedTokenizerBase, longest: int | None
) -> None:
    """Warn of prompts that do not fit into the model: the harness cuts their beginning and does not say so."""
    if longest is None:
        return
    texts = [request_text(request) for request in task.instances]
    # a token covers at least one byte, so that few texts have to be tokenised
    rows = token_ids(tokenizer, [text for text in texts if len(text.encode()) > longest])
    if cut := sum(len(row) > longest + 1 for row in rows):  # the last token is predicted and not read
        log.warning(
            "%s: %d of %d prompts with their continuations are longer than the model's %d positions; "
            "the harness cuts their beginning",
            name,
            cut,
            len(texts),
            longest,
        )


def request_text(request: Any) -> str:
    """The prompt of a request of the harness with its continuation, if it has one."""
    return "".join(part for part in request.args if isinstance(part, str))


def tasks_at_chance(unwashed: Mapping[str, Estimate], chance: Mapping[str, float]) -> list[str]:
    """The tasks on which the unwashed model is not better than a random guess.

    With chance level c and n items, guessing has the standard error √(c (1 - c) / n). An accuracy must
    exceed c by :data:`ABOVE_CHANCE` of these. Where no chance level is known, c is 0: a task of which the model solves
    nothing is listed.
    """
    guessed = []
    for key, score in unwashed.items():
        task, _, metric = key.rpartition("/")
        level = chance.get(task, 0.0)
        if metric == "acc" and score.value <= level + ABOVE_CHANCE * math.sqrt(level * (1 - level) / score.n):
            guessed.append(task)
    return guessed


def mean_kept(
    before: Mapping[str, Estimate],
    after: Mapping[str, Estimate],
    chance: Mapping[str, float],
    left_out: Collection[str] = (),
) -> Estimate | None:
    """The share of reasoning that is kept: the mean over tasks of (acc - c) / (acc before - c), c the chance level.

    c is 0 where no chance level is known. A task of which the unwashed model solves no more than chance has no share
    and does not count, like those that are left out. The standard error takes the unwashed model's accuracies as given.
    """
    shares: dict[str, Estimate] = {}
    for key, score in after.items():
        task, _, metric = key.rpartition("/")
        level = chance.get(task, 0.0)
        if metric == "acc" and task not in left_out and (span := before[key].value - level) > 0:
            error = None if score.stderr is None else score.stderr / span
            shares[key] = Estimate((score.value - level) / span, error, score.n)
    return mean_accuracy(shares)


def mean_accuracy(scores: Mapping[str, Estimate], left_out: Collection[str] = ()) -> Estimate | None:
    """The mean of ``acc`` over the tasks that are not left out, each with the same weight.

    Its standard error is √(Σ s.e.²) / tasks; n counts the items of these tasks.
    """
    tasks = {key: score for key, score in scores.items() if key.endswith("/acc")}
    accuracies = [score for key, score in tasks.items() if key.removesuffix("/acc") not in left_out]
    if not accuracies:
        return None
    errors = [score.stderr for score in accuracies if score.stderr is not None]
    count = len(accuracies)
    return Estimate(
        math.fsum(score.value for score in accuracies) / count,
        math.hypot(*errors) / count if len(errors) == count else None,
        sum(score.n for score in accuracies),
    )
