"""The schema of the configuration that Hydra composes from ``conf/``.

Each class that a group builds is also the group's schema, so a setting is defined in one place. Importing this module
registers the schemas and two resolvers. This happens at import because Hydra's launchers start processes that import
the module again.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

import law
from law.attacks.attacking import Attacks
from law.base.cache import content_hash
from law.base.checks import FolderName, Natural, Seed, ranges, refuse_out_of_range
from law.base.errors import LawError
from law.base.settings import SAME_RESULTS
from law.decoders.loading import ModelSettings
from law.decoders.packaged import packaged_file
from law.decoders.prompting import Prompting
from law.decoders.saving import Save
from law.evaluation.scores import EvaluationSettings
from law.facts.counterfact import CounterFact
from law.facts.custom import Custom
from law.facts.wiki_latest import WikiLatest
from law.facts.zsre import ZsRE
from law.lab.counterfact import CounterFactWorld
from law.lab.make import LabSettings
from law.lab.untaught import UntaughtWorld
from law.lab.world import LabWorld
from law.methods.alphaedit import AlphaEdit
from law.methods.dpo import DPO
from law.methods.encore import ENCORE
from law.methods.finetune import FineTuning
from law.methods.grad_diff import GradDiff
from law.methods.gradient_ascent import GradientAscent
from law.methods.jensun import JensUn
from law.methods.law import LAW
from law.methods.memit import MEMIT
from law.methods.none import Unwashed
from law.methods.npo import NPO
from law.methods.retrained import Retrained
from law.methods.rmu import RMU
from law.methods.seul import SeUL
from law.methods.simnpo import SimNPO
from law.methods.sparing import Sparing
from law.methods.ultraedit import UltraEdit
from law.methods.undial import UNDIAL
from law.methods.woh import WOH
from law.methods.zerounlearn import ZeroUnlearn
from law.runs.explanations import unknown_key, unknown_option
from law.runs.identity import CHOICES, Identity, code, inputs_of, local, reduced, settings_of
from law.runs.knob import Knob, knob_of, turned
from law.runs.locating import LocateSettings
from law.runs.search import Range
from law.runs.tensorboard import TensorBoard
from law.runs.tracker import NoTracker, Wandb

KNOB, TUNE = "knob", "tune"
"""The keys of a method's configuration that hold its :class:`~law.runs.knob.Knob`, and the ranges that a search takes its settings from
(:class:`~law.runs.search.Range`)."""


@dataclass
class RunConfig:
    """The top level of a washing run.

    Args:
        name: the sweep the run belongs to; its folder is ``outputs/<name>``.
        seed: the seed of the facts drawn and of the methods that draw at random.
        save: what is kept of the washed model.
        rerun: run again even if the same run has finished.
        redact: keep the words of facts, and what the model answers, out of every file, of the log, of the tracker and of
            the cache. The scores stay.
        point: a place in the factors of the method's knob, counted from 0 (:class:`~law.runs.knob.Knob`). The knob's value
            is multiplied by the factor. ``null`` leaves it as it is.
        prompting: how facts are put to the model.
    """

    name: FolderName = field(metadata=SAME_RESULTS)
    seed: Seed
    save: Save = field(metadata=SAME_RESULTS)
    rerun: bool = field(metadata=SAME_RESULTS)
    model: Any
    dataset: Any
    method: Any
    evaluation: Any
    attack: Any
    tracker: Any = field(metadata=SAME_RESULTS)
    redact: bool = field(default=False, metadata=SAME_RESULTS)
    point: Natural | None = field(default=None, metadata=SAME_RESULTS)  # what it does is seen in the knob
    prompting: Prompting = field(default_factory=Prompting)


@dataclass
class KnownFactsConfig:
    """The top level of ``experiments/known_facts.py``.

    Args:
        seed: the seed of the draw, which does not matter when all facts are asked.
        output: the file that the list goes to.
        prompting: how facts are put to the model.
    """

    seed: Seed
    output: str
    model: Any
    dataset: Any
    evaluation: Any
    prompting: Prompting = field(default_factory=Prompting)


@dataclass
class LocateConfig(KnownFactsConfig):
    """The top level of ``experiments/locate.py``.

    Args:
        seed: the seed of the facts drawn and of the noise.
        output: the folder that the picture and the proposed preset go to.
        locate: how the layers and λ are proposed.
    """

    locate: LocateSettings = field(kw_only=True)  # a plain field can't follow one with a default


@dataclass
class TrainConfig(LabSettings):
    """The top level of ``experiments/train_lab.py``: a lab's settings and its world."""

    world: Any = None
    dataset: Any = None


