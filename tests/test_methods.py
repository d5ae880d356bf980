"""The methods' mathematics by hand and by independent solvers, and each of them on a model that knows facts."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import Loaded, TrainedLab
from hypothesis import given, settings
from hypothesis import strategies as st
from small import all_targets

from law.base.errors import LawError
from law.decoders.greedy_decoding import Recall, recalled_facts
from law.decoders.prompts import end_of_text_target
from law.decoders.structure import Decoder
from law.editing.keys import subject_keys, subject_outputs
from law.editing.least_squares import System, add_update, norm
from law.editing.second_moments import MomentSettings
from law.editing.target_values import TargetSettings
from law.methods.law import LAW, SearchWindow, ascend
from law.methods.memit import MEMIT
from law.methods.none import Unwashed


def memit(lab: TrainedLab, **changes: object) -> MEMIT:
    defaults = {"layers": [0, 1], "lam": 1.0, "moments": MomentSettings(str(lab.text_path)), "batch_size": 8}
    # a model of three blocks has read the attribute early: only a long δ still makes it speak otherwise
    defaults |= {"targets": TargetSettings(clamp=4.0), "contexts": ["He said. {}", "They know. {}"]}
    return MEMIT(**{**defaults, **changes})


# --- MEMIT's system -----------------------------------------------------------------------------


def system_of(C: torch.Tensor, K: torch.Tensor, r: torch.Tensor) -> System:
    return System(C.double(), (K @ K.T).double(), (K @ r.T).double(), r.square().sum().item())


def test_solution_worked_out_by_hand() -> None:
    """One key k = (1, 0), residual r = (3), C = I, λ = 2: (2 + 1) Δ₁ = 3 and 2 Δ₂ = 0."""
    system = system_of(torch.eye(2), torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0]]))
    torch.testing.assert_close(system.solve(2.0), torch.tensor([[1.0], [0.0]]).double())


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), st.integers(1, 6), st.integers(1, 5), st.floats(0.1, 100.0), st.integers(0, 10_000))
def test_solution_minimises_the_least_squares_it_stands_for(
    d_ff: int, n: int, d_model: int, lam: float, seed: int
) -> None:
    """Δ is the minimum of ‖ΔᵀK − r‖² + λ tr(ΔᵀCΔ): NumPy's least squares of the stacked rows agrees."""
    rng = np.random.default_rng(seed)
    root, K, r = rng.normal(size=(d_ff + 2, d_ff)), rng.normal(size=(d_ff, n)), rng.normal(size=(d_model, n))
    stacked = np.vstack([K.T, np.sqrt(lam) * root])  # (n + d_ff + 2, d_ff)
    wanted = np.vstack([r.T, np.zeros((d_ff + 2, d_model))])
    expected = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    found = system_of(torch.tensor(root.T @ root), torch.tensor(K), torch.tensor(r)).solve(lam)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-8)


def test_moments_that_leave_directions_unused_are_refused() -> None:
    system = system_of(torch.zeros(3, 3), torch.ones(3, 1), torch.ones(2, 1))
    with pytest.raises(LawError, match="not positive definite at λ = 5"):
        system.solve(5.0)
    with pytest.raises(LawError, match="C are not positive definite"):
        system.size_by_lambda()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e6))
def test_one_eigendecomposition_gives_the_size_at_every_lambda(seed: int, lam: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    root, K, r = (torch.randn(m, n, generator=generator).double() for m, n in ((12, 6), (6, 9), (4, 9)))
    system = system_of(root.T @ root, K, r)
    assert system.size_by_lambda()(lam) == pytest.approx(system.solve(lam).norm().item(), rel=1e-8)


# --- LAW's ascent -------------------------------------------------------------------------------


def test_ascent_worked_out_by_hand() -> None:
    """C = I, K = diag(2, 1), Δ₀ = (1, 1): Adam moves both entries alike, so Δ ends at the edge as √β (1, 1).

    The objective there is (2√2)² + (√2)² = 10; the constraint is (2 + 2) / 2 = β.
    """
    law = LAW(MEMIT([0], 1.0, MomentSettings("")), learning_rate=0.01, iterations=500, beta_ratio=2.0)
    start, C, K = (
        torch.ones(2, 1).double(),
        torch.eye(2).double(),
        torch.diag(torch.tensor([2.0, 1.0])).double(),
    )
    found = ascend(start, C, K @ K.T, law, 0)
    assert (found.objective_before, found.constraint_before, found.beta) == (5.0, 1.0, 2.0)
    assert found.objective == pytest.approx(10.0, rel=1e-6)
    assert found.constraint == pytest.approx(2.0, rel=1e-12)
    torch.testing.assert_close(found.delta, torch.full((2, 1), 2.0**0.5).double(), rtol=1e-6, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-6, 1.0))
