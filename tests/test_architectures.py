"""Every architecture's parts against its own forward pass, and every method on every architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from small import ARCHITECTURES, TEXTS, all_targets, gemma_style, gpt2_style, llama2_style, random_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from law.base.errors import LawError
from law.decoders.structure import Decoder
from law.editing.second_moments import MomentSettings
from law.editing.target_values import EarlyTargets, TargetSettings
from law.facts.fact import Fact
from law.methods.alphaedit import AlphaEdit, NullSpace
from law.methods.dpo import DPO
from law.methods.encore import ENCORE
from law.methods.finetune import FineTuning
from law.methods.grad_diff import GradDiff
from law.methods.gradient_ascent import GradientAscent
from law.methods.jensun import JensUn
from law.methods.law import LAW
from law.methods.memit import MEMIT
from law.methods.npo import NPO
from law.methods.protocol import Method
from law.methods.rmu import RMU
from law.methods.seul import SeUL
from law.methods.simnpo import SimNPO
from law.methods.ultraedit import UltraEdit
from law.methods.undial import UNDIAL
from law.methods.woh import WOH
from law.methods.zerounlearn import ZeroUnlearn
from law.tuning.adapters import Lora
from law.tuning.retain import Hold, Retain, RetainSet

# architecture: list of blocks, down-projection, query and value projections
PARTS = {
    "gpt2": ("transformer.h", "mlp.c_proj", ["attn.c_attn"]),
    "gptj": ("transformer.h", "mlp.fc_out", ["attn.v_proj", "attn.q_proj"]),
    "gpt_neox": ("gpt_neox.layers", "mlp.dense_4h_to_h", ["attention.query_key_value"]),
    "phi": ("model.layers", "mlp.fc2", ["self_attn.q_proj", "self_attn.v_proj"]),
    "phi3": ("model.layers", "mlp.down_proj", ["self_attn.qkv_proj"]),
    **dict.fromkeys(
        ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"],
        ("model.layers", "mlp.down_proj", ["self_attn.q_proj", "self_attn.v_proj"]),
    ),
}
POST_NORM = {"gemma2", "gemma3_text"}  # the MLP's output passes a norm before it joins the stream

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)

IDS = torch.tensor([[5, 17, 3, 96, 41, 8, 77, 23], [11, 2, 60, 33, 0, 0, 0, 0]])
MASK = torch.tensor([[1] * 8, [1] * 4 + [0] * 4])
AT = (torch.tensor([0, 1, 0, 1]), torch.tensor([7, 3, 0, 1]))


def down_projection(model: PreTrainedModel, name: str, layer: int) -> nn.Module:
    blocks, path, _ = PARTS[name]
    return attrgetter(path)(attrgetter(blocks)(model)[layer])


def watch(module: nn.Module, run: Callable[[], Any]) -> tuple[Tensor, Tensor]:
    """A module's input and output during ``run``, by a plain hook."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    run()
    handle.remove()
    return seen[0]


# --- the parts ----------------------------------------------------------------------------------


@every_architecture
@torch.no_grad()
def test_the_parts_are_found_and_weights_seen_as_inputs_by_outputs(name: str) -> None:
    model = random_model(name)
    decoder = Decoder(model)
    blocks, _, inputs = PARTS[name]
    assert decoder.blocks is attrgetter(blocks)(model)
    assert decoder.d_model == 32
    assert decoder.attention_inputs() == [f"{blocks}.{i}.{n}" for i in range(3) for n in inputs]
    for layer in range(3):
        module = down_projection(model, name, layer)
        assert decoder.down_projection(layer) is module
        W = decoder.weight(layer)
        assert W.shape == (48, 32)
        run = partial(model, input_ids=IDS[:1])
        k, output = watch(module, run)
        with decoder.capture_keys([layer]) as captured:
            run()
        assert torch.equal(captured[layer], k)
        bias = 0 if module.bias is None else module.bias
        torch.testing.assert_close(k @ W + bias, output)  # (1, t, d_ff) @ (d_ff, d_model)
        # a view: an edit of W is an edit of the model
        W.zero_()
        assert (module.weight == 0).all()


