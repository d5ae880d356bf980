"""Where a model keeps its answer: which layers' output at the subject's last token decides it.

Two facts of one relation are run, and block l's output at the subject's last token is taken from the
one and put into the other. Where that makes the model answer with the other's object, the answer
passes through that place; above the layers where it does, an edit comes too late (interchange
intervention, the causal tracing of ROME with another subject in place of noise).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from law.architectures import Decoder
from law.errors import LawError
from law.facts import Fact
from law.prompts import pad_right, subject_prompt


@torch.inference_mode()
def interchange(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], batch_size: int
) -> list[float]:
    """For every layer, the share of ``facts`` whose answer follows the exchanged subject.

    An answer follows when the first token of the other fact's object becomes the likeliest.

    Raises:
        LawError: no two facts share a template and differ in the first token of their objects.
    """
    first_token = [tokenizer(" " + f.object.strip(), add_special_tokens=False)["input_ids"][0] for f in facts]
    pairs = _pairs(facts, first_token)
    if not pairs:
        raise LawError(
            "No two of the facts share a template and differ in their object; expected at least one such "
            "pair, to exchange their subjects."
        )
    prompts = [subject_prompt(tokenizer, fact.template, fact.subject) for fact in facts]
    followed = [0] * len(decoder.blocks)
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
        wanted = torch.tensor([first_token[other] for _, other in batch], device=decoder.device)
        for layer in range(len(decoder.blocks)):
            hidden = decoder.hidden_states(ids, mask, layer)
            other = decoder.hidden_states(other_ids, other_mask, layer)
            hidden[rows, at] = other[rows, other_at]
            logits = decoder.logits_from(hidden, ids, mask, layer, at=(rows, mask.sum(1) - 1))
            followed[layer] += int((logits.argmax(-1) == wanted).sum())
    return [count / len(pairs) for count in followed]


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
