"""ZeroUnlearn: its algebra by hand and by the published form, what it is a special case of, and why its rank is capped."""

from __future__ import annotations

from typing import Any

import torch
from conftest import Loaded, TrainedLab
from hypothesis import given
from hypothesis import strategies as st
from small import all_targets
from torch import Tensor

from law.base.cache import Cache
from law.decoders.greedy_decoding import recalled_facts
from law.decoders.prompts import subject_prompt
from law.decoders.structure import Decoder
from law.editing.keys import place, subject_keys
from law.editing.least_squares import System
from law.editing.second_moments import MomentSettings
from law.editing.target_values import Targets, TargetSettings
from law.methods.encore import with_ridge
from law.methods.zerounlearn import ObjectTargets, ZeroUnlearn, leading

CONTEXTS = ["He said. {}", "They know. {}"]


def settings(**changes: Any) -> ZeroUnlearn:
    return ZeroUnlearn(**({"layers": [0, 1], "lam": 1.0, "moments": MomentSettings()} | changes))


def system_of(C: Tensor, K: Tensor, r: Tensor) -> System:
    return System(C.double(), (K @ K.T).double(), (K @ r.T).double(), r.square().sum().item())


def values_of(*rows: list[float]) -> Targets:
    """The values of facts, a row each, as if a file held them."""
    places = torch.stack([torch.zeros(len(rows)), torch.arange(len(rows))], 1).long()
    return Targets([lambda: {"z": torch.tensor(rows)}], places)


def test_zerounlearn_worked_out_by_hand() -> None:
    """W = I, C = I, λ = 1, γ = 1, k = e₁, r = 3 e₂: (1 + 1 + 1) X₁₂ = 3, so W + W X = ((1, 1), (0, 1)).

    P takes e₂ out but for a hundredth, and lets e₁ grow by one.
    """
    system = system_of(torch.eye(2), torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [3.0]]))
    U = torch.tensor([[0.0], [1.0]]).double()
    found = torch.eye(2).double() + settings(ridge=1.0).update(torch.eye(2).double(), system, U)
    torch.testing.assert_close(found, torch.tensor([[1.01, 0.01], [0.0, 0.01]]).double())


def test_the_leading_directions_of_the_true_answers() -> None:
    """Three facts with the values 3 e₁, 4 e₁ and 5 e₂: e₁ and e₂ have the squares 25 and 25, and with 6 e₂ 25 and 36."""
    values = values_of([3.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, 6.0, 0.0])
    U, energy = leading(values, 3, 1)
    torch.testing.assert_close(U.abs(), torch.tensor([[0.0], [1.0], [0.0]]).double())
    assert energy == 36 / 61
    U, energy = leading(values, 3, 2)
    torch.testing.assert_close(U @ U.T, torch.diag(torch.tensor([1.0, 1.0, 0.0])).double())
    assert energy == 1
    assert leading(values, 3, None)[0].shape == (3, 3)  # as many as facts, and never more than d_model
    assert leading(values_of([1.0], [2.0]), 2, None)[0].shape == (1, 1)


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 4))
def test_zerounlearn_is_the_published_product(seed: int, n: int, rank: int) -> None:
    """D W of the published code, whose W is (d_model, d_ff), with c = 6, f = 2 and λ₁ = 1."""
    generator = torch.Generator().manual_seed(seed)
    W, root, K, r, v = (
        torch.randn(shape, generator=generator, dtype=torch.double)
        for shape in ((4, 6), (6, 12), (6, n), (4, n), (4, rank))
    )
    C, U = root @ root.T, torch.linalg.qr(v)[0]
    P = 1.01 * torch.eye(4) - U @ U.T
    KKT, VKT = 6 * C + 2 * K @ K.T, 6 * W @ C + 2 * (W @ K + r) @ K.T
    B = W @ (KKT + torch.eye(6)) @ W.T
    D = torch.linalg.solve(B.T, (P @ (VKT + W) @ W.T).T).T
    found = W.T + settings(lam=3.0, ridge=0.5).update(W.T, system_of(C, K, r), U)
    torch.testing.assert_close(found.T, D @ W, rtol=1e-5, atol=1e-7)


