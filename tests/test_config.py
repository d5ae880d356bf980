"""Every YAML composes and builds; wrong keys and values are refused with a hint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import is_dataclass, make_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from law.base.checks import Accepted, ranges
from law.base.errors import LawError
from law.decoders.greedy_decoding import Recall
from law.decoders.prompting import Prompting
from law.decoders.saving import Save
from law.editing.target_values import TargetSettings
from law.evaluation.reasoning_tasks import RowSource, load_tasks
from law.facts.counterfact import Selection
from law.facts.source import Known, Part, part_of
from law.lab.make import LabSettings
from law.lab.reasoning import TASKS
from law.methods.alphaedit import Smallness
from law.methods.law import Iterate, SearchWindow, Start
from law.runs.configuration import build, check_config, train_settings
from law.runs.explanations import explain
from law.runs.identity import reduced
from law.runs.tracker import Mode
from law.tuning.retain import Hold

CONF = Path(__file__).parents[1] / "conf"
TUNED = "FineTuning GradientAscent SeUL WOH GradDiff NPO SimNPO UNDIAL JensUn DPO RetainTuning RMU".split()
TARGETS = ("TargetSettings", "EarlyTargets")
EDITORS = ("MEMIT", "Sparing", "BatchedEditor", "AlphaEdit", "ENCORE", "ZeroUnlearn")
SOURCES = ("CounterFact", "ZsRE", "WikiLatest", "Custom")
GROUPS = ("model", "dataset", "method", "evaluation", "attack", "tracker")
OPTIONS = [(g, path.stem) for g in GROUPS for path in sorted((CONF / g).glob("*.yaml"))]
EXPERIMENTS = [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))]
NEEDED = {
    "model=local": ["model.path=some/folder"],
    "model=packaged": ["model.package=some_package", "model.file=some.gguf", "model.path=where/it/is"],
    "model=smollm2-135m": ["model.path=where/it/is"],
    "dataset=counterfact": ["dataset.path=some.json"],
}


@pytest.fixture(autouse=True)
def _hydra():
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_every_option_composes_and_builds(group: str, option: str) -> None:
    choice = f"{group}={option}"
    config = compose("config", overrides=[choice, *NEEDED.get(choice, [])])
    built = build(config[group])
    assert type(built).__name__.removesuffix("Config") == config[group]._target_.rpartition(".")[2]
    for key, value in config[group].items():
        if key not in ("_target_", "knob") and not OmegaConf.is_config(value):
            assert getattr(built, str(key)) == value


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str) -> None:
    config = compose("config", overrides=[f"experiment={name}"], return_hydra_config=True)
    assert config.name == name
    swept = config.hydra.sweeper.params
    assert (swept is None) == (
        name in ("real_validation", "lab_validation")
    )  # whose settings come from the command line


def chooses(name: str) -> bool:
    return name.startswith("tune_") or name.endswith("_validation") or name == "gradient_ascent_grid"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_settings_are_chosen_on_other_facts_than_those_of_the_results(name: str) -> None:
    config = compose("config", overrides=[f"experiment={name}"])
    if name == "real_demo":
        facts = build(config.dataset).load()
        assert {part_of(fact) for fact in (*facts.wash, *facts.keep)} == {Part.test}
    else:
        assert config.dataset.part is (Part.validation if chooses(name) else Part.test)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if chooses(name)])
def test_settings_are_chosen_on_other_reasoning_items_than_those_of_the_results(name: str) -> None:
    """The lab's other items are tested in tests/test_lab.py; those of the real model are in no file of the sample."""
    reasoning = build(compose("config", overrides=[f"experiment={name}"]).evaluation).reasoning
    if reasoning.tasks == ["lab_validation"]:
        assert load_tasks(reasoning).keys() == {f"{task}_validation" for task in TASKS}
        return
    folder = Path(reasoning.data)
    assert reasoning.source is RowSource.local and folder.name == "validation"
    for task in reasoning.tasks:
        items, reported = (
            (place / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
            for place in (folder, folder.parent)
        )
        assert len({*items}) == 100 and len({*reported}) == 200
        assert {*items}.isdisjoint(reported)


@pytest.mark.parametrize("rule", Recall)
def test_one_rule_of_recall_for_scores_elimination_and_locating(rule: Recall) -> None:
    override = [f"evaluation.recall={rule.value}", "method.learning_rate=1"]
    config = compose("config", overrides=["method=law", *override])
    assert build(config.evaluation).recall is build(config.method).recall is rule
    assert build(compose("locate", overrides=override[:1]).locate).recall is rule
    for editor in ("alphaedit", "encore", "sparing"):  # which ask again before another round
        assert build(compose("config", overrides=[f"method={editor}", override[0]]).method).recall is rule


def test_prompting_is_set_for_a_run_and_for_locating() -> None:
    overrides = ["prompting.chat_template=true", "prompting.system=Answer.", "prompting.examples=2"]
    for name in ("config", "locate", "known_facts"):
        config = compose(name, overrides=overrides)
        assert build(config.prompting) == Prompting(True, "Answer.", 2)
        assert build(compose(name).prompting) == Prompting()
    config = compose("config", overrides=overrides[:1])
    assert reduced(config) != reduced(compose("config"))  # another run


def test_methods_published_search_window_is_one_override_away() -> None:
    law = build(compose("config", overrides=["method=law", "method.search=true"]).method)
    assert law.search
    assert (law.window.low, law.window.high, law.window.step) == (1 / 3, 3 / 4, 100_000.0)
    assert not build(compose("config", overrides=["method=law"]).method).search


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        (
            "method.lamda=3",
            "Unknown key 'method.lamda' in the configuration. Did you mean 'method.initial.lam'?",
        ),
        ("method.iteration=3", "Did you mean 'method.iterations'?"),
        ("dataset.wsh=3", "Did you mean 'dataset.wash'?"),
        ("sed=3", "Did you mean 'seed'?"),
        ("method.initial.lam=much", "'method.initial.lam'"),
        ("save=everything", "'save'"),
        ("tracker.mode=sometimes", "'tracker.mode'"),
        ("evaluation.recall=wholeword", "[substring, whole_word]. Did you mean 'whole_word'?"),
        ("evaluation.recall=WHOLE_WORD", "[substring, whole_word]. Did you mean 'whole_word'?"),
        (
            "method=lwa",
            "Unknown method 'lwa'. Did you mean 'law'? Available: alphaedit, dpo, emmet, encore, finetune, grad_diff, gradient_ascent, jensun, law, memit, none, npo, retrained, rmu, seul, simnpo, sparing, ultraedit, undial, woh, zerounlearn.",
        ),
        ("modle=lab", "Did you mean 'model'?"),
    ],
)
def test_wrong_overrides_are_refused_with_a_hint(override: str, hint: str) -> None:
    with pytest.raises(HydraException) as error:
        compose("config", overrides=[override])
    assert hint in explain(error.value)


