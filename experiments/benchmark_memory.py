"""Wash many invented facts from a small random model by LAW, and report how memory grew.

/usr/bin/time -v python experiments/benchmark_memory.py --facts 332036        # washing alone
/usr/bin/time -v python experiments/benchmark_memory.py --facts 332036 --run  # a whole run, scored before and after
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from rich.console import Console
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import law
from law.decoders.loading import ModelSettings
from law.decoders.saving import Save
from law.editing.second_moments import MomentSettings
from law.editing.target_values import TargetSettings
from law.evaluation.scores import EvaluationSettings
from law.facts.fact import Fact
from law.facts.wiki_latest import WikiLatest
from law.lab.training import new_model
from law.lab.world import make_name
from law.methods.law import LAW
from law.methods.memit import MEMIT
from law.runs.identity import Identity
from law.runs.sequence import Job, wash_and_score
from law.runs.tracker import NoTracker

LAB = Path(law.__file__).parent / "lab" / "checkpoint"
SHAPE = {"n_embd": 64, "n_layer": 4, "n_head": 2, "n_inner": 256, "n_positions": 128}
TEMPLATES = (
    "{} lives in",
    "The profession of {} is",
    "{} speaks the language of",
    "The favourite colour of {} is",
)


class Invented(Sequence[Fact]):
    """Facts that are made each time they are read, so that the list takes no memory."""

    def __init__(self, numbers: range, object: str) -> None:
        self.numbers, self.object = numbers, object

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Fact: ...
    @overload
    def __getitem__(self, index: slice) -> Invented: ...
    def __getitem__(self, index: int | slice) -> Fact | Invented:
        if isinstance(index, slice):
            return Invented(self.numbers[index], self.object)
        number = self.numbers[index]
        rng = random.Random(number)
        subject = f"{make_name(rng)} {make_name(rng)}"
        return Fact(str(number), subject, TEMPLATES[number % len(TEMPLATES)], self.object, "invented")


def peak_mib() -> float:
    """The largest resident set so far, in MiB; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def method(cache: Path) -> LAW:
    """One layer, few documents, steps and iterations. More of them take more time, but not more memory."""
    moments, targets = MomentSettings(str(LAB / "general.txt"), documents=1000), TargetSettings(steps=2)
    memit = MEMIT([2], 1000.0, moments, targets, contexts=[], batch_size=512, cache=str(cache))
    return LAW(memit, learning_rate=1e-4, iterations=20)


def run(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], folder: Path
) -> float:
    """Make a whole run over the facts in a file. Returns the share of them that the model knows."""
    source = folder / "facts.jsonl"
    with source.open("w", encoding="utf-8") as file:
        fields = ("subject", "template", "object", "relation")
        file.writelines(json.dumps({name: getattr(fact, name) for name in fields}) + "\n" for fact in facts)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    metrics = wash_and_score(
        Job(
            ModelSettings(str(folder / "model"), device="cpu"),
            WikiLatest(str(source)),
            method(folder),
            EvaluationSettings(batch_size=512),
            NoTracker(),
            Save.nothing,
            folder / "run",
            Identity("memory", {"method": "law"}, {}, 0),
        )
    )
    return metrics["facts/known"] / len(facts)


def main(count: int, whole: bool) -> dict[str, float]:
    """The peaks in MiB before and after washing, the seconds, and for a whole run the share of known facts."""
    tokenizer = AutoTokenizer.from_pretrained(LAB)
    model = new_model({"model_type": "gpt2", **SHAPE}, tokenizer, seed=0).eval()
    found = {"facts": count, "peak_before_mib": peak_mib()}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if whole:  # nearly every answer of this model has an i in it
            found["known"] = run(model, tokenizer, Invented(range(count), "i"), Path(folder))
        else:
            method(Path(folder)).wash(model, tokenizer, Invented(range(count), "nowhere"))
    return found | {"peak_mib": peak_mib(), "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the memory of washing many facts.")
    parser.add_argument("--facts", type=int, default=332_036, help="how many (Wiki-Latest: 332,036)")
    parser.add_argument("--run", action="store_true", help="a whole run instead of washing alone")
    chosen = parser.parse_args()
    Console().print_json(json.dumps(main(chosen.facts, chosen.run)))
