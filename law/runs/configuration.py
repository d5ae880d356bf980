"""The configuration's schema: what Hydra composes from ``conf/``, typed by the classes it builds.

Every class that a group builds is its own schema (``_target_`` included), so that a setting exists in
one place. Importing this module makes the schemas and two resolvers known; Hydra's launchers import it
again in each process they start, which is why it happens at import.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

import law
from law.base.cache import content_hash
from law.base.checks import Seed, ranges, refuse_out_of_range
from law.base.errors import LawError
from law.base.settings import SAME_RESULTS
from law.decoders.loading import ModelSettings
from law.decoders.saving import Save
from law.evaluation.scores import EvaluationSettings
from law.facts.counterfact import CounterFact
from law.facts.custom import Custom
from law.facts.wiki_latest import WikiLatest
from law.facts.zsre import ZsRE
from law.lab.counterfact import CounterFactWorld
from law.lab.make import LabSettings
from law.lab.world import LabWorld
from law.methods.finetune import FineTuning
from law.methods.grad_diff import GradDiff
from law.methods.gradient_ascent import GradientAscent
from law.methods.law import LAW
from law.methods.memit import MEMIT
from law.methods.none import Unwashed
from law.methods.npo import NPO
from law.methods.rmu import RMU
from law.methods.seul import SeUL
from law.methods.woh import WOH
from law.runs.identity import CHOICES, Identity, code, inputs_of, local, reduced, settings_of
from law.runs.locating import LocateSettings
from law.runs.tracker import NoTracker, Wandb


@dataclass
class RunConfig:
    """The top level of a washing run.

    Args:
        name: the sweep the run belongs to; its folder is ``outputs/<name>``.
        seed: of the facts drawn, the contexts sampled, and the methods that draw at random.
        save: what is kept of the washed model.
        rerun: run again even if this very configuration has finished.
    """

    name: str = field(metadata=SAME_RESULTS)
    seed: Seed
    save: Save = field(metadata=SAME_RESULTS)
    rerun: bool = field(metadata=SAME_RESULTS)
    model: Any
    dataset: Any
    method: Any
    evaluation: Any
    tracker: Any = field(metadata=SAME_RESULTS)


@dataclass
class LocateConfig:
    """The top level of ``experiments/locate.py``.

    Args:
        seed: of the facts drawn.
        output: the folder that the picture and the proposed preset go to.
        locate: how the layers and λ are proposed.
    """

    seed: Seed
    output: str
    locate: LocateSettings
    model: Any
    dataset: Any
    evaluation: Any


@dataclass
class TrainConfig(LabSettings):
    """The top level of ``experiments/train_lab.py``: a lab's settings and its world."""

    world: Any = None
    dataset: Any = None


def check_config(config: DictConfig, schema: type) -> None:
    """Refuse what the types of a composed configuration let pass, before anything is loaded.

    Raises:
        LawError: ``+key=value`` has put a key beside those of the top level's ``schema``, or a value lies outside
            of what its setting accepts.
    """
    valid = [f.name for f in fields(schema)]
    for key in map(str, config):
        if key not in (*valid, "hydra"):
            raise LawError(_unknown_key(key, valid, config))
    _check_ranges(config, "")


def _check_ranges(config: DictConfig, prefix: str) -> None:
    """Check each value against the settings that it is a field of; ``prefix`` is the place of ``config``."""
    settings = OmegaConf.get_type(config)
    if settings is not None and is_dataclass(settings):
        stated = [name for name in ranges(settings) if not OmegaConf.is_missing(config, name)]
        refuse_out_of_range(settings, {name: config[name] for name in stated}, prefix)
    for key in map(str, config):
        node = config._get_node(key)
        if isinstance(node, DictConfig) and key != "hydra" and not (node._is_none() or node._is_missing()):
            _check_ranges(node, f"{prefix}{key}.")


def train_settings(config: DictConfig) -> LabSettings:
    """The lab's settings, less the world and the data set it is made of."""
    check_config(config, TrainConfig)
    plain = OmegaConf.masked_copy(config, [f.name for f in fields(LabSettings)])
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(LabSettings), plain))  # type: ignore[return-value]


def schema(cls: type) -> type:
    """The dataclass ``cls`` with the ``_target_`` that Hydra instantiates it by."""
    target = f"{cls.__module__}.{cls.__qualname__}"
    return make_dataclass(f"{cls.__name__}Config", [("_target_", str, field(default=target))], bases=(cls,))


def _register() -> None:
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="locate_schema", node=LocateConfig)
    for group, classes in {
        "model": (ModelSettings,),
        "dataset": (CounterFact, ZsRE, WikiLatest, Custom),
        "method": (Unwashed, FineTuning, GradientAscent, SeUL, WOH, GradDiff, NPO, RMU, MEMIT, LAW),
        "evaluation": (EvaluationSettings,),
        "world": (LabWorld, CounterFactWorld),
        "tracker": (NoTracker, Wandb),
    }.items():
        for cls in classes:
            store.store(group=group, name=f"{cls.__name__}_schema", node=schema(cls))
    OmegaConf.register_new_resolver(
        "package", lambda path: str(Path(law.__file__).parent / path), replace=True
    )
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)


