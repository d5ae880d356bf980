"""SPHERE: its algebra by hand and by the published form, and what it leaves of the update of each editor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import Loaded, TrainedLab
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from law.decoders.structure import Decoder
from law.editing.second_moments import MomentSettings
from law.editing.sphere import Sphere
from law.editing.target_values import TargetSettings
from law.methods.alphaedit import AlphaEdit, NullSpace
from law.methods.law import LAW
from law.methods.memit import MEMIT
from law.methods.ultraedit import UltraEdit

CONTEXTS = ["He said. {}"]


def projected(sphere: Sphere, W: Tensor, delta: Tensor) -> Tensor:
    weight = W.clone()
    with sphere.projecting([weight]):
        weight += delta
    return weight - W


def test_sphere_worked_out_by_hand() -> None:
    """Columns of length 1 are e₁, e₁ and e₂, so ŴŴᵀ is diag(2, 1) and e₁ holds two thirds of the energy. e₁ crosses a
    half, and e₂ crosses 0.7.
    """
    W = torch.tensor([[2.0, 5.0, 0.0], [0.0, 0.0, 1.0]])
    delta = torch.tensor([[4.0, 0.0, 2.0], [6.0, 1.0, 1.0]])
    first, both = torch.tensor([[0.5], [1.0]]), torch.tensor([[0.5], [0.5]])
    torch.testing.assert_close(projected(Sphere(0.5), W, delta), first * delta)
    torch.testing.assert_close(projected(Sphere(0.5, energy=0.7), W, delta), both * delta)
    torch.testing.assert_close(projected(Sphere(1.0, energy=0.7), W, delta), 0 * delta)


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 0.95))
def test_sphere_is_the_published_projection(seed: int, d_ff: int, d_model: int, energy: float) -> None:
    """Δᵀ (I − α U Uᵀ), with U of the (d_ff, d_ff) matrix of the normalised rows of Wᵀ."""
    generator = torch.Generator().manual_seed(seed)
    W, delta = torch.randn(2, d_ff, d_model, generator=generator, dtype=torch.double)
    rows = W.T / W.T.norm(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(rows.T @ rows / d_model)
    r = int((values.flip(0).cumsum(0) / values.sum() <= energy).sum()) + 1
    U = vectors[:, -r:]
    expected = delta.T @ (torch.eye(d_ff) - 0.5 * (U @ U.T)).double()
    torch.testing.assert_close(projected(Sphere(0.5, energy), W, delta), expected.T)


@pytest.fixture
def start(trained_lab: TrainedLab) -> MEMIT:
    moments, targets = MomentSettings(str(trained_lab.text_path)), TargetSettings(clamp=4.0, batch_size=6)
    return MEMIT([0, 1], 1.0, moments, targets, CONTEXTS, batch_size=8)


@pytest.mark.parametrize("editor", ["memit", "law", "alphaedit", "ultraedit"])
def test_every_editor_leaves_the_projection_of_its_update(editor: str, start: MEMIT, knowing: Loaded) -> None:
    model, tokenizer, facts = knowing
    decoder = Decoder(model)
    before = [decoder.weight(layer).detach().clone() for layer in start.layers]

    def moved(sphere: Sphere) -> list[Tensor]:
        given = replace(start, sphere=sphere)
        method = {
            "memit": given,
            "law": LAW(given, learning_rate=1e-3, iterations=3),
            "ultraedit": UltraEdit([*start.layers], 0.01, sphere=sphere),
            "alphaedit": AlphaEdit(**vars(given), null_space=NullSpace(threshold=1.0)),
        }[editor]
        method.wash(model, tokenizer, facts)
        found = []
        for layer, values in zip(start.layers, before, strict=True):
            found.append(decoder.weight(layer).detach() - values)
            with torch.no_grad():
                decoder.weight(layer).copy_(values)
        return found

    whole, part = moved(Sphere()), moved(Sphere(0.5))
    for W, delta, left in zip(before, whole, part, strict=True):
        U = Sphere(0.5).leading(W).float()
        assert (left - delta).norm() > 0.01 * delta.norm()
        torch.testing.assert_close(left, delta - 0.5 * U @ (U.T @ delta), rtol=1e-3, atol=1e-4)


def test_a_failure_projects_nothing() -> None:
    weight = torch.ones(2, 2)
    with pytest.raises(KeyError), Sphere(0.5).projecting([weight]):
        weight += 1
        raise KeyError
    assert weight.tolist() == [[2, 2], [2, 2]]
