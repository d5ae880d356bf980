"""Reasoning retention, by the lm-evaluation-harness (Gao et al.) on the model in memory."""

from __future__ import annotations

import difflib
import importlib.metadata
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.cache import file_hash, fingerprint
from law.base.checks import Checked, Count
from law.base.errors import LawError
from law.base.hub_access import hub_reachable
from law.base.processes import gathered, rank
from law.decoders.prompts import positions
from law.evaluation.estimates import Estimate
from law.evaluation.local_rows import MIRRORS, harness_folders, mirrored

LOCAL_TASKS = Path(__file__).parent / "tasks"
CPU_BATCH = 16
BOOTSTRAPS = 2  # LAMBADA's perplexity, which nothing reports, can't do with fewer


class RowSource(Enum):
    """Where the rows of the harness's tasks come from; ``auto`` is the hub where it can be reached."""

    auto = "auto"
    hub = "hub"
    local = "local"


@dataclass
class ReasoningSettings(Checked):
    """Which harness tasks score reasoning, and how.

    Args:
        tasks: names of tasks, the project's own (``law/evaluation/tasks``) or the harness's.
        source: rows from the hub, or from ``data`` (a mirror, whose scores are called ``<task>_mirror``).
        data: the folder of the mirrors' JSONL files.
        limit: items a task; ``null`` takes all.
        batch_size: rows a forward pass; ``null`` lets the harness measure what an accelerator holds, up to 64, and
            takes 16 on a CPU, where one too large ends the process.
    """

    tasks: list[str] = field(default_factory=list)
    source: RowSource = RowSource.auto
    data: str | None = None
    limit: Count | None = None
    batch_size: Count | None = None


def load_tasks(settings: ReasoningSettings) -> dict[str, Any]:
    """The tasks with their rows, by the names that scores bear; groups are taken apart.

    Raises:
        LawError: a task is unknown or has no accuracy, or its rows are missing or malformed.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every argument of every task
    manager = TaskManager(include_path=str(LOCAL_TASKS), include_defaults=False)
    own = [name for name in settings.tasks if name in manager.all_tasks]
    others = [name for name in settings.tasks if name not in own]
    hub = settings.source is RowSource.hub or (
        settings.source is RowSource.auto and others and hub_reachable()
    )
    loaded: dict[str, Any] = {}
    try:
        if own:
            loaded |= manager.load(own)["tasks"]
        if others and hub:
            # to index all of the harness takes seconds; the folders of some tasks are known
            harness = harness_folders(others) if set(others) <= MIRRORS.keys() else TaskManager()
            _refuse_unknown(others, manager.all_tasks, harness.all_tasks)
            loaded |= harness.load(others)["tasks"]
        elif others:
            _refuse_unmirrored(others, manager.all_tasks, settings)
            loaded |= mirrored(others, str(settings.data))
    except (OSError, ValueError, DatasetsError) as error:
        raise LawError(
            f"The rows of a reasoning task could not be read: {error}. Expected a hub within reach, or local "
            "rows: evaluation.reasoning.source=local and evaluation.reasoning.data naming their folder."
        ) from error
    for name, task in loaded.items():
        metrics = [metric["metric"] for metric in task.config.metric_list or []]
        if "acc" not in metrics:
            raise LawError(
                f"The reasoning task {name!r} reports no accuracy, only {', '.join(metrics)}; expected a task "
                "with the metric acc. Take it out of evaluation.reasoning.tasks."
            )
    return loaded


def _refuse_unknown(tasks: Sequence[str], own: Iterable[str], known: Sequence[str]) -> None:
    for task in tasks:
        if task not in known:
            near = difflib.get_close_matches(task, [*own, *known], n=1)
            raise LawError(
                f"Unknown reasoning task {task!r}.{f' Did you mean {near[0]!r}?' if near else ''} Available here "
                f"without a hub: {', '.join([*own, *MIRRORS])}; any task of the lm-evaluation-harness when the "
                "hub is reachable. Set evaluation.reasoning.tasks."
            )


def _refuse_unmirrored(tasks: Sequence[str], own: Iterable[str], settings: ReasoningSettings) -> None:
    """Without a hub there are the project's tasks and the mirrors, and mirrors need a folder."""
    _refuse_unknown(tasks, own, [*MIRRORS])
    if settings.data is None:
        why = "the hub can't be reached" if settings.source is RowSource.auto else "its source is local"
        raise LawError(
            f"The reasoning task {tasks[0]!r} has no rows: {why}, and evaluation.reasoning.data names no folder. "
            f"Expected a folder with {MIRRORS[tasks[0]].file}; set evaluation.reasoning.data to it, or take "
            "the task out of evaluation.reasoning.tasks."
        )


def tasks_key(tasks: Mapping[str, Any], settings: ReasoningSettings) -> dict[str, Any]:
    """What a score hangs on besides the model: the tasks, their rows, the limit and the harness."""
    return {
        "tasks": [*tasks],
        "limit": settings.limit,
        "own": {path.name: file_hash(path) for path in sorted(LOCAL_TASKS.rglob("*.*l"))},
        "data": fingerprint(settings.data) if settings.data else None,
        "harness": importlib.metadata.version("lm_eval"),
    }


def score_reasoning(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, Any],
    settings: ReasoningSettings,
) -> dict[str, Estimate]:
    """Accuracy of each task of :func:`load_tasks`, ``<task>/acc``, and ``<task>/acc_norm`` where it has one.

    Standard errors are the harness's. Of several processes the first one asks it, since it answers no other.
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
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    measured = CPU_BATCH if model.device.type == "cpu" else "auto"
    try:
        found = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size or measured),
            tasks=list(tasks.values()),
            task_manager=TaskManager(include_defaults=False),  # the tasks are loaded already
            limit=settings.limit,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=False,
        )
    except AssertionError as error:  # how the harness says that a continuation does not fit into the model
        raise LawError(
            f"The harness refused a row of the reasoning tasks {', '.join(tasks)}; expected continuations of at "
            f"most {positions(model)} tokens, the model's positions. Take the task with longer ones out of "
            "evaluation.reasoning.tasks (piqa, hellaswag, on a model as small as the lab's)."
        ) from error
    scores: dict[str, Estimate] = {}
    for task in tasks:
        result = found["results"][task]
        for metric in ("acc", "acc_norm"):
            if f"{metric},none" in result:
                stderr = result[f"{metric}_stderr,none"]  # "N/A" of a single item
                known = isinstance(stderr, float) and math.isfinite(stderr)
                n = found["n-samples"][task]["effective"]
                scores[f"{task}/{metric}"] = Estimate(
                    float(result[f"{metric},none"]), stderr if known else None, n
                )
    return scores


def mean_accuracy(scores: Mapping[str, Estimate]) -> Estimate | None:
    """The mean of ``acc`` over tasks, each weighing the same: s.e. √(Σ s.e.²) / tasks; n is of all items."""
    accuracies = [score for key, score in scores.items() if key.endswith("/acc")]
    if not accuracies:
        return None
    errors = [score.stderr for score in accuracies if score.stderr is not None]
    count = len(accuracies)
    return Estimate(
        math.fsum(score.value for score in accuracies) / count,
        math.hypot(*errors) / count if len(errors) == count else None,
        sum(score.n for score in accuracies),
    )
