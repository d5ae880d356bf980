r"""Second moments :math:`C_o = E[k k^T]` of the keys of prompts about other subjects, which a wash should spare (docs/sparing.md).

They are to subjects what C (:mod:`law.editing.second_moments`) is to general text, where few tokens are the last one of a subject. They
are computed once, on the unedited model, and kept in a cache.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from time import perf_counter

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from law.base.cache import Cache, content_hash, model_hash, tokenizer_hash
from law.base.processes import add_up, mine
from law.base.progress import progress
from law.decoders.prompts import SubjectPrompt, subject_prompt
from law.decoders.structure import Decoder
from law.editing.keys import prompt_batches
from law.facts.fact import Fact

log = logging.getLogger(__name__)

VERSION = 1
"""Of the code that computes C_o, part of its key in the cache: raise it with every change to the numbers."""


def other_moments(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[SubjectPrompt],
    layers: list[int],
    subject_share: float,
    batch_size: int,
    cache: Cache,
) -> dict[int, Tensor]:
    """C_o of every layer in ``layers``: (d_ff, d_ff), float32, summed in float64.

    C_o = s E_last[k kᵀ] + (1 − s) E_all[k kᵀ], with s the ``subject_share``, E_last the mean over the subjects' last tokens and E_all the
    mean over all tokens of the prompts but the first one, whose activations outweigh all others in many models.
    """
    key = {
        "version": VERSION,
        "model": model_hash(decoder.model),
        "parts": asdict(decoder.parts),
        "tokenizer": tokenizer_hash(tokenizer),
        "prompts": content_hash([[list(p.ids), p.position] for p in prompts]),
        "subject_share": subject_share,
    }
    found = {layer: cache.tensors("other_moments", key | {"layer": layer}) for layer in layers}
    missing = [layer for layer in layers if found[layer] is None]
    if missing:
        began = perf_counter()
        computed = _collect(decoder, prompts, missing, subject_share, batch_size)
        log.info("second moments of %d prompts about other subjects, layers %s", len(prompts), missing)
        seconds = (perf_counter() - began) / len(missing)
        for layer, c in computed.items():
            found[layer] = {"c": c}
            cache.keep("other_moments", key | {"layer": layer}, {"c": c}, seconds)
    return {layer: one["c"].to(decoder.device) for layer, one in found.items() if one is not None}


@torch.inference_mode()
def _collect(
    decoder: Decoder,
    prompts: Sequence[SubjectPrompt],
    layers: list[int],
    subject_share: float,
    batch_size: int,
) -> dict[int, Tensor]:
    """C_o of every layer in one pass over the prompts."""
    sizes = {layer: decoder.weight(layer).shape[0] for layer in layers}
    # the sums over the subjects' last tokens, and over all tokens
    sums = {
        layer: torch.zeros(2, d_ff, d_ff, dtype=torch.float64, device=decoder.device)
        for layer, d_ff in sizes.items()
    }
    counts = torch.zeros(2, dtype=torch.float64, device=decoder.device)
    own = mine(prompts)
    with progress("keys of other subjects", len(own), "prompts") as bar:
        for batch, rows, at in prompt_batches(decoder, own, batch_size):
            with decoder.capture_keys(layers) as captured:
                decoder.hidden_states(rows, None, layers[-1])
            for layer in layers:
                k = captured.pop(layer).float()  # (b, t, d_ff)
                for part, keys in enumerate((k[torch.arange(len(batch)), at], k[:, 1:].flatten(0, 1))):
                    sums[layer][part] += keys.T @ keys  # (d_ff, tokens) @ (tokens, d_ff)
            counts += torch.tensor([len(batch), rows[:, 1:].numel()], device=decoder.device)
            bar.update(len(batch))
    add_up(counts, *sums.values())
    shares = torch.tensor([subject_share, 1 - subject_share], device=decoder.device) / counts.clamp(min=1)
    return {layer: (both * shares[:, None, None]).sum(0).float() for layer, both in sums.items()}


def other_prompts(
    tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], others: Sequence[Fact], most: int
) -> list[SubjectPrompt]:
    """At most ``most`` prompts about the subjects of ``others``: their own ones first, then those of ``facts`` with these subjects.

    So a few other facts give many prompts, and each of them asks of another subject what a washed fact asks.
    """

    own = ((fact.template, fact.subject) for fact in others)
    templates = dict.fromkeys(fact.template for fact in facts)
    crossed = ((template, fact.subject) for template in templates for fact in others)
    pairs: dict[tuple[str, str], None] = {}
    for pair in chain(own, crossed):
        pairs[pair] = None
        if len(pairs) == most:
            break
    return [subject_prompt(tokenizer, *pair) for pair in pairs]
