"""What the runs of a sweep have in common: results that are computed once, and the cores of the machine."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TrainedLab
from transformers import AutoModelForCausalLM

from law.base.errors import LawError
from law.decoders.loading import ModelSettings
from law.decoders.saving import Save
from law.editing import second_moments, target_values
from law.editing.second_moments import MomentSettings
from law.editing.target_values import TargetSettings
from law.evaluation import scores
from law.evaluation.fluency import FluencySettings
from law.evaluation.scores import EvaluationSettings
from law.facts.counterfact import CounterFact
from law.methods.law import LAW
from law.methods.memit import MEMIT
from law.methods.none import Unwashed
from law.methods.protocol import Method
from law.runs.identity import Identity
from law.runs.sequence import Job, wash_and_score
from law.runs.tracker import NoTracker


def job(folder: Path, model: Path, source: CounterFact, method: Method, cache: Path | None = None) -> Job:
    return Job(
        model=ModelSettings(str(model), device="cpu"),
        source=source,
        method=method,
        evaluation=EvaluationSettings(
            fluency=FluencySettings(prompts=0), cache=None if cache is None else str(cache)
        ),
        tracker=NoTracker(),
        save=Save.nothing,
        folder=folder,
        identity=Identity("test", {}, {}, source.seed),
    )


# --- what is computed once ----------------------------------------------------------------------


class Computed:
    """Counts what the runs compute and do not find in the cache."""

    def __init__(self, patch: pytest.MonkeyPatch, unwashed: torch.Tensor) -> None:
        self.targets = Counter[tuple[str, tuple[str, ...]]]()  # a fact's prompt, and the contexts
        self.moments: list[list[int]] = []  # the layers of each pass over the text
        self.answers = Counter[
            tuple[str, tuple[int, ...]]
        ]()  # the unwashed model's prompts, and what is banned

        def look(module: Any, name: str, note: Callable[..., object]) -> None:
            real = getattr(module, name)
            patch.setattr(
                module, name, lambda *asked, **named: (note(*asked, **named), real(*asked, **named))[1]
            )

        def answered(model: Any, _: Any, prompts: list[str], *__: Any, banned: Sequence[int]) -> None:
            if torch.equal(model.transformer.h[0].mlp.fc_out.weight, unwashed):
                self.answers.update((prompt, tuple(banned)) for prompt in prompts)

        look(
            target_values,
            "_ask",
            lambda _, __, fact, seen, *___: self.targets.update([(fact.prompt, tuple(seen))]),
        )
        look(second_moments, "collect_moments", lambda _, __, ___, layers, *____: self.moments.append(layers))
        look(scores, "greedy_answers", answered)


def test_a_sweep_computes_each_target_value_moment_and_answer_once(
    trained_lab: TrainedLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of facts, seeds, λ and methods, as in ``experiment=washed_facts``. The numbers stand in docs/performance.md."""
    model = AutoModelForCausalLM.from_pretrained(trained_lab.model_path, dtype=torch.float32)
    computed = Computed(monkeypatch, model.transformer.h[0].mlp.fc_out.weight)
    cache = tmp_path / "cache"
    prompts: set[str] = set()

    def wash(count: int, seed: int, lam: float, ascend: bool = False) -> set[str]:
        """One run; the prompts of the facts that it washed."""
        source = CounterFact(str(trained_lab.facts_path), wash=count, keep=4, seed=seed)
        memit = MEMIT(
            [0, 1],
            lam,
            MomentSettings(str(trained_lab.text_path), documents=50),
            TargetSettings(steps=2, batch_size=8),
            cache=str(cache),
        )
        method = LAW(memit, 1e-4, iterations=2) if ascend else memit
        folder = tmp_path / f"{count}-{seed}-{lam}-{ascend}"
        metrics = wash_and_score(job(folder, trained_lab.model_path, source, method, cache))
        split = source.load()
        prompts.update(fact.prompt for fact in (*split.wash, *split.keep))
        washed = {fact.prompt for fact in split.wash}
        unknown = (folder / "unknown_facts.jsonl").read_text()
        washed -= {prompt for prompt in washed if f'"{prompt}"' in unknown}
        assert len(washed) == metrics["facts/known"]
        return washed

    used = 0
    washed: dict[int, set[str]] = {0: set(), 1: set()}
    for seed in washed:
        for count, lam in ((4, 1.0), (8, 1.0), (8, 10.0)):
            found = wash(count, seed, lam)
            washed[seed] |= found
            used += len(found)
    assert {*computed.targets.values()} == {1}
    assert len({seen for _, seen in computed.targets}) == 1  # the contexts do not depend on the seed
    shared = washed[0] & washed[1]
    assert shared  # facts that both seeds draw
    assert {prompt for prompt, _ in computed.targets} == washed[0] | washed[1]
    assert computed.moments == [[0, 1]]
    assert {*computed.answers.values()} == {1} and {prompt for prompt, _ in computed.answers} >= prompts
    assert (used, len(computed.targets)) == (40, 10)

    before = len(computed.targets), len(computed.answers)
    wash(8, 0, 1.0, ascend=True)  # LAW begins with the same z*
    assert (len(computed.targets), len(computed.answers)) == before
    assert computed.moments == [[0, 1]]


# --- cores --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "threads", "load", "cpu_s", "others"),
    [
        (2, 2, 2.0, 6.0, "1.9"),  # beside another run
        (2, 2, 2.0, 600.0, None),  # all of the load is of this program's own last run
        (2, 2, 4.0, 600.0, "2.0"),  # half of it is
        (2, 1, 9.0, 6.0, None),  # there are no fewer threads than one
        (16, 16, 7.9, 0.0, None),
        (16, 16, 8.1, 0.0, "8.1"),
        (2, 2, None, 0.0, None),  # the system does not tell
    ],
)
def test_a_run_warns_of_threads_that_share_their_cores_with_other_programs(
    cores: int,
    threads: int,
    load: float | None,
    cpu_s: float,
    others: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def average() -> tuple[float, float, float]:
        if load is None:
            raise OSError
        return load, 0.0, 0.0

    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "getloadavg", average)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(time, "process_time", lambda: cpu_s)
    with pytest.raises(LawError, match="facts file"):  # after its start, this run fails
        wash_and_score(job(tmp_path / "run", tmp_path, CounterFact(str(tmp_path / "none.json")), Unwashed()))
    told = f"uses {threads} threads, and other programs keep about {others} of the {cores} cores busy"
    warned = [message for message in caplog.messages if "OMP_NUM_THREADS=1" in message]
    assert [told in message for message in warned] == ([] if others is None else [True])
