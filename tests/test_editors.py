"""Today's editors: their algebra by hand and by the published form, what each is a special case of, and a wash with each."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Loaded, TrainedLab
from hypothesis import given
from hypothesis import strategies as st
from small import all_targets
from torch import Tensor

from law.base.cache import Cache
from law.base.errors import LawError
from law.decoders.greedy_decoding import recalled_facts
from law.decoders.prompts import end_of_text_target, subject_prompt
from law.decoders.restoring import frozen
from law.decoders.structure import Decoder
from law.editing.keys import place, subject_keys, subject_outputs
from law.editing.least_squares import System
from law.editing.second_moments import MomentSettings, second_moments
from law.editing.target_values import EarlyTargets, TargetSettings
from law.facts.custom import Custom
from law.facts.fact import Fact
from law.methods import ultraedit
from law.methods.alphaedit import AlphaEdit, NullSpace, Smallness, within
from law.methods.encore import ENCORE, with_ridge
from law.methods.memit import MEMIT
from law.methods.ultraedit import Running, UltraEdit

CONTEXTS = ["He said. {}", "They know. {}"]


def common(lab: TrainedLab) -> dict[str, Any]:
    """The settings of every editor that aims at z*, for the model of three blocks."""
    return {
        "layers": [0, 1],
        "lam": 1.0,
        "moments": MomentSettings(str(lab.text_path), batch_size=1024),
        # a model of three blocks has read the attribute early: only a long δ still makes it speak otherwise
        "targets": TargetSettings(clamp=4.0, batch_size=6),
        "contexts": CONTEXTS,
        "batch_size": 8,
    }


def drawn(seed: int, *shapes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.double) for shape in shapes]


def system_of(C: Tensor, K: Tensor, r: Tensor) -> System:
    return System(C.double(), (K @ K.T).double(), (K @ r.T).double(), r.square().sum().item())


def moments_of(decoder: Decoder, tokenizer: Any, lab: TrainedLab, layers: list[int]) -> dict[int, Tensor]:
    return second_moments(decoder, tokenizer, layers, MomentSettings(str(lab.text_path)), Cache(None))


# --- AlphaEdit ----------------------------------------------------------------------------------


def test_alphaedit_worked_out_by_hand() -> None:
    """C = diag(1, 0.01) leaves e₂ free. With k = (1, 1), r = 2 and λ = 1, (1 + 1) Δ₂ = 2. An earlier key (5, 1) adds
    1 to the system: (1 + 1 + 1) Δ₂ = 2.
    """
    C, k = torch.diag(torch.tensor([1.0, 0.01])).double(), torch.ones(2, 1).double()
    basis = NullSpace().basis(C)
    torch.testing.assert_close(basis.abs(), torch.tensor([[0.0], [1.0]]).double())
    system = system_of(C, k, torch.tensor([[2.0]]).double())
    torch.testing.assert_close(within(basis, system, 1.0), torch.tensor([[0.0], [1.0]]).double())
    before = torch.tensor([[5.0], [1.0]]).double()
    later = replace(system, G=system.G + before @ before.T)
    torch.testing.assert_close(within(basis, later, 1.0), torch.tensor([[0.0], [2 / 3]]).double())


def test_null_space_by_eigenvalue_by_energy_and_by_directions() -> None:
    """Eigenvalues 1, 2, 3, 4 add up to 10: the two smallest hold 30 % of the energy and are half of the directions."""
    C = torch.diag(torch.tensor([3.0, 1.0, 4.0, 2.0])).double()
    two = torch.diag(torch.tensor([0.0, 1.0, 0.0, 1.0])).double()
    for by, threshold in ((Smallness.eigenvalue, 2.5), (Smallness.energy, 0.3), (Smallness.directions, 0.5)):
        basis = NullSpace(by, threshold).basis(C)
        torch.testing.assert_close(basis @ basis.T, two)
    with pytest.raises(LawError, match=r"by eigenvalue, expected some below 0.02; the smallest of 4 .* is 1"):
        NullSpace().basis(C)


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_alphaedit_solves_the_published_system(seed: int, free: int) -> None:
    """[P (K Kᵀ + K_p K_pᵀ) + λ I]⁻¹ P K rᵀ, whose matrix is not symmetric."""
    root, K, K_p, r = drawn(seed, (6, 9), (6, 3), (6, 4), (5, 3))
    C = root @ root.T
    basis = NullSpace(Smallness.directions, free / 6).basis(C)
    assert basis.shape == (6, free)
    P, G = basis @ basis.T, K @ K.T + K_p @ K_p.T
    expected = torch.linalg.solve(P @ G + 0.5 * torch.eye(6), P @ K @ r.T)
    found = within(basis, replace(system_of(C, K, r), G=G), 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_alphaedit_with_every_direction_free_is_memit_with_c_the_identity() -> None:
    root, K, r = drawn(1, (6, 9), (6, 3), (5, 3))
    basis = NullSpace(Smallness.directions, 1.0).basis(root @ root.T)
    expected = system_of(torch.eye(6), K, r).solve(0.5)
    torch.testing.assert_close(within(basis, system_of(root @ root.T, K, r), 0.5), expected)


def test_alphaedit_forgets_within_the_null_space(knowing: Loaded, trained_lab: TrainedLab) -> None:
    model, tokenizer, facts = knowing
    decoder = Decoder(model)
    null_space = NullSpace(Smallness.energy, 0.05)
    before = [decoder.weight(layer).detach().clone() for layer in (0, 1)]
    moments = moments_of(decoder, tokenizer, trained_lab, [0, 1])
    AlphaEdit(**common(trained_lab), null_space=null_space).wash(model, tokenizer, facts)
    assert len(recalled_facts(model, tokenizer, facts, 8)) <= 2
    for layer in (0, 1):
        delta = (decoder.weight(layer).detach() - before[layer]).double()
        U = null_space.basis(moments[layer]).double()
        assert (delta - U @ (U.T @ delta)).norm() < 1e-3 * delta.norm()


def test_a_later_batch_is_edited_on_the_model_that_the_earlier_has_left_and_keeps_its_keys(
    knowing: Loaded, trained_lab: TrainedLab
) -> None:
    """Two batches of three facts in one layer, against the equation with the first batch's keys as K_p."""
    model, tokenizer, facts = knowing
    decoder = Decoder(model)
    settings = AlphaEdit(
        **{**common(trained_lab), "layers": [1]}, facts_at_once=3, null_space=NullSpace(threshold=1.0)
    )
    P = (
        basis := settings.null_space.basis(moments_of(decoder, tokenizer, trained_lab, [1])[1]).double()
    ) @ basis.T
    start = decoder.weight(1).detach().clone()
    rows: list[dict[str, float]] = []
    settings.wash(model, tokenizer, facts, rows.append)
    assert [row["batch"] for row in rows if "batch" in row] == [0, 1]
    found = decoder.weight(1).detach().clone()

    with torch.no_grad():
        decoder.weight(1).copy_(start)
    previous = torch.zeros(len(start), len(start), dtype=torch.double)
    for batch in (facts[:3], facts[3:]):
        K = subject_keys(decoder, tokenizer, batch, CONTEXTS, [1], 8)[1].double()
        z, _ = all_targets(decoder, tokenizer, batch, CONTEXTS, 1, settings.targets)
        r = (z - subject_outputs(decoder, tokenizer, batch, 1, 8)).double()
        matrix = P @ (K @ K.T + previous) + settings.lam * torch.eye(len(start))
        with torch.no_grad():
            decoder.weight(1).add_(torch.linalg.solve(matrix, P @ K @ r.T))
        previous += K @ K.T
    assert (found - start).norm() > 0.1
    torch.testing.assert_close(found, decoder.weight(1).detach(), rtol=1e-2, atol=1e-3)


