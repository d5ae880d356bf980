"""Wrong command lines: each ends with one paragraph that says what to write, told once, and exit status 1."""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from law.base.errors import LawError
from law.decoders.greedy_decoding import greedy_answers
from law.runs.configuration import check_config
from law.runs.explanations import _quoted, explain

ROOT = Path(__file__).parents[1]


def told(*overrides: str) -> str:
    """What a run with these overrides is told before anything is loaded."""
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
            check_config(compose("config", overrides=list(overrides)))
    except LawError as error:
        return str(error)
    except HydraException as error:
        return explain(error)
    pytest.fail(f"{overrides} were accepted")


@pytest.mark.parametrize(
    "path", ["/my facts/a=b.csv", "~/facts.csv", "a,b.csv", "[a].csv", "a(1.csv", "Zoë.csv", "a:b#c.csv"]
)
def test_a_path_that_hydra_cannot_read_is_shown_in_quotes(path: str) -> None:
    message = told("dataset=custom", f"dataset.path={path}")
    assert "\n" not in message and message.count(path) <= 3
    wanted = shlex.quote(f'dataset.path="{path}"')
    assert wanted in message
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        config = compose("config", overrides=["dataset=custom", *shlex.split(wanted)])
    assert config.dataset.path == path


def test_a_launcher_whose_package_is_missing_is_told_what_to_install(tmp_path: Path) -> None:
    launchers = tmp_path / "hydra" / "launcher"
    launchers.mkdir(parents=True)
    (tmp_path / "config.yaml").touch()
    (launchers / "mine.yaml").write_text("defaults:\n  - no_such_launcher@_here_\n")
    with (
        initialize_config_dir(version_base="1.3", config_dir=str(tmp_path)),
        pytest.raises(HydraException) as error,
    ):
        compose("config", overrides=["hydra/launcher=mine"])
    assert explain(error.value) == (
        "The launcher is not installed; expected its package. Launchers are installed by `pip install -e '.[launchers]'`."
    )


@given(st.text("ab/ =,[](){}~é#:'\"", min_size=1))
def test_the_proposed_quotes_give_the_value_back(value: str) -> None:
    assert OverridesParser.create().parse_override(f"key={_quoted(value)}").value() == value


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.initial.layers=[0,"], "as in method.initial.layers=[0,1], or quote the argument, as in"),
        (["seed"], "The argument 'seed' sets nothing; expected key=value. Write seed=..."),
        (
            ["evaluation.reasoning.tasks=arc_easy"],
            "is 'arc_easy'; expected a list. Write 'evaluation.reasoning.tasks=[arc_easy]'.",
        ),
        (["method.initial.layers=3"], "Write 'method.initial.layers=[3]'."),
        (["seed=0,1"], "Add -m to run with each of them"),
        (["seed=range(3)"], "Add -m to run with each of them"),
        (
            ["evaluation.reasoning.tasks=arc_easy,hellaswag"],
            "write 'evaluation.reasoning.tasks=[arc_easy,hellaswag]' for a list",
        ),
        (["method=memit", "method.learning_rate=1"], "method (MEMIT) has layers, lam, moments"),
        (["method=none", "method.learning_rate=1"], "method (Unwashed) has no settings."),
        (["tracker=none", "tracker.project=a"], "in the configuration. tracker (NoTracker) has no settings."),
        (["+method.foo=1"], "Unknown key 'method.foo' in the configuration. method (LAW) has initial"),
        (["+method.initial.targets.stps=1"], "Did you mean 'method.initial.targets.steps'?"),
        (["+foo=1"], "The top level has name, seed"),
        (["save=foo"], "'save': Invalid value 'foo', expected one of [nothing, delta, model]."),
        (["seed=abc"], "'seed': Value 'abc' of type 'str' could not be converted to Integer."),
        (["seed="], "'seed': Value '' of type 'str'"),
        (["rerun=maybe"], "'rerun': Value 'maybe' is not a valid bool"),
        (["experiment=unknown"], "Unknown experiment 'unknown'. Available: beta_ratio"),
        (["hydra/launcher=joblib2"], "pip install -e '.[launchers]'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_told_in_one_paragraph(overrides: list[str], message: str) -> None:
    found = told(*overrides)
    assert message in found and "\n" not in found and "hydra.cc" not in found


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str
) -> tuple[str, str]:
    """A command that has to fail with status 1: the paragraph that it ends with, and all it said before."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "experiments" / script), run_name="__main__")
    finally:
        GlobalHydra.instance().clear()
    assert isinstance(ended.value.code, str)  # Python prints a text to stderr, and exits with 1
    said = capsys.readouterr()
    return ended.value.code, said.out + said.err


def test_a_failed_run_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message, said = run(capsys, monkeypatch, "wash.py", "tracker=none", "model.device=gpu7", "method=none")
    assert message.startswith("error: The device 'gpu7' can't be used here") and "\n" not in message
    assert "can't be used here" not in said


def test_a_sweep_tells_each_failure_when_it_happens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value out of range is one failed job, and leaves the others; ``-m`` may stand anywhere."""
    monkeypatch.chdir(tmp_path)
    arguments = ("tracker=none", "method=none", "-m", "model.device=gpu7", "seed=-1,0")
    message, said = run(capsys, monkeypatch, "wash.py", *arguments)
    assert message == "error: seed is -1; expected an integer from 0 to 4294967295, which is 2³² - 1."
    assert said.count("failed: seed is -1") == said.count("failed: The device 'gpu7' can't be used") == 1


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("wash.py", ["~seed"], "error: The argument '~seed' removes a setting"),
        (
            "wash.py",
            ["hydra.job.chdir=true", "tracker=none"],
            "error: hydra.job.chdir is true; expected false",
        ),
        ("locate.py", ["locate.batch_size=0"], "error: locate.batch_size is 0; expected an integer"),
        ("locate.py", ["+locate.foo=1"], "error: Unknown key 'locate.foo'"),
        ("train_lab.py", ["training.steps=0"], "error: training.steps is 0"),
        ("train_lab.py", ["training.autocast=foo"], "error: training.autocast is 'foo'; expected bfloat16"),
        ("train_lab.py", ["world=counterfact", "world.text=a.txt"], "Write 'world.text=[a.txt]'."),
        ("build_wiki.py", ["nowhere.tsv", "out.jsonl"], "error: The file nowhere.tsv does not exist"),
        ("table.py", ["nowhere"], "error: There is no folder nowhere."),
        ("figure.py", ["foo", "nowhere"], "error: There is no picture 'foo'"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith(".py") else "",
)
def test_every_command_ends_with_one_paragraph(
    script: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, _ = run(capsys, monkeypatch, script, *arguments)
    assert message in found and "\n" not in found


def test_a_prompt_that_is_too_long_is_not_repeated(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(LawError) as error:
        greedy_answers(tiny_model, tiny_tokenizer, ["Anna bought bread. " * 500])
    assert "tokens; expected at most 128" in str(error.value) and len(str(error.value)) < 400
