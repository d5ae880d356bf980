"""What makes a run the same run again: its configuration, and every file that it reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from law.base.cache import content_hash, fingerprint
from law.base.errors import LawError
from law.runs.configuration import identity
from law.runs.identity import Identity, finished

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture(autouse=True)
def _hydra():
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield
    HydraConfig.instance().cfg = None


def identity_of(*overrides: str) -> Identity:
    config = compose("config", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return identity(config)


def test_other_facts_or_another_text_are_another_run(tmp_path: Path) -> None:
    facts, text, heldout = (tmp_path / name for name in ("facts.json", "general.txt", "heldout.txt"))
    asked = (
        f"dataset.path={facts}",
        f"method.initial.moments.text={text}",
        f"evaluation.fluency.text={heldout}",
    )
    seen = set()
    for changed in (None, facts, text, heldout):
        if changed is not None:
            changed.write_text("new")
        seen.add(identity_of(*asked).inputs)
    assert len(seen) == 4
    assert identity_of(*asked).inputs in seen
    # what a run writes is no input
    assert identity_of(*asked, f"evaluation.cache={tmp_path}").inputs in seen


def test_a_pattern_is_known_by_the_files_it_fits(tmp_path: Path) -> None:
    pattern = str(tmp_path / "*.txt")
    nothing = fingerprint(pattern)
    (tmp_path / "a.json").write_text("no text")
    assert fingerprint(pattern) == nothing
    (tmp_path / "a.txt").write_text("a text")
    assert fingerprint(pattern) != nothing


def test_a_run_has_finished_with_its_own_configuration_and_files_alone(tmp_path: Path) -> None:
    this = Identity("test", {}, {}, 0, {"method": "law"}, "files")
    manifest = {"status": "finished", "config_hash": content_hash(this.config), "inputs": "files"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert finished(tmp_path, this) is None
    (tmp_path / "metrics.json").write_text('{"facts/known": 3}')
    assert finished(tmp_path, this) == {"facts/known": 3}
    assert finished(tmp_path, replace(this, config={"method": "memit"})) is None
    assert finished(tmp_path, replace(this, inputs="other files")) is None
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    assert finished(tmp_path, this) is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("preset@method=lab/lwa", "Unknown preset/lab 'lwa'. Did you mean 'law'?"),
        ("preset_for@method=wiki_latest/gpt2-xl/memitt", "Unknown preset_for/wiki_latest/gpt2-xl 'memitt'"),
    ],
)
def test_a_preset_that_is_not_there_is_refused(override: str, message: str) -> None:
    with pytest.raises(LawError) as error:
        identity_of(override)
    assert message in str(error.value)
    assert identity_of("preset@method=lab/law").seed == 0