# --- EMMET --------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.01, 100), st.floats(0.01, 100))
def test_emmet_is_memit_with_the_product_of_its_two_weights(
    seed: int, n: int, general: float, ridge: float
) -> None:
    """Δᵀ = r (Kᵀ (λ_C C)⁻¹ K + λₑ I)⁻¹ Kᵀ (λ_C C)⁻¹, for fewer facts than d_ff = 6 and for more."""
    root, K, r = drawn(seed, (6, 12), (6, n), (5, n))
    weighed = torch.linalg.inv(general * root @ root.T)
    inner = torch.linalg.inv(K.T @ weighed @ K + ridge * torch.eye(n))
    expected = (r @ inner @ K.T @ weighed).T
    found = system_of(root @ root.T, K, r).solve(ridge * general)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


# --- ENCORE -------------------------------------------------------------------------------------


def test_encore_worked_out_by_hand() -> None:
    """C = I, λ = 2, μ = 3, k = (1, 0), r = 3: (2 + 3 + 1) Δ₁ = 3; the system itself stays as it was."""
    system = system_of(torch.eye(2), torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0]]))
    torch.testing.assert_close(with_ridge(system, 3.0).solve(2.0), torch.tensor([[0.5], [0.0]]).double())
    assert system.G.tolist() == [[1, 0], [0, 0]]


