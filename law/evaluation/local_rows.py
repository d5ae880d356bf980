"""Harness tasks over local rows, for machines without a hub.

A mirror is the harness's task with other rows: its configuration comes from the installed harness, so
prompts, continuations and scoring are those of the harness's version. Local rows are converted to the
rows of the task's own data set. Two kinds are read: the data set's own rows, as ``datasets`` exports
them, and the flat rows of published evaluation suites, which contain the whole prompt (``query``, or
``context_options`` for winogrande).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from law.base.errors import LawError
from law.evaluation.tasks.rows import Row, read_rows

SUFFIX = "_mirror"

_LOGIQA = re.compile(
    r"Context: (?P<context>.*?)\nQuestion: (?P<question>.*?)\n"
    r"Choices: A\. (?P<a>.*?)\nB\. (?P<b>.*?)\nC\. (?P<c>.*?)\nD\. (?P<d>.*)\n",
    re.DOTALL,
)
_BOOLQ = re.compile(r"Passage: (?P<passage>.*)\nQuestion: (?P<question>.*)\?", re.DOTALL)


@dataclass(frozen=True)
class Mirror:
    """How a harness task is read from local rows.

    Args:
        folder: of the task's definition, in ``lm_eval/tasks``.
        file: of the rows.
        shape: converts a row to one of the task's own data set.
        training: whether the task's data set has a training split, which is where few-shot examples come from.
    """

    folder: str
    file: str
    shape: Callable[[Row], Row]
    training: bool = True

    @property
    def examples(self) -> str:
        """The file of the rows of the training split."""
        return self.file.replace(".jsonl", "_train.jsonl")


def mirrored(names: Sequence[str], data: str, few_shot: int = 0) -> dict[str, Any]:
    """The harness's tasks over the rows in the folder ``data``, under their names with ``_mirror``.

    Raises:
        LawError: a file of rows is missing or malformed, or few-shot examples are wanted and have no file.
    """
    manager = harness_folders(names)
    tasks: dict[str, Any] = {}
    for name in names:
        mirror = MIRRORS[name]
        splits = {"test": read_rows(Path(data) / mirror.file, mirror.shape)}
        training = "train" if few_shot and mirror.training else None
        if training:
            splits[training] = read_rows(_examples(name, Path(data), few_shot), mirror.shape)
        overrides = {
            "task": name,
            "custom_dataset": _Rows(datasets.DatasetDict(splits)),
            "dataset_kwargs": None,
            "training_split": training,
            "validation_split": None,
            "test_split": "test",
        }
        # a group is the harness's way to load one of its tasks with a part of it replaced
        (task,) = manager.load([{"group": "mirrors", "task": [overrides]}])["tasks"].values()
        task.set_config("task", f"{name}{SUFFIX}")
        tasks[f"{name}{SUFFIX}"] = task
    return tasks


def _examples(name: str, data: Path, few_shot: int) -> Path:
    path = data / MIRRORS[name].examples
    if not path.is_file():
        raise LawError(
            f"The few-shot examples of the reasoning task {name!r}, {path}, do not exist; expected rows of its "
            f"training split in the shape of {MIRRORS[name].file}, since evaluation.reasoning.few_shot={few_shot}. "
            "Write that file, set few_shot=0, or take the task out of evaluation.reasoning.tasks."
        )
    return path


def harness_folders(names: Sequence[str]) -> Any:
    """A harness task manager that indexes only the folders of these tasks, since indexing all takes seconds."""
    import lm_eval.tasks

    home = Path(lm_eval.tasks.__file__).parent
    folders: list[str | Path] = [home / MIRRORS[name].folder for name in names]
    return lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)


@dataclass(frozen=True)
class _Rows:
    """Rows, in the form in which the harness loads a data set."""

    found: datasets.DatasetDict

    def __call__(self, **_: Any) -> datasets.DatasetDict:
        return self.found


def _flat(shape: Callable[[Row], Row]) -> Callable[[Row], Row]:
    """``shape`` for flat rows; the data set's own rows are not changed."""
    return lambda row: shape(row) if row.keys() & {"query", "context_options"} else row


def _match(pattern: re.Pattern[str], text: str) -> dict[str, str]:
    found = pattern.fullmatch(text)
    if found is None:
        raise ValueError(f"the query {text[:60]!r}... is not of the form {pattern.pattern!r}")
    return found.groupdict()


def _hellaswag(row: Row) -> Row:
    # the harness joins these parts to the same prompt
    activity, _, context = row["query"].partition(": ")
    label = str(row["label"])
    return {
        "activity_label": activity,
        "ctx_a": context,
        "ctx_b": "",
        "endings": row["choices"],
        "label": label,
    }


def _arc(row: Row) -> Row:
    letters = [chr(ord("A") + i) for i in range(len(row["choices"]))]
    return {
        "question": row["query"].removeprefix("Question: "),
        "choices": {"text": row["choices"], "label": letters},
        "answerKey": letters[row["gold"]],
    }


def _piqa(row: Row) -> Row:
    first, second = row["choices"]
    goal = row["query"].removeprefix("Question: ").removesuffix("\n")
    return {"goal": goal, "sol1": first, "sol2": second, "label": row["gold"]}


def _winogrande(row: Row) -> Row:
    # the blank is where the contexts end, so a whole context takes the place of the option
    first, second = row["context_options"]
    answer = str(row["gold"] + 1)
    return {"sentence": f"_ {row['continuation']}", "option1": first, "option2": second, "answer": answer}


def _logiqa(row: Row) -> Row:
    found = _match(_LOGIQA, row["query"])
    options = [found.pop(letter) for letter in "abcd"]
    return {**found, "options": options, "label": "abcd"[row["gold"]]}


def _boolq(row: Row) -> Row:
    return {**_match(_BOOLQ, row["query"]), "label": row["gold"]}


MIRRORS = {
    "lambada_openai": Mirror(
        "lambada", "lambada_openai.jsonl", lambda row: {"text": row["text"]}, training=False
    ),
    "hellaswag": Mirror("hellaswag", "hellaswag.jsonl", _flat(_hellaswag)),
    "arc_easy": Mirror("arc", "arc_easy.jsonl", _flat(_arc)),
    "piqa": Mirror("piqa", "piqa.jsonl", _flat(_piqa)),
    "winogrande": Mirror("winogrande", "winogrande.jsonl", _flat(_winogrande)),
    "logiqa": Mirror("logiqa", "logi_qa.jsonl", _flat(_logiqa)),
    "boolq": Mirror("super_glue/boolq", "boolq.jsonl", _flat(_boolq)),
}
"""The harness tasks whose rows can be local."""
