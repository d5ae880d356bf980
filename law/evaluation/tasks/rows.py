"""Local rows for harness tasks: JSON lines are read into a data set of the ``datasets`` library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets

from law.base.errors import LawError, first_line
from law.facts.record_files import json_lines

Row = dict[str, Any]


def beside_task(file: str, **_: Any) -> datasets.DatasetDict:
    """The rows of a JSONL file in ``law/evaluation/tasks``, as the split ``test``.

    The harness calls this function because a task's YAML names it after ``!function``. It also passes the
    task's metadata, which is not used.
    """
    return datasets.DatasetDict({"test": read_rows(Path(__file__).parent / file, lambda row: row)})


def read_rows(path: Path, shape: Callable[[Row], Row]) -> datasets.Dataset:
    """The rows of a JSONL file, each converted by ``shape``.

    Raises:
        LawError: names the file, and the line that is malformed.
    """
    if not path.is_file():
        raise LawError(
            f"The rows of a reasoning task, {path}, do not exist; expected a file with one JSON object a line. "
            "Set evaluation.reasoning.data to the folder that holds it."
        )
    rows = []
    for number, row in json_lines(path, "one JSON object a line"):
        try:
            rows.append(shape(row))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise LawError(
                f"{path}, line {number}: the row is malformed: {problem}. Expected one JSON object a line, "
                "in the shape that docs/metrics.md names. Mend or remove that line."
            ) from error
    try:
        return datasets.Dataset.from_list(rows)
    except (ValueError, TypeError) as error:  # the base classes of pyarrow's errors
        raise LawError(
            f"{path}: the rows are not of one kind ({first_line(error)}). Expected the same keys with "
            "values of the same types in every line; mend the file."
        ) from error
