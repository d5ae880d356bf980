"""Every YAML composes and builds; wrong keys and values are refused with a hint."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from law.base.errors import LawError
from law.lab.make import LabSettings
from law.runs.configuration import build, explain, identity_config, train_settings

CONF = Path(__file__).parents[1] / "conf"
GROUPS = ("model", "dataset", "method", "evaluation", "tracker")
OPTIONS = [(g, path.stem) for g in GROUPS for path in sorted((CONF / g).glob("*.yaml"))]
EXPERIMENTS = [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))]
NEEDED = {"model=local": ["model.path=some/folder"], "dataset=counterfact": ["dataset.path=some.json"]}


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
        if key != "_target_" and not OmegaConf.is_config(value):
            assert getattr(built, str(key)) == value


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str) -> None:
    config = compose("config", overrides=[f"experiment={name}"], return_hydra_config=True)
    assert config.name == name
    assert config.hydra.sweeper.params


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
        (
            "method=lwa",
            "Unknown method 'lwa'. Did you mean 'law'? Available: finetune, grad_diff, gradient_ascent, law, memit, none, npo, rmu, seul, woh.",
        ),
        ("modle=lab", "Did you mean 'model'?"),
    ],
)
def test_wrong_overrides_are_refused_with_a_hint(override: str, hint: str) -> None:
    with pytest.raises(HydraException) as error:
        compose("config", overrides=[override])
    assert hint in explain(error.value)


def test_a_key_beside_the_known_ones_is_refused() -> None:
    with pytest.raises(LawError, match=r"Unknown key 'sed' in the configuration. Did you mean 'seed'\?"):
        identity_config(compose("config", overrides=["+sed=1"]))
    with pytest.raises(LawError, match="Unknown key 'foo'"):
        train_settings(compose("train_lab", overrides=["+foo=1"]))


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


def test_what_changes_no_number_does_not_change_the_run() -> None:
    plain = identity_config(compose("config"))
    same = compose("config", overrides=["name=other", "tracker=none", "rerun=true"])
    assert identity_config(same) == plain
    assert identity_config(compose("config", overrides=["seed=1"])) != plain


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
