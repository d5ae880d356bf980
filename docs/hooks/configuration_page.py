"""The page on the configuration: every group, option and field, from ``conf/`` and the dataclasses behind it."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any

import yaml
from docstrings import to_markdown
from hydra.core.config_store import ConfigStore
from hydra.utils import get_class

from law.base.checks import ranges
from law.base.settings import ROLE, SAME_RESULTS
from law.runs.configuration import KnownFactsConfig, LocateConfig, RunConfig, TrainConfig
from law.runs.knob import Knob

CONF = Path(__file__).parents[2] / "conf"
GROUPS = {
    "model": "Which model is washed, and how it is held.",
    "dataset": "Where the facts come from, and which of them are washed. [Data sets](../datasets.md) has the file formats.",
    "method": "How the model is washed. What a method takes for one model is in its [preset](#presets). `method.knob` is its [knob](#Knob).",
    "evaluation": "What is measured before and after washing. [Metrics](../metrics.md) says what the numbers mean.",
    "attack": "How the washed model is attacked, to tell facts that are gone from facts that are hidden. [Attacks](../attacks.md) says what each asks.",
    "tracker": "Where a run's numbers go besides its files.",
    "world": "What `experiments/train_lab.py` trains a model on.",
}
FILES = {
    "config": (RunConfig, "`experiments/wash.py`: one washing run."),
    "locate": (LocateConfig, "`experiments/locate.py`: which layers to edit in a model, and with which λ."),
    "known_facts": (
        KnownFactsConfig,
        "`experiments/known_facts.py`: the facts of a data set that a model knows.",
    ),
    "train_lab": (TrainConfig, "`experiments/train_lab.py`: train the lab's model."),
}
HEAD = """# Configuration

Hydra composes a run from one option of each group. An option is a file, `conf/<group>/<option>.yaml`.
The dataclass that the option builds is its schema: it defines the fields, their types and their defaults.

```bash
python experiments/wash.py method=law method.beta_ratio=1.2   # an option, and a field of it
python experiments/wash.py method=law --cfg job               # print the configuration, run nothing
```

Later parts override earlier ones: the dataclass's defaults, the option's file, the preset of the model, the preset of
the data set and the model, the experiment, the command line. Hydra refuses an unknown key or a value of the
wrong type, and the message names the nearest valid key.

Hydra gives spaces, commas, brackets, `=`, `~` and accents in a value a meaning of their own. Put such a value in
double quotes, and the whole argument in single quotes for the shell. `~` is then the home folder:

```bash
python experiments/wash.py dataset=custom 'dataset.path="~/my facts/a=b.csv"'
```