def test_encore_without_its_changes_is_memit(knowing: Loaded, trained_lab: TrainedLab) -> None:
    model, tokenizer, facts = knowing
    start = copy.deepcopy(model.state_dict())
    given = common(trained_lab)
    MEMIT(**given).wash(model, tokenizer, facts)
    expected = copy.deepcopy(model.state_dict())
    model.load_state_dict(start)
    never = EarlyTargets(clamp=4.0, batch_size=6, likeliest=10**9)
    ENCORE(**{**given, "targets": never}, mu=0.0, facts_at_once=None).wash(model, tokenizer, facts)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    model.load_state_dict(start)
    ENCORE(**{**given, "targets": EarlyTargets(clamp=4.0, likeliest=10)}, mu=0.01).wash(
        model, tokenizer, facts
    )
    assert not torch.equal(
        model.transformer.h[0].mlp.fc_out.weight, expected["transformer.h.0.mlp.fc_out.weight"]
    )
    assert len(recalled_facts(model, tokenizer, facts, 8)) <= 2


def test_z_is_left_once_end_of_text_is_the_answer_in_every_context(knowing: Loaded) -> None:
    """At the place where it stops end-of-text is the likeliest, by plain logits; one step earlier it is not."""
    model, tokenizer, facts = knowing
    decoder, fact = Decoder(model), facts[0]
    settings = {"clamp": 4.0, "stop_below": 0.0}
    early, trace = all_targets(decoder, tokenizer, [fact], CONTEXTS, 0, EarlyTargets(**settings, likeliest=1))
    later, longer = all_targets(
        decoder, tokenizer, [fact], CONTEXTS, 0, EarlyTargets(**settings, likeliest=3)
    )
    moved = [(each.loss[1:, 0] != each.loss[:-1, 0]).sum().item() for each in (trace, longer)]  # steps taken
    assert moved[0] >= 2 and moved[1] == moved[0] + 2
    for z, steps in ((early, moved[0]), (later, moved[1])):
        plain, _ = all_targets(
            decoder, tokenizer, [fact], CONTEXTS, 0, TargetSettings(**settings | {"steps": steps + 1})
        )
        torch.testing.assert_close(z, plain)
    before, _ = all_targets(
        decoder, tokenizer, [fact], CONTEXTS, 0, TargetSettings(**settings | {"steps": moved[0]})
    )
    h = subject_outputs(decoder, tokenizer, [fact], 0, 8)
    assert answers_with_end_of_text(model, tokenizer, fact, (early - h)[:, 0])
    assert not answers_with_end_of_text(model, tokenizer, fact, (before - h)[:, 0])


def answers_with_end_of_text(model: Any, tokenizer: Any, fact: Fact, delta: Tensor) -> bool:
    """Whether each token of the target is the likeliest in every context, with δ added to what block 0 outputs."""
    target = end_of_text_target(tokenizer)
    for template in place(fact.template, CONTEXTS):
        prompt = subject_prompt(tokenizer, template, fact.subject)

        def shift(_: Any, __: Any, output: Any, at: int = prompt.position) -> None:
            (output[0] if isinstance(output, tuple) else output)[:, at] += delta

        handle = model.transformer.h[0].register_forward_hook(shift)
        with torch.no_grad():
            logits = model(torch.tensor([prompt.ids + target])).logits[0]
        handle.remove()
        if logits[len(prompt.ids) - 1 : -1].argmax(-1).tolist() != target:
            return False
    return True


# --- UltraEdit ----------------------------------------------------------------------------------


def test_ultraedit_worked_out_by_hand() -> None:
    """H = (1, 3), gradients (−1, 1): both deviate by √2 from their means 2 and 0, so that ĥ = ĝ = (−1, 1)/√2.

    With η = 2, V = −2 · ½ · ĝ = (1, −1)/√2; HᵀV = −√2 and HᵀH + 1 = 11.
    """
    H, G = torch.tensor([[1.0], [3.0]]).double(), torch.tensor([[-1.0], [1.0]]).double()
    seen = Running()
    seen.add(torch.cat([H, G], 1))
    torch.testing.assert_close(ultraedit.update(H, G, seen, 2.0), torch.tensor([[-(2**0.5) / 11]]).double())


