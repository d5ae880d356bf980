"""The lm-evaluation-harness's tasks (Gao et al.) that score reasoning: which, with which rows, in which prompt."""

from __future__ import annotations

import difflib
import importlib.metadata
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from law.base.checks import Checked, Count, Natural
from law.base.errors import LawError, did_you_mean
from law.base.files import FileHashes
from law.base.hub_access import hub_reachable
from law.base.settings import FILES, SAME_RESULTS
from law.decoders.prompting import undated_template
from law.evaluation.local_rows import MIRRORS, harness_folders, mirrored

LOCAL_TASKS = Path(__file__).parent / "tasks"


class RowSource(Enum):
    """Where the rows of the harness's tasks come from; ``auto`` is the hub if it can be reached."""

    auto = "auto"
    hub = "hub"
    local = "local"


@dataclass
class ReasoningSettings(Checked):
    """The harness tasks that score reasoning, and how their prompts are built.

    Args:
        tasks: names of tasks: the project's own (``law/evaluation/tasks``) or the harness's.
        source: rows from the hub, or from ``data`` (a mirror, whose scores are called ``<task>_mirror``).
        data: the folder of the mirrors' JSONL files.
        limit: items per task; ``null`` takes all.
        batch_size: rows in a forward pass. ``null`` takes 16 on a CPU, where too large a batch ends the
            process; on an accelerator the harness finds the largest batch up to 64.
        few_shot: solved examples before each item; ``null`` takes each task's own number, mostly none.
        chat_template: whether prompts are messages in the tokenizer's chat template.
        system: the system message before each prompt; needs ``chat_template``.
    """

    tasks: list[str] = field(default_factory=list)
    source: RowSource = RowSource.auto
    data: str | None = field(default=None, metadata=FILES)
    limit: Count | None = None
    batch_size: Count | None = field(default=None, metadata=SAME_RESULTS)
    few_shot: Natural | None = None
    chat_template: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.tasks, str):
            raise LawError(
                f"evaluation.reasoning.tasks is the text {self.tasks!r}; expected a list of names. "
                f"Set evaluation.reasoning.tasks=[{self.tasks}]."
            )
        if self.system is not None and not self.chat_template:
            raise LawError(
                "evaluation.reasoning.system is set, but prompts are no chat messages; expected a system message only "
                "with a chat template. Set evaluation.reasoning.chat_template=true, or system=null."
            )

    def content(self, hashes: FileHashes) -> Any:
        """The carried tasks with their rows, and the mirrors of the tasks asked for; nothing without tasks."""
        if not self.tasks:
            return []
        mirrors = [MIRRORS[name] for name in self.tasks if name in MIRRORS]
        names = [name for mirror in mirrors for name in (mirror.file, mirror.examples)]
        files = [Path(self.data) / name for name in names] if self.data else []
        return [
            hashes.of_folder(LOCAL_TASKS, "**/*.*l"),
            {path.name: hashes.of(path) for path in files if path.is_file()},
        ]


def load_tasks(settings: ReasoningSettings) -> dict[str, Any]:
    """The tasks with their rows, by the names of their scores; a group is replaced by its tasks.

    Raises:
        LawError: a task is unknown, has no accuracy or too few examples, or its rows are missing or malformed.
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
            # to index the whole harness takes seconds; the folders of some tasks are known
            harness = harness_folders(others) if set(others) <= MIRRORS.keys() else TaskManager()
            for name in others:
                if name not in harness.all_tasks:
                    raise _unknown(name, manager.all_tasks, harness.all_tasks)
            loaded |= harness.load(others)["tasks"]
        elif others:
            _refuse_unmirrored(others, manager.all_tasks, settings)
            loaded |= mirrored(others, str(settings.data), settings.few_shot or 0)
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
        _set_examples(name, task, settings.few_shot)
    return loaded


def _unknown(task: str, own: Iterable[str], known: Iterable[str]) -> LawError:
    return LawError(
        f"Unknown reasoning task {task!r}.{did_you_mean(task, [*own, *known])} Available without a "
        f"hub: {', '.join([*own, *MIRRORS])}. With a hub: any task of the lm-evaluation-harness. "
        "Set evaluation.reasoning.tasks."
    )


def _refuse_unmirrored(tasks: Iterable[str], own: list[str], settings: ReasoningSettings) -> None:
    """Refuse tasks whose rows can't be local files, and a missing folder of rows."""
    why = "the hub can't be reached" if settings.source is RowSource.auto else "its source is local"
    for task in tasks:
        if task not in MIRRORS:
            if difflib.get_close_matches(task, own, n=1, cutoff=0.8):  # surely a typing error
                raise _unknown(task, own, MIRRORS)
            known = _all_harness_tasks()
            if task not in known:
                raise _unknown(task, own, known)
            raise LawError(
                f"The reasoning task {task!r} belongs to the lm-evaluation-harness, but its rows are not here: {why}. "
                f"Expected a task with local rows ({', '.join([*own, *MIRRORS])}) or a hub within reach. Set "
                "evaluation.reasoning.source=hub if the hub can be reached or its data set lies in this machine's "
                "Hugging Face cache, or take the task out of evaluation.reasoning.tasks."
            )
        if settings.data is None:
            raise LawError(
                f"The reasoning task {task!r} has no rows: {why}, and evaluation.reasoning.data names no folder. "
                f"Expected a folder with {MIRRORS[task].file}. Set evaluation.reasoning.data to it, or take "
                "the task out of evaluation.reasoning.tasks."
            )