def test_ascent_never_leaves_the_constraint_nor_falls_below_its_start(
    seed: int, learning_rate: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    root, K, start = (torch.randn(6, n, generator=generator, dtype=torch.double) for n in (8, 3, 4))
    C = root @ root.T
    law = LAW(MEMIT([0], 1.0, MomentSettings("")), learning_rate=learning_rate, iterations=30)
    found = ascend(start, C, K @ K.T, law, 0)
    assert torch.trace(found.delta.T @ C @ found.delta) / torch.trace(C) <= found.beta * (1 + 1e-9)
    assert (found.delta.T @ K).square().sum().item() == pytest.approx(found.objective)
    assert found.objective >= (start.T @ K).square().sum().item() * (1 - 1e-12)


def test_lambda_search_ends_in_the_window_and_gives_up_in_words() -> None:
    """With C = I, K = e₁ and r = 1, ‖Δ‖ = 1 / (λ + 1); the weight has norm 1."""
    K = torch.tensor([[1.0], [0.0]]).double()
    system = system_of(torch.eye(2), K, torch.tensor([[1.0]]).double())
    weight = torch.tensor([[1.0], [0.0]])
    law = LAW(MEMIT([0], 16.0, MomentSettings("")), learning_rate=1.0, search=True)
    lam, delta = law._find(0, system, weight)
    # 1 / (λ + 1) ≥ 1/3 means λ ≤ 2, first met by 16 · 0.75⁸ = 1.6018
    assert lam == pytest.approx(16 * 0.75**8)
    assert delta.norm() == pytest.approx(1 / (1 + lam))
    law.window = SearchWindow(low=2.0, high=3.0, attempts=5)
    with pytest.raises(LawError, match="gave up after 5 attempts"):
        law._find(0, system, weight)


# --- z* -----------------------------------------------------------------------------------------


def test_target_values_do_not_depend_on_the_batch_and_reach_end_of_text(knowing: Loaded) -> None:
    model, tokenizer, facts = knowing
    decoder, contexts = Decoder(model), ["He said. {}"]
    together, trace = all_targets(decoder, tokenizer, facts, contexts, 1, TargetSettings(batch_size=6))
    alone, _ = all_targets(decoder, tokenizer, facts, contexts, 1, TargetSettings(batch_size=1))
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)
    assert (trace.nll[-1] < trace.nll[0]).all()
    h = subject_outputs(decoder, tokenizer, facts, 1, batch_size=8)
    assert ((together - h).norm(dim=0) <= 0.75 * h.norm(dim=0) * (1 + 1e-5)).all()
    assert all(p.requires_grad for p in model.parameters())


def test_a_loss_that_is_no_number_is_not_taken_for_a_target_reached(
    knowing: Loaded, trained_lab: TrainedLab
) -> None:
    model, tokenizer, facts = knowing
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    z, _ = all_targets(Decoder(model), tokenizer, facts[:2], [], 1, TargetSettings(steps=3))
    assert z.isnan().all()
    with pytest.raises(LawError, match="not finite"):
        memit(trained_lab).wash(model, tokenizer, facts)


def test_norms_of_half_precision_are_not_rounded() -> None:
    """√(3² · 10,000) = 300; bfloat16 has no number between 300 and 302."""
    assert norm(torch.full((100, 100), 3.0, dtype=torch.bfloat16)) == 300
    assert norm(torch.full((1, 2), 3.0, dtype=torch.bfloat16)) == 18**0.5


def test_an_update_that_half_precision_rounds_away_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Next to 1, bfloat16 has 1.0078: such a step is added whole, a hundredth of it not at all."""
    weight = torch.ones(2, 3, dtype=torch.bfloat16)
    add_update(weight, torch.full((2, 3), 2.0**-7, dtype=torch.float64))
    assert caplog.messages == [] and weight.unique().tolist() == [1 + 2.0**-7]
    add_update(weight, torch.full((2, 3), 1e-4, dtype=torch.float64))
    assert weight.unique().tolist() == [1 + 2.0**-7]
    assert caplog.messages == [
        "an update is added to weights in bfloat16, whose rounding moves it by 100 %; set model.dtype=float32"
    ]


def test_an_update_far_larger_than_the_weights_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """‖W‖ is √6, and ‖Δ‖ 2√6 at first; then W is 3 everywhere, and Δ 10."""
    weight = torch.ones(2, 3)
    assert add_update(weight, torch.full((2, 3), 2.0)) == pytest.approx(2)
    assert caplog.messages == []
    assert add_update(weight, torch.full((2, 3), 10.0)) == pytest.approx(10 / 3)
    (message,) = caplog.messages
    assert (
        message.startswith("an update is 3.33 times as large as the weights")
        and "λ that is too small" in message
    )


def test_first_loss_is_the_models_own(knowing: Loaded) -> None:
    """Before any step the loss is the NLL of " <|endoftext|>" after the prompt, read off plain logits."""
    model, tokenizer, facts = knowing
    _, trace = all_targets(Decoder(model), tokenizer, facts[:1], [], 1, TargetSettings(steps=1))
    prompt, target = tokenizer(facts[0].prompt)["input_ids"], end_of_text_target(tokenizer)
    assert target[-1] == tokenizer.eos_token_id
    logits = model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
    nll = [-logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(target)]
    assert trace.nll[0, 0].item() == pytest.approx(sum(nll) / len(nll), rel=1e-4)
    assert trace.kl[0, 0].item() == pytest.approx(0.0, abs=1e-6)


# --- whole methods ------------------------------------------------------------------------------


def test_memit_puts_the_residual_where_it_should_be(knowing: Loaded, trained_lab: TrainedLab) -> None:
    """With one layer and λ → 0 the layer's own contribution changes by exactly r at every key."""
    model, tokenizer, facts = knowing
    decoder = Decoder(model)
    settings = memit(trained_lab, layers=[1], lam=1e-7)
    problem = settings.prepare(model, tokenizer, facts, lambda _: None)
    K = subject_keys(decoder, tokenizer, facts, problem.contexts, [1], 8)[1].double()
    r = (problem.targets.of(range(len(facts))) - subject_outputs(decoder, tokenizer, facts, 1, 8)).double()
    before = decoder.weight(1).detach().clone()
    settings.wash(model, tokenizer, facts)
    delta = (decoder.weight(1).detach() - before).double()
    torch.testing.assert_close(delta.T @ K, r, rtol=1e-2, atol=1e-2)


