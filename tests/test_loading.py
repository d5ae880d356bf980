"""Which folders load, as what model, and which are refused before time is spent."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeModel
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from small import gpt2_style, random_model, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from law.base.errors import LawError
from law.decoders.adapters import merge_adapter
from law.decoders.loading import ModelSettings, load_model
from law.decoders.saving import Save, save_washed, snapshot
from law.decoders.structure import Decoder
from law.facts.fact import Fact
from law.methods.gradient_ascent import GradientAscent

FACTS = [Fact("0", "Anna", "The home of {} is in", "Berlin", "P551")]


def load(path: Path | str, **changes: Any) -> tuple[PreTrainedModel, Any]:
    return load_model(ModelSettings(str(path), device="cpu", **changes))


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; ``None`` removes one."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path / "base"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


# --- adapters -----------------------------------------------------------------------------------


@pytest.fixture
def adapted(checkpoint: Path) -> PeftModel:
    """A LoRA of rank 4 with α = 8 on an attention's and an MLP's projection, its two factors random."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "fc_out"], init_lora_weights=False)
    return get_peft_model(base, config)


@pytest.fixture(params=["adapter alone", "adapter left in a checkpoint"])
def adapter(request: pytest.FixtureRequest, checkpoint: Path, adapted: PeftModel, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    if request.param != "adapter alone":
        shutil.copytree(checkpoint, folder)
    adapted.save_pretrained(folder)
    return folder


def test_an_adapter_is_merged_into_the_weights(adapter: Path, checkpoint: Path, adapted: PeftModel) -> None:
    model, tokenizer = load(adapter)
    before = load_file(checkpoint / "model.safetensors")
    factors = load_file(adapter / "adapter_model.safetensors")
    assert len(factors) == 2 * 2 * 3  # A and B of two projections in three blocks
    assert weights(model).keys() == {name for name, _ in load(checkpoint)[0].named_parameters()}
    for name, weight in weights(model).items():
        A, B = (
            factors.get(f"base_model.model.{name.removesuffix('weight')}lora_{which}.weight")
            for which in "AB"
        )
        expected = (
            before[name] if A is None or B is None else before[name] + 8 / 4 * B @ A
        )  # (out, r) @ (r, in)
        torch.testing.assert_close(weight, expected)
    ids = torch.tensor([tokenizer("The home of Anna is in")["input_ids"]])
    torch.testing.assert_close(model(ids).logits, adapted.eval()(ids).logits)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model._hf_peft_config_loaded and not hasattr(model, "peft_config")
    Decoder(model).check_layers([0, 1, 2])


def test_what_is_washed_of_an_adapted_model_is_what_is_saved(adapter: Path, tmp_path: Path) -> None:
    model, tokenizer = load(adapter)
    unwashed = snapshot(model)
    GradientAscent(1e-3).wash(model, tokenizer, FACTS)
    save_washed(model, tokenizer, unwashed, tmp_path / "washed", Save.model)
    assert not list((tmp_path / "washed").glob("adapter*"))
    saved = weights(AutoModelForCausalLM.from_pretrained(tmp_path / "washed", dtype=torch.float32))
    assert saved.keys() == weights(model).keys()
    for name, weight in weights(model).items():
        assert torch.equal(saved[name], weight) and not torch.equal(weight, unwashed[name])


def no_base(folder: Path) -> None:
    edit_json(folder / "adapter_config.json", base_model_name_or_path="no/such")


def base_unnamed(folder: Path) -> None:
    edit_json(folder / "adapter_config.json", base_model_name_or_path=None)


def factors_renamed(folder: Path) -> None:
    factors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name.replace("fc_out", "fc_off"): value for name, value in factors.items()},
        folder / "adapter_model.safetensors",
    )


