"""Texts that stand before a prompt, so that keys and target values do not depend on one opening (MEMIT)."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.decoders.prompts import end_of_text_target, end_tokens

OPENINGS = ("The", "Therefore", "Because", "I", "You")
NEW_TOKENS = 10
TOP_K = 5


@torch.inference_mode()
def generate_contexts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[str]:
    """One template ``"<sampled text>. {}"`` for each opening word.

    The ten tokens after an opening are drawn among the five likeliest, as in MEMIT's
    ``generate_fast``; end-of-text (or the end of a turn) is never drawn, so that the prompt stays in one document.
    """
    generator = torch.Generator().manual_seed(seed)
    contexts, ends = [], [end_of_text_target(tokenizer)[-1], *end_tokens(model, tokenizer)]
    for opening in OPENINGS:
        ids = torch.tensor([tokenizer(opening)["input_ids"]], device=model.device)
        for _ in range(NEW_TOKENS):
            logits = model(input_ids=ids).logits[0, -1].float()
            logits[ends] = -torch.inf
            values, tokens = logits.topk(TOP_K)
            drawn = torch.multinomial(values.softmax(-1).cpu(), 1, generator=generator)
            ids = torch.cat([ids, tokens[drawn.to(tokens.device)][None]], dim=1)
        # a brace would be read as a place for the subject
        text = (
            str(tokenizer.decode(ids[0], skip_special_tokens=True))
            .replace("{", " ")
            .replace("}", " ")
            .replace("\n", " ")
        )
        contexts.append(f"{text}. {{}}")
    return contexts
