"""A residual is carried through the norm behind a down-projection, as far as a norm lets it through."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import ARCHITECTURES, GROUPED, TEXTS, all_targets, gpt2_style, random_model
from torch import nn
from transformers import PreTrainedModel

from law.base.errors import LawError
from law.decoders.structure import Decoder
from law.editing.keys import subject_outputs
from law.editing.post_norm import input_residual, nearest_on_ellipsoid, norm_behind, output_multiplier
from law.editing.second_moments import MomentSettings
from law.editing.target_values import TargetSettings
from law.facts.fact import Fact
from law.methods.memit import MEMIT

random = partial(torch.randn, dtype=torch.float64)


@given(seed=st.integers(0, 10_000), d=st.integers(2, 12), far=st.floats(0.01, 100))
def test_the_nearest_point_meets_the_condition_of_a_minimum(seed: int, d: int, far: float) -> None:
    """g (g v − w) + μ v = 0 with μ ≥ −min g², which is the global minimum of a quadratic on a sphere."""
    generator = torch.Generator().manual_seed(seed)
    gain, wanted = random(d, generator=generator), far * random(3, d, generator=generator)
    v = nearest_on_ellipsoid(gain, wanted)
    torch.testing.assert_close(v.norm(dim=1), torch.full((3,), d**0.5, dtype=torch.float64))
    gradient = gain * (gain * v - wanted)  # (n, d)
    mu = -(gradient * v).sum(1, keepdim=True) / d
    torch.testing.assert_close(gradient, -mu * v, rtol=1e-6, atol=1e-6 * far)
    assert (mu >= -gain.square().min() - 1e-6 * far).all()


def test_by_hand_in_two_dimensions() -> None:
    """With equal gains the ellipsoid is a circle of radius 2 √2: the nearest point lies in the same direction."""
    gain = torch.tensor([2.0, 2.0], dtype=torch.float64)
    v = nearest_on_ellipsoid(gain, torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64))
    expected = torch.tensor([[0.6, 0.8]] * 2, dtype=torch.float64) * 2**0.5
    torch.testing.assert_close(v, expected)


def test_a_move_that_the_norm_can_make_arrives() -> None:
    torch.manual_seed(0)
    norm = nn.RMSNorm(16, eps=1e-6)
    norm.weight.data = torch.rand(16) + 0.5
    u, other = torch.randn(16, 4), torch.randn(16, 4)
    r = norm(other.T).T - norm(u.T).T
    moved = norm((u + input_residual(norm, u, r)).float().T).T
    torch.testing.assert_close(moved - norm(u.T).T, r, rtol=1e-4, atol=1e-4)
    size = (u + input_residual(norm, u, r)).square().mean(0)
    torch.testing.assert_close(size.float(), u.square().mean(0))  # u keeps its size


def test_an_epsilon_that_counts_is_no_other_norm() -> None:
    norm, u = nn.RMSNorm(16, eps=1e-6), 1e-4 * torch.randn(16, 4)
    assert input_residual(norm, u, torch.randn(16, 4)).isfinite().all()


def test_another_norm_is_refused() -> None:
    with pytest.raises(LawError, match="LayerNorm stands behind the down-projection and is no RMS norm"):
        input_residual(nn.LayerNorm(16), torch.randn(16, 4) + 3, torch.randn(16, 4))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_norm_behind_the_down_projection_is_found(name: str) -> None:
    decoder = Decoder(random_model(name))
    found = norm_behind(decoder, 1)
    if name in ("gemma2", "gemma3_text"):
        assert found is decoder.blocks[1].post_feedforward_layernorm
    else:
        assert found is None


@pytest.fixture
def granite(monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """A decoder whose blocks multiply what attention and MLP give by 0.22."""
    monkeypatch.setitem(ARCHITECTURES, "granite", {**GROUPED, "residual_multiplier": 0.22})
    return random_model("granite", len(gpt2_style()))


def test_a_multiple_of_the_output_is_measured(granite: PreTrainedModel) -> None:
    assert output_multiplier(Decoder(granite), 1) == pytest.approx(0.22, abs=1e-4)
    for name in ARCHITECTURES:
        if name not in ("gemma2", "gemma3_text", "granite"):
            assert output_multiplier(Decoder(random_model(name)), 1) == 1.0
    with pytest.raises(LawError, match="changes the direction of the down-projection's output of layer 1"):
        output_multiplier(Decoder(random_model("gemma2")), 1)


def test_a_residual_arrives_behind_a_multiplier(granite: PreTrainedModel, tmp_path: Path) -> None:
    text = tmp_path / "general.txt"
    text.write_text("\n".join(dict.fromkeys(TEXTS)), encoding="utf-8")
    tokenizer, decoder = gpt2_style(), Decoder(granite)
    facts = [Fact("0", "Danielle Darrieux", "The mother tongue of {} is", "French", "P103")]
    targets = TargetSettings(steps=3)
    settings = MEMIT([1], 1e-9, MomentSettings(str(text)), targets, contexts=[])
    z, _ = all_targets(decoder, tokenizer, facts, [], 1, targets)
    settings.wash(granite, tokenizer, facts)
    torch.testing.assert_close(subject_outputs(decoder, tokenizer, facts, 1, 8), z, rtol=1e-2, atol=2e-3)