def factors_gone(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_base, r"The model 'no/such' \(the adapter .*adapter changes it\) could not be loaded"),
        (base_unnamed, r"does not name the model that it changes; expected base_model_name_or_path in"),
        (factors_renamed, r"could not be merged into GPTJForCausalLM .*missing adapter keys"),
        (factors_gone, r"could not be merged into GPTJForCausalLM"),
    ],
)
def test_an_adapter_that_can_not_be_merged_is_refused(
    adapted: PeftModel, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    adapted.save_pretrained(tmp_path / "adapter")
    damage(tmp_path / "adapter")
    with pytest.raises(LawError, match=message):
        load(tmp_path / "adapter")


def test_an_adapter_of_another_kind_or_model_is_refused(
    adapted: PeftModel, checkpoint: Path, make_model: MakeModel, tmp_path: Path
) -> None:
    make_model(n_embd=48).save_pretrained(tmp_path / "wider")
    adapted.save_pretrained(tmp_path / "adapter")
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "wider"))
    shutil.copy(checkpoint / "tokenizer.json", tmp_path / "wider")
    with pytest.raises(LawError, match=r"size mismatch|Error.* in loading state_dict"):
        load(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(base, prompts).save_pretrained(tmp_path / "prompts")
    with pytest.raises(LawError, match="of a kind that merges, as LoRA does"):
        load(tmp_path / "prompts")


@pytest.mark.parametrize("target", ["lm_head", "wte"])
def test_an_adapter_of_one_of_two_tied_layers_is_refused(tmp_path: Path, target: str) -> None:
    """GPT-2's output layer is its embedding: merged into one, the adapter once changed the other too."""
    config = LoraConfig(r=4, target_modules=["c_attn", target], init_lora_weights=False)
    get_peft_model(random_model("gpt2"), config).save_pretrained(tmp_path)
    with pytest.raises(
        LawError, match=r"\(transformer\.wte\.weight and lm_head\.weight are tied\).*modules_to_save"
    ):
        merge_adapter(random_model("gpt2"), tmp_path / "adapter_config.json")


@pytest.mark.parametrize("changes", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [1, 2]}])
def test_adapters_that_agree_with_tied_layers_are_merged(tmp_path: Path, changes: dict[str, Any]) -> None:
    """An output layer of its own, or new rows of the embedding in both layers."""
    adapted = get_peft_model(
        random_model("gpt2"), LoraConfig(r=4, target_modules=["c_attn"], **changes)
    ).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path)
    merged, ids = merge_adapter(random_model("gpt2"), tmp_path / "adapter_config.json"), torch.arange(8)[None]
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)
    assert (merged(ids).logits - random_model("gpt2")(ids).logits).abs().max() > 1e-2


def test_an_adapter_of_a_deeper_model_is_refused(
    adapted: PeftModel, make_model: MakeModel, checkpoint: Path, tmp_path: Path
) -> None:
    """Its first two blocks fit; peft once left out the third without a word."""
    adapted.save_pretrained(tmp_path / "adapter")
    make_model(n_layer=2).save_pretrained(tmp_path / "shallow")
    shutil.copy(checkpoint / "tokenizer.json", tmp_path / "shallow")
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "shallow"))
    with pytest.raises(
        LawError,
        match=r"weights that fit no module of GPTJ.*\.h\.2\.attn.*\(4 in all\).*base_model_name_or_path",
    ):
        load(tmp_path / "adapter")


def test_a_model_with_adapters_is_refused_by_methods_and_no_adapter_is_proposed(adapter: Path) -> None:
    """As transformers attaches it: the error once proposed ``mlp.fc_out.lora_B.default`` as down-projection."""
    attached = AutoModelForCausalLM.from_pretrained(adapter)
    for refused in (lambda: Decoder(attached), lambda: GradientAscent(1e-3).check(attached)):
        with pytest.raises(LawError, match=r"has an adapter at transformer\.h\.0\.attn\.q_proj") as raised:
            refused()
        assert "lora" not in str(raised.value) and "model.parts" not in str(raised.value)


def test_a_frozen_model_is_refused_by_methods_that_tune_it(tiny_model: PreTrainedModel) -> None:
    with pytest.raises(LawError, match=r"requires_grad_\(True\)"):
        GradientAscent(1e-3).check(tiny_model.requires_grad_(False))


