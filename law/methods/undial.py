r"""UNDIAL, unlearning by self-distillation with adjusted logits (Dong et al. 2024, arXiv 2402.10052).

The model learns from itself. The teacher is the unwashed model with the logit of the object's token y lowered by β, so that its
other answers keep their order:

.. math::
    \min_\theta\;
    -\frac{1}{|s|} \sum_{t \in s} \sum_v q_t(v) \log p_\theta(v \mid x_{<t}) + w R(\theta),
    \qquad
    q_t = \operatorname{softmax}\bigl(z_0(t) - \beta\, e_{y_t}\bigr)

with s the object's span, :math:`z_0(t)` the unwashed model's logits there, :math:`e_y` the unit vector of token y, and R the
retain loss (:mod:`law.tuning.retain`). The target stays fixed, so that more steps do not destroy the model, as they do in gradient ascent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Count, NonNegative
from law.base.report import Report
from law.facts.fact import Fact
from law.tuning.loop import Term
from law.tuning.reference import Reference
from law.tuning.retain import RetainTuning
from law.tuning.training_rows import IGNORED, Batch, fact_rows, predicted_logits, token_logits


@dataclass(kw_only=True)
class UNDIAL(RetainTuning):
    """Distil the unwashed model with lowered logits of the objects.

    Published (OpenUnlearning): 1e-4, ten epochs, β 10, no retain loss.

    Args:
        beta: β, how far the logit of an object's token is lowered.
    """

    epochs: Count = 10
    beta: NonNegative = 10.0

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Fine-tune ``model`` on the adjusted logits at the objects of ``facts``, and on the retain loss."""
        self.check(model)
        unwashed = Reference(model, self.lora)

        def distillation(batch: Batch) -> Tensor:
            wanted = target(unwashed.logits(batch), batch.labels, self.beta)
            return loss(token_logits(model, batch), wanted, batch.labels)

        rows = fact_rows(tokenizer, facts, object_only=True)
        forget = Term("forget", rows, self.batch_size, distillation)
        self.descend(model, tokenizer, forget, facts, others, report, unwashed)


def target(before: Tensor, labels: Tensor, beta: float) -> Tensor:
    """q of each predicted token, (units, vocabulary), from the unwashed logits (b, t, vocabulary), labels (b, t)."""
    wanted = labels[:, 1:]
    lowered = beta * F.one_hot(wanted[wanted != IGNORED], before.shape[-1])  # β e_y, (units, vocabulary)
    return (predicted_logits(before, labels) - lowered).softmax(-1)


def loss(logits: Tensor, wanted: Tensor, labels: Tensor) -> Tensor:
    """−Σ q log p of each predicted token, (units), from (b, t, vocabulary), q (units, vocabulary), labels (b, t)."""
    return F.cross_entropy(predicted_logits(logits, labels), wanted, reduction="none")