def check_config(config: DictConfig) -> None:
    """Refuse what the types of a composed configuration let pass, before anything is loaded.

    Raises:
        LawError: ``+key=value`` has put a key beside those of the settings, a value lies outside of what its setting
            accepts, or Hydra was told to change the working directory.
    """
    if HydraConfig.initialized() and HydraConfig.get().job.chdir:
        raise LawError(
            "hydra.job.chdir is true; expected false, since relative paths would be looked for in the run's folder. "
            "Leave it out: a run writes into its folder anyway."
        )
    _check_settings(config, "", config)


def _check_settings(config: DictConfig, prefix: str, root: DictConfig) -> None:
    """Check the keys and values of ``config``, which stands at ``prefix`` of ``root``, and of all settings in it."""
    settings = OmegaConf.get_type(config)
    if settings is not None and is_dataclass(settings):
        valid = [f.name for f in fields(settings)]
        for key in map(str, config):
            if key not in (*valid, "hydra"):
                raise LawError(unknown_key(f"{prefix}{key}", valid, root))
        stated = [name for name in ranges(settings) if not OmegaConf.is_missing(config, name)]
        refuse_out_of_range(settings, {name: config[name] for name in stated}, prefix)
    for key in map(str, config):
        node = config._get_node(key)
        if isinstance(node, DictConfig) and key != "hydra" and not (node._is_none() or node._is_missing()):
            _check_settings(node, f"{prefix}{key}.", root)


def train_settings(config: DictConfig) -> LabSettings:
    """The settings of the lab, without the world and the data set."""
    check_config(config)
    plain = OmegaConf.masked_copy(config, [f.name for f in fields(LabSettings)])
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(LabSettings), plain))  # type: ignore[return-value]


def schema(cls: type) -> type:
    """The dataclass ``cls`` with a field ``_target_``, from which Hydra knows what to instantiate.

    The schema of a method with settings has its knob and what is tuned besides, which are no settings of the method.
    """
    target = f"{cls.__module__}.{cls.__qualname__}"
    added: list[Any] = [("_target_", str, field(default=target))]
    if callable(getattr(cls, "wash", None)) and fields(cls):
        added.append((KNOB, Knob | None, field(default=None, metadata=SAME_RESULTS)))
        added.append((TUNE, list[Range], field(default_factory=list, metadata=SAME_RESULTS)))
    return make_dataclass(f"{cls.__name__}Config", added, bases=(cls,))


def _register() -> None:
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="locate_schema", node=LocateConfig)
    store.store(name="known_facts_schema", node=KnownFactsConfig)
    for group, classes in {
        "model": (ModelSettings,),
        "dataset": (CounterFact, ZsRE, WikiLatest, Custom),
        "method": (
            Unwashed,
            Retrained,
            FineTuning,
            GradientAscent,
            SeUL,
            WOH,
            GradDiff,
            NPO,
            SimNPO,
            UNDIAL,
            JensUn,
            DPO,
            RMU,
            MEMIT,
            LAW,
            Sparing,
            AlphaEdit,
            ENCORE,
            UltraEdit,
            ZeroUnlearn,
        ),
        "evaluation": (EvaluationSettings,),
        "attack": (Attacks,),
        "world": (LabWorld, UntaughtWorld, CounterFactWorld),
        "tracker": (NoTracker, Wandb, TensorBoard),
    }.items():
        for cls in classes:
            store.store(group=group, name=f"{cls.__name__}_schema", node=schema(cls))
    OmegaConf.register_new_resolver(
        "package", lambda path: str(Path(law.__file__).parent / path), replace=True
    )
    OmegaConf.register_new_resolver("packaged", packaged_file, replace=True)
    OmegaConf.register_new_resolver("sweep_folder", _sweep_folder, replace=True)
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)


def _run_name(*, _root_: DictConfig) -> str:
    """The name of a run's folder. It ends in a digest of the configuration and of the places that files are read from."""
    config = _root_
    try:
        config = turned(config)
        check_config(config)
    except LawError:
        if _root_.hydra.mode is not RunMode.MULTIRUN:  # an error here would end the whole sweep
            raise
    choices = _root_.hydra.runtime.choices
    digest = content_hash(reduced(config, lambda path: str(local(path).resolve())))
    # an option in a folder of its group, such as method=mine/law, is no folder here
    chosen = re.sub(r"[^\w.+-]", "_", f"{choices.method}-{choices.model}-{choices.dataset}")
    return f"{chosen}-s{_root_.seed}-{digest[:8]}"


def _sweep_folder(*, _root_: DictConfig) -> str:
    """The folder of a sweep's runs, checked here because Hydra makes it before any code of the run."""
    refuse_out_of_range(RunConfig, {"name": _root_.name}, "")
    return f"outputs/{_root_.name}"


