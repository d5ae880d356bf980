r"""Gradient ascent, the FT-UL baseline of LAW's paper.

The text of every fact, prompt and object together, becomes less likely:

.. math:: \min_\theta\; \frac{1}{|x|}\sum_{t} \log p_\theta(x_t \mid x_{<t})

by AdamW, batch by batch. No term of the loss protects what should stay. Below some learning rate the model forgets
nothing, and above it the model forgets everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.report import Report
from law.facts.fact import Fact
from law.tuning.loop import Term, Tuning, tune
from law.tuning.training_rows import cross_entropy, fact_rows, token_logits


@dataclass
class GradientAscent(Tuning):
    """Ascend the loss of the facts' text.

    Published: 1e-6, one epoch, batches of two on GPT-2 XL; 1e-5, five epochs, with LoRA on GPT-J.
    """

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Fine-tune ``model`` on the negated loss of ``facts``."""
        self.check(model)
        term = Term(
            "loss",
            fact_rows(tokenizer, facts),
            self.batch_size,
            lambda batch: loss(token_logits(model, batch), batch.labels),
        )
        tune(model, [term], self, report)


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """log p(x_t | x_<t) of each predicted token, (units), from logits (b, t, vocabulary), labels (b, t)."""
    return -cross_entropy(logits, labels)
