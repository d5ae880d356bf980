"""Errors of the command line, explained in one paragraph that says what to write instead."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from law.base.errors import LawError, did_you_mean, first_line

INSTALL_LAUNCHERS = "Launchers are installed by `pip install -e '.[launchers]'`."


def explain(error: HydraException | OmegaConfBaseException) -> str:
    """One paragraph on why the configuration does not compose, with the nearest valid key or option."""
    causes = [*_causes(error)]
    for found in causes:
        if isinstance(found, LawError):
            return str(found)
        if isinstance(found, MissingConfigException) and found.options:
            return unknown_option(str(found.missing_cfg_file), found.options)
        if isinstance(found, OverrideParseException):
            return _unreadable(found.override)
    if "Could not load 'hydra/launcher/" in str(error):
        return f"The launcher is not installed; expected its package. {INSTALL_LAUNCHERS}"
    if several := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'", str(error)):
        return _several(several[1])
    cause = next((found for found in causes if isinstance(found, OmegaConfBaseException)), None)
    if cause is None:
        return " ".join(str(error).split())
    if isinstance(cause, MissingMandatoryValue):
        key = str(cause.full_key)
        located = key.rpartition(".")[2] in ("layers", "lam")
        hint = (
            " `python experiments/locate.py model=... dataset=...` proposes layers and λ." if located else ""
        )
        return f"{key} is not set; expected a value. Set {key}=... on the command line.{hint}"
    problem, where = first_line(cause), str(cause.full_key)
    if "is not a ListConfig" in problem:
        return (
            f"{where} is {cause.value!r}; expected a list. Write {shlex.quote(f'{where}=[{cause.value}]')}."
        )
    parent = cause.parent_node
    if not isinstance(parent, DictConfig) or cause.key is None or cause.key in [*parent]:
        choices = re.search(r", expected one of \[(.*)\]", problem)  # of an enumeration
        hint = did_you_mean(str(cause.value).lower(), choices[1].split(", ")) if choices else ""
        return f"The configuration is wrong at {where!r}: {problem}.{hint}"
    return unknown_key(where, [*map(str, parent)], parent._get_root())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unreadable(override: str) -> str:
    """An argument that does not follow Hydra's grammar."""
    key, equals, value = override.partition("=")
    if not equals:
        return f"The argument {override!r} sets nothing; expected key=value. Write {key}=... with a value."
    if value.count("[") != value.count("]"):
        return (
            f"The list in {override!r} does not end; expected as many ] as [. The shell splits an argument at spaces: "
            f"leave them out, as in {key}=[0,1], or quote the argument, as in {shlex.quote(f'{key}=[0, 1]')}."
        )
    return (
        f"The value in {override!r} can't be read. Spaces, commas, brackets, '=' and '~' have a meaning in "
        "Hydra's grammar, and accents and '#' are not part of it. All of them are plain characters in quotes. "
        f"Quote the value: {shlex.quote(f'{key}={_quoted(value)}')}."
    )


def _several(override: str) -> str:
    """An argument with several values outside a sweep."""
    key, _, value = override.partition("=")
    return (
        f"The argument {override!r} holds several values; expected one, since this is no sweep. Add -m to run with "
        f"each of them, write {shlex.quote(f'{key}=[{value}]')} for a list, or "
        f"{shlex.quote(f'{key}={_quoted(value)}')} for one value with commas."
    )


def _quoted(value: str) -> str:
    """A value in the quotes of Hydra's grammar."""
    escaped = value.replace('"', '\\"')
    return f'"{escaped}"'


def unknown_key(name: str, valid: Iterable[str], root: Any) -> str:
    """A dotted key that is not among the ``valid`` ones of its parent."""
    prefix, dot, key = name.rpartition(".")
    names = [known for known in valid if known not in (key, "_target_", "hydra")]
    # a setting of the same group at another depth: LAW has no method.lam, but method.initial.lam
    group = name.partition(".")[0] + dot if dot else ""
    elsewhere = {
        path.rpartition(".")[2]: path
        for path in paths(root, "")
        if path.startswith(group) and path != name and not path.startswith("hydra.")
    }
    hint = ""
    if near := difflib.get_close_matches(key, names, n=1):
        hint = f" Did you mean {prefix + dot + near[0]!r}?"
    elif near := difflib.get_close_matches(key, elsewhere, n=1):
        hint = f" Did you mean {elsewhere[near[0]]!r}?"
    builds = str(OmegaConf.select(root, f"{prefix}._target_") or "") if dot else ""
    owner = f"{prefix} ({builds.rpartition('.')[2]})" if builds else prefix or "The top level"
    return (
        f"Unknown key {name!r} in the configuration.{hint} {owner} has {', '.join(names) or 'no settings'}."
    )


def unknown_option(path: str, options: Iterable[str]) -> str:
    """An option that a group lacks; schemas are no options."""
    group, _, option = path.rpartition("/")
    valid = [name for name in options if not name.endswith("_schema")]
    hint = did_you_mean(option, valid)
    if group == "hydra/launcher":
        hint += f" {INSTALL_LAUNCHERS}"
    return f"Unknown {group} {option!r}.{hint} Available: {', '.join(valid)}. Set {group}=... to one of them."


def paths(node: Any, prefix: str) -> Iterator[str]:
    """The dotted name of every key of a configuration."""
    if not isinstance(node, DictConfig) or node._is_missing() or node._is_none():
        return
    for key in map(str, node):
        yield f"{prefix}{key}"
        yield from paths(node._get_node(key), f"{prefix}{key}.")
