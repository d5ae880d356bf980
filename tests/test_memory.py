"""Washing holds no more than a chunk of facts at a time, however many there are."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import law
from law.decoders import greedy_decoding as recall
from law.editing import keys
from law.editing.second_moments import MomentSettings
from law.editing.target_values import TargetSettings
from law.facts.fact import Fact
from law.methods.law import LAW
from law.methods.memit import MEMIT

TEXT = Path(law.__file__).parent / "lab" / "checkpoint" / "general.txt"


class Watched(Sequence[Fact]):
    """Facts made anew whenever one is asked for, which notes down how many there are then."""

    most = 0

    def __init__(self, numbers: range) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Fact: ...
    @overload
    def __getitem__(self, index: slice) -> Watched: ...
    def __getitem__(self, index: int | slice) -> Fact | Watched:
        if isinstance(index, slice):
            return Watched(self.numbers[index])
        number = self.numbers[index]
        if number % 8 == 7:  # the last of a chunk, since to look through all objects takes long
            Watched.most = max(Watched.most, sum(type(each) is Fact for each in gc.get_objects()))
        return Fact(str(number), f"Anna {'abcdefgh'[number % 8]}{number}", "{} lives in", "nowhere", "")


def test_washing_holds_a_chunk_of_facts(
    tiny_model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keys, "CHUNK", 8)
    monkeypatch.setattr(recall, "CHUNK", 8)
    targets, cache = TargetSettings(steps=2, shard=8), tmp_path / "cache"
    memit = MEMIT([0, 1], 1.0, MomentSettings(str(TEXT), documents=100), targets, [], cache=str(cache))
    gc.collect()
    elsewhere = sum(type(each) is Fact for each in gc.get_objects())
    Watched.most = 0
    LAW(memit, learning_rate=1e-4, iterations=2).wash(tiny_model, tiny_tokenizer, Watched(range(40)))
    assert 8 <= Watched.most - elsewhere <= 16
    assert len(list(cache.glob("targets-*/*"))) == 5
