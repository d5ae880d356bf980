"""What settings mean for a run: for its identity, by the metadata of their fields, and for what its method learns from.

A field without such metadata counts by its value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from law.base.files import FileHashes

ROLE = "role"

SAME_RESULTS = MappingProxyType({ROLE: "same results"})
"""The field changes no number: where results are kept, or how many rows a forward pass takes."""

FILES = MappingProxyType({ROLE: "files"})
"""The field names files. Their content counts (:class:`Reads`), and not how the path is written."""


GENERAL_TEXT, OTHER_FACTS = "general text", "other facts"
"""What a method may learn from besides the facts to wash. Other facts are neither washed nor scored."""


@runtime_checkable
class LearnsFrom(Protocol):
    """Settings of a method that make it learn from more than the facts to wash."""

    def learns_from(self) -> Collection[str]:
        """Any of ``GENERAL_TEXT`` and ``OTHER_FACTS``."""
        ...


def learned_from(settings: Any) -> list[str]:
    """What ``settings`` and the settings inside it say that they learn from, in alphabetical order."""
    found = {*settings.learns_from()} if isinstance(settings, LearnsFrom) else set()
    for field in fields(settings) if is_dataclass(settings) else ():
        found |= {*learned_from(getattr(settings, field.name))}
    return sorted(found)


def counting(settings: Any) -> dict[str, Any]:
    """The values of a settings object that count, by the names of their fields."""
    return {f.name: getattr(settings, f.name) for f in fields(settings) if f.metadata.get(ROLE) is None}


@runtime_checkable
class Reads(Protocol):
    """A settings class that names files, and tells what they hold."""

    def content(self, hashes: FileHashes) -> Any:
        """A JSON-like value that changes when what is read changes. ``None``: the files are not here (yet)."""
        ...


def contents(settings: Any, name: str, hashes: FileHashes) -> Iterator[tuple[str, Any]]:
    """The content that ``settings`` and the settings inside it read, each by its dotted name from ``name`` on."""
    if isinstance(settings, Reads):
        yield name, settings.content(hashes)
    if is_dataclass(settings):
        for field in fields(settings):
            yield from contents(getattr(settings, field.name), f"{name}.{field.name}", hashes)
