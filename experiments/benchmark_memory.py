"""Wash many invented facts from a small random model by LAW, and tell how memory grew.

/usr/bin/time -v python experiments/benchmark_memory.py --facts 332036
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
from transformers import AutoTokenizer

import law
from law.facts import Fact
from law.lab.training import new_model
from law.lab.world import make_name
from law.methods.law import LAW
from law.methods.memit import MEMIT
from law.moments import MomentSettings
from law.targets import TargetSettings

LAB = Path(law.__file__).parent / "lab" / "checkpoint"
SHAPE = {"n_embd": 64, "n_layer": 4, "n_head": 2, "n_inner": 256, "n_positions": 128}
TEMPLATES = (
    "{} lives in",
    "The profession of {} is",
    "{} speaks the language of",
    "The favourite colour of {} is",
)


class Invented(Sequence[Fact]):
    """Facts made anew whenever they are asked for, so that what is measured is washing and not the list."""

    def __init__(self, numbers: range) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Fact: ...
    @overload
    def __getitem__(self, index: slice) -> Invented: ...
    def __getitem__(self, index: int | slice) -> Fact | Invented:
        if isinstance(index, slice):
            return Invented(self.numbers[index])
        number = self.numbers[index]
        rng = random.Random(number)
        subject = f"{make_name(rng)} {make_name(rng)}"
        return Fact(str(number), subject, TEMPLATES[number % len(TEMPLATES)], "nowhere", "invented")


def peak_mb() -> float:
    """The largest resident set so far, in MiB; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main(count: int) -> dict[str, float]:
    """Peaks in MiB before washing and after it; and seconds of washing."""
    tokenizer = AutoTokenizer.from_pretrained(LAB)
    model = new_model({"model_type": "gpt2", **SHAPE}, tokenizer, seed=0).eval()
    before = peak_mb()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        # one layer, few documents, steps and tokens to say "e": they cost time, and memory does not hang on them
        moments, targets = MomentSettings(str(LAB / "general.txt"), documents=1000), TargetSettings(steps=2)
        memit = MEMIT([2], 1000.0, moments, targets, contexts=[], batch_size=512, cache=cache)
        LAW(memit, learning_rate=1e-4, iterations=20).wash(model, tokenizer, Invented(range(count)))
    return {
        "facts": count,
        "peak_before_mib": before,
        "peak_washed_mib": peak_mb(),
        "seconds": time.perf_counter() - start,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the memory of washing many facts.")
    parser.add_argument("--facts", type=int, default=332_036, help="how many (Wiki-Latest: 332,036)")
    Console().print_json(json.dumps(main(parser.parse_args().facts)))
