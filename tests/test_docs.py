"""The documentation against the code: examples run, commands compose, links lead somewhere."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import torch
from configuration_page import configuration_page
from docstrings import to_markdown
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.evaluation import knowledge, metrics
from law.evaluation.knowledge import Replies, knowledge_metrics
from law.facts.fact import Fact
from law.reporting.sweep import Run, Setup
from law.reporting.typesetting import pipes
from law.runs.configuration import LocateConfig, RunConfig, TrainConfig, build, check_config, schema
from law.runs.knob import Knob

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
EXTENDING = ROOT / "docs" / "extending.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GROUPS = ("model", "dataset", "method", "evaluation", "attack", "tracker", "world")
LAUNCHERS = ("processes", "slurm")  # of conf/hydra/launcher
FLAGS = {"-m": 0, "--multirun": 0, "--cfg": 1, "--help": 0}
"""Options of Hydra's own, and how many values each takes."""


# --- the examples of docs/extending.md ----------------------------------------------------------


def blocks(language: str) -> dict[str, str]:
    """The code of docs/extending.md by the file that its first line names."""
    fences = re.findall(
        rf"^ *```{language}\n(.*?)^ *```", EXTENDING.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    parts = [textwrap.dedent(code).removeprefix("# ").partition("\n") for code in fences]
    return {file: code for file, _, code in parts}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> typing.Callable[[str], types.ModuleType]:
    """Make a module out of an example, as if its file were there."""

    def make(file: str) -> types.ModuleType:
        package, _, name = file.removesuffix(".py").replace("/", ".").rpartition(".")
        made = types.ModuleType(f"{package}.{name}")
        monkeypatch.setitem(sys.modules, made.__name__, made)
        exec(compile(blocks("python")[file], file, "exec"), vars(made))
        monkeypatch.setattr(importlib.import_module(package), name, made, raising=False)
        return made

    return make


@pytest.fixture
def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typing.Callable[..., typing.Any]:
    """Compose a configuration in which the options of docs/extending.md are there, and ``registered`` schemas."""
    for file, text in blocks("yaml").items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def make(*overrides: str, **registered: type) -> typing.Any:
        store = ConfigStore.instance()
        for group, cls in registered.items():
            monkeypatch.setattr(store, "repo", {**store.repo, group: {**store.repo[group]}})
            store.store(group=group, name=f"{cls.__name__}_schema", node=schema(cls))
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            return compose("config", overrides=[*overrides, f"hydra.searchpath=[file://{tmp_path / 'conf'}]"])

    return make


def test_the_method_of_the_docs_composes_and_washes(
    module: typing.Callable[[str], types.ModuleType],
    composed: typing.Callable[..., typing.Any],
    tiny_model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    shrink = module("law/methods/shrink.py").Shrink
    method = build(composed("method=shrink", method=shrink).method)
    assert (method.layers, method.factor) == ([0, 1], 0.5)
    before = [block.mlp.fc_out.weight.clone() for block in tiny_model.transformer.h]
    reported: list[dict] = []
    method.check(tiny_model)
    method.wash(tiny_model, tiny_tokenizer, [], reported.append)
    for factor, weight, block in zip((0.5, 0.5, 1.0), before, tiny_model.transformer.h, strict=True):
        assert torch.equal(block.mlp.fc_out.weight, factor * weight)
    assert reported == [{"layer": 0, "factor": 0.5}, {"layer": 1, "factor": 0.5}]


def test_the_data_set_of_the_docs_composes_and_reads(
    module: typing.Callable[[str], types.ModuleType],
    composed: typing.Callable[..., typing.Any],
    tmp_path: Path,
) -> None:
    birthplaces = module("law/facts/birthplaces.py").Birthplaces
    records = re.findall(r'```json\n(\{"name".*?)```', EXTENDING.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "people.jsonl"
    path.write_text(records[0], encoding="utf-8")
    config = composed("dataset=birthplaces", f"dataset.path={path}", "seed=3", dataset=birthplaces)
    source = build(config.dataset)
    assert source.seed == 3
    split = source.load()
    assert sorted(split.wash, key=lambda fact: fact.id) == [
        Fact("1", "Danielle Darrieux", "{} was born in", "Bordeaux", "birthplace", ("The birthplace of Danielle Darrieux is",)),
        Fact("2", "Marie Curie", "{} was born in", "Warsaw", "birthplace", ("The birthplace of Marie Curie is",)),
    ]  # fmt: skip


def test_the_model_of_the_docs_has_its_presets(composed: typing.Callable[..., typing.Any]) -> None:
    config = composed("model=my-gpt", "method=law")
    assert config.model.path == "/models/my-gpt"
    method = build(config.method)
    assert (method.learning_rate, method.initial.layers, method.initial.lam) == (1e-5, [3, 4, 5], 1000)
    assert method.initial.moments.text == "/data/general.txt"


def test_the_metric_of_the_docs_is_measured_and_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knowledge, "MEASURES", {**knowledge.MEASURES})
    monkeypatch.setattr(knowledge, "REPORTED", {**knowledge.REPORTED})
    monkeypatch.setattr(metrics, "METRICS", metrics.METRICS)
    for file, place in (("knowledge.py", knowledge), ("metrics.py", metrics)):
        exec(blocks("python")[f"law/evaluation/{file}"], vars(place))
    monkeypatch.delattr(knowledge, "first_word")
    facts = [Fact(str(i), name, "{} lives in", "New York", "") for i, name in enumerate(("Ada", "Bo"))]
    questions = {fact.prompt: fact for fact in facts}
    log_probs = {
        probe.question: -1.0 for probes in knowledge.probe_sets(facts, [], {}).values() for probe in probes
    }
    known = dict.fromkeys(questions, "New York")
    washed = dict(zip(questions, ("new to the York", "the city of New York"), strict=True))
    before, after = Replies(known, log_probs, known), Replies(washed, log_probs, washed)
    found = knowledge_metrics(facts, [], {}, before, after)
    assert (found["forget/first_word_before"], found["forget/first_word"]) == (1.0, 0.5)
    assert metrics.describe("forget/first_word_stderr").title == "forget first word s.e."


def test_the_table_of_the_docs_counts_objects(
    module: typing.Callable[[str], types.ModuleType], tmp_path: Path
) -> None:
    lines = [("Paris", True, True), ("Paris", True, False), ("Rome", True, False), ("Oslo", False, None)]
    keys = ("object", "known_before", "known_after")
    rows = [json.dumps(dict(zip(keys, line, strict=True))) for line in lines]
    (tmp_path / "predictions.jsonl").write_text("\n".join(rows), encoding="utf-8")
    table = module("law/reporting/objects.py").object_table(Run(Setup("lab", "lab", "law"), 0, {}, tmp_path))
    assert pipes(table).splitlines()[2:] == ["| Paris  |     2 |   50.0 |", "| Rome   |     1 |    0.0 |"]
    module("experiments/objects.py")  # imports what it uses


# --- commands and settings ----------------------------------------------------------------------


def commands() -> Iterator[tuple[str, str]]:
    """Each command of a page that runs a script or make, with the page."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shell = [block.replace("\\\n", " ") for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]
        inline = re.findall(
            r"`((?:[A-Z]+=\S+ )?(?:python|torchrun|make) [^`]+)`",
            re.sub(r"```.*?```", "", text, flags=re.DOTALL),
        )
        for line in [*"\n".join(shell).splitlines(), *inline]:
            if (
                re.search(r"\b(experiments/\w+\.py|make [a-z])", line.partition(" #")[0])
                and "<method>" not in line
            ):
                yield page.relative_to(ROOT).as_posix(), line.strip()


COMMANDS = {command: page for page, command in commands()}  # each once


def swept(text: str) -> tuple[str, list[str]]:
    """An override's key, and its values; one that is not swept has one."""
    override = OverridesParser.create().parse_override(text)
    if override.is_sweep_override():
        return override.get_key_element(), [str(value) for value in override.sweep_string_iterator()]
    return override.get_key_element(), [text.partition("=")[2]]


def overrides_of(words: list[str]) -> list[str]:
    """The overrides of a command line, with the first value of each that is swept; the other values are looked up."""
    found, waiting = [], 0
    for word in words:
        if waiting:
            waiting -= 1
        elif word in FLAGS:
            waiting = FLAGS[word]
        elif word.startswith("hydra/launcher="):
            assert word.partition("=")[2] in LAUNCHERS
        elif word != "..." and not word.startswith("hydra.launcher."):
            key, values = swept(word)
            if key in GROUPS:
                missing = [value for value in values if not (CONF / key / f"{value}.yaml").is_file()]
                assert not missing, f"conf/{key} has no {missing}"
            found.append(f"{key}={values[0]}")
    return found


@pytest.mark.parametrize(("command", "page"), COMMANDS.items())
def test_commands_name_what_exists(command: str, page: str) -> None:
    words = shlex.split(command.partition(" #")[0])
    if page == "docs/extending.md" and {"method=shrink", "dataset=birthplaces", "model=my-gpt"} & {*words}:
        return  # the tests above compose these
    if "make" in words:
        target = words[words.index("make") + 1]
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {target}"
        return
    at = next(i for i, word in enumerate(words) if word.startswith("experiments/"))
    script, rest = ROOT / words[at], words[at + 1 :]
    assert script.is_file()
    source = script.read_text(encoding="utf-8")
    if "hydra.main" not in source:
        options = [word for word in rest if word.startswith("--") and word != "--help"]
        assert not [option for option in options if f'"{option}"' not in source]
        return
    name = re.search(r'config_name="(\w+)"', source)[1]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        overrides = overrides_of(rest)
        config = compose(name, overrides=overrides, return_hydra_config=True)
        check_config(config)
        given = {override.partition("=")[0] for override in overrides}
        params = (config.hydra.sweeper.params or {}).items() if "hydra" in config else ()
        if more := [f"{key}={swept(f'{key}={value}')[1][0]}" for key, value in params if key not in given]:
            check_config(compose(name, overrides=[*overrides, *more]))


def settings_of(cls: type, prefix: str) -> Iterator[str]:
    """The dotted name of every field, as deep as they go."""
    for name, hint in typing.get_type_hints(cls).items():
        yield f"{prefix}{name}"
        for inner in (hint, *typing.get_args(hint)):
            if isinstance(inner, type) and is_dataclass(inner):
                yield from settings_of(inner, f"{prefix}{name}.")


def test_settings_that_the_pages_name_exist() -> None:
    """Every `method.initial.lam` or `evaluation.reasoning.data=...` in the text is a field of some option."""
    known = {name for cls in (RunConfig, LocateConfig, TrainConfig) for name in settings_of(cls, "")}
    for group in GROUPS:
        for node in ConfigStore.instance().repo[group].values():
            known |= {*settings_of(get_class(node.node["_target_"]), f"{group}.")}
    known |= {"method.knob", *settings_of(Knob, "method.knob.")}  # of a method's schema, and not of its class
    pattern = re.compile(
        rf"`((?:{'|'.join((*GROUPS, 'locate', 'training', 'prompting'))})\.[a-z_.]+)(?:=[^`]*)?`"
    )
    named = {
        (page.name, name)
        for page in PAGES
        for name in pattern.findall(page.read_text(encoding="utf-8"))
        if not name.endswith((".jsonl", ".safetensors"))
    }
    assert len(named) > 40
    assert not sorted((page, name) for page, name in named if name not in known)


# --- pages and links ----------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_files_lead_somewhere(page: Path) -> None:
    """As GitHub follows them; only the pages that `make docs` makes of the code are not there."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        made = target.endswith("reference/configuration.md") or target == "../index.md"
        assert made or "://" in target or (page.parent / target).exists(), target


def test_docstrings_become_markdown() -> None:
    text = """See :class:`~law.a.B` and :func:`c`, with :math:`x^2`:

.. math::
    x
    \\le y

and

=====  ========
``a``  the first
``b``  another
=====  ========
"""
    assert to_markdown(text, {"law.a.B": "law.a.B", "c": None}.get) == (
        "See [`B`][law.a.B] and `c`, with $x^2$:\n\n\n$$\nx\n\\le y\n$$\n\nand\n\n\n"
        "| | |\n| --- | --- |\n| ``a`` | the first |\n| ``b`` | another |"
    )


def test_the_configuration_page_has_every_option() -> None:
    page = configuration_page()  # fails on a field without a line under Args:
    for group in GROUPS:
        for path in (CONF / group).glob("*.yaml"):
            assert f"\n| `{path.stem}` | [`" in page
    assert "| `lam` | `float` | required | λ, the weight" in page