@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
@pytest.mark.parametrize("layer", [0, 1, 2])
@every_architecture
@torch.no_grad()
def test_logits_from_hidden_states_are_the_models(name: str, layer: int, mask: Tensor | None) -> None:
    model = random_model(name)
    decoder = Decoder(model)
    whole = model(input_ids=IDS, attention_mask=mask).logits
    hidden = decoder.hidden_states(IDS, mask, layer)
    if layer < 2:  # the last one of the model's own passes the final norm
        own = model(input_ids=IDS, attention_mask=mask, output_hidden_states=True).hidden_states
        torch.testing.assert_close(hidden, own[layer + 1])
    found = decoder.logits_from(hidden, IDS, mask, layer, AT)
    torch.testing.assert_close(found, whole[AT])

    # another output of the block, put there by a plain hook
    shift = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))

    def replace(_: nn.Module, __: Any, output: Any) -> Any:
        return (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift

    handle = decoder.blocks[layer].register_forward_hook(replace)
    shifted = model(input_ids=IDS, attention_mask=mask).logits
    handle.remove()
    found = decoder.logits_from(hidden + shift, IDS, mask, layer, AT)
    torch.testing.assert_close(found, shifted[AT], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(shifted[AT], whole[AT], atol=0.01)
    # the model is as it was
    assert torch.equal(model(input_ids=IDS, attention_mask=mask).logits, whole)


@every_architecture
def test_gradients_flow_to_the_hidden_states(name: str) -> None:
    model = random_model(name).requires_grad_(False)
    decoder = Decoder(model)
    hidden = decoder.hidden_states(IDS, MASK, 0).requires_grad_()
    decoder.logits_from(hidden, IDS, MASK, 0, AT).sum().backward()
    per_token = hidden.grad.norm(dim=2)
    # row 0 is read at its last token, of which two windows of four tokens still see the second
    assert (per_token[0, 1:] > 0).all() and (per_token[1, :4] > 0).all()
    assert (per_token[1, 4:] == 0).all()


# --- the methods --------------------------------------------------------------------------------

# objects are asked for within a sliding window of the subject
FACTS = [
    Fact("0", "Danielle Darrieux", "The mother tongue of {} is", "French", "P103"),
    Fact("1", "Zoë Lind", "{} is", "Swedish", "P103"),
    Fact("2", "Anna", "The home of {} is in", "Berlin", "P551"),
]
LAYERS = [0, 1]


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """One with the habits of those that the architecture is published with."""
    if name in ("llama", "mistral", "phi3"):
        return llama2_style()
    return gemma_style() if name in POST_NORM else gpt2_style()


@pytest.fixture(scope="module")
def general_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "general.txt"
    path.write_text("\n".join(" ".join(text.split()[:12]) for text in dict.fromkeys(TEXTS)), encoding="utf-8")
    return path


def washable(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    tokenizer = tokenizer_of(name)
    return random_model(name, len(tokenizer)), tokenizer


def memit(text: Path, **changes: Any) -> MEMIT:
    defaults = {
        "layers": LAYERS,
        "lam": 1.0,
        "moments": MomentSettings(str(text)),
        "contexts": ["He said. {}"],
    }
    return MEMIT(**{**defaults, "targets": TargetSettings(steps=3), **changes})


# A method: how it is made from a general text, and whether it edits the down-projections of LAYERS alone.
METHODS: dict[str, tuple[Callable[[Path], Method], bool]] = {
    "memit": (memit, True),
    "law": (
        lambda text: LAW(memit(text), learning_rate=1e-3, iterations=5, eliminate=False),
        True,
    ),
    "AlphaEdit": (
        lambda text: AlphaEdit(**vars(memit(text)), facts_at_once=2, null_space=NullSpace(threshold=1e3)),
        True,
    ),
    "ENCORE": (
        lambda text: ENCORE(
            **(vars(memit(text)) | {"targets": EarlyTargets(steps=3, likeliest=1)}), facts_at_once=2
        ),
        True,
    ),
    "UltraEdit": (lambda _: UltraEdit(LAYERS, 1e-2, facts_at_once=2), True),
    "ZeroUnlearn": (lambda text: ZeroUnlearn(**vars(memit(text)), rank=2), True),
    "gradient ascent": (lambda _: GradientAscent(learning_rate=1e-3), False),
    "gradient ascent, LoRA": (lambda _: GradientAscent(learning_rate=1e-3, lora=Lora(rank=2)), False),
    "fine-tuning": (lambda _: FineTuning(learning_rate=1e-3, epochs=1), False),
    "SeUL": (lambda _: SeUL(learning_rate=1e-3, epochs=1), False),
    "WOH": (lambda _: WOH(learning_rate=1e-3), False),
    "gradient difference": (lambda text: GradDiff(learning_rate=1e-3, retain=Retain(str(text))), False),
    "NPO": (lambda text: NPO(learning_rate=1e-3, retain=Retain(str(text))), False),
    "SimNPO": (lambda text: SimNPO(learning_rate=1e-3, epochs=1, retain=Retain(str(text))), False),
    "UNDIAL": (lambda text: UNDIAL(learning_rate=1e-3, epochs=1, retain=Retain(str(text))), False),
    "JensUn": (
        lambda text: JensUn(learning_rate=1e-3, epochs=1, retain=Retain(str(text), loss=Hold.js)),
        False,
    ),
    "DPO": (lambda text: DPO(learning_rate=1e-3, epochs=1, retain=Retain(str(text))), False),
    "RMU": (
        lambda text: RMU(learning_rate=1e-3, layers=LAYERS, steering=5.0, retain=RetainSet(str(text))),
        True,
    ),
}


@pytest.mark.parametrize("method", METHODS)
@every_architecture
def test_every_method_washes_every_architecture(name: str, method: str, general_text: Path) -> None:
    model, tokenizer = washable(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    make, only_down_projections = METHODS[method]
    rows: list[dict[str, Any]] = []
    washing = make(general_text)
    washing.check(model)
    washing.wash(model, tokenizer, FACTS, rows.append)
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert rows
    if only_down_projections:
        blocks, path, _ = PARTS[name]
        biases = {f"{blocks}.{layer}.{path}.bias" for layer in LAYERS}
        assert changed - biases == {f"{blocks}.{layer}.{path}.weight" for layer in LAYERS}
        assert method == "RMU" or not changed & biases
    assert changed and set(model.state_dict()) == set(before)
    if method == "law":
        ends = [row for row in rows if "facts_left" in row]
        assert [row["layer"] for row in ends] == LAYERS
        for row in ends:
            assert 0 < row["objective_before"] <= row["objective"]
            assert 0 < row["constraint"] <= row["beta"] * (1 + 1e-9)
            assert row["beta"] == pytest.approx(1.1 * row["constraint_before"])
            assert 0 <= row["facts_left"] <= row["facts_used"] == len(FACTS)
            assert 0 < row["relative_norm"] < 100


@every_architecture
def test_z_starts_at_the_models_own_loss_whatever_the_batch(name: str) -> None:
    """NLL of the end-of-text target, by plain logits of each whole text, over contexts; then some steps."""
    model, tokenizer = washable(name)
    contexts = ["He said that the song was played. {}"]
    values = {}
    for size in (1, 3):
        settings = TargetSettings(steps=4, learning_rate=0.02, weight_decay=0.0, batch_size=size)
        values[size], trace = all_targets(Decoder(model), tokenizer, FACTS, contexts, 1, settings)
        for i, fact in enumerate(FACTS):
            means = []
            for prompt in (fact.prompt, contexts[0].replace("{}", fact.prompt)):
                start = len(tokenizer(prompt)["input_ids"])
                ids = torch.tensor([tokenizer(f"{prompt} {tokenizer.eos_token}")["input_ids"]])
                log_p = model(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
                means.append(-log_p.gather(1, ids[0, start:, None]).mean().item())
            assert trace.nll[0, i].item() == pytest.approx(sum(means) / 2, rel=1e-4)
            assert abs(trace.kl[0, i].item()) < 1e-5
        assert (trace.loss[-1] < trace.loss[0]).all()
    torch.testing.assert_close(values[1], values[3], rtol=1e-3, atol=1e-3)


@every_architecture
def test_memit_moves_a_blocks_output_by_the_residual(name: str, general_text: Path) -> None:
    """One layer and λ → 0: the block's output moves by r = z* − h.

    Behind a norm it moves to the reachable point that is nearest to z*: no other direction of the norm's input
    brings it nearer.
    """
    model, tokenizer = washable(name)
    targets = TargetSettings(steps=3)
    z, _ = all_targets(Decoder(model), tokenizer, FACTS, [], 1, targets)

    def outputs() -> Tensor:
        """The block's output at the subjects' last tokens, (n, d_model)."""
        rows = []
        for fact in FACTS:
            upto = fact.prompt[: fact.prompt.index(fact.subject) + len(fact.subject)]
            ids = torch.tensor([tokenizer(upto)["input_ids"]])
            rows.append(model(ids, output_hidden_states=True).hidden_states[2][0, -1])
        return torch.stack(rows).detach()

    before = outputs()
    memit(general_text, layers=[1], lam=1e-9, targets=targets, contexts=[]).wash(model, tokenizer, FACTS)
    after = outputs()
    if name not in POST_NORM:
        torch.testing.assert_close(after, z.T, rtol=1e-2, atol=2e-3)
        return
    missed = (after - z.T).norm(dim=1)
    assert (missed < (before - z.T).norm(dim=1)).all()
    norm = model.get_submodule(PARTS[name][0])[1].post_feedforward_layernorm
    gain = norm(torch.ones(32)).detach()
    stream = [  # what the norm's output is added to
        row - watched for row, watched in zip(after, _norm_outputs(model, norm, tokenizer), strict=True)
    ]
    for fact in range(len(FACTS)):
        directions = torch.randn(2000, 32, generator=torch.Generator().manual_seed(fact))
        own = (after[fact] - stream[fact]) / gain
        for share in (0.01, 0.1, 1.0):  # near the point reached, and far from it
            v = own + share * directions
            v = v * 32**0.5 / v.norm(dim=1, keepdim=True)
            distance = (stream[fact] + gain * v - z.T[fact]).norm(dim=1)
            assert (distance > missed[fact] * (1 - 1e-3)).all()


def _norm_outputs(
    model: PreTrainedModel, norm: nn.Module, tokenizer: PreTrainedTokenizerFast
) -> Iterator[Tensor]:
    """The norm's output at each subject's last token, (d_model)."""
    for fact in FACTS:
        upto = fact.prompt[: fact.prompt.index(fact.subject) + len(fact.subject)]
        run = partial(model, torch.tensor([tokenizer(upto)["input_ids"]]))
        yield watch(norm, run)[1][0, -1].detach()


@every_architecture
def test_layers_rise_within_the_model(name: str) -> None:
    decoder = Decoder(random_model(name))
    for layers in ([0], [2], [0, 1, 2]):
        decoder.check_layers(layers)
    for layers in ([], [2, 1], [1, 1], [-1, 0], [0, 3]):
        with pytest.raises(LawError, match=r"expected a rising list of layers between 0 and 2"):
            decoder.check_layers(layers)
