r"""WOH, "who is Harry Potter" (Eldan and Russinovich 2023, arXiv 2310.02238).

A copy of the model is *reinforced*: it is fine-tuned on the facts, so that they become more likely. Where
this raises a logit, the washed model should lower it. With logits :math:`v_0` of the unwashed model
and :math:`v_+` of the reinforced one, at each of the T tokens of a fact's text,

.. math::
    \min_\theta\; \frac{1}{T |V|}\sum_{t} \lVert v_\theta(t) - v^*(t) \rVert^2,
    \qquad
    v^* = v_0 - \alpha\,\operatorname{relu}(v_+ - v_0).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Count, NonNegative, Positive
from law.base.report import Report
from law.facts.fact import Fact
from law.tuning.loop import Term, Tuning, tune
from law.tuning.reference import Reference
from law.tuning.training_rows import Batch, cross_entropy, fact_rows, token_logits, tokens


@dataclass
class WOH(Tuning):
    """Regress onto the logits of the unwashed model minus what a reinforced copy adds to them.

    Published: 5e-5, batches of two, α 0.5 on GPT-2 XL; α 5 (0.5 on Wiki-Latest) with LoRA on GPT-J.
    The number of epochs of the regression is not published with them; one is this project's choice.

    Args:
        alpha: α, how far a raised logit is lowered.
        reinforce_learning_rate: the learning rate of AdamW when the copy is fine-tuned on the facts' text.
        reinforce_epochs: the epochs of that fine-tuning; its other settings are those of the regression.
    """

    alpha: NonNegative = 0.5
    reinforce_learning_rate: Positive = 1e-6
    reinforce_epochs: Count = 1

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Reinforce a copy of ``model``, then regress ``model`` on the logits of both."""
        self.check(model)
        rows = fact_rows(tokenizer, facts)
        reinforced = copy.deepcopy(model)
        reinforcing = Term(
            "reinforcement",
            rows,
            self.batch_size,
            lambda batch: cross_entropy(token_logits(reinforced, batch), batch.labels),
        )
        stronger = replace(self, learning_rate=self.reinforce_learning_rate, epochs=self.reinforce_epochs)
        tune(reinforced, [reinforcing], stronger, report, copies=[*model.parameters()])
        original = Reference(model, self.lora)

        def regression(batch: Batch) -> Tensor:
            with torch.no_grad():
                v_plus = token_logits(reinforced, batch)
            wanted = target(original.logits(batch), v_plus, self.alpha)
            return loss(token_logits(model, batch), wanted, batch.mask)

        term = Term("loss", rows, self.batch_size, regression, units=tokens)
        tune(model, [term], self, report, copies=original.copies)


def target(v_0: Tensor, v_plus: Tensor, alpha: float) -> Tensor:
    """v* = v₀ − α relu(v₊ − v₀), all (b, t, vocabulary)."""
    return v_0 - alpha * (v_plus - v_0).relu()


def loss(logits: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of each token's logits, (units), from (b, t, vocabulary) twice, mask (b, t)."""
    return (logits.float() - wanted.float()).square().mean(-1)[mask.bool()]
