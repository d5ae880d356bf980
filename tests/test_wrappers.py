"""Models that also see: the text decoder is found and edited, though the vision tower is as deep and as wide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import GROUPED, TEXTS, gpt2_style
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3ForConditionalGeneration,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from law.decoders.saving import Save, save_washed, snapshot
from law.decoders.structure import Decoder
from law.editing.second_moments import MomentSettings
from law.editing.target_values import TargetSettings
from law.facts.fact import Fact
from law.methods.memit import MEMIT

FACTS = [Fact("0", "Anna", "The home of {} is in", "Berlin", "P551")]
VISION = {
    **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48},
    **{"image_size": 28, "patch_size": 14},
}


def llava(vocab_size: int) -> PreTrainedModel:
    text = {"model_type": "llama", **GROUPED, "vocab_size": vocab_size}
    vision = {"model_type": "clip_vision_model", "projection_dim": 32, **VISION}
    return LlavaForConditionalGeneration(
        AutoConfig.for_model("llava", text_config=text, vision_config=vision)
    )


def gemma3(vocab_size: int) -> PreTrainedModel:
    """One that ``AutoModelForCausalLM`` builds, as a wrapper with both towers."""
    text = {**GROUPED, "vocab_size": vocab_size}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=VISION, mm_tokens_per_image=1)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("make", [llava, gemma3])
def test_the_text_decoder_of_a_wrapper_is_washed_and_saved(
    make: Callable[[int], PreTrainedModel], tmp_path: Path
) -> None:
    (tmp_path / "general.txt").write_text("\n".join(dict.fromkeys(TEXTS)), encoding="utf-8")
    tokenizer = gpt2_style()
    torch.manual_seed(0)
    model = make(len(tokenizer)).float().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    assert isinstance(model, LlavaForConditionalGeneration | Gemma3ForConditionalGeneration)
    towers = [n for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3]
    assert (
        len(towers) == 2 and "vision" in towers[0]
    )  # the first list as long as the model is deep is the wrong one
    decoder = Decoder(model)
    assert decoder.blocks is model.model.language_model.layers
    decoder.check_layers([0, 1, 2])
    assert all(name.startswith("model.language_model.layers.") for name in decoder.attention_inputs())
    before = snapshot(model)
    moments = MomentSettings(str(tmp_path / "general.txt"))
    memit = MEMIT([0, 1], 1.0, moments, TargetSettings(steps=3), contexts=["He said. {}"])
    memit.wash(model, tokenizer, FACTS)
    changed = {name for name, tensor in snapshot(model).items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.language_model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)}
    save_washed(model, tokenizer, before, tmp_path / "washed", Save.model)
    loaded = type(model).from_pretrained(tmp_path / "washed").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
