"""What makes a run the same run again: its configuration, what it reads, the code and the packages."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shutil
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from huggingface_hub import constants
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from law.base.code import code_hash
from law.base.errors import LawError
from law.base.files import FileHashes
from law.base.settings import FILES, ROLE, SAME_RESULTS
from law.decoders.loading import ModelSettings
from law.facts import wiki_latest
from law.runs import configuration
from law.runs import identity as identities
from law.runs.configuration import RunConfig, identity
from law.runs.identity import Identity, digests, finished, reduced

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture(autouse=True)
def _hydra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(configuration, "code", lambda: "code")  # to parse it all takes a third of a second
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield
    HydraConfig.instance().cfg = None


def composed(*overrides: str) -> Any:
    return compose("config", overrides=["evaluation.cache=null", *overrides], return_hydra_config=True)


def identity_of(*overrides: str) -> Identity:
    config = composed(*overrides)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return identity(config)


def same(one: Identity, other: Identity) -> bool:
    return (one.config_hash, digests(one.inputs)) == (other.config_hash, digests(other.inputs))


# --- the configuration --------------------------------------------------------------------------


SAME_NUMBERS = {
    "name": "other",
    "tracker": None,
    "rerun": True,
    "redact": True,
    "save": "delta",
    "model.device": "cuda",
    "model.device_map": "balanced",
    "evaluation.batch_size": 3,
    "evaluation.cache": "elsewhere",
    "evaluation.reasoning.batch_size": 3,
    "evaluation.fluency.batch_size": 3,
    "method.initial.batch_size": 3,
    "method.initial.cache": None,
    "method.initial.moments.batch_size": 3,
    "method.initial.moments.save_every": 3,
    "method.initial.targets.batch_size": 3,
    "method.initial.targets.shard": 3,
    "dataset.download.site": "https://example.org",
}
OTHER_NUMBERS = {
    "seed": 1,
    "model.dtype": "bfloat16",
    "dataset.wash": 3,
    "dataset.selection": "multi",
    "dataset.path": None,  # the published file, which is taken whole
    "method.batch_size": 3,
    "method.micro_batch": 1,  # the draws of dropout depend on it
    "method.retain.batch_size": 3,
    "method.retain.documents": 3,
    "evaluation.fluency.tokens": 3,
    "evaluation.reasoning.limit": 3,
}


@pytest.mark.parametrize(("method", "changes"), [("law", SAME_NUMBERS), ("npo", OTHER_NUMBERS)])
def test_the_run_changes_with_what_can_change_a_number(method: str, changes: dict[str, Any]) -> None:
    """And with nothing else: where results are kept, or how many rows a forward pass takes."""
    config = composed(f"method={method}")
    plain = reduced(config)
    for key, value in changes.items():
        other = copy.deepcopy(config)
        OmegaConf.update(other, key, value)
        assert (reduced(other) == plain) is (changes is SAME_NUMBERS), key


EDITORS = ("MEMIT", "Sparing", "AlphaEdit", "ENCORE", "ZeroUnlearn")
METHODS = (
    *"Retrained FineTuning GradientAscent SeUL WOH GradDiff NPO SimNPO UNDIAL JensUn DPO RMU LAW".split(),
    *EDITORS,
    "UltraEdit",
)
SAME = {
    *("RunConfig.name", "RunConfig.save", "RunConfig.rerun", "RunConfig.redact", "RunConfig.tracker"),
    "RunConfig.point",  # the setting that it changes counts
    *(f"{method}.{key}" for method in METHODS for key in ("knob", "tune")),
    *("ModelSettings.device", "ModelSettings.device_map"),
    *("ModelSettings.converted", "ModelSettings.package", "ModelSettings.file"),
    *("CounterFact.download", "ZsRE.download"),
    *(f"{editor}.{setting}" for editor in EDITORS for setting in ("batch_size", "cache")),
    "UltraEdit.batch_size",  # without padding, no result depends on it
    *("MomentSettings.batch_size", "MomentSettings.save_every"),
    *(
        f"{targets}.{setting}"
        for targets in ("TargetSettings", "EarlyTargets")
        for setting in ("batch_size", "shard")
    ),
    *("EvaluationSettings.batch_size", "EvaluationSettings.cache"),
    *("ReasoningSettings.batch_size", "FluencySettings.batch_size"),
}
READ = {
    *("ModelSettings.path", "CounterFact.path", "ZsRE.path", "WikiLatest.path", "Custom.path"),
    *("CounterFact.ids", "ZsRE.ids", "WikiLatest.ids", "Custom.ids"),
    *("MomentSettings.text", "MomentSettings.dataset", "MomentSettings.published"),
    *("Retain.text", "Retain.dataset", "RetainSet.text", "RetainSet.dataset"),
    *("FluencySettings.text", "ReasoningSettings.data", "Retrained.path"),
}


def test_every_setting_that_does_not_count_is_one_of_these() -> None:
    """A field that is newly marked belongs here, once someone has thought about whether it changes a number."""
    roles: dict[str, set[str]] = {role[ROLE]: set() for role in (SAME_RESULTS, FILES)}

    def look(cls: type) -> None:
        name = cls.__name__.removesuffix("Config") if hasattr(cls, "_target_") else cls.__name__
        for field in fields(cls):
            if role := field.metadata.get(ROLE):
                roles[role].add(f"{name}.{field.name}")
            hint = get_type_hints(cls)[field.name]
            for inner in filter(is_dataclass, (hint, *get_args(hint))):
                look(inner)

    look(RunConfig)
    store = ConfigStore.instance()
    for group in ("model", "dataset", "method", "evaluation"):
        for schema in store.list(group):
            look(OmegaConf.get_type(store.load(f"{group}/{schema}").node))
    assert roles == {SAME_RESULTS[ROLE]: SAME, FILES[ROLE]: READ}


def test_runs_of_a_setup_differ_in_the_seed_alone() -> None:
    """conf/method/npo.yaml and conf/dataset/lab.yaml take their seeds from the run's."""
    one, other = identity_of("method=npo", "seed=1"), identity_of("method=npo", "seed=2")
    assert one.config_hash != other.config_hash and one.setup_hash == other.setup_hash
    assert digests(one.inputs) == digests(other.inputs) and one.code_hash == other.code_hash
    fixed = identity_of("method=npo", "seed=1", "dataset.seed=1")
    assert fixed.config_hash == one.config_hash  # the same facts
    assert fixed.setup_hash != one.setup_hash  # with another seed they would not be


