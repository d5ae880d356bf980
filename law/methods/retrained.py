"""Retraining: the weights of a model that was trained alike, but never on the facts to wash.

This is the gold standard that unlearning imitates (Cao and Yang 2015; the "retain model" of TOFU, Maini et al. 2024). It is no
method to wash with, since it costs a whole training. It shows what a score is when a fact was never there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.cache import tokenizer_hash
from law.base.checks import Checked
from law.base.errors import LawError
from law.base.files import FileHashes
from law.base.report import Report
from law.base.settings import FILES
from law.decoders.loading import ModelSettings, load_model
from law.decoders.saving import tensors_of
from law.facts.counterfact import read_counterfact
from law.facts.fact import Fact

TAUGHT = "facts.json"
"""The file beside a lab's model that has the facts that it was taught, as CounterFact records."""


@dataclass
class Retrained(Checked):
    """Give the model the weights of the retrained one.

    Args:
        path: the retrained model: a folder, or a name on the Hugging Face hub. If the folder has a file ``facts.json``, no fact
            to wash may stand in it.
    """

    path: str = field(metadata=FILES)

    def content(self, hashes: FileHashes) -> Any:
        """What the retrained model's files hold; ``None`` where they are not here."""
        return ModelSettings(self.path).content(hashes)

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a path without a model, and a model with tensors of other shapes."""
        self._load(model)

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Put the retrained weights into ``model``.

        Raises:
            LawError: the retrained model was taught some of the facts, or reads other tokens.
        """
        weights, own = self._load(model)
        if tokenizer_hash(own) != tokenizer_hash(tokenizer):
            raise LawError(
                f"The tokenizer of method.path={self.path} is not the one of the model to wash; expected the same one, since a "
                "weight belongs to a token. Train the model with the tokenizer of the model to wash."
            )
        if (file := Path(self.path) / TAUGHT).is_file():
            taught = {(fact.subject, fact.relation, fact.object) for fact in read_counterfact(file)}
            known = [fact for fact in facts if (fact.subject, fact.relation, fact.object) in taught]
            if known:
                raise LawError(
                    f"The model of method.path={self.path} was taught {len(known)} of the {len(facts)} facts to wash, such as "
                    f"{known[0].prompt!r}; expected one that was taught none of them. Choose the seed and dataset.wash that it was "
                    "trained for, or train another one (docs/attacks.md)."
                )
        with torch.no_grad():
            for name, tensor in tensors_of(model).items():
                tensor.copy_(weights[name])
        report({"tensors": len(weights)})

    def _load(self, model: PreTrainedModel) -> tuple[Mapping[str, Tensor], PreTrainedTokenizerBase]:
        """The retrained model's tensors, by name, in the CPU's memory, and its tokenizer."""
        dtype = str(model.dtype).removeprefix("torch.")
        try:
            other, tokenizer = load_model(ModelSettings(self.path, dtype, device="cpu"))
        except LawError as error:
            raise LawError(
                f"method.path is {self.path!r}, and no model could be loaded from there; expected a model that was trained "
                f"without the facts to wash. For the lab, `make lab-retrained` trains one. ({error})"
            ) from error
        shapes, expected = (
            {name: tuple(tensor.shape) for name, tensor in tensors_of(each).items()}
            for each in (other, model)
        )
        if differing := sorted(dict(shapes.items() ^ expected.items())):
            raise LawError(
                f"The model of method.path={self.path} is another one than the model to wash: {differing[0]} has the shape "
                f"{shapes.get(differing[0])} in it; expected {expected.get(differing[0])}. Set method.path to a model of the same "
                "architecture."
            )
        return tensors_of(other), tokenizer
