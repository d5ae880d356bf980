r"""SimNPO, simple negative preference optimisation (Fan et al. 2024, arXiv 2410.07163), with a retain loss.

NPO without a reference model. The likelihood of the object y after the prompt x is taken per token, so that short and long
objects are forgotten alike:

.. math::
    \min_\theta\;
    -\frac{2}{\beta}\,\mathbb{E}\,
    \log\sigma\Bigl(-\frac{\beta}{|y|} \log \pi_\theta(y \mid x) - \beta\delta\Bigr)
    + w R(\theta)

with R the retain loss (:mod:`law.tuning.retain`). A fact loses its weight when the mean log-probability of its tokens falls
below −δ. With β → 0 this is gradient ascent on the objects, each with the same weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Count, NonNegative, Positive
from law.base.report import Report
from law.facts.fact import Fact
from law.methods.npo import span_log_p
from law.tuning.loop import Term
from law.tuning.retain import RetainTuning
from law.tuning.training_rows import IGNORED, Batch, fact_rows, token_logits


@dataclass(kw_only=True)
class SimNPO(RetainTuning):
    """Prefer anything to the objects, by their likelihood per token.

    Published (OpenUnlearning): 1e-5, ten epochs, β 4.5, δ 0, and a retain loss that weighs 8 times the forget loss (1
    against 0.125).

    Args:
        beta: β, how fast a forgotten fact loses its weight.
        delta: δ, how unlikely a token must be, in nats, for the fact to lose half of its weight.
    """

    epochs: Count = 10
    beta: Positive = 4.5
    delta: NonNegative = 0.0

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Fine-tune ``model`` on the objects of ``facts`` and on the retain loss."""
        self.check(model)

        def preference(batch: Batch) -> Tensor:
            log_p = mean_log_p(token_logits(model, batch), batch.labels)
            return loss(log_p, self.beta, self.delta)

        rows = fact_rows(tokenizer, facts, object_only=True)
        forget = Term("forget", rows, self.batch_size, preference, units=lambda _: 1)
        self.descend(model, tokenizer, forget, facts, others, report)


def mean_log_p(logits: Tensor, labels: Tensor) -> Tensor:
    """log π(y | x) / |y| of each row, (b), from (b, t, vocabulary) and (b, t)."""
    return span_log_p(logits, labels) / (labels[:, 1:] != IGNORED).sum(1)


def loss(log_p: Tensor, beta: float, delta: float) -> Tensor:
    """−(2/β) log σ(−β (log π + δ)) of each row, (b), from its mean log π (b)."""
    return -2 / beta * F.logsigmoid(-beta * (log_p + delta))
