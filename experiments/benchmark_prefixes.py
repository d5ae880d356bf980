"""How many tokens an evaluation would save if prompts with the same beginning shared it.

python experiments/benchmark_prefixes.py --facts 500
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from transformers import GPT2Tokenizer

from law.decoders.greedy_decoding import NEW_TOKENS
from law.decoders.prompts import token_ids
from law.evaluation.knowledge import probe_sets
from law.facts.counterfact import read_counterfact


def main(data: Path, count: int) -> dict[str, float]:
    """The tokens of the prompts of ``count`` washed and ``count`` kept facts, and the share that sharing would save."""
    facts = read_counterfact(data / "counterfact" / "counterfact_1000_full.json")
    sets = probe_sets(facts[:count], facts[count : 2 * count], {})
    prompts = sorted({probe.question.prompt for probes in sets.values() for probe in probes})
    files = data / "gpt2_tokenizer"
    rows = token_ids(GPT2Tokenizer(str(files / "vocab.json"), str(files / "merges.txt")), prompts)
    tokens = sum(map(len, rows))
    beginnings = {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    run = tokens + (NEW_TOKENS - 1) * len(prompts)  # the last token of an answer is not read again
    return {
        "prompts": len(prompts),
        "prompt_tokens": tokens,
        "distinct_beginnings": len(beginnings),
        "spared_of_prompts": 1 - len(beginnings) / tokens,
        "spared_of_all_tokens_run": (tokens - len(beginnings)) / run,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Count what shared beginnings of prompts would spare.")
    parser.add_argument("--facts", type=int, default=500, help="washed facts, and as many kept ones")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    chosen = parser.parse_args()
    Console().print_json(json.dumps(main(chosen.data, chosen.facts)))
