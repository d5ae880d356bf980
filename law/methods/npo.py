r"""Negative preference optimisation (Zhang et al. 2024, arXiv 2404.05868), with a retain loss.

The object y after the prompt x is an answer that is not preferred. With the unwashed model :math:`\pi_0` as the
reference,

.. math::
    \min_\theta\;
    \frac{2}{\beta}\,\mathbb{E}\,
    \log\Bigl(1 + \Bigl(\frac{\pi_\theta(y \mid x)}{\pi_0(y \mid x)}\Bigr)^{\beta}\Bigr)
    + w R(\theta)

with R the retain loss (:mod:`law.tuning.retain`). The ratio is computed over the object's whole span, for one fact at a time, as in the
paper for an answer to its question. The gradient is that of gradient ascent, times a weight that falls to zero as
the answer becomes unlikely. Gradient ascent has no such weight and never stops. With β → 0 the two agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Positive
from law.base.report import Report
from law.decoders.restoring import evaluating
from law.facts.fact import Fact
from law.tuning.loop import Term
from law.tuning.retain import RetainTuning
from law.tuning.training_rows import IGNORED, Batch, Row, fact_rows, pad, token_logits


@dataclass(kw_only=True)
class NPO(RetainTuning):
    """Prefer anything to the objects, and keep general text or other facts.

    Args:
        beta: β, how fast a forgotten fact loses its weight (0.1 in the paper).
    """

    beta: Positive = 0.1

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
        rows = fact_rows(tokenizer, facts, object_only=True)
        # one number a fact is all that is needed of the unwashed model, so no copy of it is kept
        before = reference_log_p(model, rows, self.batch_size)

        def preference(batch: Batch) -> Tensor:
            log_p = span_log_p(token_logits(model, batch), batch.labels)
            return loss(log_p, before[batch.index], self.beta)

        forget = Term("forget", rows, self.batch_size, preference, units=lambda _: 1)
        self.descend(model, tokenizer, forget, facts, others, report)


@torch.no_grad()
def reference_log_p(model: PreTrainedModel, rows: Sequence[Row], batch_size: int) -> Tensor:
    """log π₀ of every row's span, (n), by ``model`` as it is now, without dropout."""
    found: list[Tensor] = []
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            batch = pad(part, range(start, start + len(part)), model.device)
            found.append(span_log_p(token_logits(model, batch), batch.labels))
    return torch.cat(found)


def span_log_p(logits: Tensor, labels: Tensor) -> Tensor:
    """log π(y | x), the sum over each row's labelled tokens, (b), from (b, t, vocabulary) and (b, t)."""
    wanted = labels[:, 1:]
    log_p = logits[:, :-1].float().log_softmax(-1)
    of_label = log_p.gather(-1, wanted.clamp(min=0)[..., None]).squeeze(-1)  # (b, t - 1)
    return of_label.where(wanted != IGNORED, 0.0).sum(1)


def loss(log_p: Tensor, reference: Tensor, beta: float) -> Tensor:
    """(2/β) log(1 + (π_θ/π₀)^β) of each row, from log π_θ and log π₀, all (b)."""
    return 2 / beta * F.softplus(beta * (log_p - reference))