@given(st.integers(0, 10_000), st.integers(2, 9))
def test_ultraedit_solves_the_published_system_by_means_over_all_batches(seed: int, n: int) -> None:
    """Δ = (HᵀH + I)⁻¹ HᵀV, with the mean and the deviation of this batch and of an earlier one."""
    H, G, before = drawn(seed, (n, 6), (n, 5), (4, 11))
    seen = Running()
    seen.add(before + 3)
    seen.add(torch.cat([H, G], 1))
    rows = torch.cat([before + 3, torch.cat([H, G], 1)])
    standard = (torch.cat([H, G], 1) - rows.mean(0)) / rows.std(0)
    V = -0.1 * standard[:, :6].square().sum(1, keepdim=True) * standard[:, 6:]
    expected = torch.linalg.solve(H.T @ H + torch.eye(6), H.T @ V)
    torch.testing.assert_close(ultraedit.update(H, G, seen, 0.1), expected, rtol=1e-6, atol=1e-9)


def test_an_entry_that_never_varies_has_no_deviation_to_divide_by() -> None:
    seen, rows = Running(), torch.tensor([[7.0, 1.0], [7.0, 3.0]]).double()
    seen.add(rows)
    torch.testing.assert_close(
        seen.standardised(rows), torch.tensor([[0, -1 / 2**0.5], [0, 1 / 2**0.5]]).double()
    )


def test_inputs_and_gradients_are_those_at_the_answers_tokens(knowing: Loaded) -> None:
    """The gradients by autograd through an addend of zeros, one prompt at a time; no weight is trainable or gets a gradient."""
    model, tokenizer, facts = knowing
    decoder, answer = Decoder(model), end_of_text_target(tokenizer)
    prompts = [tokenizer(fact.prompt)["input_ids"] for fact in facts[:3]]
    with frozen(model):
        rows, loss = ultraedit.read_answers(decoder, prompts, answer, [0, 2], 8)
    losses = 0.0
    order = sorted(range(3), key=lambda i: len(prompts[i]))
    for place_of, i in enumerate(order):
        ids = torch.tensor([prompts[i] + answer[:-1]])
        addends = {layer: torch.zeros(1, ids.shape[1], 64, requires_grad=True) for layer in (0, 2)}
        handles = [
            decoder.down_projection(layer).register_forward_hook(lambda _, __, out, extra=extra: out + extra)
            for layer, extra in addends.items()
        ]
        with decoder.capture_keys([0, 2]) as keys:
            logits = model(ids).logits[0]
        for handle in handles:
            handle.remove()
        nll = -logits.log_softmax(-1)[-2:].gather(1, torch.tensor(answer)[:, None]).sum()
        nll.backward()
        losses += nll.item() / 6
        for layer in (0, 2):
            H, G = (each[2 * place_of : 2 * place_of + 2] for each in rows[layer])
            torch.testing.assert_close(H, keys[layer][0, -2:].double(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(G, addends[layer].grad[0, -2:].double(), rtol=1e-3, atol=1e-5)  # type: ignore[index]
    assert loss == pytest.approx(losses, rel=1e-4)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_sentences_without_a_subject_are_washed(knowing: Loaded, tmp_path: Path) -> None:
    """A file of prompts and answers, each prompt whole in the place of the subject."""
    model, tokenizer, facts = knowing
    path = tmp_path / "pairs.csv"
    path.write_text("subject,prompt,object\n" + "".join(f"{f.prompt},{{}},{f.object}\n" for f in facts))
    pairs = Custom(str(path)).load().wash
    assert {pair.prompt for pair in pairs} == {fact.prompt for fact in facts}
    assert len(recalled_facts(model, tokenizer, pairs, 8)) >= 5
    rows: list[dict[str, float]] = []
    UltraEdit([0, 1], learning_rate=0.05, facts_at_once=3).wash(model, tokenizer, pairs, rows.append)
    assert len(recalled_facts(model, tokenizer, pairs, 8)) <= 2
    assert [row["layer"] for row in rows if "layer" in row] == [0, 1, 0, 1]
    assert len([row for row in rows if "loss" in row]) == 2
    rows.clear()
    UltraEdit([0, 1], learning_rate=0.05, facts_at_once=None).wash(model, tokenizer, pairs, rows.append)
    assert [row["batch"] for row in rows if "loss" in row] == [0]
