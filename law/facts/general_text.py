"""General text, which washing must leave alone: local files, or a data set of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from datasets import DatasetBuilder, IterableDataset, load_dataset_builder

from law.base.checks import Checked, Count
from law.base.errors import LawError, first_line
from law.base.files import FileHashes
from law.base.hub_access import hub_reachable
from law.base.settings import FILES, GENERAL_TEXT
from law.facts.record_files import json_lines, text_lines


@dataclass
class TextSettings(Checked):
    """General text: local files, or a data set. A subclass says what its settings are called in a method.

    Args:
        text: a UTF-8 file, one document a line, or a JSON Lines file (``.jsonl``); a pattern such as
            ``wiki/*.jsonl`` takes every file it fits, in the order of their names.
        documents: how many documents are read, from the first on. Blank ones are neither read nor counted.
        dataset: a data set's name on the hub (``wikimedia/wikipedia``) or its folder, in place of ``text``.
        config: the configuration of the data set (``20231101.en``).
        split: the split of the data set.
        column: which column, or key of JSON Lines, holds the text.
    """

    NAME: ClassVar[str]

    text: str | None = field(default=None, metadata=FILES)
    documents: Count = 100_000
    dataset: str | None = field(default=None, metadata=FILES)
    config: str | None = None
    split: str = "train"
    column: str = "text"

    def check(self) -> None:
        """Refuse a text that can't be read, before anything is computed.

        Raises:
            LawError: with how to name one.
        """
        if (self.text is None) == (self.dataset is None):
            raise LawError(
                f"The general text has text = {self.text!r} and dataset = {self.dataset!r}; expected one of them. "
                f"Set the method's {self.NAME}.text to a file with one document a line, or {self.NAME}.dataset to "
                "a data set."
            )
        if self.dataset is None:
            self._files()
        else:
            self._stream()

    def learns_from(self) -> Collection[str]:
        """A method that has such settings reads general text."""
        return [GENERAL_TEXT]

    def content(self, hashes: FileHashes) -> Any:
        """The files that are read, by what their names end in and their hashes, in the order in which they are read.

        A data set on the hub is identified by its name alone, because more could only be asked of the hub.
        """
        if self.dataset is not None:
            folder = Path(self.dataset)
            return hashes.of_folder(folder, "**/*") if folder.is_dir() else []
        if self.text is None:  # nothing is read, as by a retain loss of weight 0
            return []
        try:
            return [[path.suffix, hashes.of(path)] for path in self._files()]
        except LawError:
            return None

    def identity(self, hashes: FileHashes) -> Any:
        """What tells this text from another one: its files' content, or the hub's hash of the data set."""
        told = self.content(hashes) or [self.dataset, self._builder().hash]
        return [told, self.config, self.split, self.column]

    def read(self) -> Iterator[str]:
        """The documents that are not blank, one after another; never all in memory.

        Raises:
            LawError: a line is not a JSON object with the column, or the data set has no such column.
        """
        # a tokenizer with a beginning-of-text token would make a row of a blank document
        return (text for text in self._texts() if text.strip())

    def count(self) -> int | None:
        """How many documents :meth:`read` gives, at most ``documents``; ``None`` where only reading them would tell.

        Raises:
            LawError: as :meth:`read` does.
        """
        if self.dataset is None:
            return sum(1 for _ in islice(self.read(), self.documents))
        split = (self._builder().info.splits or {}).get(self.split)
        return None if split is None else min(split.num_examples, self.documents)

    def _texts(self) -> Iterator[str]:
        if self.dataset is not None:
            for row in self._stream():
                yield self._column(row, f"{self.dataset}, split {self.split}")
            return
        for path in self._files():
            if path.suffix != ".jsonl":
                yield from text_lines(path)
                continue
            for number, row in json_lines(path, f"a JSON object with {self.column!r} a line"):
                yield self._column(row, f"{path}, line {number}")

    def _column(self, row: Any, where: str) -> str:
        text = row.get(self.column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            keys = ", ".join(map(str, row)) if isinstance(row, dict) else repr(row)
            raise LawError(
                f"{where}, holds no text in {self.column!r}; it has: {keys}. Set the method's {self.NAME}.column."
            )
        return text

    def _files(self) -> list[Path]:
        path = Path(self.text or "")
        found = [path] if path.is_file() else sorted(path.parent.glob(path.name or "?"))
        if not found or not all(map(Path.is_file, found)):
            raise LawError(
                f"The general text, {self.text}, does not exist, or is no file; expected a UTF-8 file with one document a line. "
                f"Set the method's {self.NAME}.text to such a file, or to a pattern that fits some."
            )
        return found

    def _builder(self) -> DatasetBuilder:
        if not Path(str(self.dataset)).exists() and not hub_reachable():
            raise self._unavailable(ConnectionError("the hub can't be reached."))  # it would try for a minute
        try:
            return load_dataset_builder(self.dataset, self.config)
        except (OSError, ValueError) as error:
            raise self._unavailable(error) from error

    def _stream(self) -> IterableDataset:
        builder = self._builder()
        try:
            return builder.as_streaming_dataset(split=self.split)
        except (OSError, ValueError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> LawError:
        return LawError(
            f"The general text, data set {self.dataset!r} (configuration {self.config!r}, split "
            f"{self.split!r}), could not be loaded: {first_line(error)}. Expected a data set on a hub "
            f"within reach, or in a folder. Without one, set the method's {self.NAME}.dataset=null and "
            f"{self.NAME}.text to a local file with one document a line."
        )