# --- what is read -------------------------------------------------------------------------------


def test_another_content_of_any_file_is_another_run_and_another_path_is_not(tmp_path: Path) -> None:
    files = {
        "dataset.path": tmp_path / "facts.json",
        "method.initial.moments.text": tmp_path / "general.txt",
        "evaluation.fluency.text": tmp_path / "heldout.txt",
        "evaluation.reasoning.data": tmp_path / "rows" / "piqa.jsonl",
        "model.path": tmp_path / "model" / "config.json",
    }
    for path in files.values():
        path.parent.mkdir(exist_ok=True)
        path.write_text("first")

    def of(folder: Path) -> Identity:
        moved = {name: folder / path.relative_to(tmp_path) for name, path in files.items()}
        moved["evaluation.reasoning.data"] = moved["evaluation.reasoning.data"].parent
        moved["model.path"] = moved["model.path"].parent
        asked = [f"{name}={path}" for name, path in moved.items()]
        return identity_of("method=law", "evaluation.reasoning.tasks=[piqa]", *asked)

    first = of(tmp_path)
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert same(of(tmp_path / "copy"), first)
    seen = [first]
    for path in files.values():
        stat = path.stat()
        path.write_text("other")  # of the same size
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        seen.append(of(tmp_path))
    hashes = [digests(found.inputs) for found in seen]
    assert [sum(a[name] != b[name] for name in a) for a, b in pairwise(hashes)] == [1] * len(files)
    assert {found.config_hash for found in seen} == {first.config_hash}


