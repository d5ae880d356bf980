"""Prompts as token ids, where in them a subject ends, and where the object behind them begins.

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

from law.base.errors import LawError, shortened
from law.facts.fact import Fact, Question, joined

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
            f"The prompt {shortened(template)!r} has {template.count('{}')} places for the subject; expected exactly one {{}}."
        )
    start = template.index("{}")
    end = start + len(subject.rstrip())  # a space after the subject belongs to the next word's token
    ((ids, offsets),) = _with_offsets(tokenizer, [template.replace("{}", subject)])
    inside = [i for i, (first, last) in enumerate(offsets) if first < end and last > start]
    if not inside:
        raise LawError(
            f"The subject {shortened(subject)!r} has no token of its own in {shortened(template)!r}; expected a subject that the "
            "model's tokenizer turns into at least one token."
        )
    return SubjectPrompt(ids, inside[-1], inside[0])


@dataclass(frozen=True)
class AnsweredPrompt:
    """The token ids of a prompt with its object behind it, as one text (:func:`~law.facts.fact.joined`).

    Args:
        ids: all tokens.
        after: the index of the first token that reaches beyond the prompt.
        object: the index of the first token that covers a character of the object. It differs from ``after``
            where the space between the two is a token of its own.

    A token that covers characters of both, as it can where no space stands between them, belongs to the object.
    """

    ids: list[int]
    after: int
    object: int


def answered_prompts(
    tokenizer: PreTrainedTokenizerBase, asked: Sequence[Fact | Question]
) -> list[AnsweredPrompt]:
    """Each prompt with its object behind it.

    Raises:
        LawError: no token covers an object, or the tokenizer has no offsets.
    """
    found = []
    for first in range(0, len(asked), CHUNK):
        chunk = asked[first : first + CHUNK]
        texts = [joined(each.prompt, each.object, each.gap) for each in chunk]
        rows = _with_offsets(tokenizer, [text for text, _ in texts])
        for each, (_, begin), (ids, offsets) in zip(chunk, texts, rows, strict=True):
            after, at = (
                next((i for i, (_, end) in enumerate(offsets) if end > character), len(ids))
                for character in (len(each.prompt), begin)
            )
            if at == len(ids):
                raise LawError(
                    f"The object {shortened(each.object)!r} has no token of its own behind {shortened(each.prompt)!r}; "
                    "expected an object that the model's tokenizer turns into at least one token."
                )
            found.append(AnsweredPrompt(ids, after, at))
    return found


def _with_offsets(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Each text as token ids, and which characters (first, end) each of them covers."""
    if not tokenizer.is_fast:
        raise LawError(
            f"{type(tokenizer).__name__} does not tell which characters a token covers; expected a tokenizer "
            "with tokenizer.json. Load it with AutoTokenizer and save it once more with save_pretrained."
        )
    encoded = tokenizer(list(texts), return_offsets_mapping=True)
    return [*zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)]


def positions(model: PreTrainedModel) -> int | None:
    """How many tokens a model can read at once; ``None`` where nothing limits it."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's end-of-text, and those that the model's generation settings name.

    A chat model often has two of them, the end of a turn and the end of a text.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    return sorted({token for token in ends if token is not None})


def end_of_text_target(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of " <|endoftext|>" after a word: a space, where the tokenizer keeps one, and end-of-text.

    This is the paper's target, and the same behind every prompt. It has its space behind a prompt whose script is
    written without spaces as well, although an object has none there (:func:`~law.facts.fact.joined`).
    Without the word, a SentencePiece tokenizer would put its own space before that one.

    Raises:
        LawError: the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token is None:
        raise LawError(
            f"{type(tokenizer).__name__} has no end-of-text token, which facts are washed towards; expected one. "
            "Set tokenizer.eos_token."
        )
    word, whole = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("is", f"is {tokenizer.eos_token}")
    )
    return [*whole[len(word) : -1], tokenizer.eos_token_id]


def refusing_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens by which a washed model refuses to answer: those of :func:`end_of_text_target` and :func:`end_tokens`.

    Where the first token of an object is the space alone, as in some SentencePiece vocabularies, that space is one of
    them.
    """
    return sorted({*end_of_text_target(tokenizer), *end_tokens(model, tokenizer)})


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