# --- tokenizers ---------------------------------------------------------------------------------


def test_end_of_text_is_taken_from_the_models_configuration(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tokenizer's file names none; the id stands in config.json or, before it, in generation_config.json."""
    eos = AutoTokenizer.from_pretrained(checkpoint).eos_token
    for name in ("eos_token", "pad_token"):
        edit_json(checkpoint / "tokenizer_config.json", **{name: None})
    assert AutoTokenizer.from_pretrained(checkpoint).eos_token is None
    with caplog.at_level(logging.INFO):
        tokenizer = load(checkpoint)[1]
    assert (tokenizer.eos_token, tokenizer.pad_token) == (eos, eos)
    assert f"the model's configuration says {eos!r}" in caplog.text
    assert tokenizer(f"{eos}")["input_ids"] == [tokenizer.eos_token_id]
    other = tokenizer.convert_tokens_to_ids("A")
    edit_json(checkpoint / "generation_config.json", eos_token_id=[other, 0], _from_model_config=None)
    assert load(checkpoint)[1].eos_token_id == other
    edit_json(checkpoint / "generation_config.json", eos_token_id=[-1, 10**9, other])
    assert load(checkpoint)[1].eos_token_id == other


@pytest.mark.parametrize("eos", [None, -1, 10**9, 2**40, [-1]])
def test_no_end_of_text_anywhere_is_told_with_the_file_to_mend(checkpoint: Path, eos: Any) -> None:
    """GPT-J's class has an end-of-text id of its own; what no file says is not taken for this model's."""
    edit_json(checkpoint / "tokenizer_config.json", eos_token=None)
    edit_json(checkpoint / "config.json", eos_token_id=eos)
    config = json.loads((checkpoint / "config.json").read_text()) | {"text_config": None}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "generation_config.json").unlink()
    with pytest.raises(LawError, match=r'Write "eos_token": .* into .*base/tokenizer_config\.json'):
        load(checkpoint)


def with_tokens(checkpoint: Path, tokens: list[str], special: bool) -> PreTrainedTokenizerFast:
    """The checkpoint's tokenizer with more tokens than its model has embeddings."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens(tokens, special_tokens=special)
    return tokenizer


def test_padding_beyond_the_embeddings_is_done_with_end_of_text(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = with_tokens(checkpoint, ["<image>"], special=True)  # one that no text contains may lie there
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(checkpoint)
    with caplog.at_level(logging.INFO):
        model, loaded = load(checkpoint)
    assert tokenizer.pad_token_id == model.get_input_embeddings().num_embeddings + 1
    assert loaded.pad_token_id == loaded.eos_token_id
    assert "'[PAD]' has no embedding" in caplog.text


def test_tokens_in_use_without_an_embedding_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with_tokens(checkpoint, ["Anna", "Berlin"], special=False).save_pretrained(checkpoint)
    with pytest.raises(
        LawError, match=r"has 2 tokens without an embedding, as 'Berlin' with id 601; expected ids below 600"
    ):
        load(checkpoint)
    tokenizer = gpt2_style()
    random_model("gpt2", len(tokenizer) - 1).save_pretrained(tmp_path / "end")
    tokenizer.save_pretrained(tmp_path / "end")
    with pytest.raises(LawError, match=r"has 1 tokens without an embedding, as '<\|endoftext\|>'"):
        load(tmp_path / "end")


# --- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "compressed-tensors", "fp8", "mxfp4"])
def test_quantised_weights_are_refused_before_they_are_read(checkpoint: Path, method: str) -> None:
    edit_json(checkpoint / "config.json", quantization_config={"quant_method": method, "bits": 4})
    (checkpoint / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(
        LawError, match=rf"is quantised \({method}\).*Set model\.path to the checkpoint that it was made"
    ):
        load(checkpoint)


def test_a_checkpoint_without_some_of_its_weights_is_refused(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["transformer.h.1.mlp.fc_out.weight"]
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(LawError, match=r"lacks 1 weights, transformer\.h\.1\.mlp\.fc_out\.weight among them"):
        load(checkpoint)