def _all_harness_tasks() -> list[str]:
    """Every task, group and tag of the installed harness; this takes ten seconds and more."""
    from lm_eval.tasks import TaskManager

    return TaskManager().all_tasks


def _set_examples(name: str, task: Any, few_shot: int | None) -> None:
    """Set how many examples stand before each item, and keep the item itself out of them."""
    fixed, config = task.get_config("num_fewshot"), task.config
    number = few_shot if few_shot is not None else fixed or 0
    if number and fixed == 0:
        raise LawError(
            f"The reasoning task {name!r} is defined without examples (num_fewshot: 0); expected "
            f"evaluation.reasoning.few_shot=0 or null, got {number}. Take the task out of "
            "evaluation.reasoning.tasks, or set few_shot=0."
        )
    task.set_config("num_fewshot", number)
    if not number:
        return
    examples = task.fewshot_cfg
    splits = (examples.split, config.training_split, config.validation_split, config.test_split)
    available = len(task.sampler.df)
    if not examples.samples and next(filter(None, splits)) == (config.test_split or config.validation_split):
        # Examples are drawn from the scored rows. The harness leaves out the item itself if these two are equal.
        examples.split = config.test_split
        available -= 1
    if available < number:
        raise LawError(
            f"The reasoning task {name!r} has {available} rows for examples; expected at least "
            f"{number}. Lower evaluation.reasoning.few_shot, or take the task out of evaluation.reasoning.tasks."
        )


def check_chat_template(tokenizer: PreTrainedTokenizerBase, settings: ReasoningSettings) -> None:
    """Refuse a tokenizer that cannot build the prompts.

    Raises:
        LawError: it has no chat template, or one that fails or refuses the system message.
    """
    if not settings.chat_template:
        return
    if tokenizer.chat_template is None:
        raise LawError(
            "evaluation.reasoning.chat_template is true, but the model's tokenizer has no chat template; expected "
            "the tokenizer of a chat model. Set evaluation.reasoning.chat_template=false, or model.path to a chat model."
        )
    messages = [{"role": "user", "content": "Hello"}]
    if settings.system is not None:
        messages.insert(0, {"role": "system", "content": settings.system})
    try:
        tokenizer.apply_chat_template(messages, chat_template=undated_template(tokenizer), tokenize=False)
    except (TemplateError, ValueError, TypeError) as error:
        raise LawError(
            f"The tokenizer's chat template refuses the messages of a reasoning task ({error}); expected one that "
            "takes a system message, where evaluation.reasoning.system is set, and a user message. Set "
            "evaluation.reasoning.system=null, or evaluation.reasoning.chat_template=false."
        ) from error


def chance_levels(tasks: Mapping[str, Any], limit: int | None) -> dict[str, float]:
    """The expected accuracy of a random guess, for each task with exactly one right choice per item."""
    levels = {}
    for name, task in tasks.items():
        if task.OUTPUT_TYPE == "multiple_choice" and not task.multiple_target:
            shares = [1 / len(task.doc_to_choice(doc)) for _, doc in task.doc_iterator(limit=limit)]
            levels[name] = math.fsum(shares) / len(shares)
    return levels


def tasks_key(
    tasks: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    settings: ReasoningSettings,
    hashes: FileHashes,
) -> dict[str, Any]:
    """Everything besides the model and this code that a score depends on: tasks, rows, prompts and the harness."""
    return {
        "tasks": [*tasks],
        "limit": settings.limit,
        "few_shot": settings.few_shot,
        "chat_template": undated_template(tokenizer) if settings.chat_template else None,
        "system": settings.system,
        "rows": settings.content(hashes),
        "harness": {package: importlib.metadata.version(package) for package in ("lm_eval", "datasets")},
    }
