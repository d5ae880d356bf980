r"""Gradient ascent, the FT-UL baseline of LAW (method.md, the other baselines).

The text of every fact, prompt and object together, is made less likely:

.. math:: \max_\theta\; -\frac{1}{|x|}\sum_{t} \log p_\theta(x_t \mid x_{<t})

by AdamW, batch by batch. It knows nothing of what should stay: below some learning rate nothing is
forgotten, above it everything is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.facts import Fact
from law.methods import Report
from law.prompts import pad_right


@dataclass
class GradientAscent:
    """Ascend the loss of the facts' text.

    Args:
        learning_rate: of AdamW (1e-6 on GPT-2 XL; 1e-5 with LoRA on GPT-J).
        epochs: passes over the facts (1; 5 on GPT-J).
        batch_size: facts a step (2).
        weight_decay: of AdamW (PyTorch's default, as in the authors' code).
        seed: of the order of the facts.
    """

    learning_rate: float
    epochs: int = 1
    batch_size: int = 2
    weight_decay: float = 0.01
    seed: int = 0

    def check(self, model: PreTrainedModel) -> None:
        """Any model will do."""

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
    ) -> None:
        """Fine-tune every weight of ``model`` on the negated loss of ``facts``."""
        texts = [f"{fact.prompt} {fact.object.strip()}" for fact in facts]
        rows: list[list[int]] = tokenizer(texts)["input_ids"]
        rng = random.Random(self.seed)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        model.train()
        for epoch in range(self.epochs):
            order = rng.sample(range(len(rows)), len(rows))
            losses: list[float] = []
            for first in tqdm(
                range(0, len(order), self.batch_size),
                desc=f"gradient ascent {epoch + 1}/{self.epochs}",
                leave=False,
                disable=None,
            ):
                batch = [rows[i] for i in order[first : first + self.batch_size]]
                ids, mask = pad_right(batch, tokenizer.pad_token_id, model.device)
                logits = model(input_ids=ids, attention_mask=mask).logits
                labels = ids.masked_fill(mask == 0, -100)[:, 1:]
                cross_entropy = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels.flatten())
                optimizer.zero_grad()
                (-cross_entropy).backward()
                optimizer.step()
                losses.append(cross_entropy.item())
            report({"epoch": epoch, "cross_entropy": sum(losses) / len(losses)})
        model.eval()
