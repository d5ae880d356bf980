"""Causal tracing against forward passes written out by hand, and the trial washes of locate."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import Loaded, TrainedLab
from torch import Tensor, nn

from law.base.errors import LawError
from law.decoders.prompts import subject_prompt
from law.decoders.saving import snapshot
from law.decoders.structure import Decoder
from law.editing.causal_tracing import Effect, Interchange, interchange, noise_tracing
from law.editing.second_moments import MomentSettings
from law.editing.target_values import TargetSettings
from law.facts.counterfact import CounterFact
from law.facts.fact import Fact
from law.reporting.tracing_picture import plot_tracing
from law.runs.locating import (
    LocateSettings,
    Tracing,
    Trial,
    best,
    candidate_layers,
    known_facts,
    trial_washes,
)


def log_p(loaded: Loaded, fact: Fact, hooks: Sequence[tuple[nn.Module, int, Tensor]]) -> tuple[float, int]:
    """log p of the object's first token with a module's output set at one position each, and the likeliest token."""
    model, tokenizer, _ = loaded
    ids = tokenizer(fact.prompt, return_tensors="pt")["input_ids"]
    token = tokenizer(f"{fact.prompt} {fact.object}")["input_ids"][ids.shape[1]]
    handles = []
    for module, at, value in hooks:

        def hook(_: nn.Module, __: object, out: object, at: int = at, value: Tensor = value) -> object:
            first = out[0] if isinstance(out, tuple) else out
            first = first.clone()
            first[0, at] = value
            return (first, *out[1:]) if isinstance(out, tuple) else first

        handles.append(module.register_forward_hook(hook))
    logits = model(input_ids=ids).logits[0, -1].log_softmax(-1)
    for handle in handles:
        handle.remove()
    return logits[token].item(), int(logits.argmax())


def output(loaded: Loaded, fact: Fact, module: nn.Module, at: int) -> Tensor:
    """A module's clean output at one position, (d_model)."""
    model, tokenizer, _ = loaded
    found: list[Tensor] = []
    handle = module.register_forward_hook(
        lambda _, __, out: found.append((out[0] if isinstance(out, tuple) else out)[0, at])
    )
    model(**tokenizer(fact.prompt, return_tensors="pt"))
    handle.remove()
    return found[0]


@torch.inference_mode()
def test_an_exchange_is_the_forward_pass_with_the_other_subjects_state(
    knowing: Loaded, trained_lab: TrainedLab
) -> None:
    model, tokenizer, _ = knowing
    facts = CounterFact(str(trained_lab.facts_path)).load().wash
    pairs = [
        [one, other]
        for one in facts
        for other in facts
        if one.template == other.template and one.object < other.object
    ]
    pair = pairs[6]  # of those that share a template, the one that an exchange moves most
    found = interchange(Decoder(model), tokenizer, pair, batch_size=4)
    falls: list[list[float]] = []
    lost = []
    for one, other in (pair, pair[::-1]):
        before, answer = log_p(knowing, one, ())
        own = tokenizer(f"{one.prompt} {one.object}")["input_ids"][len(tokenizer(one.prompt)["input_ids"])]
        assert answer == own  # the model knows its facts
        at, other_at = (subject_prompt(tokenizer, f.template, f.subject).position for f in (one, other))
        after = [
            log_p(knowing, one, [(block, at, output(knowing, other, block, other_at))])
            for block in model.transformer.h
        ]
        falls.append([before - value for value, _ in after])
        lost.append([token != own for _, token in after])
    assert found.pairs == 2
    for layer, effect in enumerate(found.effects):
        first, second = falls[0][layer], falls[1][layer]
        assert effect.mean == pytest.approx((first + second) / 2, abs=1e-5)
        assert effect.stderr == pytest.approx(abs(first - second) / 2, abs=1e-5)
        assert found.lost[layer] == sum(flags[layer] for flags in lost) / 2
    assert max(effect.mean for effect in found.effects) > 0.02


def test_facts_that_share_no_template_make_no_pair(knowing: Loaded) -> None:
    model, tokenizer, facts = knowing
    found = interchange(Decoder(model), tokenizer, facts[:1], batch_size=4)
    assert found == Interchange(0, [Effect(0.0, 0.0)] * 3, [0.0] * 3, [0.0] * 3)


@torch.inference_mode()
@pytest.mark.parametrize("restored", ["block", "mlp", "attention"])
def test_noise_tracing_is_the_forward_pass_with_noise_and_one_clean_state(
    knowing: Loaded, restored: str
) -> None:
    model, tokenizer, facts = knowing
    fact, decoder = facts[0], Decoder(model)
    found = noise_tracing(decoder, tokenizer, [fact], restored, 3, samples=1, seed=5, batch_size=4)
    prompt = subject_prompt(tokenizer, fact.template, fact.subject)
    places = range(prompt.start, prompt.position + 1)
    embedding = model.get_input_embeddings()
    drawn = torch.randn(1, len(places), 64, generator=torch.Generator().manual_seed(5))[0]
    clean = embedding(torch.tensor(prompt.ids))
    noise = [
        (embedding, at, clean[at] + 3 * embedding.weight.std() * n)
        for at, n in zip(places, drawn, strict=True)
    ]
    modules = {
        "block": list(model.transformer.h),
        "mlp": [block.mlp.fc_out for block in model.transformer.h],
        "attention": [block.attn for block in model.transformer.h],
    }[restored]
    disturbed = log_p(knowing, fact, noise)[0]
    assert disturbed < log_p(knowing, fact, ())[0] - 1e-3
    windows = [[0], [1], [2]] if restored == "block" else [[0, 1], [0, 1, 2], [1, 2]]
    for layers, effect in zip(windows, found, strict=True):
        put = [
            (modules[i], prompt.position, output(knowing, fact, modules[i], prompt.position)) for i in layers
        ]
        assert effect.mean == pytest.approx(log_p(knowing, fact, [*noise, *put])[0] - disturbed, abs=1e-5)
        assert effect.stderr == 0.0


