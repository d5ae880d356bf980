"""The search for settings: its ranges, the rule by hand, a study that goes on, and a search on the lab."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, create_trial

from law.base.errors import LawError
from law.facts.source import Part, part_of
from law.lab.reasoning import TASKS
from law.runs.configuration import build
from law.runs.search import SCORES, Bounds, Budget, Killed, bounds_of, chosen, preset, search

ROOT = Path(__file__).parents[1]
LAM = "method.initial.lam"
FAIL = optuna.trial.TrialState.FAIL
WIDE = optuna.distributions.FloatDistribution(1, 1e6, log=True)
BOUNDS = {LAM: Bounds(90.0, 90_000.0, 3000.0, whole=False)}


@pytest.fixture(autouse=True)
def composing() -> Iterator[None]:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        yield


def finished(number: int, *scores: float) -> FrozenTrial:
    trial = create_trial(values=scores, params={LAM: 12.3456 + number}, distributions={LAM: WIDE})
    trial.number = number
    return trial


def scored(settings: Mapping[str, float]) -> dict[str, float]:
    """A method that forgets and keeps as a hyperbola says: at λ = 3,333 a tenth is left and half is kept."""
    lam = settings[LAM] / 30_000
    return dict(zip(SCORES, (lam / (1 + lam), lam / (0.11 + lam), 1.0), strict=True))


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
    failed = create_trial(state=FAIL)
    assert chosen([failed, finished(4, 0.9, 0.1, 0.1)]).number == 4


def test_a_preset_says_what_it_was_chosen_from_and_replaces_the_one_before() -> None:
    """The preset's own value, of trial 0, has all digits; a proposed one has three."""
    before = OmegaConf.create({"defaults": ["lab/memit@initial"], "initial": {"mu": 1}, "iterations": 200})
    tried = [finished(0, 0.2, 0.5, 0.5), finished(1, 0.05, 0.75, 1.0), create_trial(state=FAIL)]
    text = preset(tried, before, "python experiments/tune.py x")
    assert OmegaConf.create(text) == {**before, "initial": {"mu": 1, "lam": 13.3}}
    assert text.startswith(
        "# Chosen among 3 trials by\n# python experiments/tune.py x\n# Rule: of the trials with at most 10 % left"
    )
    assert "# 0: initial.lam=12.3456: 20.0 % left, 50.0 % kept, 50.0 % of reasoning kept\n" in text
    assert OmegaConf.create(preset(tried[:1], OmegaConf.create(), "")) == {"initial": {"lam": 12.3456}}


def test_a_written_preset_composes(tmp_path: Path) -> None:
    """LAW's preset takes MEMIT's as its start. The chosen λ stands in the place of that one's, and the rest stays."""
    place = tmp_path / "preset/lab/mine.yaml"
    place.parent.mkdir(parents=True)
    before = OmegaConf.load(ROOT / "conf/preset/lab/law.yaml")
    place.write_text(preset([finished(0, 0.05, 0.75, 1.0)], before, "x"), encoding="utf-8")
    found = [f"hydra.searchpath=[file://{tmp_path}]", "method=law", "preset@method=lab/mine"]
    method = compose("config", overrides=found).method
    assert (method.initial.lam, method.initial.layers, method.iterations) == (12.3456, [0, 1, 2], 200)


@pytest.mark.parametrize(
    "method",
    sorted(p.stem for p in (ROOT / "conf/method").glob("*.yaml") if p.stem not in ("none", "retrained")),
)
@pytest.mark.parametrize("model", ["lab", "smollm2-135m"])
def test_every_method_has_a_search_around_its_preset(method: str, model: str) -> None:
    bounds = bounds_of(compose("config", overrides=[f"model={model}", f"method={method}"]))
    assert bounds and all(bound.low <= bound.start <= bound.high for bound in bounds.values())


def test_a_search_on_the_lab_leaves_facts_to_learn_from() -> None:
    """Sparing wash learns from facts that are neither washed nor kept. They are validation facts, too."""
    facts = build(compose("config", overrides=["experiment=lab_validation"]).dataset).load()
    assert (len(facts.wash), len(facts.keep)) == (100, 40)
    assert len(facts.unscored) > 10 and {part_of(fact) for fact in facts.unscored} == {Part.validation}


