"""What a model answers, and whether that recalls a fact.

A fact is known when its object occurs, case ignored, in ten greedily decoded tokens (LAW, section
5.1; the authors' ``get_predictions``). :class:`Recall` says what counts as occurring.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.errors import shortened
from law.base.processes import gathered, mine
from law.base.progress import progress
from law.decoders.batching import Batches
from law.decoders.prompts import check_length, end_tokens, token_ids
from law.facts.fact import Fact, Question
from law.facts.subject import places

VERSION = 1
"""Of the code that finds a model's answers: raise it with every change to them."""

NEW_TOKENS = 10

Choice = Callable[[Tensor, list[int], int], Tensor]
"""Chooses the next token, (rows), from logits (rows, vocabulary), the numbers of the rows' prompts, and the step."""

CHUNK = 16_384
"""Prompts held as tokens at once."""


class Recall(Enum):
    """When an answer recalls an object. Case is ignored, and so is how Unicode composes letters and accents (NFC).

    ``substring``: the object occurs anywhere in the answer, as in the paper. ``whole_word``: it occurs as a whole word
    (:func:`~law.facts.subject.places`): "1" is not recalled by "1000" or "1,000". In scripts without upper and
    lower case, such as those that are written without spaces, any occurrence counts.
    """

    substring = "substring"
    whole_word = "whole_word"


def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    batch_size: int | None = None,
    description: str = "answers",
    banned: Sequence[int] = (),
) -> list[str]:
    """The text of ``NEW_TOKENS`` greedily decoded tokens after each prompt, up to an end-of-text or the end of
    a turn (:func:`~law.decoders.prompts.end_tokens`).

    Args:
        batch_size: prompts read at once; ``None`` measures it.
        banned: tokens that no answer begins with. :func:`~law.decoders.prompts.refusing_tokens` gives those by which a
            washed model refuses to answer.
    """
    return [
        *_decode(
            model,
            tokenizer,
            prompts,
            len(prompts),
            batch_size,
            description,
            settled=lambda _, __: False,
            choose=_likeliest(banned),
        )
    ]


def recalled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Fact | Question],
    batch_size: int | None = None,
    rule: Recall = Recall.substring,
    banned: Sequence[int] = (),
) -> list[bool]:
    """Whether each object is recalled after its prompt: :func:`greedy_answers`, ended once that is settled.

    A whole word can still become part of a longer one, so that it is settled at the end only.
    """
    answers = _decode(
        model,
        tokenizer,
        (each.prompt for each in asked),
        len(asked),
        batch_size,
        "recalled",
        lambda i, answer: rule is Recall.substring and recalls(answer, asked[i].object),
        _likeliest(banned),
    )
    return [recalls(answer, each.object, rule) for answer, each in zip(answers, asked, strict=True)]


