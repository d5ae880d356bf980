"""What a model answers, and whether that recalls a fact.

A fact is known when its object occurs, case ignored, in ten greedily decoded tokens (LAW, section
5.1; the authors' ``get_predictions``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.prompts import equal_length_batches

NEW_TOKENS = 10


@torch.inference_mode()
def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    batch_size: int,
    description: str = "answers",
) -> list[str]:
    """The text of ``NEW_TOKENS`` greedily decoded tokens after each prompt, up to an end-of-text."""
    rows: list[list[int]] = tokenizer(list(prompts))["input_ids"] if prompts else []
    answers = [""] * len(rows)
    model.eval()
    with tqdm(total=len(rows), desc=description, leave=False, disable=None) as progress:
        for batch in equal_length_batches([len(row) for row in rows], batch_size):
            ids = torch.tensor([rows[i] for i in batch], device=model.device)
            generated: torch.Tensor = model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
            texts = tokenizer.batch_decode(generated[:, ids.shape[1] :], skip_special_tokens=True)
            for i, text in zip(batch, texts, strict=True):
                answers[i] = text
            progress.update(len(batch))
    return answers


def recalls(answer: str, wanted: str) -> bool:
    """Whether the object occurs in the answer, case ignored."""
    return wanted.strip().lower() in answer.lower()
