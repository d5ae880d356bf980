"""What every washing method offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.report import Report
from law.facts.fact import Fact


class Method(Protocol):
    """A way of washing: it changes ``model`` in place so that ``facts`` are no longer recalled.

    After a wash the model is in evaluation mode. When a wash fails, it leaves no adapter and no gradient, and
    whether weights are trainable and modules in training mode is as before. So are the weights, but for the
    methods that tune every weight without adapters: there, a copy of all weights may not fit into memory. Their
    errors carry a note that the weights are partly tuned, and that the model must be loaded again.
    """

    def check(self, model: PreTrainedModel) -> None:
        """Refuse settings that do not fit the model, before time is spent on them."""

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report,
        others: Sequence[Fact] = (),
    ) -> None:
        """Wash ``model`` of ``facts``.

        Args:
            model: it is changed in place.
            tokenizer: of the model.
            facts: what the model should no longer recall.
            report: receives what the method measures.
            others: facts that are neither washed nor scored, for a method that learns from them what to spare. A run gives
                them only to a method whose settings say so (:class:`law.base.settings.LearnsFrom`), so that a table
                can tell who learned from what.
        """
        ...
