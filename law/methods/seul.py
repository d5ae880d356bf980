r"""SeUL, selective unlearning (Wang et al. 2024, arXiv 2402.05813).

Only the object's span :math:`s` of a fact's text becomes less likely. The loss leaves out the prompts, because other
facts share them:

.. math:: \min_\theta\; \frac{1}{|s|}\sum_{t \in s} \log p_\theta(x_t \mid x_{<t})

A token belongs to the span when it covers a character of the object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Count
from law.base.report import Report
from law.facts.fact import Fact
from law.methods.gradient_ascent import loss
from law.tuning.loop import Term, Tuning, tune
from law.tuning.training_rows import fact_rows, token_logits


@dataclass
class SeUL(Tuning):
    """Ascend the loss of the objects alone.

    Published: 1e-6, three epochs, batches of eight, without LoRA on GPT-2 XL and on GPT-J.
    """

    epochs: Count = 3
    batch_size: Count = 8

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Fine-tune ``model`` on the negated loss of the objects of ``facts``."""
        self.check(model)
        term = Term(
            "loss",
            fact_rows(tokenizer, facts, object_only=True),
            self.batch_size,
            lambda batch: loss(token_logits(model, batch), batch.labels),
        )
        tune(model, [term], self, report)
