"""Two processes over gloo do what one does."""

from __future__ import annotations

import os
import socket
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import dispatch_model
from conftest import TrainedLab
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from law.base.cache import Cache
from law.base.errors import LawError
from law.base.files import write_json
from law.base.processes import add_up, device_number, failing_together, gathered, mine, processes, rank, world
from law.decoders.greedy_decoding import greedy_answers
from law.decoders.loading import ModelSettings, load_model
from law.decoders.structure import Decoder
from law.editing.second_moments import MomentSettings
from law.editing.target_values import TargetSettings
from law.facts.counterfact import CounterFact
from law.methods.law import LAW
from law.methods.memit import MEMIT

LAYERS = [0, 1]


def wash(lab: TrainedLab, cache: Path, model: PreTrainedModel | None = None) -> dict[str, Any]:
    """LAW on six facts, and the answers afterwards."""
    torch.set_num_threads(1)
    model = model or AutoModelForCausalLM.from_pretrained(lab.model_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(lab.model_path)
    facts = list(CounterFact(str(lab.facts_path), wash=6).load().wash)
    targets = TargetSettings(clamp=4.0, batch_size=4, shard=4)
    moments = MomentSettings(str(lab.text_path), batch_size=256)
    start = MEMIT(LAYERS, 1.0, moments, targets, ["He said. {}"], batch_size=8, cache=str(cache))
    rows: list[dict] = []
    LAW(start, learning_rate=1e-4, iterations=20).wash(model, tokenizer, facts, rows.append)
    return {
        "weights": {layer: Decoder(model).weight(layer).detach().clone() for layer in LAYERS},
        "left": [row["facts_left"] for row in rows if "facts_left" in row],
        "answers": greedy_answers(model, tokenizer, [fact.prompt for fact in facts], 8),
    }


def one_of_two(number: int, port: int, lab: TrainedLab, folder: Path) -> None:
    os.environ |= {
        "RANK": str(number),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with processes():
        assert (rank(), world()) == (number, 2)
        assert gathered(number) == [0, 1]
        assert list(mine(range(5))) == [[0, 2, 4], [1, 3]][number]
        total = torch.tensor([1.0 + number])
        add_up(total)
        assert total.item() == 3
        cache = Cache(folder / f"cache_{number}")
        if number == 0:  # the other one has not, and can't do its part alone
            write_json(cast(Path, cache.path("numbers", {}, "json")), [7])
        assert cache.json("numbers", {}, lambda: gathered(number)) == [0, 1]
        assert cache.json("numbers", {}, lambda: gathered("not again")) == [0, 1]
        with pytest.raises(SystemExit, match="error: no"), failing_together():
            raise LawError("no")
        torch.save(wash(lab, folder / "cache"), folder / f"{number}.pt")


def test_two_processes_wash_as_one_does(trained_lab: TrainedLab, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(one_of_two, (port, trained_lab, tmp_path), nprocs=2, start_method="forkserver")
    alone = wash(trained_lab, tmp_path / "alone")
    both = [torch.load(tmp_path / f"{number}.pt") for number in (0, 1)]
    for layer in LAYERS:
        assert torch.equal(both[0]["weights"][layer], both[1]["weights"][layer])
        error = (both[0]["weights"][layer] - alone["weights"][layer]).norm() / alone["weights"][layer].norm()
        assert error < 1e-4
    for found in both:
        assert found["left"] == alone["left"]
        assert found["answers"] == alone["answers"]


def test_blocks_spread_over_devices_are_washed_alike(trained_lab: TrainedLab, tmp_path: Path) -> None:
    """accelerate's hooks, which move a block's inputs, on every block; here all of them move to the CPU."""
    model = AutoModelForCausalLM.from_pretrained(trained_lab.model_path, dtype=torch.float32).eval()
    names = ["transformer.wte", "transformer.ln_f", "lm_head", *(f"transformer.h.{i}" for i in range(3))]
    spread = dispatch_model(model, dict.fromkeys(names, "cpu"), main_device="cpu", force_hooks=True)
    assert all(hasattr(block, "_hf_hook") for block in Decoder(spread).blocks)
    found, alone = wash(trained_lab, tmp_path, spread), wash(trained_lab, tmp_path)
    for layer in LAYERS:
        torch.testing.assert_close(found["weights"][layer], alone["weights"][layer])
    assert found["answers"] == alone["answers"]


def test_weights_that_fit_on_no_device_are_refused(trained_lab: TrainedLab) -> None:
    with pytest.raises(LawError, match="does not fit on the devices"):
        load_model(ModelSettings(str(trained_lab.model_path), device_map="meta"))


def test_alone_there_is_nothing_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes():
        assert (rank(), world(), gathered("a"), list(mine([1, 2]))) == (0, 1, ["a"], [1, 2])
        with pytest.raises(LawError, match="no"), failing_together():
            raise LawError("no")


def place(pipe: Connection) -> None:
    """Says which of 8 accelerators a process takes, and keeps it until it is killed."""
    pipe.send([device_number(8), device_number(8), device_number(2)])
    pipe.recv()


def test_processes_of_one_machine_take_an_accelerator_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third one of two shares the first. What a killed process had is free."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    context = mp.get_context("fork")
    running: list[tuple[Any, Connection]] = []

    def another() -> list[int]:
        here, there = context.Pipe()
        process = context.Process(target=place, args=(there,))
        process.start()
        running.append((process, here))
        numbers: list[int] = here.recv()
        return numbers

    try:
        assert [another() for _ in range(3)] == [[0, 0, 0], [1, 1, 1], [2, 2, 0]]
        running[1][0].kill()
        running[1][0].join()
        assert [another(), another()] == [[1, 1, 1], [3, 3, 1]]
    finally:
        for process, _ in running:
            process.kill()
            process.join()


def test_a_process_of_torchrun_takes_the_accelerator_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank without an accelerator shares none: with several processes of one run on one, none of them could go on."""
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("law.base.processes.world", lambda: 4)
    assert device_number(8) == device_number(2) == 3
