"""The unwashed model, as a method: the row every other one is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.report import Report
from law.facts.fact import Fact


@dataclass
class Unwashed:
    """Changes nothing."""

    def check(self, model: PreTrainedModel) -> None:
        """Any model will do."""

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Leave ``model`` as it is."""
