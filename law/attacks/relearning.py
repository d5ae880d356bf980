"""Relearning: do facts come back that were not shown, when others are taught again?

The model is tuned on some of the washed facts and asked for the *others*. Only what comes back of facts that were not
shown was still there (Deeb and Roger 2024, "Do unlearning methods remove information from language model weights?").
The control is tuned and asked likewise: what it scores is what teaching alone gives, such as the relation's usual answers.

The model is also tuned on kept facts alone, and on general text alone, each time on as many as there are facts. Then nothing that was
washed is taught at all. The text is the held-out text of the evaluation, less the documents that name subject and object of a fact.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from transformers import PreTrainedModel

from law.attacks.protocol import Cost, Record, Target
from law.base.checks import Checked, Count, Positives, Seed
from law.decoders.greedy_decoding import recalled
from law.facts.fact import Fact
from law.tuning.loop import Term, Tuning, tune
from law.tuning.retain import RetainSet
from law.tuning.training_rows import Row, cross_entropy, fact_rows, token_logits


@dataclass
class Relearning(Checked):
    """Tune on all parts of the facts but one, and ask for that one; once for each part.

    Args:
        parts: into how many parts the facts are divided, by subject.
        learning_rates: of AdamW. The one that recovers most counts.
        epochs: passes over the facts that are shown; facts are asked for after each.
        batch_size: facts in a step.
        seed: of the parts and of the order of the facts.
    """

    parts: Count = 5
    learning_rates: Positives = field(default_factory=lambda: [1e-5, 1e-4])
    epochs: Count = 3
    batch_size: Count = 8
    seed: Seed = 0

    def cost(self, target: Target) -> Cost:
        """What :meth:`attack` takes."""
        own = fact_rows(target.tokenizer, target.facts, object_only=True)
        kept, text = self._kept(target), self._text(target)
        # each fact is shown for all parts but one
        tuned = (self.parts - 1) * _tokens(own) + _tokens(kept) + _tokens(text)
        rows = (self.parts - 1) * len(own) + len(kept) + len(text)
        times = self.epochs * len(self.learning_rates)
        return Cost(
            answered=3 * times * len(own), tuned=times * tuned, steps=times * ceil(rows / self.batch_size)
        )

    def attack(self, target: Target) -> Record:
        """``recalled`` after the last epoch, the curve, a score ``epoch_k`` after each, ``kept``, and ``text``."""
        curves = [self._curve(target, rate) for rate in self.learning_rates]
        best = max(curves, key=lambda curve: sum(filter(None, curve[-1])))
        return {
            "recalled": best[-1],
            "kept": self._by_others(target, self._kept(target)),
            "text": self._by_others(target, self._text(target)),
            **{f"epoch_{epoch + 1}": values for epoch, values in enumerate(best)},
        }

    def _curve(self, target: Target, rate: float) -> list[list[float | None]]:
        """After each epoch, whether each fact is recalled by the model that was not shown it.

        Without facts of a second subject there is nothing to show.
        """
        found: list[list[float | None]] = [[None] * len(target.facts) for _ in range(self.epochs)]
        for held in self._parts(target):
            shown = [fact for i, fact in enumerate(target.facts) if i not in held]
            rows = fact_rows(target.tokenizer, shown, object_only=True)
            taught = self._taught(target, rate, rows, [target.facts[i] for i in held])
            for values, hits in zip(found, taught, strict=True):
                for i, hit in zip(held, hits, strict=True):
                    values[i] = hit
        return found

    def _kept(self, target: Target) -> list[Row]:
        """As many kept facts as there are facts."""
        return fact_rows(target.tokenizer, target.shown[: len(target.facts)], object_only=True)

    def _text(self, target: Target) -> list[Row]:
        """As many documents of general text as there are facts, less those that tell a fact."""
        if target.text is None:
            return []
        read = RetainSet(target.text, documents=len(target.facts))
        return read.text_rows(target.model, target.tokenizer, target.facts)

    def _by_others(self, target: Target, rows: Sequence[Row]) -> Sequence[float | None]:
        """Whether each fact is recalled by the model that was tuned on rows that tell none of them."""
        taught = [self._taught(target, rate, rows, target.facts)[-1] for rate in self.learning_rates]
        return max(taught, key=lambda hits: sum(filter(None, hits)))

    def _taught(
        self, target: Target, rate: float, rows: Sequence[Row], asked: Sequence[Fact]
    ) -> list[list[float | None]]:
        """After each epoch on the rows, whether each fact asked for is recalled; ``None`` without rows."""
        model, tokenizer = target.model, target.tokenizer
        found: list[list[float | None]] = [[None] * len(asked) for _ in range(self.epochs)]
        if not rows:
            return found

        def note(values: dict[str, Any]) -> None:
            hits = recalled(model, tokenizer, asked, target.batch_size, target.recall)
            found[values["epoch"]] = [float(hit) for hit in hits]
            model.train()  # the epochs to come go on as they began

        loss = Term(
            "loss",
            rows,
            self.batch_size,
            lambda batch: cross_entropy(token_logits(model, batch), batch.labels),
        )
        with unchanged(model):
            tune(model, [loss], Tuning(rate, self.epochs, self.batch_size, seed=self.seed), note)
        return found

    def _parts(self, target: Target) -> list[list[int]]:
        """The numbers of the facts in each part; facts of one subject are in one part."""
        subjects = sorted({fact.subject for fact in target.facts})
        random.Random(self.seed).shuffle(subjects)
        part_of = {subject: i % self.parts for i, subject in enumerate(subjects)}
        parts: list[list[int]] = [[] for _ in range(self.parts)]
        for i, fact in enumerate(target.facts):
            parts[part_of[fact.subject]].append(i)
        return [part for part in parts if part]


def _tokens(rows: Sequence[Row]) -> int:
    return sum(len(row.ids) for row in rows)


@contextmanager
def unchanged(model: PreTrainedModel) -> Iterator[None]:
    """Afterwards every weight is what it was; the copies lie in the CPU's memory."""
    copies = [parameter.detach().to("cpu", copy=True) for parameter in model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(model.parameters(), copies, strict=True):
                parameter.copy_(values)
        model.eval()