@given(st.integers(0, 10_000))
def test_without_directions_and_with_a_square_w_it_is_memit_with_a_ridge(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    W, root, K, r = (
        torch.randn(shape, generator=generator, dtype=torch.double)
        for shape in ((5, 5), (5, 9), (5, 3), (5, 3))
    )
    W = W + 3 * torch.eye(5)  # of full rank
    system = system_of(root @ root.T, K, r)
    found = settings(ridge=0.5, share=0.0).update(W, system, torch.empty(5, 0).double())
    torch.testing.assert_close(found, with_ridge(system, 0.5).solve(1.0), rtol=1e-6, atol=1e-8)


def test_as_many_directions_as_outputs_leave_a_hundredth_of_the_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    W, K, r = (
        torch.randn(shape, generator=generator, dtype=torch.double) for shape in ((6, 4), (6, 3), (4, 3))
    )
    system = system_of(torch.eye(6), K, r)
    whole = W + settings().update(W, system, torch.eye(4).double())
    none = W + settings(share=0.0).update(W, system, torch.empty(4, 0).double())
    torch.testing.assert_close(whole, 0.01 * none)


def test_the_values_of_true_answers_make_the_object_likelier(knowing: Loaded) -> None:
    """v* − m is a shift of block 1's output; with it, the NLL of the objects, of one token or more, is what the trace says."""
    model, tokenizer, facts = knowing
    decoder = Decoder(model)
    how = ObjectTargets(steps=6, stop_below=0.0)
    values, trace = all_targets(decoder, tokenizer, facts, CONTEXTS, 1, how, Cache(None))
    K = subject_keys(decoder, tokenizer, facts, [], [1], 8)[1]
    with torch.no_grad():
        m = decoder.down_projection(1)(K.T).T  # (d_model, n)
    assert (trace.nll[-1] < trace.nll[0]).all()
    assert ((values - m).norm(dim=0) <= 0.75 * m.norm(dim=0) + 1e-4).all()
    lengths = set()
    for i, fact in enumerate(facts):
        losses = []
        for template in place(fact.template, CONTEXTS):
            prompt = subject_prompt(tokenizer, template, fact.subject)
            answer = tokenizer(f"{fact.prompt} {fact.object}")["input_ids"][
                len(tokenizer(fact.prompt)["input_ids"]) :
            ]
            lengths.add(len(answer))

            def shift(_: Any, __: Any, output: Any, at: int = prompt.position, i: int = i) -> None:
                (output[0] if isinstance(output, tuple) else output)[:, at] += (values - m)[:, i]

            handle = model.transformer.h[1].register_forward_hook(shift)
            with torch.no_grad():
                logits = model(torch.tensor([prompt.ids + answer])).logits[0]
            handle.remove()
            chosen = logits[len(prompt.ids) - 1 : -1].log_softmax(-1)
            losses.append(-chosen.gather(1, torch.tensor(answer)[:, None]).mean())
        torch.testing.assert_close(torch.stack(losses).mean(), trace.nll[-1, i], rtol=1e-3, atol=1e-4)
    assert len(lengths) > 1  # the batch held objects of several lengths


def test_zerounlearn_forgets(knowing: Loaded, trained_lab: TrainedLab) -> None:
    model, tokenizer, facts = knowing
    rows: list[dict[str, Any]] = []
    ZeroUnlearn(
        layers=[0, 1],
        lam=1.0,
        moments=MomentSettings(str(trained_lab.text_path)),
        targets=TargetSettings(clamp=4.0, batch_size=6),
        contexts=CONTEXTS,
        rank=2,
    ).wash(model, tokenizer, facts, rows.append)
    assert len(recalled_facts(model, tokenizer, facts, 8)) <= 2
    assert [row["rank"] for row in rows if "rank" in row] == [2, 2]
    assert all(0.2 < row["energy"] < 1 for row in rows if "energy" in row)
