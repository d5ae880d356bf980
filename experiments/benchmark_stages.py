"""What ``experiments/benchmark.py`` measures: each stage as this project and as the textbook does it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from reference import model as textbook_model
from reference import stages as textbook
from reference import updates as textbook_updates
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Tokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from law.decoders.greedy_decoding import greedy_answers, recalled
from law.decoders.structure import Decoder
from law.editing.second_moments import MomentSettings, collect_moments
from law.editing.target_values import TargetSettings, target_values
from law.facts.counterfact import read_counterfact
from law.facts.fact import Fact
from law.lab.training import train_tokenizer
from law.lab.world import LabWorld
from law.methods.law import LAW, ascend
from law.methods.memit import MEMIT

CONTEXTS = [
    "The first of the two new games has been. {}",
    "Therefore, the only way to be able to. {}",
    "Because of the high number of people in the. {}",
    "I have a lot of friends who have a. {}",
    "You can use this to make sure that your. {}",
]


@dataclass(frozen=True)
class Shape:
    """A model's configuration, the layers that are edited, and the textbook's names for its parts."""

    config: dict[str, Any]
    layers: list[int]
    parts: textbook_model.Parts


SHAPES = {
    # wider weights than GPT-2's: with h as short as 0.1, twenty steps would blow rounding up to 1e-2
    "tiny": Shape(
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 4, "n_head": 2, "initializer_range": 0.16},
        [0, 1, 2],
        textbook_model.GPT2,
    ),
    "gpt2": Shape({"model_type": "gpt2"}, [3, 4, 5, 6, 7], textbook_model.GPT2),
    "smollm2-135m": Shape(
        {
            "model_type": "llama",
            "vocab_size": 50_257,  # of the tokenizer above; SmolLM2 has 49,152
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
        [4, 5, 6, 7, 8],
        textbook_model.LLAMA,
    ),
    "gpt2-xl": Shape(
        {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25},
        [13, 14, 15, 16, 17],
        textbook_model.GPT2,
    ),
    "gpt-j": Shape({"model_type": "gptj"}, [3, 4, 5, 6, 7, 8], textbook_model.GPTJ),
}


@dataclass(frozen=True)
class Stage:
    """One stage, done by both.

    Args:
        name, unit: what is measured, and per what.
        sizes, reference_sizes: how many items each takes, rising; as many of the one as of the other.
        ours, reference: does the work on a number of items.
        units: how many units a number of items is.
        error: of our result against the textbook's.
        bound: the largest error, in float32.
        dtype: of its products.
        same_size: whether the ratio is taken at every size, or at the largest sizes.
        reference_units: the same for the textbook, where it differs.
    """

    name: str
    unit: str
    sizes: list[int]
    reference_sizes: list[int]
    ours: Callable[[int], Any]
    reference: Callable[[int], Any]
    units: Callable[[int], int]
    error: Callable[[Any, Any], float]
    bound: float
    dtype: torch.dtype
    same_size: bool = False
    reference_units: Callable[[int], int] | None = None


def relative(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖ in float64."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return ((found - expected).norm() / expected.norm()).item()


def load(
    shape: Shape, device: str, dtype: str, data: Path
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Random weights, frozen; GPT-2's tokenizer where its files lie, or one trained on the spot."""
    files = data / "gpt2_tokenizer"
    tokenizer: PreTrainedTokenizerBase
    if files.is_dir():
        tokenizer = GPT2Tokenizer(str(files / "vocab.json"), str(files / "merges.txt"))
    else:
        documents = LabWorld().documents(random.Random(0))
        tokenizer = train_tokenizer(islice(documents, 2000), vocab_size=2000)
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    with torch.device(device):
        config = AutoConfig.for_model(**shape.config)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return model.eval().requires_grad_(False), tokenizer


def inputs(data: Path, facts: int, documents: int) -> tuple[list[Fact], list[str]]:
    """Facts and documents: CounterFact and Wikipedia where they lie, or a made-up world's."""
    world = LabWorld(single_fact_subjects=facts)
    path, text = data / "counterfact" / "counterfact.json", data / "wikipedia" / "squad_contexts.txt"
    if path.is_file():
        found = read_counterfact(path)
    else:
        found = [
            Fact(str(r["case_id"]), w["subject"], w["prompt"], w["target_true"]["str"], w["relation_id"])
            for r in world.records()
            for w in [r["requested_rewrite"]]
        ]
    lines = (
        text.read_text(encoding="utf-8").splitlines()
        if text.is_file()
        else list(islice(world.general_documents(random.Random(0)), documents))
    )
    return found[:facts], [line for line in lines if line.strip()][:documents]


