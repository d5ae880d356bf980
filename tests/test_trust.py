"""What a configuration, a checkpoint and a name may not do: write elsewhere, run code, or give keys away."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TrainedLab
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from small import gpt2_style, random_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from whole_runs import runs_of, wash

from law.base.checks import FolderName
from law.base.errors import LawError
from law.decoders.loading import ModelSettings, load_model
from law.runs.configuration import build

CONF = Path(__file__).parents[1] / "conf"


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "a/../../x", "..", ".hidden", "a//b", "a/", "", "~x", "a b"]
)
def test_a_name_that_could_leave_the_folder_of_outputs_is_no_name(name: str) -> None:
    (accepted,) = FolderName.__metadata__
    assert not accepted.test(name)
    assert all(map(accepted.test, ("wash", "paper/lab", "a.b", "2026-11-26_x+y=z")))


@pytest.mark.parametrize("arguments", [["name=../../x"], ["-m", "name=../../x"], ["-m", "name=fine,../../x"]])
def test_a_run_and_a_sweep_write_nothing_outside_of_their_folder(
    tmp_path: Path, arguments: list[str]
) -> None:
    place = tmp_path / "one" / "two"
    place.mkdir(parents=True)
    done = wash(place, "method=none", "tracker=none", "model=local", "model.path=nowhere", *arguments)
    assert done.code == 1 and "name is '../../x'; expected the name of a folder" in done.message
    assert {path.name for path in tmp_path.rglob("x*")} == set()
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["two"]


def test_an_option_from_elsewhere_gives_the_run_no_folder_elsewhere() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        overrides = ["method=../method/none", "dataset=../dataset/lab"]
        config = compose("config", overrides=overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    assert Path(config.hydra.run.dir).parent == Path("outputs/wash")


# --- code ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["law.base.files.remove", "os.system", "torch.load", "law.runs.tracker.Guarded", "${name}"]
)
def test_a_configuration_builds_the_classes_of_its_groups_and_nothing_else(target: str) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("config", overrides=[f"method._target_={target}"])
    with pytest.raises(LawError, match="The configuration would call"):
        build(config.method)


def test_hydra_refuses_a_callback_that_would_execute_something(tmp_path: Path) -> None:
    """Hydra builds callbacks before any code of the run; its own list of refused targets protects there."""
    made = tmp_path / "made"
    callback = f"+hydra.callbacks.bad={{_target_: os.system, command: 'touch {made}'}}"
    done = wash(tmp_path, "method=none", "tracker=none", callback)
    assert done.code == 1 and "os.system" in done.message and "blocklisted" in done.message
    assert not made.exists()


def test_weights_that_can_run_code_are_not_read(
    tmp_path: Path, tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_model.config.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    torch.save(tiny_model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(LawError, match=r"Files that end in \.bin can run code when they are read"):
        load_model(ModelSettings(str(tmp_path), device="cpu"))


def test_a_checkpoints_own_code_runs_only_when_asked_for_and_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, ran = tmp_path / "model", tmp_path / "ran"
    tokenizer = gpt2_style()
    random_model("gpt2", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "from pathlib import Path\nfrom transformers import GPT2Config, GPT2LMHeadModel\n"
        f"Path({str(ran)!r}).touch()\nclass Own(GPT2Config):\n    model_type = 'own'\n"
        "class OwnModel(GPT2LMHeadModel):\n    config_class = Own\n"
    )
    with pytest.raises(LawError, match=r"Read that code, then set model\.trust_remote_code=true"):
        load_model(ModelSettings(str(folder), device="cpu"))
    assert not ran.exists()
    with caplog.at_level(logging.WARNING):
        load_model(ModelSettings(str(folder), device="cpu", trust_remote_code=True))
    assert ran.exists() and "the Python code of" in caplog.text


# --- facts --------------------------------------------------------------------------------------


def words_of(facts: Path) -> set[bytes]:
    """The subjects in a file of CounterFact, which are of two words and occur nowhere else."""
    records = json.loads(facts.read_text())
    return {record["requested_rewrite"]["subject"].encode() for record in records}


def holding(folder: Path, words: set[bytes]) -> list[str]:
    return [
        path.name
        for path in folder.rglob("*")
        if path.is_file() and any(w in path.read_bytes() for w in words)
    ]


def test_redacted_runs_leave_scores_and_no_word_of_a_fact(
    tmp_path: Path, inputs: list[str], trained_lab: TrainedLab
) -> None:
    words = words_of(trained_lab.facts_path)
    memit = [
        "method=memit",
        "method.layers=[0,1]",
        "method.lam=1",
        f"method.moments.text={trained_lab.text_path}",
    ]
    command = [*inputs, *memit, "attack=quick", "attack.facts=2"]
    done = wash(tmp_path, *command)
    assert done.code == 0, done.message
    plain = json.loads(next(tmp_path.rglob("metrics.json")).read_text())
    assert {"predictions.jsonl", "generations.jsonl"} <= {*holding(tmp_path / "outputs" / "wash", words)}
    shutil.rmtree(tmp_path / "outputs" / "cache")
    shutil.rmtree(next((tmp_path / "outputs" / "wash").glob("*/wandb")))

    done = wash(tmp_path, *command, "redact=true")  # in the same folder, in the place of the plain one
    assert done.code == 0 and "is run again with other configuration (redact=true)" in done.log
    assert holding(tmp_path, words) == []
    (run,) = runs_of(tmp_path / "outputs" / "wash")
    metrics = json.loads((run / "metrics.json").read_text())
    scores = {key: value for key, value in plain.items() if not key.startswith("time/")}
    # other batches, since nothing is taken from the cache
    assert {key: metrics[key] for key in scores} == pytest.approx(scores, rel=1e-3, abs=1e-6)
    (line, *_) = (run / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["prompt"] == "(redacted)" and "log_prob_before" in json.loads(line)


def test_the_error_of_a_redacted_run_quotes_no_fact(
    tmp_path: Path, inputs: list[str], trained_lab: TrainedLab
) -> None:
    records = json.loads(trained_lab.facts_path.read_text())
    for record in records:
        record["requested_rewrite"]["target_true"]["str"] = "Xyzzy"
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps(records))
    words = words_of(facts)
    command = ["-m", "name=failing", "tracker=none", *inputs, f"dataset.path={facts}", "method=none"]
    done = wash(tmp_path, *command)
    assert done.code == 1 and any(word.decode() in done.message for word in words)  # it quotes one
    shutil.rmtree(tmp_path / "outputs")
    done = wash(tmp_path, *command, "redact=true")
    assert done.code == 1 and "The run failed with LawError; its text may quote facts" in done.message
    assert not any(word.decode() in done.message for word in words)
    assert holding(tmp_path / "outputs", words) == []


# --- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_keys_in_the_environment_reach_no_file_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], fails: bool
) -> None:
    secret = "5e" * 20  # W&B wants forty characters
    for name in (
        "WANDB_API_KEY",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "OPENAI_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
    ):
        monkeypatch.setenv(name, secret)
    overrides = ["method=gradient_ascent", f"method.learning_rate={1e30 if fails else 1e-6}", "save=delta"]
    done = wash(tmp_path, "-m", "name=keys", *overrides, *inputs)
    assert done.code == fails
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"manifest.json", "wash.log", "config.yaml", "multirun.yaml"} <= {path.name for path in files}
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if secret.encode() in path.read_bytes()]
