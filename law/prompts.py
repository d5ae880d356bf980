"""Prompts as token ids, and where in them a subject ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from law.errors import LawError


@dataclass(frozen=True)
class SubjectPrompt:
    """A filled prompt: its token ids, and the index of its subject's last token."""

    ids: list[int]
    position: int


def subject_prompt(tokenizer: PreTrainedTokenizerBase, template: str, subject: str) -> SubjectPrompt:
    """Fill ``template`` and find the last token that covers a character of the subject.

    This equals the count in MEMIT's code, len(tok(prefix)) + len(tok(" " + subject)) - 1, wherever
    words are tokenised apart, and needs no assumption about spaces or a beginning-of-text token.

    Raises:
        LawError: the template has no ``{}``, or no token covers the subject.
    """
    if template.count("{}") != 1:
        raise LawError(
            f"The prompt {template!r} has {template.count('{}')} places for the subject; expected exactly one {{}}."
        )
    start = template.index("{}")
    encoded = tokenizer(template.replace("{}", subject), return_offsets_mapping=True)
    inside = [
        i
        for i, (first, last) in enumerate(encoded["offset_mapping"])
        if first < start + len(subject) and last > start
    ]
    if not inside:
        raise LawError(
            f"The subject {subject!r} has no token of its own in {template!r}; expected a subject that the "
            "model's tokenizer turns into at least one token."
        )
    return SubjectPrompt(encoded["input_ids"], inside[-1])


def equal_length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of rows of one length: without padding, no result depends on the batch."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        by_length[length].append(index)
    for _, indices in sorted(by_length.items()):
        for first in range(0, len(indices), batch_size):
            yield indices[first : first + batch_size]


def pad_right(rows: Sequence[list[int]], padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (b, t) and attention mask (b, t); in a causal model what stands right changes nothing."""
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (length - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
    return ids, mask