def test_a_search_that_names_no_number_is_refused() -> None:
    def searching(entry: str, *more: str) -> None:
        bounds_of(compose("config", overrides=["method=memit", f"method.tune=[{entry}]", *more]))

    with pytest.raises(LawError, match=r"tune names method.lamda, which is None; expected a number above 0"):
        searching("{setting: lamda, low: 0.1, high: 10}")
    with pytest.raises(LawError, match=r"tune of lam has low=10 and high=1; expected low below high"):
        searching("{setting: lam, low: 10, high: 1}")
    with pytest.raises(
        LawError, match=r"tune of lam has low=2 and high=9; .* since the search begins at the preset"
    ):
        searching("{setting: lam, low: 2, high: 9}")
    with pytest.raises(
        LawError, match=r"tune names method.sphere.strength, which is 0.0; expected a number above 0"
    ):
        searching("{setting: sphere.strength, low: 0.1, high: 10}")
    with pytest.raises(LawError, match=r"point is 3; expected null"):
        searching("{setting: lam, low: 0.1, high: 10}", "point=3")
    with pytest.raises(LawError, match=r"reasoning\.tasks is empty"):
        searching("{setting: lam, low: 0.1, high: 10}", "evaluation.reasoning.tasks=[]")
    with pytest.raises(LawError, match="The method has nothing to search"):
        bounds_of(compose("config", overrides=["method=none"]))
    with pytest.raises(LawError, match=r"trials.*0"):
        Budget(0, 0)


def test_an_integer_is_searched_among_integers(tmp_path: Path) -> None:
    """Three epochs between a factor of 0.1 and 4: 1 to 12."""
    bounds = bounds_of(
        compose(
            "config",
            overrides=["method=npo", "method.epochs=3", "method.tune=[{setting: epochs, low: 0.1, high: 4}]"],
        )
    )
    assert bounds == {"method.epochs": Bounds(1, 12, 3, whole=True)}
    made: list[float] = []

    def run(number: int, settings: Mapping[str, float]) -> dict[str, float]:
        made.append(settings["method.epochs"])
        return dict.fromkeys(SCORES, 0.5)

    search(tmp_path, "a", bounds, Budget(8, 0), run)
    assert made[0] == 3 and all(isinstance(value, int) and 1 <= value <= 12 for value in made)


def test_a_study_begins_with_the_preset_goes_on_and_counts_failures(tmp_path: Path) -> None:
    asked: list[float] = []

    def run(number: int, settings: Mapping[str, float]) -> dict[str, float]:
        asked.append(settings[LAM])
        if number == 1:
            raise LawError("not positive definite")
        return scored(settings)

    first = search(tmp_path, "a", BOUNDS, Budget(3, 0), run)
    assert asked[0] == 3000 and len(asked) == 3 and len({*asked}) == 3
    assert [trial.state.name for trial in first] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert len(search(tmp_path, "a", BOUNDS, Budget(5, 0), run)) == len(asked) == 5
    assert search(tmp_path, "a", BOUNDS, Budget(3, 0), run)[2].values == first[2].values
    assert len(asked) == 5  # nothing is missing
    assert all(90 <= value <= 90_000 and float(f"{value:.3g}") == value for value in asked)
    with pytest.raises(LawError, match=r"holds a search for something else: a; expected b\..*--output"):
        search(tmp_path, "b", BOUNDS, Budget(5, 0), run)


@pytest.mark.parametrize("stopped", [0, 5])
def test_a_trial_whose_process_was_stopped_is_made_again(stopped: int, tmp_path: Path) -> None:
    """It has the settings that it had, and no other is made twice or proposed twice. The preset comes first in any case."""
    order: list[int] = []
    made: dict[int, float] = {}

    def run(number: int, settings: Mapping[str, float]) -> dict[str, float]:
        order.append(number)
        assert made.setdefault(number, settings[LAM]) == settings[LAM]
        if order.count(stopped) == 1 and number == stopped:
            raise Killed("signal 9")
        return scored(settings)

    with pytest.raises(Killed):
        search(tmp_path, "a", BOUNDS, Budget(12, 3), run)
    trials = search(tmp_path, "a", BOUNDS, Budget(12, 3), run)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 12
    assert order == ([0, *range(12)] if stopped == 0 else [*range(12), 5])
    assert len({*made.values()}) == 12


def test_what_is_proposed_hangs_on_the_seed(tmp_path: Path) -> None:
    def proposed(folder: str, seed: int, *trials: int) -> list[float]:
        for count in trials:
            made = search(tmp_path / folder, "a", BOUNDS, Budget(count, seed), lambda _, s: scored(s))
        return [trial.params[LAM] for trial in made]

    through = proposed("through", 0, 6)
    assert proposed("again", 0, 6) == through and len({*through}) == 6
    assert proposed("in parts", 0, 4, 6) == through  # random ones would begin anew
    assert {*proposed("other", 1, 6)} & {*through} == {3000.0}


