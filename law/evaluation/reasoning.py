"""Reasoning retention, by the lm-evaluation-harness (Gao et al.) on the model in memory."""

from __future__ import annotations

import difflib
import importlib.metadata
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.errors import LawError
from law.store import file_hash, fingerprint

LOCAL_TASKS = Path(__file__).parent / "tasks"


@dataclass
class ReasoningSettings:
    """Which harness tasks score reasoning, and how.

    Args:
        tasks: names of tasks, the project's own (``law/evaluation/tasks``) or the harness's.
        data: the folder of JSONL files that the ``*_mirror`` tasks read.
        limit: items a task; ``null`` takes all.
        batch_size: rows a forward pass.
        bootstrap_iters: resamplings for the standard errors that need them.
    """

    tasks: list[str] = field(default_factory=list)
    data: str | None = None
    limit: int | None = None
    batch_size: int = 64
    bootstrap_iters: int = 1000


def load_tasks(settings: ReasoningSettings) -> tuple[Any, list[str]]:
    """A harness task manager and the names of the tasks, groups taken apart.

    The harness's own tasks are indexed only when one of them is asked for: that takes seconds.

    Raises:
        LawError: a task is unknown, has no accuracy, or its rows are missing.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every argument of every task
    metadata = {"folder": settings.data}
    manager = TaskManager(include_path=str(LOCAL_TASKS), include_defaults=False, metadata=metadata)
    own = list(manager.all_tasks)
    if not set(settings.tasks) <= set(own):
        manager = TaskManager(include_path=str(LOCAL_TASKS), metadata=metadata)
    for task in settings.tasks:
        if task not in manager.all_tasks:
            near = difflib.get_close_matches(task, manager.all_tasks, n=1)
            raise LawError(
                f"Unknown reasoning task {task!r}.{f' Did you mean {near[0]!r}?' if near else ''} Available here "
                f"without a hub: {', '.join(own)}; any task of the lm-evaluation-harness when the hub is "
                "reachable. Set evaluation.reasoning.tasks."
            )
    try:
        loaded = manager.load(list(settings.tasks))["tasks"]
    except (OSError, ConnectionError, ValueError) as error:
        raise LawError(
            f"The rows of a reasoning task could not be read: {error}. Expected local rows (a *_mirror task "
            "with evaluation.reasoning.data naming their folder) or a hub within reach."
        ) from error
    for name, task in loaded.items():
        metrics = [metric["metric"] for metric in task.config.metric_list or []]
        if "acc" not in metrics:
            raise LawError(
                f"The reasoning task {name!r} reports no accuracy, only {', '.join(metrics)}; expected a task "
                "with the metric acc. Take it out of evaluation.reasoning.tasks."
            )
    return manager, list(loaded)


def tasks_key(settings: ReasoningSettings) -> dict[str, Any]:
    """What a score hangs on besides the model: the tasks, their rows, the limit and the harness."""
    return {
        "tasks": settings.tasks,
        "limit": settings.limit,
        "own": {path.name: file_hash(path) for path in sorted(LOCAL_TASKS.rglob("*.*l"))},
        "data": fingerprint(settings.data) if settings.data else None,
        "harness": importlib.metadata.version("lm_eval"),
    }


def score_reasoning(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: ReasoningSettings
) -> dict[str, float]:
    """Accuracy of each task, ``<task>/acc``, with its standard error, ``<task>/acc_stderr``.

    Raises:
        LawError: see :func:`load_tasks`.
    """
    if not settings.tasks:
        return {}
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager, tasks = load_tasks(settings)
    found = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size),
        tasks=tasks,
        task_manager=manager,
        limit=settings.limit,
        bootstrap_iters=settings.bootstrap_iters,
        log_samples=False,
    )
    scores: dict[str, float] = {}
    for task in tasks:
        result = found["results"][task]
        scores[f"{task}/acc"] = float(result["acc,none"])
        if isinstance(result["acc_stderr,none"], float):  # the harness says "N/A" of a single item
            scores[f"{task}/acc_stderr"] = result["acc_stderr,none"]
    return scores
