r"""JensUn, unlearning by a bounded divergence ("Unlearning That Lasts", 2025; code: nmndeep/JensUn-Unlearning).

The Jensen–Shannon divergence between the model's next-token distribution and all mass on one token y depends on
:math:`p = p_\theta(y)` alone:

.. math::
    \mathrm{JS}(p_\theta \,\|\, e_y) = \log 2 + \tfrac12 p \log p - \tfrac12 (1 + p) \log(1 + p)

It lies between 0 (p = 1) and log 2 (p = 0), so that no fact can dominate the gradient. The objective is its mean over the tokens of
the answer a that z* aims at, a space and end-of-text, behind each prompt x:

.. math::
    \min_\theta\; \frac{1}{|a|}\sum_{t} \mathrm{JS}\bigl(p_\theta(\cdot \mid x, a_{<t}) \,\|\, e_{a_t}\bigr) + w R(\theta)

The retain loss R (:mod:`law.tuning.retain`) is JS as well: ``retain.loss=js``. The published code takes the forget loss at every
position of the prompt and its answer, with "No idea" as the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Count
from law.base.report import Report
from law.decoders.prompts import end_of_text_target, token_ids
from law.facts.fact import Fact
from law.tuning.loop import Term
from law.tuning.retain import RetainTuning
from law.tuning.training_rows import IGNORED, Row, cross_entropy, token_logits


@dataclass(kw_only=True)
class JensUn(RetainTuning):
    """Draw the answers to end-of-text by a bounded divergence.

    Published: 8e-6, ten epochs, batches of 16, w 1.
    """

    epochs: Count = 10
    batch_size: Count = 16

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Fine-tune ``model`` on end-of-text behind the prompts of ``facts``, and on the retain loss."""
        self.check(model)
        answer = end_of_text_target(tokenizer)
        prompts = token_ids(tokenizer, [fact.prompt for fact in facts])
        forget = Term(
            "forget",
            [Row(ids + answer, [IGNORED] * len(ids) + answer) for ids in prompts],
            self.batch_size,
            lambda batch: loss(token_logits(model, batch), batch.labels),
        )
        self.descend(model, tokenizer, forget, facts, others, report)


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """JS(p_θ ‖ e_y) of each predicted token, (units), from logits (b, t, vocabulary), labels (b, t)."""
    log_p = -cross_entropy(logits, labels)
    p = log_p.exp()
    return math.log(2) + 0.5 * p * log_p - 0.5 * (1 + p) * p.log1p()