def test_the_fetched_file_and_the_one_that_was_made_are_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``dataset.path`` is not set: no setting names the file."""
    fetched, made = tmp_path / "zsre_mend_eval.json", tmp_path / "wiki.jsonl"
    monkeypatch.setattr(wiki_latest, "MADE", made)
    for path, asked in (
        (fetched, ("dataset=zsre", f"dataset.download.folder={tmp_path}")),
        (made, ("dataset=wiki_latest",)),
    ):
        path.write_text("first")
        before = identity_of(*asked)
        path.write_text("other")
        assert before.inputs["dataset"] is not None
        assert identity_of(*asked).inputs["dataset"] != before.inputs["dataset"]


def test_a_model_of_the_hub_is_known_by_the_revision_in_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hashes, model = FileHashes(None), ModelSettings("some/model")
    assert model.content(hashes) is None  # not fetched yet
    revision = tmp_path / "models--some--model" / "refs" / "main"
    revision.parent.mkdir(parents=True)
    revision.write_text("a" * 40)
    first = model.content(hashes)
    assert first is not None
    revision.write_text("b" * 40)
    assert model.content(hashes) not in (None, first)
    assert ModelSettings("no such name").content(hashes) is None


def test_a_model_with_an_adapter_is_also_the_model_below(tmp_path: Path) -> None:
    hashes, base, adapter = FileHashes(None), tmp_path / "base", tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    model = ModelSettings(str(adapter))
    assert model.content(hashes) is None
    base.mkdir()
    seen = []
    for path, text in ((base / "config.json", "{}"), (base / "config.json", "[]"), (adapter / "weights", "")):
        path.write_text(text)
        seen.append(json.dumps(model.content(hashes)))
    assert len(set(seen)) == 3 and "null" not in seen


def test_the_carried_rows_of_tasks_are_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from law.evaluation import reasoning_tasks as reasoning

    shutil.copytree(reasoning.LOCAL_TASKS, tmp_path / "tasks")
    monkeypatch.setattr(reasoning, "LOCAL_TASKS", tmp_path / "tasks")
    before = identity_of()
    with (tmp_path / "tasks" / "lab" / "rank.jsonl").open("a") as rows:
        rows.write("\n")
    assert identity_of().inputs["evaluation.reasoning"] != before.inputs["evaluation.reasoning"]
    without = identity_of("evaluation.reasoning.tasks=[]")
    assert without.inputs["evaluation.reasoning"] == []


def test_a_large_file_is_read_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileHashes, "LARGE", 4)
    path, alias = tmp_path / "weights", tmp_path / "alias"
    path.write_bytes(b"1234")
    alias.symlink_to(path)
    long_ago = path.stat().st_mtime_ns - 10**10
    read: list[Path] = []
    real = identities.FileHashes.of.__globals__["file_hash"]
    monkeypatch.setitem(FileHashes.of.__globals__, "file_hash", lambda p: (read.append(p), real(p))[1])

    FileHashes(tmp_path / "cache").of(path)
    FileHashes(tmp_path / "cache").of(path)
    assert len(read) == 2  # it changed this instant, and may do so again within the tick of its clock

    monkeypatch.setattr(FileHashes, "SETTLED_NS", -1)
    read.clear()
    for content, name in ((b"1234", path), (b"1234", alias), (b"4321", path)):
        if path.read_bytes() != content:
            path.write_bytes(content)
            os.utime(path, ns=(long_ago, long_ago))
        digest = FileHashes(tmp_path / "cache").of(name)
        assert digest == hashlib.sha256(content).hexdigest()
    assert len(read) == 2  # each content once

    (tmp_path / "cache" / "file_hashes.json").write_text("{}[")  # damaged
    assert FileHashes(tmp_path / "cache").of(path) == hashlib.sha256(b"4321").hexdigest()
    assert FileHashes(None).of(path) == hashlib.sha256(b"4321").hexdigest()


def test_each_place_has_its_folder_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models of one sweep must not write into one folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()

    def folder(path: str, *more: str) -> str:
        config = composed("method=none", "model=local", f"model.path={path}", *more)
        HydraConfig.instance().set_config(config)
        return Path(config.hydra.sweep.subdir).name

    assert folder("a") == folder("./a") == folder(str(tmp_path / "a")) == folder("a", "save=delta")
    assert folder("a") != folder("b")
    assert folder("some/hub-name") != folder("other/hub-name")
    assert folder("a", "seed=1").startswith("none-local-lab-s1-")


# --- the code -----------------------------------------------------------------------------------


def test_code_is_what_it_does(tmp_path: Path) -> None:
    path = tmp_path / "package" / "module.py"
    path.parent.mkdir()

    def of(text: str) -> str:
        path.write_text(text)
        return code_hash(tmp_path, [path])

    plain = of("def f(a: int) -> int:\n    return a + 1\n\n\nX = 3\n")
    assert plain == of(
        '"""Module."""\n\ndef f(a: int) -> int:  # why\n    """Adds."""\n    return (a\n        + 1)\n\nX = 3\n"""Three."""\n'
    )
    for other in ("return a - 1", "return a + 2", "a; return a + 1"):
        assert of(f"def f(a: int) -> int:\n    {other}\n\n\nX = 3\n") != plain
    told = of('if f(1):\n    raise ValueError(f"no {X}")')
    assert of('if f(1):\n    raise ValueError(f"not {X}", X)') == told
    assert (
        of('if f(2):\n    raise ValueError(f"no {X}")')
        != told
        != of('if f(1):\n    raise KeyError(f"no {X}")')
    )
    of("def f(a: int) -> int:\n    return a + 1\n\n\nX = 3\n")
    path.rename(tmp_path / "package" / "renamed.py")
    assert code_hash(tmp_path, [tmp_path / "package" / "renamed.py"]) != plain


def test_the_code_of_results_is_all_but_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(
        identities, "code_hash", lambda root, files: seen.extend(f.relative_to(root) for f in files)
    )
    identities.code()
    assert {"__init__.py", "methods/law.py", "evaluation/tasks/rows.py"} <= {path.as_posix() for path in seen}
    assert not [path for path in seen if path.parts[0] == "reporting"]


# --- whether it has finished --------------------------------------------------------------------

THIS = Identity("test", {}, {}, 0, config_hash="c", code_hash="k", inputs={"model": ["m"], "dataset": ["d"]})


def leave(folder: Path, **changes: Any) -> None:
    """A finished run of ``THIS`` in ``folder``, its manifest changed."""
    folder.mkdir(exist_ok=True)
    manifest = {
        "status": "finished",
        "config_hash": "c",
        "code_hash": "k",
        "inputs": digests(THIS.inputs),
        "versions": {name: identities.version(name) for name in identities.PACKAGES},
        "save": "nothing",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    (folder / "metrics.json").write_text('{"facts/known": 3}')


@pytest.mark.parametrize(
    ("changes", "identity", "told"),
    [
        ({"config_hash": "d"}, {}, "is run again with other configuration"),
        ({}, {"save": "model"}, "is run again with other configuration (save=model)"),
        ({}, {"inputs": {"model": ["m"], "dataset": ["e"]}}, "is run again with other inputs (dataset)"),
        ({}, {"inputs": {"model": None, "dataset": ["d"]}}, "is run again with other inputs (model)"),
        ({"code_hash": "l"}, {}, "is run again with other code"),
        ({"code_hash": "l", "config_hash": "d"}, {}, "is run again with other configuration, code"),
        ({"inputs": "of an older version"}, {}, "is run again with other inputs (model, dataset)"),
    ],
)
def test_a_finished_run_that_differs_is_told_of_and_run_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: Any, identity: Any, told: str
) -> None:
    leave(tmp_path / "run-1", **changes)
    with caplog.at_level(logging.INFO):
        assert finished(tmp_path / "run-1", replace(THIS, **identity)) is None
    assert [message.endswith(told) for message in caplog.messages] == [True], caplog.messages


def test_another_version_of_a_package_is_told_with_both(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path / "run-1")
    monkeypatch.setattr(identities, "version", lambda name: "9.9" if name == "peft" else real(name))
    with caplog.at_level(logging.INFO):
        assert finished(tmp_path / "run-1", THIS) is None
    assert f"packages (peft {real('peft')} → 9.9)" in caplog.text


real = identities.version


@pytest.mark.parametrize("saved", ["nothing", "delta"])
def test_a_finished_run_is_found_with_its_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, saved: str
) -> None:
    leave(tmp_path / "run-1", save=saved)
    with caplog.at_level(logging.INFO):
        assert finished(tmp_path / "run-1", replace(THIS, save="nothing")) == {"facts/known": 3}
    assert caplog.messages == [f"{tmp_path / 'run-1'} has finished before; rerun=true runs it again"]
    (tmp_path / "run-1" / "metrics.json").unlink()
    assert finished(tmp_path / "run-1", THIS) is None
    leave(tmp_path / "run-1", status="running")
    assert finished(tmp_path / "run-1", THIS) is None


def test_the_same_content_under_another_path_has_finished_beside(tmp_path: Path) -> None:
    """Its folder has another digest, since a digest holds the path; what was read is the same."""
    leave(tmp_path / "law-lab-lab-s0-11111111")
    leave(tmp_path / "law-lab-lab-s1-33333333")
    assert finished(tmp_path / "law-lab-lab-s0-22222222", THIS) == {"facts/known": 3}
    assert finished(tmp_path / "law-lab-lab-s0-22222222", replace(THIS, config_hash="d")) is None
    assert finished(tmp_path / "law-lab-own-s0-22222222", THIS) is None


@pytest.mark.parametrize("method", ["undial", "jensun", "dpo", "npo", "grad_diff"])
def test_a_retain_loss_without_a_text_is_known_content(method: str) -> None:
    """What is not known counts as changed, and the run would be made again each time."""
    given = [
        f"method={method}",
        "method.retain.weight=0",
        "method.retain.text=null",
        "method.retain.dataset=null",
    ]
    inputs = identity_of(*given).inputs
    assert inputs["method.retain"] == []
    assert None not in inputs.values()


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