def test_memit_and_law_forget(knowing: Loaded, trained_lab: TrainedLab) -> None:
    model, tokenizer, facts = knowing
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert len(recalled_facts(model, tokenizer, facts, 8)) >= 5
    memit(trained_lab).wash(model, tokenizer, facts)
    assert len(recalled_facts(model, tokenizer, facts, 8)) <= 2

    model.load_state_dict(state)
    rows: list[dict[str, float]] = []
    LAW(memit(trained_lab), learning_rate=1e-4, iterations=20).wash(model, tokenizer, facts, rows.append)
    assert len(recalled_facts(model, tokenizer, facts, 8)) <= 2
    ends = [row for row in rows if "facts_left" in row]
    assert [row["layer"] for row in ends] == [0, 1][: len(ends)]
    assert ends[0]["facts_used"] == len(facts)
    for earlier, later in pairwise(ends):
        assert later["facts_used"] == earlier["facts_left"]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])}
    assert changed <= {f"transformer.h.{layer}.mlp.fc_out.weight" for layer in (0, 1)}


def test_law_without_elimination_uses_every_fact_in_every_layer(
    knowing: Loaded, trained_lab: TrainedLab
) -> None:
    model, tokenizer, facts = knowing
    rows: list[dict[str, float]] = []
    # λ so large that nothing is forgotten, so that both layers are reached
    law = LAW(memit(trained_lab, lam=1e9), learning_rate=1e-9, iterations=2, eliminate=False)
    law.wash(model, tokenizer, facts, rows.append)
    assert [row["facts_used"] for row in rows if "facts_left" in row] == [len(facts)] * 2


def test_elimination_follows_the_rule_of_recall(knowing: Loaded, trained_lab: TrainedLab) -> None:
    """Half of an object is recalled anywhere in an answer, and as a whole word nowhere."""
    model, tokenizer, facts = knowing
    halves = [replace(fact, object=fact.object[:-2]) for fact in facts]
    law = LAW(memit(trained_lab, lam=1e9), learning_rate=1e-9, iterations=2)
    left = {}
    for rule in Recall:
        rows: list[dict[str, float]] = []
        replace(law, recall=rule).wash(model, tokenizer, halves, rows.append)
        left[rule] = [row["facts_left"] for row in rows if "facts_left" in row]
    assert left[Recall.substring] == [len(recalled_facts(model, tokenizer, facts, 8))] * 2
    assert left[Recall.whole_word] == [0]


def test_cached_targets_and_moments_give_the_same_weights(
    knowing: Loaded, trained_lab: TrainedLab, tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer, facts = knowing
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = memit(trained_lab, cache=str(tmp_path / "cache"))
    settings.wash(model, tokenizer, facts)
    first = model.transformer.h[1].mlp.fc_out.weight.detach().clone()
    model.load_state_dict(state)
    with caplog.at_level(logging.INFO):
        settings.wash(model, tokenizer, facts)
    assert "targets: 6 items are kept in" in caplog.text
    assert "moments: taken from" in caplog.text
    assert torch.equal(model.transformer.h[1].mlp.fc_out.weight, first)


@pytest.mark.parametrize("layers", [[], [1, 0], [0, 0], [-1], [2, 7]])
def test_layers_the_model_lacks_are_refused_before_any_work(
    knowing: Loaded, trained_lab: TrainedLab, layers: list[int]
) -> None:
    with pytest.raises(LawError, match=r"between 0 and 2|in rising order, counted from 0"):
        LAW(memit(trained_lab, layers=layers), learning_rate=1.0).check(knowing[0])


def test_none_changes_nothing(knowing: Loaded) -> None:
    model, tokenizer, facts = knowing
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Unwashed().wash(model, tokenizer, facts)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
