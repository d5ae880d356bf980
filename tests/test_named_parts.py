"""A decoder that nobody knows: refused with what to write, and washed once that is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hydra import compose, initialize_config_dir
from small import TEXTS, gpt2_style, random_model
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from law.base.cache import Cache
from law.base.errors import LawError
from law.decoders.parts import Parts, name_parts
from law.decoders.structure import Decoder
from law.editing.second_moments import MomentSettings, second_moments
from law.editing.target_values import TargetSettings
from law.facts.fact import Fact
from law.methods.memit import MEMIT
from law.runs.configuration import build

CONF = Path(__file__).parents[1] / "conf"


class ToyConfig(PreTrainedConfig):
    model_type = "toy"

    def __init__(self, hidden_size: int = 32, num_hidden_layers: int = 3, **rest: Any) -> None:
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        super().__init__(**rest)


class Stage(nn.Module):
    """Each token sees the mean of those before it, through one projection; another one is the MLP's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, 24)
        self.gather = nn.Linear(24, width)
        self.grow = nn.Linear(width, 48)
        self.shrink = nn.Linear(48, width)

    def forward(self, x: Tensor) -> Tensor:
        counts = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        x = x + self.gather(self.query(x).cumsum(1) / counts)
        return x + self.shrink(self.grow(x).relu())


class ToyLM(PreTrainedModel):
    config_class = ToyConfig
    _tied_weights_keys: ClassVar[dict[str, str]] = {}

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.tower = nn.Module()
        self.tower.stages = nn.ModuleList(Stage(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.speak = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module | None:
        return self.speak

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False, **_: Any
    ) -> CausalLMOutputWithPast:
        x = self.words(input_ids)
        for stage in self.tower.stages:
            x = stage(x)
        return CausalLMOutputWithPast(logits=self.speak(x))


def toy(vocab_size: int = 97, **changes: Any) -> ToyLM:
    torch.manual_seed(0)
    return ToyLM(ToyConfig(vocab_size=vocab_size, **changes)).eval()


TOY_PARTS = Parts(blocks="tower.stages", down_projection="shrink", attention_inputs=["query"])


def test_an_unknown_decoder_is_told_what_to_write() -> None:
    with pytest.raises(LawError) as raised:
        Decoder(toy()).check_layers([0])
    message = str(raised.value)
    assert "Stage has 2 projections onto 32 dimensions outside its attention (gather, shrink)" in message
    assert "model.parts.blocks=tower.stages model.parts.down_projection=shrink" in message
    assert "name_parts(model, Parts(blocks='tower.stages', down_projection='shrink'))" in message


IDS = torch.tensor([[5, 17, 3, 96], [11, 2, 60, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
AT = (torch.tensor([0, 1]), torch.tensor([3, 2]))


@torch.no_grad()
def test_an_unknown_decoder_works_once_its_parts_are_named(tmp_path: Path) -> None:
    (tmp_path / "general.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    moments = MomentSettings(str(tmp_path / "general.txt"))
    facts = [Fact("0", "Danielle Darrieux", "The mother tongue of {} is", "French", "P103")]
    tokenizer = gpt2_style()
    model = toy(len(tokenizer))
    name_parts(model, TOY_PARTS)
    decoder = Decoder(model)
    assert [decoder.down_projection(i) for i in range(3)] == [stage.shrink for stage in model.tower.stages]
    assert decoder.attention_inputs() == [f"tower.stages.{i}.query" for i in range(3)]
    hidden = decoder.hidden_states(IDS, MASK, 1)
    torch.testing.assert_close(decoder.logits_from(hidden, IDS, MASK, 1, AT), model(IDS).logits[AT])
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.enable_grad():
        MEMIT([0, 1], 1.0, moments, TargetSettings(steps=3), ["He said. {}"]).wash(model, tokenizer, facts)
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {f"tower.stages.{layer}.shrink.weight" for layer in (0, 1)}


def test_what_is_cached_of_one_projection_is_not_taken_for_another(tmp_path: Path) -> None:
    (tmp_path / "general.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    moments, tokenizer = MomentSettings(str(tmp_path / "general.txt")), gpt2_style()
    model = toy(len(tokenizer))
    for name, d_ff in (("shrink", 48), ("gather", 24)):
        name_parts(model, Parts(blocks="tower.stages", down_projection=name))
        found = second_moments(Decoder(model), tokenizer, [1], moments, Cache(tmp_path / "cache"))
        assert found[1].shape == (d_ff, d_ff)


def test_parts_can_be_set_on_the_command_line() -> None:
    named = ["blocks=tower.stages", "down_projection=shrink", "attention_inputs=[query]"]
    overrides = ["model=lab", "dataset=lab", "method=none", *(f"model.parts.{part}" for part in named)]
    with initialize_config_dir(str(CONF), version_base=None):
        plain = compose("config", overrides=overrides[:3])
        config = compose("config", overrides=overrides)
    assert build(plain.model).parts == Parts()
    assert build(config.model).parts == TOY_PARTS


def test_one_part_may_be_named_alone() -> None:
    model = toy()
    name_parts(model, Parts(down_projection="shrink"))
    assert Decoder(model).blocks is model.tower.stages


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            Parts("tower", "shrink"),
            r"ToyLM has no 'tower' .* one of: tower\.stages\. Set model\.parts\.blocks",
        ),
        (
            Parts("tower.stages", "grow"),
            r"Stage has no 'grow' .* one of: gather, shrink\. Set model\.parts\.down",
        ),
        (
            Parts("tower.stages", "shrink", ["keys"]),
            r"Stage has no 'keys' .* query, gather, grow, shrink\. Set",
        ),
        (Parts("tower.stages", "shrink"), r"query and value projections of Stage .* among: none"),
    ],
    ids=["blocks", "down-projection", "attention", "attention not named"],
)
def test_wrong_names_are_refused_with_the_right_ones(parts: Parts, message: str) -> None:
    model = toy()
    name_parts(model, parts)
    with pytest.raises(LawError, match=message):
        decoder = Decoder(model)
        decoder.check_layers([0])
        decoder.attention_inputs()


def test_a_model_without_blocks_or_head_is_refused() -> None:
    model = toy()
    model.config.num_hidden_layers = 7
    with pytest.raises(
        LawError, match=r"ToyLM has 0 lists of 7 blocks .* tower\.stages\. .*model\.parts\.blocks="
    ):
        Decoder(model)
    backbone = random_model("llama").model
    with pytest.raises(LawError, match=r"LlamaModel\.get_output_embeddings"):
        Decoder(backbone)
