"""What a setting means for a run's identity: the metadata of the fields of settings classes.

A field without such metadata counts by its value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from law.base.files import FileHashes

ROLE = "role"

SAME_RESULTS = MappingProxyType({ROLE: "same results"})
"""The field changes no number: where results are kept, or how many rows a forward pass takes."""

FILES = MappingProxyType({ROLE: "files"})
"""The field names files. Their content counts (:class:`Reads`), and not how the path is written."""


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
