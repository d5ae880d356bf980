"""What a model answers, and whether that recalls a fact.

A fact is known when its object occurs, case ignored, in ten greedily decoded tokens (LAW, section
5.1; the authors' ``get_predictions``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.batching import Batches
from law.facts import Fact
from law.parallel import gathered, mine
from law.prompts import check_length, token_ids

NEW_TOKENS = 10

CHUNK = 16_384
"""Prompts held as tokens at once."""


def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    batch_size: int | None = None,
    description: str = "answers",
) -> list[str]:
    """The text of ``NEW_TOKENS`` greedily decoded tokens after each prompt, up to an end-of-text.

    ``batch_size`` is in prompts; ``None`` measures it.
    """
    return _decode(model, tokenizer, prompts, batch_size, description, lambda _, __: False)


def recalled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    objects: Sequence[str],
    batch_size: int | None = None,
    description: str = "recalled",
) -> list[bool]:
    """Whether each object is recalled after its prompt: :func:`greedy_answers`, ended once that is settled."""
    answers = _decode(
        model, tokenizer, prompts, batch_size, description, lambda i, answer: recalls(answer, objects[i])
    )
    return [recalls(answer, wanted) for answer, wanted in zip(answers, objects, strict=True)]


def recalled_facts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], batch_size: int
) -> list[Fact]:
    """The facts that are recalled after their prompts."""
    left: list[Fact] = []
    for first in range(0, len(facts), CHUNK):
        asked = facts[first : first + CHUNK]
        found = recalled(model, tokenizer, [f.prompt for f in asked], [f.object for f in asked], batch_size)
        left += (fact for fact, known in zip(asked, found, strict=True) if known)
    return left


def recalls(answer: str, wanted: str) -> bool:
    """Whether the object occurs in the answer, case ignored."""
    return wanted.strip().lower() in answer.lower()


def _decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    batch_size: int | None,
    description: str,
    settled: Callable[[int, str], bool],
) -> list[str]:
    """The answer to each prompt, up to where ``settled(index, text so far)`` is true.

    Prompts of one length are read together: without padding, no answer depends on the batch.
    """
    answers = [""] * len(prompts)
    batches = Batches(batch_size, first=16, largest=1024)
    model.eval()
    with tqdm(total=len(prompts), desc=description, leave=False, disable=None) as progress:
        for first in range(0, len(prompts), CHUNK):
            rows = dict(enumerate(token_ids(tokenizer, prompts[first : first + CHUNK]), first))
            by_length: dict[int, list[int]] = defaultdict(list)
            for index, row in rows.items():
                check_length(model, len(row) + NEW_TOKENS, f"The prompt {prompts[index]!r} with its answer")
                by_length[len(row)].append(index)
            found: dict[int, str] = {}
            for _, same in sorted(by_length.items()):

                def answer(batch: list[int], rows: dict[int, list[int]] = rows) -> list[str]:
                    ids = torch.tensor([rows[i] for i in batch], device=model.device)
                    return _continue(model, tokenizer, ids, lambda at, so_far: settled(batch[at], so_far))

                own = mine(same)
                for batch, texts in batches.run(own, [1] * len(own), answer):
                    found |= zip(batch, texts, strict=True)
                    progress.update(len(batch))
            for part in gathered(found):
                for i, text in part.items():
                    answers[i] = text
    return answers


@torch.inference_mode()
def _continue(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: torch.Tensor,
    settled: Callable[[int, str], bool],
) -> list[str]:
    """The answers to the rows of ``ids`` (b, t). A row that is done leaves the batch."""
    tokens: list[list[int]] = [[] for _ in ids]
    texts = [""] * len(ids)
    left = list(range(len(ids)))
    cache = None
    for _ in range(NEW_TOKENS):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        likeliest = output.logits[:, -1].argmax(-1)  # (rows left)
        staying = []
        for place, (row, token) in enumerate(zip(left, likeliest.tolist(), strict=True)):
            if token == tokenizer.eos_token_id:
                continue
            tokens[row].append(token)
            texts[row] = str(tokenizer.decode(tokens[row], skip_special_tokens=True))
            if not settled(row, texts[row]):
                staying.append(place)
        if not staying:
            break
        index = torch.tensor(staying)  # on the CPU: a cache may lie on several devices
        left, likeliest = [left[place] for place in staying], likeliest[index, None]
        if cache is None:  # a model that keeps nothing of what it has read
            ids = torch.cat([ids[index], likeliest], dim=1)
            continue
        if len(staying) < len(ids):
            cache.batch_select_indices(index)
        ids = likeliest
    return texts
