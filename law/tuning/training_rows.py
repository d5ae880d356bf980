"""Texts as rows of tokens with labels, and the losses of the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.decoders.prompts import answered_prompts, pad_right
from law.facts.fact import Fact

IGNORED = -100  # the label of a token that no loss predicts, as in Hugging Face's models


@dataclass(frozen=True)
class Row:
    """A text as token ids, and as labels: the id where the loss predicts the token, else ``IGNORED``."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right: token ids, mask and labels, all (b, t), and which rows they are."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    index: list[int]


def predicted(row: Row) -> int:
    """Tokens that the loss predicts: the labelled ones behind the first."""
    return sum(label != IGNORED for label in row.labels[1:])


def tokens(row: Row) -> int:
    """All tokens of the row."""
    return len(row.ids)


def fact_rows(
    tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], object_only: bool = False
) -> list[Row]:
    """Each prompt with its object behind it; with ``object_only`` the object's tokens alone are labelled."""
    return [
        Row(row.ids, [IGNORED] * row.object + row.ids[row.object :] if object_only else row.ids)
        for row in answered_prompts(tokenizer, facts)
    ]


def pad(rows: Sequence[Row], index: Sequence[int], device: torch.device) -> Batch:
    """A batch of rows. Padding is masked and has no label, so it has no effect."""
    ids, mask = pad_right([row.ids for row in rows], 0, device)
    labels, _ = pad_right([row.labels for row in rows], IGNORED, device)
    return Batch(ids, mask, labels, list(index))


def token_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Next-token logits, (b, t, vocabulary)."""
    return model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits


def predicted_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits of each predicted token, (units, vocabulary) in float32, from (b, t, vocabulary), labels (b, t)."""
    return logits[:, :-1][labels[:, 1:] != IGNORED].float()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p(x_t | x_<t) of each predicted token, (units), from logits (b, t, vocabulary), labels (b, t)."""
    wanted = labels[:, 1:].flatten()
    nll = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), wanted, ignore_index=IGNORED, reduction="none"
    )
    return nll[wanted != IGNORED]