def build(config: DictConfig) -> Any:
    """The object that a group's ``_target_`` names. Settings inside it become dataclasses as well.

    Raises:
        LawError: a ``_target_`` that is not the class of a registered schema.
    """
    _refuse_other_code(config)
    plain = copy.deepcopy(config)
    _drop_knobs(plain)
    return instantiate(plain, _convert_="object")


def _drop_knobs(config: DictConfig) -> None:
    """Remove the knobs and tuned ranges of a method and of the methods inside it, which their classes do not take."""
    OmegaConf.set_struct(config, False)
    for key in (KNOB, TUNE):
        config.pop(key, None)
    for key in map(str, config):
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not (
            node._is_none() or node._is_missing() or node._is_interpolation()
        ):
            _drop_knobs(node)


def _refuse_other_code(config: DictConfig) -> None:
    groups = (nodes for group, nodes in ConfigStore.instance().repo.items() if group != "hydra")
    schemas = (node for nodes in groups if isinstance(nodes, dict) for node in nodes.values())
    known = {node.node.get("_target_") for node in schemas}
    for target in _targets(OmegaConf.to_container(config)):
        if target not in known:
            raise LawError(
                f"The configuration would call {target!r}; expected one of the classes that law/runs/configuration.py lists, "
                "since a configuration may come from elsewhere and must not run other code. Choose an option of the "
                "group, or add the class there."
            )


def recorded(folder: Path) -> dict[str, Any]:
    """What a run was made with, from the configuration in its folder: model, data set, evaluation and prompting.

    Raises:
        OmegaConfBaseException: an earlier version wrote a configuration that these classes do not take.
    """
    config = _recorded(folder)
    typed = {name: _typed(config[name]) for name in ("model", "dataset", "evaluation")}
    typed["prompting"] = OmegaConf.merge(Prompting, config.prompting)
    if config.get("redact", False):
        typed["evaluation"].cache = None
    return {name: build(part) for name, part in typed.items()}


def recorded_method(folder: Path) -> dict[str, Any]:
    """The settings of a run's method that can change a number, without the paths of files that are here."""
    return reduced(_typed(_recorded(folder).method))


def _recorded(folder: Path) -> Any:
    config: Any = OmegaConf.load(folder / ".hydra" / "config.yaml")
    OmegaConf.resolve(config)
    _refuse_other_code(config)
    return turned(config)


def _typed(part: Any) -> Any:
    """The configuration of a part, and of parts in it, with the schema of the class that each builds."""
    inner = {
        key: _typed(part[key]) for key in part if OmegaConf.is_dict(part[key]) and "_target_" in part[key]
    }
    plain = {key: part[key] for key in part if key not in inner}
    return OmegaConf.merge(schema(get_class(part._target_)), plain, inner)


def _targets(value: Any) -> Iterator[str]:
    """Every ``_target_`` in a configuration, at any depth."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield str(value["_target_"])
        value = [*value.values()]
    if isinstance(value, list):
        for inner in value:
            yield from _targets(inner)


def identity(config: DictConfig) -> Identity:
    """Which run this is, from the composed configuration, turned to its point, and Hydra's record of how it came about."""
    check_config(config)
    hydra = HydraConfig.get()
    _refuse_unknown_presets(hydra.overrides.task)
    whole: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    setup = copy.deepcopy(config)
    setup.seed = 0
    setup.attack = None  # an attack changes no other number, so that runs with and without it share a row
    return Identity(
        name=config.name,
        choices={group: str(hydra.runtime.choices[group]) for group in CHOICES},
        settings=settings_of(hydra.overrides.task),
        seed=config.seed,
        save=config.save.name,
        redact=config.redact,
        config={key: value for key, value in whole.items() if key not in ("rerun", "tracker")},
        knob=knob_of(config),
        config_hash=content_hash(reduced(config)),
        setup_hash=content_hash(reduced(setup)),
        code_hash=code(),
        inputs=inputs_of(
            {part: build(config[part]) for part in ("model", "dataset", "method", "evaluation")},
            config.evaluation.cache,
        ),
    )


def _refuse_unknown_presets(overrides: Iterable[str]) -> None:
    """Refuse a preset that does not exist. Hydra would ignore it, because presets are optional."""
    loader = GlobalHydra.instance().config_loader()
    for override in overrides:
        key, _, option = override.lstrip("+").partition("=")
        group = key.partition("@")[0]
        if group in ("preset", "preset_for"):
            folder, _, name = f"{group}/{option}".rpartition("/")
            if name not in (options := loader.get_group_options(folder)):
                raise LawError(unknown_option(f"{folder}/{name}", options))


_register()
