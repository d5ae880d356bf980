"""Which values a setting accepts: stated in its type, and checked when the settings are made.

A field such as ``steps: Count`` is an ``int`` to Python and to Hydra. Settings that inherit from :class:`Checked`
refuse a value out of range when they are made. :func:`refuse_out_of_range` is the same check for values that are
not settings yet, such as those of a composed configuration.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Annotated, Any, get_args, get_type_hints

from law.base.errors import LawError


@dataclass(frozen=True)
class Accepted:
    """The values that a setting accepts: in words, and as a test that is false for all others."""

    words: str
    test: Callable[[Any], bool]


def whole(low: int, words: str, high: int = 2**63 - 1) -> Accepted:
    """Integers from ``low`` to ``high``."""
    return Accepted(words, lambda value: isinstance(value, Integral) and low <= int(value) <= high)


# NaN fails every comparison, and so every test
Count = Annotated[int, whole(1, "an integer of at least 1")]
Natural = Annotated[int, whole(0, "an integer of at least 0")]
RowTokens = Annotated[int, whole(2, "an integer of at least 2, so that a token is predicted")]
Seed = Annotated[int, whole(0, "an integer from 0 to 4294967295, which is 2³² - 1", 2**32 - 1)]
Positive = Annotated[float, Accepted("a finite number above 0", lambda x: 0 < x < math.inf)]
NonNegative = Annotated[float, Accepted("a finite number of at least 0", lambda x: 0 <= x < math.inf)]
AtLeastOne = Annotated[float, Accepted("a finite number of at least 1", lambda x: 1 <= x < math.inf)]
Decay = Annotated[float, Accepted("a number above 0 and below 1", lambda x: 0 < x < 1)]
Share = Annotated[float, Accepted("a number above 0 and at most 1", lambda x: 0 < x <= 1)]
Fraction = Annotated[float, Accepted("a number from 0 to 1", lambda x: 0 <= x <= 1)]
Counts = Annotated[
    list[int],
    Accepted("a list of integers of at least 1", lambda values: len(values) > 0 and min(values) >= 1),
]
Positives = Annotated[
    list[float],
    Accepted(
        "a list of finite numbers above 0",
        lambda values: len(values) > 0 and all(0 < value < math.inf for value in values),
    ),
]
FolderName = Annotated[
    str,
    Accepted(
        "the name of a folder, or several with / between them, of letters, digits and _ . + = -, none beginning with a dot",
        lambda name: re.fullmatch(r"(?!\.)[\w.+=-]+(/(?!\.)[\w.+=-]+)*", name) is not None,
    ),
]
Layers = Annotated[
    list[int],
    Accepted(
        "a list of layers in rising order, counted from 0, such as [3,4,5]",
        lambda layers: len(layers) > 0 and layers[0] >= 0 and sorted(set(layers)) == list(layers),
    ),
]


class Checked:
    """A dataclass of settings that refuses a value out of range, and reads ``~`` in a path as the home folder.

    Raises:
        LawError: names the field, its value and what it accepts.
    """

    def __post_init__(self) -> None:
        refuse_out_of_range(type(self), vars(self), f"{type(self).__name__}.")
        for name, value in vars(self).items():
            if isinstance(value, str) and value.startswith("~"):
                # Path.expanduser fails where a user is unknown; here such a path is left to be reported as missing
                setattr(self, name, os.path.expanduser(value))  # noqa: PTH111


def refuse_out_of_range(settings: type, values: Mapping[str, Any], prefix: str) -> None:
    """Check ``values``, by the names of the fields of the class ``settings``; ``None`` and missing ones pass.

    Raises:
        LawError: names the field behind ``prefix``, its value and what it accepts.
    """
    for name, accepted in ranges(settings).items():
        value = values.get(name)
        if value is not None and not _accepts(accepted, value):
            raise LawError(f"{prefix}{name} is {value!r}; expected {accepted.words}.")


def _accepts(accepted: Accepted, value: Any) -> bool:
    try:
        return accepted.test(value)
    except TypeError:  # a value of another type, such as a text
        return False


def ranges(settings: type) -> dict[str, Accepted]:
    """What each field of a class of settings accepts; fields whose type states nothing are left out."""
    hints = get_type_hints(settings, include_extras=True)
    return {name: accepted for name, hint in hints.items() for accepted in _stated(hint)}


def _stated(hint: Any) -> Iterator[Accepted]:
    """What a type states: ``Annotated[int, Accepted(...)]``, or a union that holds one."""
    for part in get_args(hint):
        if isinstance(part, Accepted):
            yield part
        else:
            yield from _stated(part)
