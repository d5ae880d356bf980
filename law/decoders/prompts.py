"""Prompts as token ids, and where in them a subject ends.

Tokenizers differ in what they do with spaces (``Ġ`` and ``▁`` before a word, a space of their own at the
start of a text), in whether they put a beginning-of-text token first, and in how they spell rare
characters (bytes). Nothing here hangs on it: a whole prompt is tokenised at once, as the model will
read it, and character offsets tell which tokens are the subject's. Their padding side is never asked
for: rows are padded on the right here, or not at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.errors import LawError

CHUNK = 4096
"""Texts tokenised at once."""


@dataclass(frozen=True)
class SubjectPrompt:
    """A filled prompt: its token ids, and the indices of its subject's last and first tokens."""

    ids: list[int]
    position: int
    start: int


def subject_prompt(tokenizer: PreTrainedTokenizerBase, template: str, subject: str) -> SubjectPrompt:
    """Fill ``template`` and find the last token that covers a character of the subject.

    This equals the count in MEMIT's code, len(tok(prefix)) + len(tok(" " + subject)) - 1, wherever
    words are tokenised apart, and needs no assumption about spaces or a beginning-of-text token.

    Raises:
        LawError: the template has no ``{}``, no token covers the subject, or the tokenizer has no offsets.
    """
    if template.count("{}") != 1:
        raise LawError(
            f"The prompt {template!r} has {template.count('{}')} places for the subject; expected exactly one {{}}."
        )
    if not tokenizer.is_fast:
        raise LawError(
            f"{type(tokenizer).__name__} does not tell which characters a token covers; expected a tokenizer "
            "with tokenizer.json. Load it with AutoTokenizer and save it once more with save_pretrained."
        )
    start = template.index("{}")
    end = start + len(subject.rstrip())  # a space after the subject belongs to the next word's token
    encoded = tokenizer(template.replace("{}", subject), return_offsets_mapping=True)
    inside = [i for i, (first, last) in enumerate(encoded["offset_mapping"]) if first < end and last > start]
    if not inside:
        raise LawError(
            f"The subject {subject!r} has no token of its own in {template!r}; expected a subject that the "
            "model's tokenizer turns into at least one token."
        )
    return SubjectPrompt(encoded["input_ids"], inside[-1], inside[0])


def positions(model: PreTrainedModel) -> int | None:
    """How many tokens a model can read at once; ``None`` where nothing limits it."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def check_length(model: PreTrainedModel, tokens: int, what: str) -> None:
    """Refuse ``what``, of so many tokens, where the model has fewer positions.

    Raises:
        LawError: with both numbers.
    """
    longest = positions(model)
    if longest is not None and tokens > longest:
        raise LawError(
            f"{what} takes {tokens} tokens; expected at most {longest}, the positions that "
            f"{type(model).__name__} has. Shorten the prompt (or the method's contexts), or leave that fact out."
        )


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Each text as token ids; what else a tokenizer says of a text takes kilobytes, and is dropped by the chunk."""
    rows: list[list[int]] = []
    for first in range(0, len(texts), CHUNK):
        rows += tokenizer(list(texts[first : first + CHUNK]))["input_ids"]
    return rows


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
