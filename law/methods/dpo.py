r"""DPO towards a refusal (Rafailov et al. 2023, arXiv 2305.18290; as a baseline of unlearning in Zhang et al. 2024, arXiv 2404.05868).

After the prompt x, the refusal :math:`y_w` ("I don't know") is preferred to the object :math:`y_l`. With the unwashed model
:math:`\pi_0` as the reference,

.. math::
    \min_\theta\;
    -\frac{2}{\beta}\,\mathbb{E}\,
    \log\sigma\Bigl(
      \beta \log\frac{\pi_\theta(y_w \mid x)}{\pi_0(y_w \mid x)}
      - \beta \log\frac{\pi_\theta(y_l \mid x)}{\pi_0(y_l \mid x)}
    \Bigr)
    + w R(\theta)

with R the retain loss (:mod:`law.tuning.retain`). Without the refusal's term this is NPO. The factor 2/β is NPO's and OpenUnlearning's.
The refusal ends with end-of-text, so that no object follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Accepted, Count, Positive
from law.base.report import Report
from law.decoders.prompts import end_of_text_target
from law.facts.fact import Fact
from law.methods.npo import reference_log_p, span_log_p
from law.tuning.loop import Term
from law.tuning.retain import RetainTuning
from law.tuning.training_rows import Batch, Row, fact_rows, pad, token_logits

Words = Annotated[str, Accepted("a text that is not blank", lambda text: bool(text.strip()))]


@dataclass(kw_only=True)
class DPO(RetainTuning):
    """Prefer a refusal to the objects.

    Published (OpenUnlearning): 1e-5, ten epochs, β 0.1, w 1.

    Args:
        beta: β, how fast a fact loses its weight once the refusal is preferred.
        refusal: the answer that is preferred.
    """

    epochs: Count = 10
    beta: Positive = 0.1
    refusal: Words = "I don't know."

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Fine-tune ``model`` on the refusal and the objects of ``facts``, and on the retain loss."""
        self.check(model)
        objects = fact_rows(tokenizer, facts, object_only=True)
        refusals = refusal_rows(tokenizer, facts, self.refusal)
        # two numbers a fact are all that is needed of the unwashed model, so no copy of it is kept
        before_l = reference_log_p(model, objects, self.batch_size)
        before_w = reference_log_p(model, refusals, self.batch_size)

        def preference(lost: Batch) -> Tensor:
            won = pad([refusals[i] for i in lost.index], lost.index, model.device)
            log_w, log_l = (span_log_p(token_logits(model, batch), batch.labels) for batch in (won, lost))
            return loss(log_w - before_w[lost.index], log_l - before_l[lost.index], self.beta)

        forget = Term("forget", objects, self.batch_size, preference, units=lambda _: 1)
        self.descend(model, tokenizer, forget, facts, others, report)


def refusal_rows(tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], refusal: str) -> list[Row]:
    """Each prompt with the refusal and end-of-text behind it; these are labelled, and the prompt is not."""
    end = end_of_text_target(tokenizer)[-1:]
    rows = fact_rows(tokenizer, [replace(fact, object=refusal) for fact in facts], object_only=True)
    return [Row(row.ids + end, row.labels + end) for row in rows]


def loss(won: Tensor, lost: Tensor, beta: float) -> Tensor:
    """−(2/β) log σ(β (won − lost)) of each row, (b), from log π_θ/π₀ of the refusal and of the object, (b) each."""
    return -2 / beta * F.logsigmoid(beta * (won - lost))
