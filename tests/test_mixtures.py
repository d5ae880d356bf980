"""Blocks with a second path beside attention and MLP: refused before time is spent, wherever it is hidden."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import ARCHITECTURES, GROUPED, random_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from law.base.errors import LawError
from law.decoders.parts import Parts, name_parts
from law.decoders.structure import Decoder
from law.editing.second_moments import MomentSettings
from law.methods.law import LAW
from law.methods.memit import MEMIT
from law.methods.protocol import Method
from law.methods.rmu import RMU
from law.tuning.retain import RetainSet

EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
MIXTURES: dict[str, dict[str, Any]] = {
    # a shared expert, which is dense, beside routed ones; the first block is dense
    "deepseek_v3": {
        **{key: value for key, value in GROUPED.items() if key != "head_dim"},
        **{
            "num_key_value_heads": 2,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            **EXPERTS,
            **LATENT,
        },
    },
    # the same behind a gate of its own
    "qwen2_moe": {**GROUPED, "num_experts": 4, "shared_expert_intermediate_size": 16, **EXPERTS},
    # every second block is a mixture
    "llama4_text": {
        **{**GROUPED, "num_local_experts": 4, "intermediate_size_mlp": 48},
        **{"interleave_moe_layer_step": 2, "num_experts_per_tok": 1},
    },
    # experts stacked in one parameter, and no dense MLP beside them
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "gpt_oss": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    # attention in some blocks, in the others something without that name
    "qwen3_next": {**GROUPED, "num_experts": 4, "shared_expert_intermediate_size": 16, **EXPERTS},
}
DENSE = {"deepseek_v3": [0], "llama4_text": [0, 2]}


def mixture(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    ids = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **ids, **MIXTURES[name])).eval()


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_of_experts_are_refused_and_their_dense_blocks_are_not(name: str) -> None:
    decoder = Decoder(mixture(name))
    dense = DENSE.get(name, [])
    for layer in range(3):
        if layer in dense:
            decoder.check_layers([layer])
            continue
        with pytest.raises(LawError, match=r"mixture of experts, or a branch parallel to the MLP") as raised:
            decoder.check_layers([layer])
        message = str(raised.value)
        assert "model.parts" not in message  # there is no name that would help
        assert (f"These layers can be edited: {dense}" in message) == bool(dense)
    if dense:
        decoder.check_layers(dense)


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("deepseek_v3", "mlp.shared_experts.down_proj: its output also depends on mlp.experts.gate_up_proj"),
        ("qwen2_moe", "mlp.experts.down_proj, mlp.shared_expert_gate.weight"),
        ("llama4_text", "feed_forward.router.weight"),
    ],
)
def test_a_second_path_is_told_by_its_weights(name: str, evidence: str) -> None:
    with pytest.raises(LawError) as raised:
        Decoder(mixture(name)).check_layers([1])
    assert evidence in str(raised.value)


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_next"])
def test_naming_the_shared_expert_does_not_make_it_the_only_path(name: str) -> None:
    model = mixture(name)
    name_parts(model, Parts(down_projection="mlp.shared_expert.down_proj"))
    for layer in range(3):  # those of Qwen3-Next without a known attention, too
        with pytest.raises(LawError, match=r"also depends on mlp\."):
            Decoder(model).check_layers([layer])


METHODS: dict[str, Method] = {
    "memit": MEMIT([1, 2], 1.0, MomentSettings(__file__)),
    "law": LAW(MEMIT([1, 2], 1.0, MomentSettings(__file__)), learning_rate=1e-3),
    "rmu": RMU(1e-3, layers=[1, 2], steering=1.0, retain=RetainSet(__file__)),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_edits_layers_refuses_them_in_its_check(method: str) -> None:
    METHODS[method].check(random_model("llama"))
    with pytest.raises(LawError, match=r"has a path beside its attention and mlp\.shared_experts\.down_proj"):
        METHODS[method].check(mixture("deepseek_v3"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dense_blocks_pass_frozen_or_not_and_are_left_as_they_were(name: str) -> None:
    model = random_model(name)
    for trainable in (True, False):
        model.requires_grad_(trainable)
        Decoder(model).check_layers([0, 1, 2])
        assert all(parameter.requires_grad is trainable for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


class Detour(nn.Module):
    """An MLP with something done to, or beside, what its down-projection gives."""

    def __init__(self, mlp: nn.Module, kind: str) -> None:
        super().__init__()
        self.mlp, self.kind = mlp, kind
        self.extra = nn.Linear(32, 40)
        self.back = nn.Linear(40, 32) if kind != "no projection" else nn.Parameter(torch.ones(40, 32))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "behind":
            return self.extra(self.mlp(x)) @ self.back.weight.T  # (b, t, 40) @ (40, 32)
        if self.kind == "never called":
            return torch.zeros_like(x)
        back = self.back if self.kind == "no projection" else self.back.weight.T
        return self.mlp(x) + self.extra(x) @ back  # (b, t, 40) @ (40, 32)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("beside", r"also depends on mlp\.extra\.weight, mlp\.back\.weight"),
        ("behind", r"also depends on mlp\.extra\.weight, mlp\.back\.weight"),
        ("no projection", r"also depends on mlp\.back, mlp\.extra\.weight"),
        ("never called", r"never calls mlp\.mlp\.down_proj; expected a down-projection that runs"),
    ],
)
def test_a_path_is_found_whatever_it_is_made_of(kind: str, message: str) -> None:
    model = random_model("llama")
    model.model.layers[1].mlp = Detour(model.model.layers[1].mlp, kind)
    if kind != "no projection":
        name_parts(model, Parts(down_projection="mlp.mlp.down_proj"))
    with pytest.raises(LawError, match=message):
        Decoder(model).check_layers([1])


class Experts(nn.Module):
    """As models with code of their own have them: a list of small MLPs."""

    def __init__(self, mlps: list[nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlps)

    def forward(self, x: Tensor) -> Tensor:
        return sum((expert(x) for expert in self.experts), torch.zeros_like(x))


def test_an_expert_in_a_list_is_not_proposed() -> None:
    model = random_model("llama")
    model.model.layers[0].mlp = Experts([block.mlp for block in model.model.layers[1:]])
    with pytest.raises(
        LawError, match=r"has 2 projections .*mlp\.experts\.1\.down_proj.*mixture of exp"
    ) as raised:
        Decoder(model).check_layers([0])
    assert "model.parts" not in str(raised.value) and "can be edited: [1, 2]" in str(raised.value)