def test_samples_of_the_noise_are_averaged(knowing: Loaded) -> None:
    model, tokenizer, facts = knowing
    decoder, fact = Decoder(model), facts[0]
    both = noise_tracing(decoder, tokenizer, [fact], "block", 1, samples=2, seed=0, batch_size=8)
    twice = noise_tracing(decoder, tokenizer, [fact, fact], "block", 1, samples=1, seed=0, batch_size=8)
    for one, other in zip(both, twice, strict=True):  # the same two draws of the noise
        assert one.mean == pytest.approx(other.mean, abs=1e-6)
    assert twice[0].stderr > 0.0 == both[0].stderr


def settings(lab: TrainedLab, **changes: object) -> LocateSettings:
    return LocateSettings(
        MomentSettings(str(lab.text_path)),
        TargetSettings(steps=6, clamp=4.0),
        **{"known": 12, "wash": 4, "keep": 4, "lambdas": [1.0, 1e9], "batch_size": 8, **changes},  # type: ignore[arg-type]
    )


def test_known_facts_are_looked_for_until_there_are_enough(knowing: Loaded, trained_lab: TrainedLab) -> None:
    model, tokenizer, _ = knowing
    facts = CounterFact(str(trained_lab.facts_path)).load().wash
    unknown = [Fact(str(i), f"Nobody {i}", "{} lives in", "nowhere at all", "") for i in range(40)]
    found, asked = known_facts(model, tokenizer, [*unknown, *facts], settings(trained_lab))
    assert len(found) == 12 and asked == 58 and not any(fact.object == "nowhere at all" for fact in found)
    with pytest.raises(LawError, match="recalls 0 of 40 facts; expected at least two"):
        known_facts(model, tokenizer, unknown, settings(trained_lab))


def test_a_trial_wash_measures_and_puts_the_weights_back(
    knowing: Loaded, trained_lab: TrainedLab, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer, _ = knowing
    facts = CounterFact(str(trained_lab.facts_path)).load().wash
    before = snapshot(model)
    with caplog.at_level(logging.WARNING):
        trials = trial_washes(model, tokenizer, facts[:8], [[0, 1]], settings(trained_lab))
    assert "the trials wash 4 facts and keep 4, fewer than 30 of a kind" in caplog.text
    after = snapshot(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    strong, weak = trials
    assert (strong.layers, strong.lam, strong.washed, strong.others) == ([0, 1], 1.0, 4, 4)
    assert strong.left < weak.left == 1.0 == weak.kept  # λ = 1e9 changes nothing


def test_few_known_facts_are_shared_between_washing_and_keeping(
    knowing: Loaded, trained_lab: TrainedLab
) -> None:
    model, tokenizer, facts = knowing
    (trial,) = trial_washes(
        model, tokenizer, facts, [[0]], settings(trained_lab, wash=200, keep=100, lambdas=[1e9])
    )
    assert (trial.washed, trial.others) == (4, 2)


def test_candidates_end_at_the_layers_whose_mlps_restore_most(trained_lab: TrainedLab) -> None:
    mlp = [Effect(mean, 0.0) for mean in (0.1, 0.9, 0.2, 0.8)]
    exchanged = Interchange(0, mlp, [0.0] * 4, [0.0] * 4)
    tracing = Tracing(exchanged, 60, mlp, mlp, mlp)
    found = candidate_layers(tracing, settings(trained_lab, candidates=2, widths=[1, 3]))
    assert found == [[1], [0, 1], [3], [1, 2, 3]]


def test_the_best_trial_has_the_largest_harmonic_mean_and_is_drawn(tmp_path: Path) -> None:
    trials = [
        Trial([1], 10.0, left=0.0, kept=0.0, washed=50, others=50),
        Trial([1], 100.0, left=0.2, kept=0.6, washed=50, others=50),  # 2 · 0.8 · 0.6 / 1.4
        Trial([2], 100.0, left=0.5, kept=0.9, washed=50, others=50),  # 2 · 0.5 · 0.9 / 1.4
    ]
    assert best(trials) is trials[1]
    assert trials[1].score == pytest.approx(0.96 / 1.4)
    assert Trial.error(0.2, 50) == pytest.approx((0.16 / 49) ** 0.5)
    effects = [Effect(0.1, 0.0), Effect(0.5, 0.1), Effect(0.2, 0.1)]
    tracing = Tracing(Interchange(40, effects, [0.0] * 3, [0.0] * 3), 60, effects, effects, effects)
    plot_tracing(tracing, trials, tmp_path / "locate.png")
    assert (tmp_path / "locate.png").stat().st_size > 10_000