def _run_name(*, _root_: DictConfig) -> str:
    """The folder of a run: readable, and its own for each configuration and each place that files are read from."""
    choices = _root_.hydra.runtime.choices
    check_config(_root_, RunConfig)
    digest = content_hash(reduced(_root_, lambda path: str(local(path).resolve())))
    return f"{choices.method}-{choices.model}-{choices.dataset}-s{_root_.seed}-{digest[:8]}"


def build(config: DictConfig) -> Any:
    """The object that a group's ``_target_`` names; its nested settings become dataclasses too."""
    return instantiate(config, _convert_="object")


def identity(config: DictConfig) -> Identity:
    """Which run this is, from the composed configuration and Hydra's record of how it came about."""
    check_config(config, RunConfig)
    hydra = HydraConfig.get()
    _refuse_unknown_presets(hydra.overrides.task)
    whole: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    setup = copy.deepcopy(config)
    setup.seed = 0
    return Identity(
        name=config.name,
        choices={group: str(hydra.runtime.choices[group]) for group in CHOICES},
        settings=settings_of(hydra.overrides.task),
        seed=config.seed,
        save=config.save.name,
        config={key: value for key, value in whole.items() if key not in ("rerun", "tracker")},
        config_hash=content_hash(reduced(config)),
        setup_hash=content_hash(reduced(setup)),
        code_hash=code(),
        inputs=inputs_of(
            {part: build(config[part]) for part in ("model", "dataset", "method", "evaluation")},
            config.evaluation.cache,
        ),
    )


def explain(error: HydraException | OmegaConfBaseException) -> str:
    """One paragraph on a configuration that does not compose, with the nearest valid key or option."""
    causes = [*_causes(error)]
    for found in causes:
        if isinstance(found, LawError):
            return str(found)
        if isinstance(found, MissingConfigException) and found.options:
            return _unknown_option(str(found.missing_cfg_file), found.options)
    cause = next((found for found in causes if isinstance(found, OmegaConfBaseException)), None)
    if cause is None:
        return str(error)
    if isinstance(cause, MissingMandatoryValue):
        key = str(cause.full_key)
        located = key.rpartition(".")[2] in ("layers", "lam")
        hint = (
            " `python experiments/locate.py model=... dataset=...` proposes layers and λ." if located else ""
        )
        return f"{key} is not set; expected a value. Set {key}=... on the command line.{hint}"
    problem = str(cause.msg or error).splitlines()[0]
    parent = cause.parent_node
    if not isinstance(parent, DictConfig) or cause.key is None or cause.key in parent:
        return f"The configuration is wrong at {cause.full_key!r}: {problem}."
    valid = [str(key) for key in parent if key != "_target_"]
    return _unknown_key(str(cause.full_key), valid, parent._get_root())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unknown_key(name: str, valid: list[str], root: Any) -> str:
    """A dotted key that is not among the ``valid`` ones of its parent."""
    prefix, dot, key = name.rpartition(".")
    paths = [path for path in _paths(root, "") if path != name and not path.startswith("hydra.")]
    elsewhere = {path.rpartition(".")[2]: path for path in paths}
    hint = ""
    if near := difflib.get_close_matches(key, valid, n=1):
        hint = f" Did you mean {prefix + dot + near[0]!r}?"
    elif near := difflib.get_close_matches(key, elsewhere, n=1):
        hint = f" Did you mean {elsewhere[near[0]]!r}?"
    return f"Unknown key {name!r} in the configuration.{hint} Valid keys there: {', '.join(valid)}."


def _refuse_unknown_presets(overrides: Iterable[str]) -> None:
    """Refuse a preset that was asked for and is not there; Hydra lets it pass, since presets are optional."""
    loader = GlobalHydra.instance().config_loader()
    for override in overrides:
        key, _, option = override.lstrip("+").partition("=")
        group = key.partition("@")[0]
        if group in ("preset", "preset_for"):
            folder, _, name = f"{group}/{option}".rpartition("/")
            if name not in (options := loader.get_group_options(folder)):
                raise LawError(_unknown_option(f"{folder}/{name}", options))


def _unknown_option(path: str, options: Iterable[str]) -> str:
    """An option that a group lacks; schemas are no options."""
    group, _, option = path.rpartition("/")
    valid = [name for name in options if not name.endswith("_schema")]
    near = difflib.get_close_matches(option, valid, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {group} {option!r}.{hint} Available: {', '.join(valid)}. Set {group}=... to one of them."


def _paths(node: Any, prefix: str) -> Iterator[str]:
    """The dotted name of every key of a configuration."""
    if not isinstance(node, DictConfig) or node._is_missing() or node._is_none():
        return
    for key in map(str, node):
        yield f"{prefix}{key}"
        yield from _paths(node._get_node(key), f"{prefix}{key}.")


_register()