def test_a_mistyped_choice_is_answered_with_the_nearest() -> None:
    hints = {hint for cls in settings_classes() for hint in get_type_hints(cls).values()}
    hints |= {part for hint in hints for part in get_args(hint)}  # of an optional one
    kinds = {hint for hint in hints if isinstance(hint, type) and issubclass(hint, Enum)}
    assert {Save, Recall, Part, Known, Selection, RowSource, Start, Iterate, Mode, Hold, Smallness} == kinds
    for kind in kinds:
        config = OmegaConf.structured(make_dataclass("Settings", [("choice", kind)]))
        for member in kind:
            with pytest.raises(OmegaConfBaseException) as error:
                config.choice = member.name[:-1]
            assert explain(error.value).endswith(f"]. Did you mean {member.name!r}?")


def test_a_key_beside_the_known_ones_is_refused() -> None:
    with pytest.raises(LawError, match=r"Unknown key 'sed' in the configuration. Did you mean 'seed'\?"):
        check_config(compose("config", overrides=["+sed=1"]))
    with pytest.raises(LawError, match="Unknown key 'foo'"):
        train_settings(compose("train_lab", overrides=["+foo=1"]))


def test_every_number_states_what_it_accepts_and_refuses_the_rest() -> None:
    found = dict(numbers(settings_classes()))
    assert {
        "TargetSettings.steps",
        "Lora.dropout",
        "LAW.learning_rate",
        "FluencySettings.tokens",
    } <= found.keys()
    for name, accepted in found.items():
        assert accepted is not None, f"{name} states no range"
        assert not accepted.test(-1) and not accepted.test(math.nan) and not accepted.test(math.inf), name
        assert accepted.test(0) == (name in ZERO_IS_MEANT), f"{name}: {accepted.words}"


