r"""Fine-tuning on end-of-text, the FT baseline of LAW's paper.

The text x of a fact is its prompt, followed by the answer that z* aims at: a space and end-of-text. Fine-tuning makes
this text likely, so that it replaces the object:

.. math:: \min_\theta\; -\frac{1}{|x|}\sum_{t} \log p_\theta(x_t \mid x_{<t})
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Count
from law.base.report import Report
from law.decoders.prompts import end_of_text_target
from law.facts.fact import Fact
from law.tuning.loop import Term, Tuning, tune
from law.tuning.training_rows import Row, cross_entropy, token_logits


@dataclass
class FineTuning(Tuning):
    """Descend the loss of prompt and end-of-text.

    Published: 1e-5, eight epochs, batches of two on GPT-2 XL; 1e-4 with LoRA on GPT-J.
    """

    epochs: Count = 8

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Fine-tune ``model`` on the prompts of ``facts``, each followed by end-of-text."""
        self.check(model)
        ending = end_of_text_target(tokenizer)
        prompts: list[list[int]] = tokenizer([fact.prompt for fact in facts])["input_ids"]
        term = Term(
            "loss",
            [Row(ids + ending, ids + ending) for ids in prompts],
            self.batch_size,
            lambda batch: loss(token_logits(model, batch), batch.labels),
        )
        tune(model, [term], self, report)


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p(x_t | x_<t) of each predicted token, (units), from logits (b, t, vocabulary), labels (b, t)."""
    return cross_entropy(logits, labels)
