"""What a row is called: its method, and the settings in which the rows of its table differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from law.base.errors import shortened
from law.reporting.sweep import UNKNOWN, Setup

Pair = tuple[str, str]


def labels(setups: Sequence[Setup]) -> dict[Setup, str]:
    """The label of each setup of one panel: the method and, in parentheses, what distinguishes its row.

    A setting of the method is shown if the rows of that method differ in it, any other setting if the rows
    of the panel do. Settings of the method come first. The name of a setting is cut to its last part, or
    to as many parts as distinguish it from the other settings.
    """
    short = _short_names({key for setup in setups for key, _ in setup.settings})
    named = {}
    for setup in setups:
        hidden = {*_common(setups), *_common_of_method(setup, setups)}
        differing = [pair for pair in setup.settings if pair not in hidden]
        differing.sort(key=lambda pair: not of_method(pair))
        shown = [f"{short[key]}={_shown(value)}" for key, value in differing]
        if UNKNOWN in dict(setup.origin).values():
            shown.append("earlier version")
        else:
            twins = [dict(other.origin) for other in setups if other.asked == setup.asked]
            shown += [
                f"{part} {value[:4]}"
                for part, value in setup.origin
                if any(twin.get(part) not in (value, UNKNOWN) for twin in twins)
            ]
        named[setup] = f"{setup.method} ({', '.join(shown)})" if shown else setup.method
    return named


def common_settings(setups: Sequence[Setup]) -> list[str]:
    """Sentences on the settings that no label shows: those of all rows, and those of all rows of a method."""
    common = _common(setups)
    groups = {"All rows": common}
    for setup in setups:
        own = [pair for pair in _common_of_method(setup, setups) if pair not in common]
        groups[f"All rows of {setup.method}"] = own
    texts = {who: ", ".join(f"{key}={_shown(value)}" for key, value in of) for who, of in groups.items()}
    return [f"{who}: {text.removesuffix('.')}." for who, text in texts.items() if text]


def _shown(value: str) -> str:
    """A value of an override without what Hydra's grammar escapes: spaces, commas and brackets of a text."""
    return shortened(re.sub(r"\\(.)", r"\1", value))


def _common(setups: Iterable[Setup]) -> list[Pair]:
    """The settings that all of these have."""
    first, *others = setups
    return [pair for pair in first.settings if all(pair in other.settings for other in others)]


def _common_of_method(setup: Setup, setups: Iterable[Setup]) -> list[Pair]:
    """The settings of its method that all setups with the method of ``setup`` have."""
    return [pair for pair in _common(s for s in setups if s.method == setup.method) if of_method(pair)]


def of_method(pair: Pair) -> bool:
    """Whether a setting, a name and a value, is one of the method."""
    return pair[0].startswith(("method.", "preset"))


def _short_names(keys: Iterable[str]) -> dict[str, str]:
    """The shortest end of each dotted key, in whole parts, that is the end of no other key."""
    split = {key: key.split(".") for key in keys}
    short = {}
    for key, parts in split.items():
        others = [other for name, other in split.items() if name != key]
        lengths = range(1, len(parts) + 1)
        length = next((n for n in lengths if all(other[-n:] != parts[-n:] for other in others)), len(parts))
        short[key] = ".".join(parts[-length:])
    return short
