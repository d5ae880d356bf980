"""Whether a tokenizer and a model agree: every token that a text can become has an embedding, and a text has an end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.errors import LawError

log = logging.getLogger(__name__)


def fit_tokenizer(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, config: Mapping[str, Any], path: str
) -> None:
    """Give a tokenizer an end-of-text and a padding token that its model has embeddings of.

    Padding is masked wherever it is read, so that any token serves for it.

    Args:
        config: ``config.json`` as it was written. The class of a configuration fills in an end-of-text of its own.
        path: what to call the model in an error.

    Raises:
        LawError: no end-of-text token is named anywhere, or a token in use has no embedding.
    """
    rows = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if tokenizer.eos_token_id is None:
        _name_end_of_text(tokenizer, model, config, path)
    always: set[int] = {*tokenizer("is")["input_ids"], tokenizer.eos_token_id}
    added = tokenizer.added_tokens_decoder
    # special tokens that no text contains, such as an image's, may lie beyond the embeddings of a model without images
    beyond = {
        token: i
        for token, i in tokenizer.get_vocab().items()
        if i >= rows and (i in always or i not in added or not added[i].special)
    }
    if beyond:
        token, i = max(beyond.items(), key=lambda item: item[1])
        raise LawError(
            f"The tokenizer of {path!r} has {len(beyond)} tokens without an embedding, as {token!r} with id {i}; expected "
            f"ids below {rows}, the rows of the model's embeddings. Take the tokenizer that the model was trained with, or "
            "call model.resize_token_embeddings(len(tokenizer)) and save the model."
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        if tokenizer.pad_token_id is not None:
            log.info(
                "the padding token %r has no embedding; %r pads in its place",
                tokenizer.pad_token,
                tokenizer.eos_token,
            )
        tokenizer.pad_token = tokenizer.eos_token


def _name_end_of_text(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, config: Mapping[str, Any], path: str
) -> None:
    """Take the end-of-text token from the model's configuration files, where the tokenizer names none."""
    generation = model.generation_config
    declared = None if generation is None or generation._from_model_config else generation.eos_token_id
    text_config = config.get("text_config") or {}
    tokens = {i: token for token, i in tokenizer.get_vocab().items()}
    for found in (declared, config.get("eos_token_id"), text_config.get("eos_token_id")):
        # some configurations write -1 for none
        token = next(
            (tokens[i] for i in (found if isinstance(found, list) else [found]) if i in tokens), None
        )
        if token is not None:
            # as a special token: its text is one token, and is left out of what is decoded
            tokenizer.add_special_tokens({"eos_token": token})
            log.info("the tokenizer names no end-of-text token; the model's configuration says %r", token)
            return
    raise LawError(
        f"The tokenizer of {path!r} names no end-of-text token, and neither generation_config.json nor config.json has "
        'an eos_token_id; expected one, since washing answers with it. Write "eos_token": "<|endoftext|>" (the '
        f"model's own token) into {path}/tokenizer_config.json."
    )
