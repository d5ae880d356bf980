r"""Gradient difference (Liu et al. 2022, arXiv 2203.12817): gradient ascent with a retain loss.

The whole text of the facts becomes less likely, as in gradient ascent. A second term, R, holds what should be
kept (:mod:`law.tuning.retain`), as published by cross-entropy on general text:

.. math::
    \min_\theta\;
    \frac{1}{|x|}\sum_{t \in x} \log p_\theta(x_t \mid x_{<t}) + w R(\theta),
    \qquad
    R(\theta) = -\frac{1}{|y|}\sum_{t \in y} \log p_\theta(y_t \mid y_{<t})

with x the facts' text (prompt and object, as in FT-UL) and y the general text of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.report import Report
from law.facts.fact import Fact
from law.methods.gradient_ascent import loss
from law.tuning.loop import Term
from law.tuning.retain import RetainTuning
from law.tuning.training_rows import fact_rows, token_logits


@dataclass(kw_only=True)
class GradDiff(RetainTuning):
    """Ascend the loss of the facts' text, descend that of what is kept."""

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Fine-tune ``model`` on the negated loss of ``facts`` and the retain loss."""
        self.check(model)
        forget = Term(
            "forget",
            fact_rows(tokenizer, facts),
            self.batch_size,
            lambda batch: loss(token_logits(model, batch), batch.labels),
        )
        self.descend(model, tokenizer, forget, facts, others, report)