This page is generated from the code.
"""


def configuration_page() -> str:
    """The page in Markdown.

    Raises:
        ValueError: a field has no line in the ``Args:`` of its class.
    """
    parts = [HEAD, *_top_levels(), *_groups(), *_presets(), *_experiments()]
    return "\n".join(parts)


def _top_levels() -> Iterator[str]:
    yield "## Top level\n"
    for name, (cls, what) in FILES.items():
        groups = [key for key in GROUPS if key in typing.get_type_hints(cls)]
        yield f"### `conf/{name}.yaml`\n\n{what} Groups: {', '.join(f'[`{g}`](#{g})' for g in groups)}.\n"
        set_there = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
        yield _table((field for field in fields(cls) if field.name not in GROUPS), cls, set_there)
    nested = dict.fromkeys(inner for cls, _ in FILES.values() for inner in _settings_in(cls))
    for inner in nested:
        yield _section(inner, 3)


def _groups() -> Iterator[str]:
    """A section for each group: its options, the class of each, and the settings nested in those."""
    told: set[type] = set()
    for group, what in GROUPS.items():
        classes = _classes(group)
        yield f"## `{group}` {{: #{group} }}\n\n{what}\n\n| `{group}=` | builds | its file sets |\n| --- | --- | --- |"
        for path in sorted((CONF / group).glob("*.yaml")):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            cls = next(cls for name, cls in classes.items() if name in str(content["defaults"]))
            values = {key: value for key, value in content.items() if key != "defaults"}
            yield f"| `{path.stem}` | [`{cls.__name__}`](#{cls.__name__}) | {_values(values)} |"
        yield ""
        if group == "method":
            yield _section(Knob, 3)  # of a method's schema, and not of its class
        queue = [*classes.values()]
        while queue:
            cls = queue.pop(0)
            if cls not in told:
                told.add(cls)
                yield _section(cls, 3)
                queue = [*_settings_in(cls), *queue]


def _classes(group: str) -> dict[str, type]:
    """The class behind each schema of a group."""
    stored: Any = ConfigStore.instance().repo[group]
    return {name.removesuffix(".yaml"): get_class(node.node["_target_"]) for name, node in stored.items()}


def _settings_in(cls: type) -> list[type]:
    """The dataclasses that the fields of ``cls`` hold."""
    hints = typing.get_type_hints(cls)
    held = [inner for f in fields(cls) for inner in (hints[f.name], *typing.get_args(hints[f.name]))]
    return [inner for inner in held if is_dataclass(inner) and isinstance(inner, type)]


def _section(cls: type, level: int) -> str:
    """The fields of one class."""
    summary = to_markdown(inspect.getdoc(cls) or "", lambda name: _full_name(cls, name)).partition("Args:")[0]
    head = f"{'#' * level} {cls.__name__} {{: #{cls.__name__} }}\n\n[`{cls.__module__}`][{cls.__module__}.{cls.__name__}]"
    owned = [*fields(cls)]
    return f"{head}\n\n{summary.strip()}\n\n{_table(owned, cls) if owned else 'It has no settings.'}\n"


def _table(owned: Iterable[Field[Any]], cls: type, set_there: Mapping[str, Any] | None = None) -> str:
    """The fields ``owned`` by ``cls``, with the defaults of a file where it has them."""
    hints, accepted = typing.get_type_hints(cls), ranges(cls)
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in owned:
        meaning = _meaning(cls, field.name)
        kinds = [hints[field.name], *typing.get_args(hints[field.name])]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Enum):
                meaning += f" One of {_members(kind)}."
        if field.metadata.get(ROLE) == SAME_RESULTS[ROLE]:
            meaning += " Changes no result."
        if field.name in accepted:
            meaning += f" Accepts {accepted[field.name].words}."
        given = (set_there or {}).get(field.name)
        default = _default(field) if given is None or isinstance(given, dict) else f"`{_yaml(given)}`"
        rows.append(f"| `{field.name}` | {_type(hints[field.name])} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _members(kind: type[Enum]) -> str:
    return ", ".join(f"`{member.name}`" for member in kind)


def _type(hint: Any) -> str:
    """The type of a field, with a link where it is a class with a section of its own."""
    if hint is type(None):
        return "`null`"
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return " or ".join(map(_type, typing.get_args(hint)))
    if is_dataclass(hint) and isinstance(hint, type):
        return f"[{hint.__name__}](#{hint.__name__})"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"[{hint.__name__}][{hint.__module__}.{hint.__name__}]"
    plain = isinstance(hint, type) and not typing.get_args(hint)
    return f"`{hint.__name__ if plain else hint}`".replace("typing.", "")


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        value = field.default
    elif field.default_factory is not MISSING:
        value = field.default_factory()
        if is_dataclass(value):
            return "its defaults"
    else:
        return "required"
    if isinstance(value, Enum):
        return f"`{value.name}`"
    return f"`{_yaml(value)}`"


def _meaning(cls: type, name: str) -> str:
    """What the ``Args:`` of the class, or of the first base that has it, say of a field."""
    for base in cls.__mro__:
        found = _arguments(base).get(name)
        if found:
            return found.replace("|", "&#124;")
    raise ValueError(f"{cls.__module__}.{cls.__name__} does not document its field {name!r} under Args:")


def _arguments(cls: type) -> dict[str, str]:
    """The fields that a class documents itself, each with its text in one line of Markdown."""
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Args:\n")
    section = textwrap.dedent(re.split(r"\n(?=\S)", section)[0])
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", section):
        name, _, text = entry.partition(":")
        told = to_markdown(" ".join(text.split()), lambda name: _full_name(cls, name))
        # a symbol, such as λ or c, keeps its case
        found[name] = told[:1].upper() + told[1:] if re.match("a |[a-z]{2}", told) else told
    return found


def _full_name(cls: type, name: str) -> str | None:
    """The dotted name of what a docstring of ``cls`` calls ``name``, where a page describes it."""
    if name.startswith("_"):
        return None
    found = vars(sys.modules[cls.__module__]).get(name)
    return name if found is None else f"{found.__module__}.{found.__qualname__}"


def _presets() -> Iterator[str]:
    yield (
        "## Presets {: #presets }\n\nA preset holds what a method takes for one model (`conf/preset/<model>/<method>.yaml`), "
        "and for that model with one data set (`conf/preset_for/<dataset>/<model>/<method>.yaml`). The comment in a file "
        "says where its values come from.\n"
    )
    for folder in ("preset", "preset_for"):
        for path in sorted((CONF / folder).rglob("*.yaml")):
            text = textwrap.indent(path.read_text(encoding="utf-8"), "    ")
            yield f'??? note "`{path.relative_to(CONF).as_posix()}`"\n\n    ```yaml\n{text}    ```\n'


def _experiments() -> Iterator[str]:
    yield "## `experiment` {: #experiment }\n\nA sweep with a name: `experiment=<name>`.\n\n| `experiment=` | what | sweeps |\n| --- | --- | --- |"
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        comments = re.findall(r"^# (?!@)(.*)", text, re.MULTILINE)
        sweep = yaml.safe_load(text).get("hydra")
        swept = _values(sweep["sweeper"]["params"]) if sweep else "nothing by itself"
        yield f"| `{path.stem}` | {' '.join(comments)} | {swept} |"
    yield (
        "\nAn experiment can set values for one data set, in `conf/experiment_for/<experiment>/<dataset>.yaml`:\n\n"
        "| file | sets |\n| --- | --- |"
    )
    for path in sorted((CONF / "experiment_for").rglob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        yield f"| `{path.relative_to(CONF).as_posix()}` | {_values(values)} |"


def _values(values: Mapping[str, Any]) -> str:
    return "<br>".join(f"`{key}: {_yaml(value)}`" for key, value in values.items())


def _yaml(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").replace("|", "&#124;")
