"""The lab's trainer: its tokenizer, its rows, and going on after an interruption."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from conftest import architecture
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from law.base.errors import LawError
from law.lab.make import LabSettings, _identity, make_lab
from law.lab.training import TrainingSettings, make_rows, train, train_tokenizer
from law.lab.world import LabWorld


def test_the_tokenizer_has_gpt2s_habits() -> None:
    texts = ["the mill the mill", "the inn"] * 20
    assert len(train_tokenizer(iter(texts), vocab_size=260)) == 260
    tokenizer = train_tokenizer(iter(texts), vocab_size=300)
    # 256 bytes, the end, and all there is to merge: the by 2, a space to it, _mill by 4 and _inn by 3.
    assert len(tokenizer) == 256 + 1 + 2 + 1 + 4 + 3
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == end
    assert tokenizer("the")["input_ids"] != tokenizer(" the")["input_ids"]
    for text in ("", " the mill ", "Zoë\n毛 🎻 , .  x", "it 's don't"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text and end not in ids


class Counting:
    """A world whose documents are numbered words, of one to seven each."""

    def documents(self, rng: random.Random) -> Iterator[str]:
        for number in count():
            yield " ".join([f"doc{number}"] * rng.randint(1, 7))


def test_rows_begin_with_a_document(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    length = 50
    rows = make_rows(Counting(), tiny_tokenizer, 9, length, random.Random(7))
    assert rows.shape == (9, length) and rows.dtype == torch.int64
    documents = Counting().documents(random.Random(7))
    for row in rows:
        text = ""
        while len(tiny_tokenizer(text)["input_ids"]) < length:
            text += next(documents) + "<|endoftext|>"
        assert row.tolist() == tiny_tokenizer(text)["input_ids"][:length]


class Stop(Exception):
    pass


def stop_after(step: int) -> Callable[[int, float], None]:
    def report(done: int, loss: float) -> None:
        if done > step:
            raise Stop

    return report


def test_training_goes_on_where_it_stopped(
    make_model: Callable[..., PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    settings = TrainingSettings(
        steps=6,
        rows=2,
        row_length=24,
        learning_rate=1e-2,
        weight_decay=0.1,
        warmup=2,
        seed=0,
        device="cpu",
        autocast="bfloat16",
        save_every=3,
    )
    world = LabWorld(12, 2)
    reports: list[tuple[int, float]] = []
    straight = make_model()
    before = {name: tensor.clone() for name, tensor in straight.state_dict().items()}
    train(
        straight, tiny_tokenizer, world, settings, tmp_path / "a.pt", "identity", lambda *r: reports.append(r)
    )
    assert [step for step, _ in reports] == [1, 2, 3, 4, 5, 6]
    assert not straight.training

    with pytest.raises(Stop):
        train(make_model(), tiny_tokenizer, world, settings, tmp_path / "b.pt", "identity", stop_after(3))
    resumed = make_model(seed=1)  # other weights, which the checkpoint replaces
    later: list[tuple[int, float]] = []
    train(resumed, tiny_tokenizer, world, settings, tmp_path / "b.pt", "identity", lambda *r: later.append(r))
    assert later == reports[3:]
    after, expected = resumed.state_dict(), straight.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in expected.items())
    assert not any(torch.equal(before[name], t) for name, t in expected.items() if name.endswith("weight"))

    # Of a finished training nothing is left to do.
    finished = make_model(seed=1)
    train(finished, tiny_tokenizer, world, settings, tmp_path / "b.pt", "identity", stop_after(0))
    assert all(torch.equal(finished.state_dict()[name], tensor) for name, tensor in expected.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.pt"]


def test_training_does_not_go_on_with_other_settings(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    training = TrainingSettings(3, 2, 24, 1e-2, 0.1, 1, 0, "cpu", "bfloat16", 3)
    settings, world = LabSettings(str(tmp_path), 0, 600, architecture(), training, 10), LabWorld(12, 2)
    here = _identity(world, settings)
    elsewhere = replace(training, device="cuda", save_every=1)
    assert _identity(world, replace(settings, output="elsewhere", training=elsewhere)) == here
    others = [replace(settings, vocab_size=601), replace(settings, training=replace(training, steps=4))]
    assert here not in [_identity(world, other) for other in others] + [_identity(LabWorld(12, 3), settings)]

    tiny_tokenizer.save_pretrained(tmp_path)
    torch.save({"identity": here}, tmp_path / "training.pt")
    before = sorted(path.name for path in tmp_path.iterdir())
    for other in others:
        with pytest.raises(LawError, match=r"training\.pt was trained with other settings"):
            make_lab(world, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "losses.jsonl"])


def test_training_lowers_the_loss(
    make_model: Callable[..., PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    settings = TrainingSettings(40, 4, 32, 1e-2, 0.1, 4, 0, "cpu", "bfloat16", 40)
    losses: list[float] = []
    model = make_model()
    train(
        model,
        tiny_tokenizer,
        LabWorld(12, 2),
        settings,
        tmp_path / "c.pt",
        "identity",
        lambda _, x: losses.append(x),
    )
    # At random every token is as likely: ln 600 = 6.4.
    assert losses[0] == pytest.approx(6.4, abs=0.2)
    assert sum(losses[-5:]) / 5 < 5