def test_two_searches_share_a_study(tmp_path: Path) -> None:
    """Two make twelve trials together, none of them twice. The second one waits for the preset, without which nothing is made."""
    made: list[int] = []
    running: set[int] = set()
    gate = threading.Lock()

    def run(number: int, settings: Mapping[str, float]) -> dict[str, float]:
        with gate:
            twice = number in running or number in made
            running.add(number)
        if not twice:
            time.sleep(0.02)
            made.append(number)
        while number not in made:  # an ordinary run waits for the process that makes it
            time.sleep(0.005)
        return scored(settings)

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(search, tmp_path, "a", BOUNDS, Budget(12, 0), run) for _ in range(2)]
        first, second = (future.result() for future in both)
    assert sorted(made) == [*range(12)]
    assert [t.params for t in first] == [t.params for t in second] and len(first) == 12
    assert all(trial.state.name == "COMPLETE" for trial in first)


def test_a_preset_that_cannot_be_made_ends_the_search(tmp_path: Path) -> None:
    """Its failure says nothing of settings, so that it takes no trial from the budget. Nor can it be judged without scores."""
    results: list[dict[str, float] | LawError] = [LawError("no such file"), {"forget/accuracy": 0.5}]

    def run(number: int, settings: Mapping[str, float]) -> dict[str, float]:
        assert number == 0
        result = results.pop(0)
        if isinstance(result, LawError):
            raise result
        return result

    with pytest.raises(LawError, match="no such file"):
        search(tmp_path, "a", BOUNDS, Budget(3, 0), run)
    with pytest.raises(LawError, match="Trial 0 has no retain/accuracy and no reasoning/kept"):
        search(tmp_path, "a", BOUNDS, Budget(3, 0), run)
    assert len(search(tmp_path, "a", BOUNDS, Budget(3, 0), lambda _, settings: scored(settings))) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=memit"], "dataset.part is test; expected validation"),
        (["experiment=tune_lab"], "The experiment is a sweep; expected one run"),
        (
            ["--trials", "0", "experiment=lab_validation"],
            "Budget.trials is 0; expected an integer of at least 1",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_search_that_cannot_be_fair_is_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tune.py", *arguments])
    GlobalHydra.instance().clear()  # the command composes itself
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "experiments/tune.py"), run_name="__main__")
    assert message in str(ended.value.code) and not [*tmp_path.iterdir()]


@pytest.mark.slow  # runs of the lab, each in a process
def test_a_search_on_the_lab_writes_a_preset(tmp_path: Path) -> None:
    """Every trial is an ordinary run. What has finished is not made again, and a preset is not written over."""
    asked = "experiment=lab_validation method=gradient_ascent tracker=none evaluation.reasoning.limit=20 dataset.wash=20"

    def tune(trials: int) -> str:
        command = [sys.executable, "experiments/tune.py", "--trials", str(trials), "--output", str(tmp_path)]
        return subprocess.run(
            [*command, *asked.split()], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    assert "Chosen among 2 trials" in tune(2)
    written = tmp_path / "preset-2.yaml"
    assert OmegaConf.load(written).learning_rate > 0
    for number in range(2):
        manifest = json.loads((tmp_path / f"trial-{number:03}" / "manifest.json").read_text())
        assert manifest["status"] == "finished"
        assert {*manifest["reasoning_tasks"]} == {f"{name}_validation" for name in TASKS}
    written.write_text(written.read_text() + "# by hand\n")
    before = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("metrics.json"))]
    assert "was written before and stays as it is" in tune(2) and written.read_text().endswith("# by hand\n")
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("metrics.json"))] == before


@pytest.mark.slow  # a run of the lab in a process
def test_a_preset_that_cannot_be_made_on_the_lab_is_told_by_its_cause(tmp_path: Path) -> None:
    """The cause is the run's own error, without the progress bars that stand before it."""
    asked = "experiment=lab_validation method=sparing tracker=none dataset.keep=null"
    command = [sys.executable, "experiments/tune.py", "--output", str(tmp_path), *asked.split()]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert (
        f"error: The run in {tmp_path / 'trial-000'} failed; its log is there. method (Sparing) learns from other facts"
        in ended.stderr
    )
