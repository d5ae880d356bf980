"""What every washing method offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.report import Report
from law.facts.fact import Fact


class Method(Protocol):
    """A way of washing: it changes ``model`` in place so that ``facts`` are no longer recalled."""

    def check(self, model: PreTrainedModel) -> None:
        """Refuse settings that do not fit the model, before time is spent on them."""

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report,
    ) -> None: ...
