"""Batches, what is read only once, and rows that leave early change how long a result takes, not the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import model as textbook_model
from reference import stages as textbook
from small import ARCHITECTURES, all_targets, random_model, rows_of
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from law.base.cache import Cache
from law.base.errors import LawError
from law.decoders.batching import Batches
from law.decoders.prompts import end_of_text_target
from law.decoders.structure import Decoder
from law.editing import target_rows as shift
from law.editing import target_values as targets_module
from law.editing.target_rows import Batch
from law.editing.target_values import TargetSettings, target_values
from law.facts.fact import Fact

Tokenizer = PreTrainedTokenizerFast

FACTS = [
    Fact("0", "Kladai Breastom", "The mother tongue of {} is", "Greek", "P103"),
    Fact("1", "Anna", "{} plays the", "lute", "P1303"),
    Fact("2", "Zoë Lind", "The mother tongue of {} is", "Dutch", "P103"),
    Fact("3", "Ben 2 Oak", "We visit {}", "Lima", "P551"),
    Fact("4", "Kladai Breastom", "{} plays the", "harp", "P1303"),
    Fact("5", "Ed", "{} now competes in the sport of", "golf", "P641"),
]
CONTEXTS = ["The mill is old. {}", "Therefore I went. {}"]


# --- batches ------------------------------------------------------------------------------------


class FakeDevice:
    """A clock and a work whose time is told, and a memory that ends at some weight."""

    def __init__(
        self, seconds: Callable[[int], float], memory: int = 10**9, problem: str = "no room"
    ) -> None:
        self.now, self.seconds, self.memory, self.problem = 0.0, seconds, memory, problem
        self.sizes: list[int] = []

    def work(self, batch: list[int]) -> int:
        self.sizes.append(len(batch))
        if len(batch) > self.memory:
            raise torch.OutOfMemoryError(self.problem)
        self.now += self.seconds(len(batch))
        return sum(batch)

    def run(self, batches: Batches, count: int) -> list[int]:
        done = list(batches.run(list(range(count)), [1] * count, self.work))
        assert [i for batch, _ in done for i in batch] == list(range(count))
        assert [result for _, result in done] == [sum(batch) for batch, _ in done]
        return [len(batch) for batch, _ in done]


def test_batches_grow_while_that_pays() -> None:
    """A second a batch and 1/8 second an item: 2 → 1.6 a second, 4 → 2.67, 8 → 4, 16 → 5.3, 32 → 6.4, 64 → 7.1,
    128 → 7.5, which is 6 % more: 64 it stays.
    """
    device = FakeDevice(lambda n: 1 + n / 8)
    sizes = device.run(Batches(None, first=2, largest=1024, clock=lambda: device.now), 2000)
    assert sizes[:9] == [2, 4, 8, 16, 32, 64, 128, 64, 64] and set(sizes[7:-1]) == {64}


def test_batches_end_at_the_largest() -> None:
    device = FakeDevice(lambda n: 1.0)
    assert device.run(Batches(None, first=2, largest=10, clock=lambda: device.now), 50)[:5] == [
        2,
        4,
        8,
        10,
        10,
    ]


def test_a_given_size_is_kept() -> None:
    device = FakeDevice(lambda n: 1.0)
    assert device.run(Batches(3, first=2, largest=10, clock=lambda: device.now), 8) == [3, 3, 2]


@pytest.mark.parametrize("size", [None, 16])
def test_batches_halve_when_memory_is_out_and_lose_nothing(size: int | None) -> None:
    device = FakeDevice(lambda n: 1.0, memory=5)
    done = device.run(Batches(size, first=2, largest=64, clock=lambda: device.now), 14)
    assert done == ([2, 4, 4, 4] if size is None else [3, 3, 3, 3, 2])
    assert device.sizes == ([2, 4, 8, 4, 4] if size is None else [14, 7, 3, 3, 3, 3, 2])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no room", "no room"),
        ("", "OutOfMemoryError"),
        (" \n", "OutOfMemoryError"),
        ("\nNo room.\nNone.", "No room"),
        ("a" * 301, "a" * 300),
    ],
)
def test_memory_too_small_for_one_item(text: str, told: str) -> None:
    device = FakeDevice(lambda n: 1.0, memory=0, problem=text)
    with pytest.raises(LawError, match=rf"Memory ran out on a single row \({told}\); expected room"):
        device.run(Batches(4, first=1, largest=4), 3)
    assert device.sizes == [3, 1]


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 64))
def test_padded_batches_fit_and_take_as_many_as_do(weights: list[int], size: int) -> None:
    batches = Batches(size, first=1, largest=1)
    done = [batch for batch, _ in batches.run(range(len(weights)), weights, len)]
    assert [i for batch in done for i in batch] == list(range(len(weights)))
    for batch in done:
        assert len(batch) == 1 or max(weights[i] for i in batch) * len(batch) <= size
    for batch, after in pairwise(done):
        one_more = [*batch, after[0]]
        assert max(weights[i] for i in one_more) * len(one_more) > size


# --- z* -----------------------------------------------------------------------------------------


def a_loss_that_some_reach(decoder: Decoder, tokenizer: Tokenizer, settings: TargetSettings) -> float:
    """Below it are some facts at the fourth step, and others never."""
    _, trace = all_targets(decoder, tokenizer, FACTS, CONTEXTS, 1, replace(settings, stop_below=0.0))
    return trace.loss[3].quantile(0.3).item()


# h is short in a random model: steps and decay are made to suit
SLOW = TargetSettings(steps=6, learning_rate=0.01, weight_decay=1e-3, clamp=4.0, batch_size=6)


@pytest.mark.parametrize("batch_size", [None, 1, 6])
def test_target_values_are_the_textbooks(
    tiny_model: PreTrainedModel, tiny_tokenizer: Tokenizer, batch_size: int | None
) -> None:
    """One fact at a time, whole forward passes of all rows, and a stop for each fact by itself."""
    decoder = Decoder(tiny_model)
    stop = a_loss_that_some_reach(decoder, tiny_tokenizer, SLOW)
    settings = replace(SLOW, stop_below=stop, batch_size=batch_size)
    found, trace = all_targets(decoder, tiny_tokenizer, FACTS, CONTEXTS, 1, settings)
    steps_taken = set()
    for i, fact in enumerate(FACTS):
        z, expected = textbook.target_value(
            tiny_model,
            tiny_tokenizer,
            textbook_model.GPTJ,
            1,
            textbook_model.Fact(i, fact.template, fact.subject, fact.object),
            CONTEXTS,
            steps=6,
            learning_rate=0.01,
            weight_decay=1e-3,
            clamp=4.0,
            stop_below=stop,
        )
        torch.testing.assert_close(found[:, i], z, rtol=1e-4, atol=1e-4)
        for name, column in zip(("loss", "nll", "kl", "decay"), expected.T, strict=False):
            # a fact that has stopped keeps its loss
            kept = torch.cat([column, column[-1:].expand(6 - len(column))])
            torch.testing.assert_close(getattr(trace, name)[:, i], kept, rtol=1e-4, atol=1e-4)
        steps_taken.add(len(expected))
    assert len(steps_taken) > 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reading_the_prefix_once_changes_nothing(
    name: str, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and gradients as with rows run from their first token on, windows shorter than a prompt included."""
    decoder = Decoder(random_model(name, vocab_size=len(tiny_tokenizer)).requires_grad_(False))
    answer = end_of_text_target(tiny_tokenizer)
    target = torch.tensor([answer] * len(FACTS))
    asked = [targets_module._ask(decoder, tiny_tokenizer, fact, CONTEXTS, answer) for fact in FACTS]
    delta = torch.randn(len(FACTS), 32, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def measured() -> list[torch.Tensor]:
        whole = Batch.read(decoder, tiny_tokenizer, asked, 0)
        some = whole.facts(torch.tensor([1, 4]))
        found = [*whole.predictions(delta, target), *some.predictions(delta[[1, 4]], target[:2])]
        (gradient,) = torch.autograd.grad(sum(part.sum() for part in found), delta)
        return [whole.start, gradient, *found]

    found = measured()
    monkeypatch.setattr(shift, "can_read_on", lambda _: False)
    for ours, expected in zip(found, measured(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert found[1].norm() > 1  # the gradient is not merely zero twice


def test_blocks_below_run_once_and_blocks_above_only_what_moves(
    tiny_model: PreTrainedModel, tiny_tokenizer: Tokenizer
) -> None:
    below, above = rows_of(tiny_model.transformer.h[1]), rows_of(tiny_model.transformer.h[2])
    heads: list[int] = []
    tiny_model.lm_head.register_forward_hook(lambda _, inputs, __: heads.append(inputs[0].shape[0]))
    settings = TargetSettings(steps=5, stop_below=6.35, batch_size=6)
    facts = [FACTS[0], FACTS[2]]  # three tokens from the subject's last on, with the target's space
    target_values(Decoder(tiny_model), tiny_tokenizer, facts, CONTEXTS, 1, settings)
    rows = 2 * (1 + len(CONTEXTS) + 1)
    (prefix_rows, _), *rest = below
    assert prefix_rows == rows and rest == [(rows, 3)]
    assert above[0] == below[0] and above[1] == (rows, 3)
    assert {tokens for _, tokens in above[1:]} == {3}
    # the head runs at two tokens of each prompt and one of "{} is a"
    assert heads[0] == 2 * (2 * (1 + len(CONTEXTS)) + 1)


def test_facts_that_are_done_leave_the_batch(tiny_model: PreTrainedModel, tiny_tokenizer: Tokenizer) -> None:
    decoder = Decoder(tiny_model)
    settings = replace(SLOW, stop_below=a_loss_that_some_reach(decoder, tiny_tokenizer, SLOW))
    above = rows_of(tiny_model.transformer.h[2])
    _, trace = all_targets(decoder, tiny_tokenizer, FACTS, CONTEXTS, 1, settings)
    facts_a_step = [rows // 4 for rows, _ in above[1:]]
    stops = [
        next((s for s, loss in enumerate(each) if loss < settings.stop_below), 5) for each in trace.loss.T
    ]
    assert facts_a_step == [sum(stop >= step for stop in stops) for step in range(6)]
    assert facts_a_step[0] == 6 and 0 < facts_a_step[-1] < 6


def test_out_of_memory_halves_the_batch_of_facts(
    tiny_model: PreTrainedModel, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(tiny_model)
    expected, _ = all_targets(decoder, tiny_tokenizer, FACTS, CONTEXTS, 1, TargetSettings(steps=2))
    sizes = count_facts(monkeypatch, fail_above=2)
    found, _ = all_targets(decoder, tiny_tokenizer, FACTS, CONTEXTS, 1, TargetSettings(steps=2, batch_size=6))
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def count_facts(monkeypatch: pytest.MonkeyPatch, fail_above: int = 10**9) -> list[int]:
    """How many facts each batch of z* takes."""
    optimise, sizes = targets_module._optimise, []

    def counted(decoder: Decoder, tokenizer: Tokenizer, asked: list[Any], *rest: Any) -> Any:
        sizes.append(len(asked))
        if len(asked) > fail_above:
            raise torch.OutOfMemoryError("no room")
        return optimise(decoder, tokenizer, asked, *rest)

    monkeypatch.setattr(targets_module, "_optimise", counted)
    return sizes


def test_killed_target_values_go_on_after_the_last_shard(
    tiny_model: PreTrainedModel, tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, settings = Decoder(tiny_model), TargetSettings(steps=2, shard=2, batch_size=4)
    expected, expected_trace = all_targets(decoder, tiny_tokenizer, FACTS, CONTEXTS, 1, settings)
    optimise, sizes = targets_module._optimise, count_facts(monkeypatch)
    counted = targets_module._optimise

    def killed(*args: Any) -> Any:
        if sum(sizes) == 2:
            raise KeyboardInterrupt
        return counted(*args)

    cache = Cache(tmp_path)
    monkeypatch.setattr(targets_module, "_optimise", killed)
    with pytest.raises(KeyboardInterrupt):
        target_values(decoder, tiny_tokenizer, FACTS, CONTEXTS, 1, settings, cache)
    assert len(list(tmp_path.glob("*/*"))) == 1
    monkeypatch.setattr(targets_module, "_optimise", optimise)
    sizes = count_facts(monkeypatch)
    found, trace = all_targets(decoder, tiny_tokenizer, FACTS, CONTEXTS, 1, settings, cache)
    assert sizes == [2, 2]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(trace.loss, expected_trace.loss)
    # the values are read from the files, any of them, by their indices
    targets = target_values(decoder, tiny_tokenizer, FACTS, CONTEXTS, 1, settings, cache)
    torch.testing.assert_close(targets.of([1, 2, 3, 5]), expected[:, [1, 2, 3, 5]])
    # a fact's values are kept by themselves: other facts beside it, in another order, change nothing
    mixed = target_values(decoder, tiny_tokenizer, [FACTS[4], FACTS[1]], CONTEXTS, 1, settings, cache)
    torch.testing.assert_close(mixed.of([0, 1]), expected[:, [4, 1]])
    # other settings are other values; the size of a batch is not
    target_values(decoder, tiny_tokenizer, FACTS, CONTEXTS, 1, TargetSettings(steps=2, shard=2), cache)
    assert sizes == [2, 2]
    target_values(decoder, tiny_tokenizer, FACTS, CONTEXTS[:1], 1, settings, cache)
    assert sizes == [2] * 5 and len(list(tmp_path.glob("*/*"))) == 6
    for file in tmp_path.glob("*/*"):
        file.unlink()
    with pytest.raises(LawError, match="has gone or was damaged while this run needed it"):
        targets.of([0])