def recalled_in_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Fact | Question],
    draws: Tensor,
    batch_size: int | None = None,
    rule: Recall = Recall.substring,
) -> list[list[bool]]:
    """Whether each object is recalled in samples of ``NEW_TOKENS`` tokens, drawn at temperature 1.

    Args:
        draws: random numbers from 0 to 1, (n, samples, NEW_TOKENS). A token is the first up to which the probabilities
            add up to more than its number, so that no sample depends on the batch.
    """
    samples = draws.shape[1]
    prompts = (each.prompt for each in asked for _ in range(samples))
    numbers = draws.flatten(0, 1)  # (n · samples, NEW_TOKENS)

    def drawn(logits: Tensor, rows: list[int], step: int) -> Tensor:
        below = logits.float().softmax(-1).cumsum(-1) <= numbers[rows, step, None].to(logits.device)
        return below.sum(-1).clamp(max=logits.shape[-1] - 1)

    answers = _decode(
        model,
        tokenizer,
        prompts,
        len(numbers),
        batch_size,
        "samples",
        lambda i, answer: rule is Recall.substring and recalls(answer, asked[i // samples].object),
        drawn,
    )
    found = [recalls(answer, asked[i // samples].object, rule) for i, answer in enumerate(answers)]
    return [found[first : first + samples] for first in range(0, len(found), samples)]


def recalled_facts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    batch_size: int,
    rule: Recall = Recall.substring,
) -> list[Fact]:
    """The facts that are recalled after their prompts."""
    found = recalled(model, tokenizer, facts, batch_size, rule)
    return [fact for fact, known in zip(facts, found, strict=True) if known]


def recalls(answer: str, wanted: str, rule: Recall = Recall.substring) -> bool:
    """Whether an answer recalls an object, by a rule."""
    answer, wanted = folded(answer), folded(wanted.strip())
    return wanted in answer if rule is Recall.substring else bool(places(wanted, answer))


def folded(text: str) -> str:
    """A text as it is compared: composed (NFC) and in lower case."""
    return unicodedata.normalize("NFC", text).lower()


def _likeliest(banned: Sequence[int]) -> Choice:
    """Greedy decoding in which no answer begins with a banned token."""

    def likeliest(logits: Tensor, _: list[int], step: int) -> Tensor:
        if step == 0:
            logits[:, [*banned]] = -torch.inf
        return logits.argmax(-1)

    return likeliest


def _decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[str],
    total: int,
    batch_size: int | None,
    description: str,
    settled: Callable[[int, str], bool],
    choose: Choice,
) -> Iterator[str]:
    """The answer to each of ``total`` prompts, up to where ``settled(index, text so far)`` is true, in their order.

    Prompts are taken a chunk at a time. Those of one length are read together: without padding, no answer
    depends on the batch.
    """
    batches = Batches(batch_size, first=16, largest=1024)
    model.eval()
    left, first = iter(prompts), 0
    with progress(description, total, "prompts") as bar:
        while chunk := list(islice(left, CHUNK)):
            rows = token_ids(tokenizer, chunk)
            by_length: dict[int, list[int]] = defaultdict(list)
            for place, row in enumerate(rows):
                check_length(
                    model, len(row) + NEW_TOKENS, f"The prompt {shortened(chunk[place])!r} with its answer"
                )
                by_length[len(row)].append(place)
            found: dict[int, str] = {}
            for _, same in sorted(by_length.items()):

                def answer(batch: list[int], rows: list[list[int]] = rows, first: int = first) -> list[str]:
                    ids = torch.tensor([rows[i] for i in batch], device=model.device)
                    return _continue(model, tokenizer, ids, [first + i for i in batch], settled, choose)

                own = mine(same)
                for batch, texts in batches.run(own, [1] * len(own), answer):
                    found |= zip(batch, texts, strict=True)
                    bar.update(len(batch))
            bar.update(len(chunk) - len(found))  # what other processes have answered
            answers = {place: text for part in gathered(found) for place, text in part.items()}
            yield from (answers[place] for place in range(len(chunk)))
            first += len(chunk)


@torch.inference_mode()
def _continue(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Tensor,
    numbers: Sequence[int],
    settled: Callable[[int, str], bool],
    choose: Choice,
) -> list[str]:
    """The answers to the rows of ``ids`` (b, t), which are prompts ``numbers``. A row that is done leaves the batch."""
    ends = end_tokens(model, tokenizer)
    tokens: list[list[int]] = [[] for _ in ids]
    texts = [""] * len(ids)
    left = list(range(len(ids)))
    cache = None
    for step in range(NEW_TOKENS):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        chosen = choose(output.logits[:, -1], [numbers[row] for row in left], step)  # (rows left)
        staying = []
        for place, (row, token) in enumerate(zip(left, chosen.tolist(), strict=True)):
            if token in ends:
                continue
            tokens[row].append(token)
            texts[row] = str(tokenizer.decode(tokens[row], skip_special_tokens=True))
            if not settled(numbers[row], texts[row]):
                staying.append(place)
        if not staying:
            break
        index = torch.tensor(staying)  # on the CPU: a cache may lie on several devices
        left, chosen = [left[place] for place in staying], chosen[index, None]
        if cache is None:  # a model that keeps nothing of what it has read
            ids = torch.cat([ids[index], chosen], dim=1)
            continue
        if len(staying) < len(ids):
            cache.batch_select_indices(index)
        ids = chosen
    return texts