ZERO_IS_MEANT = {
    "Lora.rank",  # no adapters
    "Lora.dropout",
    *(f"{kept}.{weight}" for kept in ("Retain", "RetainSet") for weight in ("weight", "fact_weight")),
    *(
        "RMU.steering",
        "WOH.alpha",
        "SimNPO.delta",
        "UNDIAL.beta",
        "LAW.iterations",
    ),  # the method without that part
    *(f"{targets}.{weight}" for targets in TARGETS for weight in ("kl_factor", "weight_decay")),
    *(f"{targets}.stop_below" for targets in TARGETS),  # no fact stops early
    *("ENCORE.mu", "ZeroUnlearn.ridge"),  # no ridge
    "Sparing.mu",  # MEMIT
    "ZeroUnlearn.share",  # nothing is left in the directions that are taken out
    "Sphere.strength",  # the whole update
    "MomentSettings.save_every",  # after every chunk
    "FluencySettings.prompts",  # nothing is generated
    *("ReasoningSettings.few_shot", "Prompting.examples"),  # no examples
    "RunConfig.point",  # the first one
    *(f"{world}.multi_fact_subjects" for world in ("LabWorld", "UntaughtWorld")),
    *("TrainingSettings.weight_decay", "TrainingSettings.warmup"),
    *(f"{editor}.context_seed" for editor in EDITORS),
    *("Leak.seed", "Relearning.seed", "Probe.seed"),
    *(f"{method}.weight_decay" for method in TUNED),
    *(f"{source}.keep" for source in SOURCES),
    *(f"{seeded}.seed" for seeded in (*TUNED, *SOURCES)),
    *(
        f"{seeded}.seed"
        for seeded in (
            "RunConfig",
            "LocateConfig",
            "KnownFactsConfig",
            "TrainConfig",
            "FluencySettings",
            "LocateSettings",
        )
    ),
    *("TrainingSettings.seed", "LabWorld.seed", "UntaughtWorld.seed"),
}


def settings_classes() -> set[type]:
    """The classes of all schemas, and of the settings within them."""
    found: set[type] = set()
    waiting = [OmegaConf.get_type(OmegaConf.create(node.node)) for node in config_nodes()]
    while waiting:
        cls = waiting.pop()
        if is_dataclass(cls) and cls not in found:
            if "_target_" in cls.__annotations__:  # a schema: the class it builds states the ranges
                cls = cls.__bases__[0]
            found.add(cls)
            waiting += get_type_hints(cls).values()
    return found


def config_nodes() -> Iterator[ConfigNode]:
    waiting: list[Any] = [ConfigStore.instance().repo]
    while waiting:
        for name, node in waiting.pop().items():
            if isinstance(node, dict):
                waiting.append(node)
            elif name.endswith("_schema.yaml"):
                yield node


