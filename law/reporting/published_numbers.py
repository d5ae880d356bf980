"""Published numbers, to be shown beside measured ones."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from law.base.errors import LawError, first_line
from law.evaluation.metrics import Metric, describe

FORMAT = """\
A YAML list; each entry has all of these:

- model: gpt2-xl            # as in model=, dataset= and method=
  dataset: zsre
  method: law
  metric: forget/accuracy   # a key of metrics.json, docs/metrics.md
  value: 0.25               # in that metric's unit, a fraction between 0 and 1
  table: "2"                # of the source
  page: 7
  source: title and year of the paper
"""


@dataclass
class Published:
    """One published number in the unit of its metric, and where it was published."""

    model: str
    dataset: str
    method: str
    metric: str
    value: float
    table: str
    page: int
    source: str


def load_published(path: Path) -> list[Published]:
    """The entries of a file in ``FORMAT``.

    Raises:
        LawError: an entry is malformed, out of range, of an unknown metric, or repeats another.
    """
    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_list(loaded):
            raise LawError(f"{path} is not a list of published numbers. Expected:\n{FORMAT}")
        entries = [_entry(path, number, one) for number, one in enumerate(loaded, start=1)]
    except (OSError, UnicodeError, YAMLError, OmegaConfBaseException) as error:
        raise LawError(f"{path} cannot be read: {error}. Expected:\n{FORMAT}") from error
    seen: dict[tuple[str, ...], int] = {}
    for number, entry in enumerate(entries, start=1):
        key = (entry.model, entry.dataset, entry.method, entry.metric)
        if first := seen.get(key):
            raise LawError(
                f"{path}: entries {first} and {number} both give {', '.join(key)}. Expected one; remove the other."
            )
        seen[key] = number
    return entries


def _entry(path: Path, number: int, given: Any) -> Published:
    """One entry. Every field must be present and of its type."""
    names = [field.name for field in fields(Published)]
    where = f"{path}, entry {number}"
    try:
        entry = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Published), given))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise LawError(
            f"{where}: {first_line(error)}. Expected the fields {', '.join(names)}, and no others."
        ) from error
    assert isinstance(entry, Published)
    metric = _metric(where, entry.metric)
    if metric.unit == "fraction" and not 0 <= entry.value <= 1:
        raise LawError(
            f"{where}: the value of {entry.metric} is {entry.value:g}; expected a fraction between 0 and 1. "
            "Divide a percentage by 100."
        )
    if empty := [name for name in names if str(getattr(entry, name)).strip() == ""]:
        raise LawError(
            f"{where}: {', '.join(empty)} is empty. Expected the place where the number was published."
        )
    return entry


def _metric(where: str, key: str) -> Metric:
    """A metric of the washed model. Values before washing and standard errors are not compared."""
    try:
        metric = describe(key)
    except KeyError:
        metric = None
    if metric is None or metric.better == "neither":
        raise LawError(
            f"{where}: {key!r} is not a metric that tables show. Expected a key of docs/metrics.md without a suffix, "
            "of which higher or lower is better, such as forget/accuracy."
        )
    return metric
