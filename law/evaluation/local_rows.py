"""Harness tasks over local rows, for machines without a hub.

A mirror *is* the harness's task: its configuration is taken from the installed harness, and only
the rows come from elsewhere, brought into the shape of the task's own data set. So prompts,
continuations and scoring are the harness's, whatever its version. Two kinds of row are read: the data
set's own, as ``datasets`` exports them, and the flat ones of published evaluation suites, with the
prompt filled in (``query``, or ``context_options`` for winogrande).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

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
    """Where a harness task is defined, the file of its rows, and what makes a flat row the data set's own."""

    folder: str  # below lm_eval/tasks
    file: str
    shape: Callable[[Row], Row]


def mirrored(names: Sequence[str], data: str) -> dict[str, Any]:
    """The harness's tasks over the rows in the folder ``data``, under their names with ``_mirror``.

    Raises:
        LawError: a file of rows is missing or malformed.
    """
    manager = harness_folders(names)
    tasks: dict[str, Any] = {}
    for name in names:
        mirror = MIRRORS[name]
        rows = read_rows(Path(data) / mirror.file, mirror.shape)
        overrides = {
            "task": name,
            "custom_dataset": _Rows(rows),
            "dataset_kwargs": None,
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
        }
        # a group is the harness's way to load one of its tasks with a part of it replaced
        (task,) = manager.load([{"group": "mirrors", "task": [overrides]}])["tasks"].values()
        task.set_config("task", f"{name}{SUFFIX}")
        tasks[f"{name}{SUFFIX}"] = task
    return tasks


def harness_folders(names: Sequence[str]) -> Any:
    """The harness's task manager, with no more in it than the folders of these tasks: to index all takes seconds."""
    import lm_eval.tasks

    home = Path(lm_eval.tasks.__file__).parent
    folders: list[str | Path] = [home / MIRRORS[name].folder for name in names]
    return lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)


@dataclass(frozen=True)
class _Rows:
    """Rows as the harness asks for them."""

    found: datasets.DatasetDict

    def __call__(self, **_: Any) -> datasets.DatasetDict:
        return self.found


def _flat(shape: Callable[[Row], Row]) -> Callable[[Row], Row]:
    """``shape`` for flat rows only; the data set's own rows stay as they are."""
    return lambda row: shape(row) if row.keys() & {"query", "context_options"} else row


def _match(pattern: re.Pattern[str], text: str) -> dict[str, str]:
    found = pattern.fullmatch(text)
    if found is None:
        raise ValueError(f"the query {text[:60]!r}... is not of the form {pattern.pattern!r}")
    return found.groupdict()


def _hellaswag(row: Row) -> Row:
    # the harness puts these together again as they were
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
    # the whole context stands for the option: the blank is where the contexts end
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
    "lambada_openai": Mirror("lambada", "lambada_openai.jsonl", lambda row: {"text": row["text"]}),
    "hellaswag": Mirror("hellaswag", "hellaswag.jsonl", _flat(_hellaswag)),
    "arc_easy": Mirror("arc", "arc_easy.jsonl", _flat(_arc)),
    "piqa": Mirror("piqa", "piqa.jsonl", _flat(_piqa)),
    "winogrande": Mirror("winogrande", "winogrande.jsonl", _flat(_winogrande)),
    "logiqa": Mirror("logiqa", "logi_qa.jsonl", _flat(_logiqa)),
    "boolq": Mirror("super_glue/boolq", "boolq.jsonl", _flat(_boolq)),
}
"""The harness tasks that have a mirror."""
