"""Sparing wash: C_o against its definition, the closed form, what it is with μ = 0, and that it moves other subjects less."""

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
from torch import Tensor

from law.base.cache import Cache
from law.base.errors import LawError
from law.base.settings import learned_from
from law.decoders.greedy_decoding import recalled_facts
from law.decoders.prompts import subject_prompt
from law.decoders.structure import Decoder
from law.editing.keys import subject_outputs
from law.editing.least_squares import System
from law.editing.other_moments import other_moments, other_prompts
from law.editing.second_moments import MomentSettings
from law.editing.target_values import TargetSettings
from law.facts.counterfact import CounterFact
from law.facts.fact import Fact
from law.methods.law import LAW
from law.methods.memit import MEMIT
from law.methods.sparing import Sparing

CONTEXTS = ["He said. {}", "They know. {}"]


def settings_on(lab: TrainedLab) -> dict[str, Any]:
    """The settings that MEMIT and Sparing share, for the model of three blocks."""
    return {
        "layers": [0, 1],
        "lam": 1.0,
        "moments": MomentSettings(str(lab.text_path), batch_size=1024),
        "targets": TargetSettings(clamp=4.0, batch_size=6),
        "contexts": CONTEXTS,
        "batch_size": 8,
    }


@pytest.fixture
def others(trained_lab: TrainedLab) -> list[Fact]:
    """The facts that are neither washed in ``knowing`` nor about one of its subjects."""
    return [*CounterFact(str(trained_lab.facts_path), wash=6, keep=0).load().unscored]


def inputs_of(decoder: Decoder, layer: int, ids: list[int]) -> Tensor:
    """What enters a down-projection, (t, d_ff), by a hook of its own."""
    seen: list[Tensor] = []
    handle = decoder.down_projection(layer).register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with torch.no_grad():
        decoder.model(input_ids=torch.tensor([ids]))
    handle.remove()
    return seen[0][0].double()


def test_c_o_against_its_definition(knowing: Loaded, others: list[Fact], tmp_path: Path) -> None:
    """Prompt by prompt, without batches; and once more from the cache, layer by layer."""
    model, tokenizer, _ = knowing
    decoder = Decoder(model)
    prompts = [subject_prompt(tokenizer, fact.template, fact.subject) for fact in others]
    found = other_moments(decoder, tokenizer, prompts, [0, 1], 0.25, 3, Cache(tmp_path))
    for layer in (0, 1):
        keys = [inputs_of(decoder, layer, prompt.ids) for prompt in prompts]
        last = torch.stack([k[prompt.position] for k, prompt in zip(keys, prompts, strict=True)])
        every = torch.cat([k[1:] for k in keys])
        expected = 0.25 * last.T @ last / len(last) + 0.75 * every.T @ every / len(every)
        torch.testing.assert_close(found[layer].double(), expected, rtol=1e-4, atol=1e-6)
    cache = Cache(tmp_path)
    torch.testing.assert_close(
        other_moments(decoder, tokenizer, prompts, [1], 0.25, 3, cache)[1], found[1], rtol=0, atol=0
    )
    assert cache.spared_s > 0


def test_few_other_facts_give_many_prompts(knowing: Loaded) -> None:
    """Their own prompts come first, then the washed facts' templates with their subjects; none comes twice."""
    _, tokenizer, _ = knowing
    washed = [Fact("0", "Anna", "{} lives in", "Boston", ""), Fact("1", "Bert", "{} works for", "Fiat", "")]
    others = [Fact("2", "Cara", "{} lives in", "Rome", ""), Fact("3", "Dora", "{} sings", "well", "")]
    asked = [tokenizer.decode(prompt.ids) for prompt in other_prompts(tokenizer, washed, others, 10)]
    assert asked == ["Cara lives in", "Dora sings", "Dora lives in", "Cara works for", "Dora works for"]
    assert len(other_prompts(tokenizer, washed, others, 3)) == 3


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(0.01, 100))
def test_the_update_is_the_least_squares_solution_with_other_keys_held(
    seed: int, lam: float, mu: float
) -> None:
    """Against lstsq on the stacked rows √λ C^½, √(λμ/n) K_oᵀ and Kᵀ, with r for the last and zero for the rest."""
    generator = torch.Generator().manual_seed(seed)
    text, K_o, K, r = (
        torch.randn(shape, generator=generator, dtype=torch.double)
        for shape in ((9, 6), (6, 7), (6, 4), (5, 4))
    )
    C, C_o = text.T @ text / 9, K_o @ K_o.T / 7
    rows = torch.cat([(lam / 9) ** 0.5 * text, (lam * mu / 7) ** 0.5 * K_o.T, K.T])
    wanted = torch.cat([torch.zeros(16, 5, dtype=torch.double), r.T])
    found = System(C + mu * C_o, K @ K.T, K @ r.T, r.square().sum().item()).solve(lam)
    torch.testing.assert_close(found, torch.linalg.lstsq(rows, wanted).solution, rtol=1e-6, atol=1e-8)


