"""The probability that a model gives to given words (teacher forcing): nothing is generated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.errors import LawError, shortened
from law.base.progress import progress, tracked
from law.decoders.prompts import answered_prompts, equal_length_batches, positions, token_ids
from law.facts.fact import Question

VERSION = 2
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
    """The mean log-probability, in nats, of all tokens that reach beyond each prompt, its object behind it.

    Prompt and object are tokenised together (:func:`~law.decoders.prompts.answered_prompts`). Where the space
    between them is a token of its own, it is counted: the model has to say it first.
    """
    found = [0.0] * len(questions)
    for members, log_p, _ in _of_objects(model, tokenizer, questions, batch_size):
        for i, value in zip(members, log_p.mean(1).tolist(), strict=True):
            found[i] = value
    return found


@dataclass(frozen=True)
class ObjectTokens:
    """The tokens of an object behind its prompt, the object's earlier tokens given (teacher forcing).

    Args:
        log_probs: of each token, in nats.
        likeliest: whether each token is the likeliest one in its place.
    """

    log_probs: list[float]
    likeliest: list[bool]


@torch.inference_mode()
def object_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    batch_size: int,
) -> list[ObjectTokens]:
    """The same tokens as :func:`object_log_probs` reads, one by one."""
    found: dict[int, ObjectTokens] = {}
    for members, log_p, likeliest in _of_objects(model, tokenizer, questions, batch_size):
        found |= zip(members, map(ObjectTokens, log_p.tolist(), likeliest.tolist()), strict=True)
    return [found[i] for i in range(len(questions))]


def _of_objects(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """By batches, the numbers of b questions, and for each of their objects' tokens the log-probability and whether
    it is the likeliest token, both (b, size).
    """
    with progress("log-probabilities", len(questions), "questions") as bar:
        for first in range(0, len(questions), CHUNK):
            chunk = questions[first : first + CHUNK]
            for members, log_p, likeliest in _of_chunk(model, tokenizer, chunk, batch_size):
                yield [first + i for i in members], log_p, likeliest
                bar.update(len(members))


def _of_chunk(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    rows = answered_prompts(tokenizer, questions)
    by_size: dict[int, list[int]] = defaultdict(list)  # number of the object's tokens: rows
    for i, row in enumerate(rows):
        # the first token of a text is given, not predicted, even where it covers some of the object
        by_size[len(row.ids) - max(row.after, 1)].append(i)
    if 0 in by_size:
        question = questions[by_size[0][0]]
        raise LawError(
            f"The object {shortened(question.object)!r} and its prompt {shortened(question.prompt)!r} make one token, "
            "so that the object has no probability; expected a longer prompt. Change it, or leave that fact out."
        )
    model.eval()
    for size, members in by_size.items():
        for batch in equal_length_batches([len(rows[i].ids) for i in members], batch_size):
            ids = torch.tensor([rows[members[j]].ids for j in batch], device=model.device)  # (b, t)
            # the object's tokens are predicted at its positions less one: (b, size, vocabulary)
            logits = model(input_ids=ids, logits_to_keep=size + 1).logits[:, :-1].float()
            wanted = ids[:, -size:]  # (b, size)
            log_p = logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]  # (b, size)
            yield [members[j] for j in batch], log_p, logits.argmax(-1) == wanted


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
    batches = list(equal_length_batches([len(row) for row in rows], batch_size))
    for batch in tracked(batches, "perplexity", "batches"):
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
