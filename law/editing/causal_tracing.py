"""Which blocks carry the subject to the answer, by interchange interventions.

Two facts of one relation are run, and block l's output at the subject's last token is taken from one run
and put into the other. This is the causal tracing of ROME (Meng et al., NeurIPS 2022) with another subject in
place of noise. The answer is *lost* when its own object is no longer the likeliest token, and it *follows* when
the other fact's object is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from law.base.errors import LawError
from law.decoders.prompts import pad_right, subject_prompt
from law.decoders.structure import Decoder
from law.facts.fact import Fact


@dataclass(frozen=True)
class Reach:
    """Of the facts known at the start, the shares whose answer is lost, and follows, at one layer."""

    lost: float
    followed: float


@torch.inference_mode()
def interchange(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], batch_size: int
) -> list[Reach]:
    """The reach of every layer; an object is told by its first token.

    Raises:
        LawError: no two known facts share a template and differ in the first token of their objects.
    """
    first_token = [_first_token(tokenizer, fact) for fact in facts]
    pairs = _pairs(facts, first_token)
    if not pairs:
        raise LawError(
            "No two of the facts share a template and differ in the first token of their objects; expected "
            "at least one such pair, to exchange their subjects."
        )
    prompts = [subject_prompt(tokenizer, fact.template, fact.subject) for fact in facts]
    known, lost, followed = 0, [0] * len(decoder.blocks), [0] * len(decoder.blocks)
    for first in tqdm(range(0, len(pairs), batch_size), desc="interchange", leave=False, disable=None):
        batch = pairs[first : first + batch_size]
        rows = torch.arange(len(batch), device=decoder.device)
        (ids, mask), (other_ids, other_mask) = (
            pad_right([prompts[pair[side]].ids for pair in batch], tokenizer.pad_token_id, decoder.device)
            for side in (0, 1)
        )
        at, other_at = (
            torch.tensor([prompts[pair[side]].position for pair in batch], device=decoder.device)
            for side in (0, 1)
        )
        own, wanted = (
            torch.tensor([first_token[pair[side]] for pair in batch], device=decoder.device)
            for side in (0, 1)
        )
        ends = (rows, mask.sum(1) - 1)
        at_start = decoder.model(input_ids=ids, attention_mask=mask).logits[ends].argmax(-1) == own
        known += int(at_start.sum())
        for layer in range(len(decoder.blocks)):
            hidden = decoder.hidden_states(ids, mask, layer)
            other = decoder.hidden_states(other_ids, other_mask, layer)
            hidden[rows, at] = other[rows, other_at]
            answer = decoder.logits_from(hidden, ids, mask, layer, at=ends).argmax(-1)
            lost[layer] += int((at_start & (answer != own)).sum())
            followed[layer] += int((at_start & (answer == wanted)).sum())
    if known == 0:
        raise LawError(
            f"The first token of the object is the likeliest for none of the {len(pairs)} facts; expected facts "
            "that the model knows. Check model.path and dataset.path."
        )
    return [Reach(a / known, b / known) for a, b in zip(lost, followed, strict=True)]


def _first_token(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> int:
    """The token after the prompt when the object follows."""
    ids: list[int] = tokenizer(f"{fact.prompt} {fact.object.strip()}")["input_ids"]
    return ids[len(tokenizer(fact.prompt)["input_ids"])]


def _pairs(facts: Sequence[Fact], first_token: Sequence[int]) -> list[tuple[int, int]]:
    """Each fact with the next one of its template whose object begins otherwise."""
    by_template: dict[str, list[int]] = defaultdict(list)
    for index, fact in enumerate(facts):
        by_template[fact.template].append(index)
    pairs = []
    for group in by_template.values():
        for place, index in enumerate(group):
            others = group[place + 1 :] + group[:place]
            other = next((o for o in others if first_token[o] != first_token[index]), None)
            if other is not None:
                pairs.append((index, other))
    return pairs