def test_without_weight_on_others_it_is_memit(
    knowing: Loaded, others: list[Fact], trained_lab: TrainedLab
) -> None:
    model, tokenizer, facts = knowing
    same = copy.deepcopy(model)
    MEMIT(**settings_on(trained_lab)).wash(model, tokenizer, facts)
    Sparing(**settings_on(trained_lab), mu=0.0, rounds=1).wash(same, tokenizer, facts, others=others)
    for layer in (0, 1):
        torch.testing.assert_close(Decoder(same).weight(layer), Decoder(model).weight(layer), rtol=0, atol=0)


def test_it_forgets_and_moves_other_subjects_less_than_memit(
    knowing: Loaded, others: list[Fact], trained_lab: TrainedLab
) -> None:
    """The larger μ at the same λ, the less the outputs of the edited block at other subjects change."""
    model, tokenizer, facts = knowing
    before = subject_outputs(Decoder(model), tokenizer, others, 1, 8)
    moved = []
    for mu in (0.0, 1.0, 100.0):
        washed = copy.deepcopy(model)
        method = Sparing(**{**settings_on(trained_lab), "layers": [1]}, mu=mu, rounds=1)
        method.wash(washed, tokenizer, facts, others=others)
        moved.append((subject_outputs(Decoder(washed), tokenizer, others, 1, 8) - before).norm().item())
        assert mu > 1 or len(recalled_facts(washed, tokenizer, facts, 8)) <= 3
    assert moved[1] < 0.8 * moved[0] and moved[2] < 0.5 * moved[1]


def test_later_rounds_wash_what_the_earlier_have_left_and_move_the_rest_little(
    knowing: Loaded, others: list[Fact], trained_lab: TrainedLab
) -> None:
    """Each round takes the facts that are recalled then, and leaves the outputs at the others' keys nearly as they are."""
    model, tokenizer, facts = knowing
    once = copy.deepcopy(model)
    weak = Sparing(**{**settings_on(trained_lab), "lam": 200.0}, mu=1.0, rounds=1)
    weak.wash(once, tokenizer, facts, others=others)
    left = recalled_facts(once, tokenizer, facts, 8)
    assert left
    told: list[dict[str, Any]] = []
    replace(weak, rounds=4).wash(model, tokenizer, facts, told.append, others)
    rounds = {line["batch"]: line["facts"] for line in told if "batch" in line}
    assert rounds[0] == len(facts) and rounds[1] == len(left)
    assert len(recalled_facts(model, tokenizer, facts, 8)) < len(left)


def test_law_refuses_an_editor_of_several_updates(knowing: Loaded, trained_lab: TrainedLab) -> None:
    model, tokenizer, facts = knowing
    law = LAW(Sparing(**settings_on(trained_lab), mu=1.0), learning_rate=1e-4)
    with pytest.raises(LawError, match=r"method.initial is Sparing; expected MEMIT"):
        law.wash(model, tokenizer, facts)
    assert learned_from(law.initial) == ["general text", "other facts"]


def test_no_other_facts_are_refused_with_what_to_do(knowing: Loaded, trained_lab: TrainedLab) -> None:
    model, tokenizer, facts = knowing
    with pytest.raises(LawError, match=r"has no other facts; .* Lower dataset.wash or dataset.keep"):
        Sparing(**settings_on(trained_lab), mu=1.0).wash(model, tokenizer, facts)