def numbers(classes: set[type]) -> Iterator[tuple[str, Accepted | None]]:
    """Each numeric field, with what it accepts."""
    for cls in classes:
        for name, hint in get_type_hints(cls).items():
            if hint in (int, float) or (get_origin(hint) is not list and {int, float} & {*get_args(hint)}):
                yield f"{cls.__name__}.{name}", ranges(cls).get(name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed is -1; expected an integer from 0 to 4294967295"),
        ("seed=20251125093000", "seed is 20251125093000; expected an integer from 0"),
        (
            "method.initial.targets.steps=0",
            "method.initial.targets.steps is 0; expected an integer of at least 1",
        ),
        ("method.initial.lam=0", "method.initial.lam is 0.0; expected a finite number above 0"),
        ("method.initial.lam=nan", "method.initial.lam is nan"),
        ("method.learning_rate=-1e-5", "method.learning_rate is -1e-05"),
        ("method.learning_rate=inf", "method.learning_rate is inf"),
        ("method.initial.layers=[]", "method.initial.layers is []; expected a list of layers"),
        ("method.initial.layers=[4,3]", "expected a list of layers in rising order"),
        ("method.window.decay=1", "method.window.decay is 1.0; expected a number above 0 and below 1"),
        ("dataset.wash=0", "dataset.wash is 0; expected an integer of at least 1"),
        ("dataset.keep=-1", "dataset.keep is -1; expected an integer of at least 0"),
        ("evaluation.batch_size=0", "evaluation.batch_size is 0"),
        ("evaluation.reasoning.limit=0", "evaluation.reasoning.limit is 0"),
        ("method.initial.moments.documents=0", "method.initial.moments.documents is 0"),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_name(override: str, message: str) -> None:
    with pytest.raises(LawError) as error:
        check_config(compose("config", overrides=[override]))
    assert str(error.value).startswith(message) or message in str(error.value)


def test_python_users_are_told_of_a_number_out_of_range_too() -> None:
    with pytest.raises(LawError, match=r"TargetSettings.steps is 0; expected an integer of at least 1"):
        TargetSettings(steps=0)
    with pytest.raises(LawError, match=r"TargetSettings.steps is 2.5; expected an integer"):
        TargetSettings(steps=2.5)  # type: ignore[arg-type]
    with pytest.raises(LawError, match=r"TargetSettings.clamp is 'much'; expected a finite number above 0"):
        TargetSettings(clamp="much")  # type: ignore[arg-type]
    with pytest.raises(LawError, match=r"low=0.8 and high=0.75; expected low below high"):
        SearchWindow(low=0.8)


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    overrides = [
        'model.path="~/model"',
        'dataset.path="~/my facts.json"',
        'method.initial.moments.text="~/texts/*.txt"',
        'evaluation.fluency.text="~/heldout.txt"',
        'evaluation.reasoning.data="~/rows"',
    ]
    config = compose("config", overrides=overrides)
    assert build(config.model).path == "/home/ada/model"
    assert build(config.dataset).path == "/home/ada/my facts.json"
    assert build(config.method).initial.moments.text == "/home/ada/texts/*.txt"
    evaluation = build(config.evaluation)
    assert (evaluation.fluency.text, evaluation.reasoning.data) == ("/home/ada/heldout.txt", "/home/ada/rows")


def test_what_a_preset_would_say_is_asked_for_with_where_to_get_it() -> None:
    config = compose("config", overrides=["model=local", "model.path=x", "method=law"])
    with pytest.raises(OmegaConfBaseException) as error:
        build(config.method)
    told = explain(error.value)
    assert told.startswith("method.initial.layers is not set") and "experiments/locate.py" in told


def test_every_preset_has_a_model_a_method_and_a_data_set() -> None:
    options = {group: {path.stem for path in (CONF / group).glob("*.yaml")} for group in GROUPS}
    for path in [*(CONF / "preset").rglob("*.yaml"), *(CONF / "preset_for").rglob("*.yaml")]:
        *dataset, model, method = path.relative_to(CONF).with_suffix("").parts[1:]
        assert {*dataset} <= options["dataset"] and model in options["model"] and method in options["method"]


@pytest.mark.parametrize(
    "overrides",
    [[], ["world=counterfact", "dataset.path=facts.json", "world.text=[a.txt]", "training.steps=7"]],
    ids=["lab", "counterfact"],
)
def test_training_composes(overrides: list[str]) -> None:
    config = compose("train_lab", overrides=overrides)
    settings = train_settings(config)
    assert type(settings) is LabSettings
    assert settings.training.steps == config.training.steps
    assert settings.training.seed == settings.seed == 0
    if overrides:
        assert config.world.facts.path == "facts.json"
        assert settings.output == "outputs/counterfact_lab"
