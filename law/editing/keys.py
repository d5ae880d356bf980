"""Keys K and outputs h_L at the subject's last token (MEMIT, equations 12 to 14; docs/explanation/method.md).

The methods need two sums over facts: K Kᵀ and K rᵀ. :func:`key_sums` computes them for a chunk of facts at a
time, so that memory does not grow with the number of facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from law.base.processes import add_up, mine
from law.base.progress import Bar, progress
from law.decoders.prompts import SubjectPrompt, equal_length_batches, subject_prompt
from law.decoders.structure import Decoder
from law.facts.fact import Fact, trimmed

CHUNK = 2048
"""Facts whose keys are held at once: (d_ff, 2,048) in float32 is 52 MB on GPT-2 XL."""


def place(template: str, contexts: Sequence[str], lead: int = 0) -> list[str]:
    """The bare template, then the template in every context: ``1 + len(contexts)`` templates.

    The first ``lead`` characters stay in front: in a chat, a context is a part of the user's turn.
    """
    opening, asked = template[:lead], template[lead:]
    return [template, *(trimmed(opening + context.replace("{}", asked)) for context in contexts)]


@torch.inference_mode()
def subject_keys(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    layers: list[int],
    batch_size: int,
    bar: Bar | None = None,
) -> dict[int, Tensor]:
    """K of every layer in ``layers``, (d_ff, n) each in float32, in one pass over the prompts; ``bar`` counts them.

    A column is the mean over the two types of context: the bare prompt weighs one half, the mean of
    the others the other half.
    """
    prompts = [
        subject_prompt(tokenizer, template, fact.subject)
        for fact in facts
        for template in place(fact.template, contexts, fact.lead)
    ]
    keys: dict[int, Tensor] = {}
    for batch, rows, at in prompt_batches(decoder, prompts, batch_size):
        with decoder.capture_keys(layers) as captured:
            decoder.hidden_states(rows, None, layers[-1])
        for layer in layers:
            k = captured[layer][torch.arange(len(batch)), at]  # (b, d_ff)
            if layer not in keys:
                keys[layer] = k.new_empty(len(prompts), k.shape[1])
            keys[layer][batch] = k
        if bar is not None:
            bar.update(len(batch))
    per_fact = 1 + len(contexts)
    weights = torch.full((per_fact, 1), 0.5 / max(1, len(contexts)), device=decoder.device)
    weights[0] = 0.5 if contexts else 1.0
    return {
        # (n, contexts, d_ff) weighted over contexts, then (d_ff, n)
        layer: (k.view(len(facts), per_fact, -1).float() * weights).sum(1).T
        for layer, k in keys.items()
    }


@torch.inference_mode()
def subject_outputs(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    layer: int,
    batch_size: int,
) -> Tensor:
    """h_L (d_model, n): the output of block ``layer`` at the subject's last token of the bare prompt."""
    prompts = [subject_prompt(tokenizer, fact.template, fact.subject) for fact in facts]
    outputs = torch.empty(len(prompts), decoder.d_model, dtype=decoder.model.dtype, device=decoder.device)
    for batch, rows, at in prompt_batches(decoder, prompts, batch_size):
        outputs[batch] = decoder.hidden_states(rows, None, layer)[torch.arange(len(batch)), at]
    return outputs.T


@dataclass(frozen=True)
class KeySums:
    """Sums over facts, in float64."""

    gram: Tensor  # G = K Kᵀ, (d_ff, d_ff)
    right: Tensor  # K rᵀ, (d_ff, d_model)
    residual: float  # ‖r‖²


def key_sums(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    layer: int,
    batch_size: int,
    residual: Callable[[Sequence[int]], Tensor] | None = None,
) -> KeySums:
    """The sums of one layer, over all processes; ``residual`` gives r (d_model, b) of b facts by their indices,
    zero where it is missing.
    """
    d_ff = decoder.weight(layer).shape[0]
    gram = torch.zeros(d_ff, d_ff, dtype=torch.float64, device=decoder.device)
    right = gram.new_zeros(d_ff, decoder.d_model)
    size = gram.new_zeros(())
    own = mine(range(len(facts)))
    with progress(f"keys, layer {layer}", len(own) * (1 + len(contexts)), "prompts") as bar:
        for first in range(0, len(own), CHUNK):
            chunk = own[first : first + CHUNK]
            asked = [facts[i] for i in chunk]
            K = subject_keys(decoder, tokenizer, asked, contexts, [layer], batch_size, bar)[layer].double()
            gram += K @ K.T  # (d_ff, chunk) @ (chunk, d_ff)
            if residual is not None:
                r = residual(chunk).double()
                right += K @ r.T  # (d_ff, chunk) @ (chunk, d_model)
                size += r.square().sum()
    add_up(gram, right, size)
    return KeySums(gram, right, size.item())


def prompt_batches(
    decoder: Decoder, prompts: Sequence[SubjectPrompt], batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """(indices, token ids (b, t), positions (b)) of batches without padding."""
    for batch in equal_length_batches([len(p.ids) for p in prompts], batch_size):
        rows = torch.tensor([prompts[i].ids for i in batch], device=decoder.device)
        at = torch.tensor([prompts[i].position for i in batch], device=decoder.device)
        yield batch, rows, at
