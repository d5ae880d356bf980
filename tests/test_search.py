"""The search for settings: its ranges, the rule by hand, a study that goes on, and a search on the lab."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import optuna
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import law.runs.configuration  # noqa: F401  no command composes without its schemas
from law.base.errors import LawError
from law.runs.search import KEPT, LEFT, REASONING, bounds_of, chosen, preset, search

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def composing() -> Iterator[None]:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        yield


def finished(number: int, *scores: float) -> optuna.trial.FrozenTrial:
    trial = optuna.trial.create_trial(
        values=scores, user_attrs={"settings": {"method.initial.lam": 10.0 * number}}
    )
    trial.number = number
    return trial


def scored(lam: float) -> dict[str, float]:
    """A method that forgets and keeps as a hyperbola says."""
    return {LEFT: lam / (1 + lam), KEPT: lam / (0.1 + lam), REASONING: 1.0}


def test_the_rule_worked_out_by_hand() -> None:
    """10 % left is few enough. Of those trials the mean of 0.8 and 0.9 is the highest; the fewest left break a tie."""
    tried = [
        finished(0, 0.11, 1.0, 1.0),
        finished(1, 0.10, 0.8, 0.9),
        finished(2, 0.05, 0.9, 0.8),
        finished(3, 0.0, 0.1, 1.0),
    ]
    assert chosen(tried).number == 2
    assert chosen(tried[:2]).number == 1
    assert chosen([finished(0, 0.5, 1.0, 1.0), finished(1, 0.4, 0.0, 0.0)]).number == 1
    failed = optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL)
    assert chosen([failed, finished(4, 0.9, 0.1, 0.1)]).number == 4
    with pytest.raises(LawError, match="None of 1 trials has finished"):
        chosen([failed])


def test_a_preset_says_what_it_was_chosen_from(tmp_path: Path) -> None:
    text = preset([finished(0, 0.2, 0.5, 0.5), finished(1, 0.05, 0.75, 1.0)], "python experiments/tune.py x")
    assert OmegaConf.create(text) == {"initial": {"lam": 10.0}}
    assert (
        "2 trials by python experiments/tune.py x" in text
        and "# 0: initial.lam=0: 20.0 % left, 50.0 % kept" in text
    )


@pytest.mark.parametrize(
    "method", sorted(p.stem for p in (ROOT / "conf/method").glob("*.yaml") if p.stem != "none")
)
@pytest.mark.parametrize("model", ["lab", "smollm2-135m"])
def test_every_method_has_a_search_around_its_preset(method: str, model: str) -> None:
    bounds = bounds_of(compose("config", overrides=[f"model={model}", f"method={method}"]))
    assert bounds and all(bound.low <= bound.start <= bound.high for bound in bounds.values())


def test_a_search_that_names_no_number_is_refused() -> None:
    def searching(entry: str, *more: str) -> None:
        bounds_of(compose("config", overrides=["method=memit", f"method.tune=[{entry}]", *more]))

    with pytest.raises(
        LawError, match=r"tune names method.lamda, which is None; expected a number to multiply"
    ):
        searching("{setting: lamda, low: 0.1, high: 10}")
    with pytest.raises(LawError, match=r"tune of lam has low=10 and high=1; expected low below high"):
        searching("{setting: lam, low: 10, high: 1}")
    with pytest.raises(LawError, match="The method has nothing to search"):
        bounds_of(compose("config", overrides=["method=none"]))


def test_a_study_begins_with_the_preset_goes_on_and_counts_failures(tmp_path: Path) -> None:
    bounds = bounds_of(compose("config", overrides=["method=memit"]))
    asked: list[float] = []

    def run(number: int, settings: Mapping[str, float]) -> dict[str, float]:
        asked.append(settings["method.lam"])
        if number == 1:
            raise LawError("not positive definite")
        return scored(settings["method.lam"] / 30_000)

    first = search(tmp_path, "a", bounds, 3, 0, run)
    assert asked[0] == 3000 and len(asked) == 3 and len(first.trials) == 3
    later = search(tmp_path, "a", bounds, 5, 0, run)
    assert len(asked) == 5 and [trial.state.name for trial in later.trials].count("FAIL") == 1
    search(tmp_path, "a", bounds, 5, 0, run)
    assert len(asked) == 5  # nothing is missing
    low, high = bounds["method.lam"].low, bounds["method.lam"].high
    assert all(low <= value <= high for value in asked)


@pytest.mark.slow  # two runs of the lab, each in a process
def test_a_search_on_the_lab_writes_a_preset(tmp_path: Path) -> None:
    arguments = [
        "--trials",
        "2",
        "--output",
        str(tmp_path),
        "experiment=lab_validation",
        "method=gradient_ascent",
    ]
    arguments += ["tracker=none", "evaluation.reasoning.limit=5", "dataset.wash=20"]
    command = [sys.executable, "experiments/tune.py", *arguments]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "Chosen among 2 trials" in told
    assert OmegaConf.load(tmp_path / "preset.yaml").learning_rate > 0
    assert (tmp_path / "trial-001" / "metrics.json").is_file()


def test_facts_of_results_are_refused() -> None:
    command = [sys.executable, "experiments/tune.py", "method=memit"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 1 and "dataset.part is test; expected validation" in told.stderr
