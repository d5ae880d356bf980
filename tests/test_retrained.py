"""The reference that was never taught the facts: the world that it is trained on, its tokenizer, and its weights in a run."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import FactsOnly, Loaded, TrainedLab, architecture, trained
from hydra import compose, initialize_config_dir
from small import weights
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import law
from law.base.cache import tokenizer_hash
from law.base.errors import LawError
from law.decoders.greedy_decoding import recalled
from law.facts.counterfact import CounterFact, read_counterfact
from law.lab.make import LabSettings, _identity, _tokenizer
from law.lab.training import TrainingSettings, train_tokenizer
from law.lab.untaught import UntaughtWorld
from law.lab.world import LabWorld
from law.methods.retrained import TAUGHT, Retrained
from law.runs.configuration import build

CHECKPOINT = Path(law.__file__).parent / "lab" / "checkpoint"


def test_an_untaught_world_tells_all_but_the_washed_facts(tmp_path: Path) -> None:
    """Subjects with one fact are not named at all; those with three keep the others."""
    world, path = LabWorld(30, 6, seed=5), tmp_path / "facts.json"
    path.write_text(json.dumps(world.records()), encoding="utf-8")
    draw = CounterFact(str(path), wash=20, keep=10, seed=3)
    untaught = UntaughtWorld(30, 6, seed=5, without=draw)
    washed = {(fact.subject, fact.relation) for fact in draw.load().wash}
    left = {(subject, relation.id) for subject, relation, _ in world.facts} - washed
    assert len(washed) == 20 and len(left) == 28
    assert {(subject, relation.id) for subject, relation, _ in untaught.facts} == left
    rng = random.Random(0)
    texts = {untaught.fact_text(rng) for _ in range(5000)}
    assert texts == {
        f"{phrasing.format(subject)} {true}."
        for subject, relation, true in world.facts
        if (subject, relation.id) in left
        for phrasing in relation.phrasings
    }
    silenced = {subject for subject, _ in washed} - {subject for subject, _ in left}
    assert silenced
    for document in islice(untaught.documents(rng), 2000):
        assert not any(word in document.split() for subject in silenced for word in subject.split())


def test_facts_of_another_world_cannot_be_left_out() -> None:
    draw = CounterFact(str(CHECKPOINT / "facts.json"), wash=5, keep=0)
    with pytest.raises(
        LawError, match=r"5 of the 5 facts that world.without washes are no facts of this world"
    ):
        UntaughtWorld(seed=1, without=draw)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_world_of_the_labs_reference_leaves_out_what_a_run_of_this_seed_washes(seed: int) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(Path(law.__file__).parents[1] / "conf")):
        config = compose("train_lab", overrides=["world=lab_retrained", f"seed={seed}"])
        run = compose("config", overrides=["method=retrained", f"seed={seed}"])
    washed = build(run.dataset).load().wash
    world = build(config.world)
    assert len(world.facts) == 520
    assert {fact.subject for fact in washed}.isdisjoint(
        subject
        for subject, relation, _ in world.facts
        if (subject, relation.id) in {(f.subject, f.relation) for f in washed}
    )
    assert build(run.method).path == config.output == f"outputs/lab_retrained/{seed}"


def test_real_facts_make_a_world(tmp_path: Path) -> None:
    """The data set that the world names lies elsewhere in the configuration."""
    with initialize_config_dir(version_base="1.3", config_dir=str(Path(law.__file__).parents[1] / "conf")):
        given = [f"dataset.path={CHECKPOINT / 'facts.json'}", f"world.text=[{CHECKPOINT / 'heldout.txt'}]"]
        config = compose("train_lab", overrides=["world=counterfact", *given])
    assert len(build(config.world).records()) == 400


def test_a_training_takes_the_tokenizer_that_it_is_given(tmp_path: Path) -> None:
    training = TrainingSettings(3, 2, 24, 1e-2, 0.1, 1, 0, "cpu", "bfloat16", 3)
    world, here, there = LabWorld(12, 2), tmp_path / "here", tmp_path / "there"
    tokenizer = train_tokenizer(iter(["the mill the inn"] * 9), vocab_size=260)
    for folder in (here, there):
        tokenizer.save_pretrained(folder)
    settings = LabSettings(str(tmp_path), 0, 600, architecture(), training, 10, tokenizer=str(here))
    assert tokenizer_hash(_tokenizer(world, settings)) == tokenizer_hash(tokenizer)
    identity = _identity(world, settings)
    assert identity == _identity(world, replace(settings, tokenizer=str(there)))
    assert identity != _identity(world, replace(settings, tokenizer=None))
    with pytest.raises(LawError, match=r"nowhere', and no tokenizer could be loaded from there"):
        _tokenizer(world, replace(settings, tokenizer=str(tmp_path / "nowhere")))


@pytest.fixture(scope="module")
def untouched(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model like the one that knows the facts, trained on a world of other people."""
    world, folder = FactsOnly(seed=1), tmp_path_factory.mktemp("reference")
    trained(world, tiny_tokenizer).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    (folder / TAUGHT).write_text(json.dumps(world.records()), encoding="utf-8")
    return folder


@pytest.fixture
def reference(untouched: Path, tmp_path: Path) -> Path:
    """The same, for a test that may change it."""
    return Path(shutil.copytree(untouched, tmp_path / "reference"))


def test_the_retrained_weights_take_the_place_of_the_models(knowing: Loaded, reference: Path) -> None:
    model, tokenizer, facts = knowing
    assert all(recalled(model, tokenizer, facts, 8))
    method = Retrained(str(reference))
    method.check(model)
    method.wash(model, tokenizer, facts)
    expected = type(model).from_pretrained(reference)
    for name, parameter in expected.named_parameters():
        assert torch.equal(weights(model)[name], parameter), name
    assert sum(recalled(model, tokenizer, facts, 8)) <= 1
    assert sum(recalled(model, tokenizer, read_counterfact(reference / TAUGHT), 8)) >= 16  # of its own 18


def test_a_model_that_was_taught_a_fact_is_no_reference(
    knowing: Loaded, trained_lab: TrainedLab, reference: Path
) -> None:
    model, tokenizer, facts = knowing
    before = weights(model)
    (reference / TAUGHT).write_bytes(trained_lab.facts_path.read_bytes())
    with pytest.raises(LawError, match=r"was taught 6 of the 6 facts to wash, such as '"):
        Retrained(str(reference)).wash(model, tokenizer, facts)
    assert all(torch.equal(before[name], parameter) for name, parameter in weights(model).items())


def test_another_model_is_no_reference(knowing: Loaded, reference: Path) -> None:
    model, _, facts = knowing
    with pytest.raises(LawError, match=r"method.path is 'nowhere', and no model could be loaded from there"):
        Retrained("nowhere").check(model)
    other = AutoTokenizer.from_pretrained(reference)
    other.add_tokens(["mill"])
    with pytest.raises(
        LawError, match=r"The tokenizer of method.path=.* is not the one of the model to wash"
    ):
        Retrained(str(reference)).wash(model, other, facts)
    config = type(model.config).from_pretrained(reference, n_layer=2)
    type(model)(config).save_pretrained(reference)
    with pytest.raises(
        LawError, match=r"another one than the model to wash: transformer.h.2.* has the shape None"
    ):
        Retrained(str(reference)).check(model)