def stages(
    shape: Shape, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Path, scale: int
) -> list[Stage]:
    """What is measured; ``scale`` multiplies how many items ours takes."""
    decoder, last = Decoder(model), shape.layers[-1]
    facts, texts = inputs(data, facts=512 * scale, documents=128 * scale)
    asked = [textbook_model.Fact(i, f.template, f.subject, f.object) for i, f in enumerate(facts)]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]

    def answers(n: int) -> list[str]:
        return [textbook.greedy_answer(model, tokenizer, fact.prompt) for fact in asked[:n]]

    def known(n: int) -> list[bool]:
        return recalled(model, tokenizer, facts[:n])

    def known_error(_: list[bool], expected: list[str]) -> float:
        found = greedy_answers(model, tokenizer, [f.prompt for f in facts[: len(expected)]])
        return sum(a != b for a, b in zip(found, expected, strict=True)) / len(expected)

    return [
        Stage(
            "z*",
            "fact",
            [4 * scale, 8 * scale, 16 * scale],
            [1, 2],
            lambda n: target_values(decoder, tokenizer, facts[:n], CONTEXTS, last, TargetSettings()).of(
                range(n)
            ),
            lambda n: torch.stack(
                [
                    textbook.target_value(model, tokenizer, shape.parts, last, fact, CONTEXTS)[0]
                    for fact in asked[:n]
                ],
                dim=1,
            ),
            lambda n: n,
            lambda ours, theirs: relative(ours[:, : theirs.shape[1]], theirs),
            1e-3,
            model.dtype,
        ),
        Stage(
            f"second moments, {len(shape.layers)} layers",
            "token",
            [8 * scale, 32 * scale, 128 * scale],
            [1, 2, 4],
            lambda n: collect_moments(decoder, tokenizer, texts[:n], shape.layers)[0],
            lambda n: {
                layer: textbook.second_moment(model, tokenizer, shape.parts, layer, texts[:n])
                for layer in shape.layers
            },
            lambda n: sum(lengths[:n]),
            lambda _, theirs: max(
                relative(c, theirs[layer])
                for layer, c in collect_moments(decoder, tokenizer, texts[:1], shape.layers)[0].items()
            ),
            1e-5,
            model.dtype,
        ),
        Stage(
            "known facts",
            "fact",
            [32 * scale, 128 * scale, 512 * scale],
            [2, 4, 8],
            known,
            answers,
            lambda n: n,
            known_error,
            0.0,
            model.dtype,
        ),
        ascent(decoder, last, torch.float64),
        ascent(decoder, last, torch.float32),
    ]


def ascent(decoder: Decoder, layer: int, dtype: torch.dtype) -> Stage:
    """LAW's ascent on keys drawn at random, against the textbook's in float64: the cost does not depend on the values."""
    d_ff, d_model = decoder.weight(layer).shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(decoder.device)

    root, start = draw(d_ff, 2 * d_ff), draw(d_ff, d_model)
    C = root @ root.T / root.shape[1]  # (d_ff, 2 d_ff) @ (2 d_ff, d_ff)
    # many iterations, since a run begins and ends with products of its own, and washing takes a thousand
    sizes, iterations, few = [500, 5_000, 50_000], 60, {500: 60, 5_000: 20, 50_000: 3}
    keys = {n: draw(d_ff, n) for n in sizes}
    grams = {n: K @ K.T for n, K in keys.items()}  # (d_ff, n) @ (n, d_ff)
    law = LAW(MEMIT([layer], 1.0, MomentSettings()), learning_rate=1e-3, iterations=iterations)

    def ours(n: int) -> Tensor:
        return ascend(start.to(dtype), C.to(dtype), grams[n].to(dtype), law, layer).delta

    return Stage(
        f"ascent, {'float32' if dtype == torch.float32 else 'float64'}",
        "iteration",
        sizes,
        sizes,
        ours,
        lambda n: textbook_updates.ascend(start, C, keys[n], 1e-3, None, few[n]).best,
        lambda _: iterations,
        lambda ours, theirs: relative(ours - start, theirs - start),
        1e-3 if dtype == torch.float32 else 1e-9,
        dtype,
        same_size=True,
        reference_units=lambda n: few[n],
    )
