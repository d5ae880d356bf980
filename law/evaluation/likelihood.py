"""The probability that a model gives to given words (teacher forcing): nothing is generated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.errors import LawError
from law.decoders.prompts import equal_length_batches, positions, token_ids
from law.facts.fact import Question

VERSION = 1
"""Of the code that computes log-probabilities: raise it with every change to the numbers."""

CHUNK = 8192
"""Questions tokenised at once. The tokenizer's output takes 3 kB a question."""


@torch.inference_mode()
def object_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    batch_size: int,
) -> list[float]:
    """The mean log-probability, in nats, of the tokens of ``" " + object`` after each prompt.

    Prompt and object are tokenised together. The object's tokens are those that cover a character
    after the prompt, whatever the tokenizer does with spaces and beginning-of-text tokens.
    """
    found: list[float] = []
    for first in range(0, len(questions), CHUNK):
        found += _chunk_log_probs(model, tokenizer, questions[first : first + CHUNK], batch_size)
    return found


def _chunk_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    batch_size: int,
) -> list[float]:
    prompts = [question.prompt.rstrip() for question in questions]
    texts = [f"{p} {q.object.strip()}" for p, q in zip(prompts, questions, strict=True)]
    encoded = tokenizer(texts, return_offsets_mapping=True)
    rows: list[list[int]] = encoded["input_ids"]
    by_size: dict[int, list[int]] = defaultdict(list)  # number of the object's tokens: rows
    for i, offsets in enumerate(encoded["offset_mapping"]):
        by_size[sum(end > len(prompts[i]) for _, end in offsets)].append(i)
    found = [0.0] * len(rows)
    model.eval()
    for size, members in by_size.items():
        for batch in equal_length_batches([len(rows[i]) for i in members], batch_size):
            ids = torch.tensor([rows[members[j]] for j in batch], device=model.device)  # (b, t)
            # the object's tokens are predicted at its positions less one: (b, size, vocabulary)
            logits = model(input_ids=ids, logits_to_keep=size + 1).logits[:, :-1].float()
            log_p = logits.log_softmax(-1).gather(-1, ids[:, -size:, None])  # (b, size, 1)
            for j, value in zip(batch, log_p.mean((1, 2)).tolist(), strict=True):
                found[members[j]] = value
    return found


@torch.inference_mode()
def text_log_probs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], batch_size: int
) -> list[tuple[float, int]]:
    """For each document the sum of its tokens' log-probabilities, in nats, and how many were predicted.

    A document's first token is given and the others are predicted. A beginning-of-text token that the
    tokenizer adds is read before them and not predicted, so that tokenizers with and without one predict
    the same tokens. A document is cut to the model's longest context. Documents of fewer than two
    tokens are left out.

    Raises:
        LawError: no document has a second token.
    """
    longest = positions(model)
    rows: list[list[int]] = []
    begun: list[bool] = []  # whether the row begins with a beginning-of-text token
    for row in token_ids(tokenizer, documents):
        added = row[:1] == [tokenizer.bos_token_id]
        if len(row[:longest]) > 1 + added:
            rows.append(row[:longest])
            begun.append(added)
    if not rows:
        raise LawError(
            "No document of the held-out text has two tokens or more; expected UTF-8 text with one document "
            "a line. Set evaluation.fluency.text to such a file, or to null to leave perplexity out."
        )
    found: list[tuple[float, int]] = []
    model.eval()
    for batch in equal_length_batches([len(row) for row in rows], batch_size):
        ids = torch.tensor([rows[i] for i in batch], device=model.device)  # (b, t)
        given = torch.tensor(
            [begun[i] for i in batch], device=model.device
        )  # (b): the second token is given too
        logits = model(input_ids=ids).logits[:, :-1].float()  # (b, t - 1, vocabulary)
        log_p = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].double()  # (b, t - 1)
        log_p[:, 0].masked_fill_(given, 0.0)
        totals = log_p.sum(1).tolist()
        found += [(total, len(rows[i]) - 1 - begun[i]) for i, total in zip(batch, totals, strict=True)]
    return found
