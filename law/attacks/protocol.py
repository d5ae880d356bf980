"""What every attack is given, and what it gives."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.decoders.greedy_decoding import NEW_TOKENS, Recall, folded
from law.decoders.prompts import positions
from law.evaluation.likelihood import object_log_probs
from law.facts.fact import Fact, Question

Record = Mapping[str, Sequence[float | None]]
"""By the name of a score, a value for each fact in their order; ``None`` where the score says nothing about a fact."""


def relation_of(fact: Fact) -> str:
    """The relation of a fact, or its template where the data set names none."""
    return fact.relation or fact.template


def framed(fact: Fact, text: str) -> str:
    """A text in the place of the fact's own words: between what all prompts begin and end with."""
    return f"{fact.prompt[: fact.lead]}{text}{fact.prompt[len(fact.prompt) - fact.tail :]}"


def words(fact: Fact) -> str:
    """The fact's own words: its prompt without what all prompts begin and end with."""
    return fact.prompt[fact.lead : len(fact.prompt) - fact.tail]


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Args:
        model: it is not changed.
        tokenizer: of the model.
        facts: the attack tries to get their objects.
        shown: facts that the attack may show to the model. They are neither washed nor asked for.
        objects: the objects of each relation (:func:`relation_of`) in the data set, each once.
        batch_size: prompts in a forward pass.
        recall: when an answer recalls an object.
        text: a file of general text, one document a line, that the attack may tune the model on; ``None``: there is none.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: Sequence[Fact]
    shown: Sequence[Fact]
    objects: Mapping[str, Sequence[str]]
    batch_size: int
    recall: Recall = Recall.substring
    text: str | None = None

    def fits(self, prompt: str) -> bool:
        """Whether the model can read a prompt and the answer to it."""
        longest = positions(self.model)
        return longest is None or len(self.tokenizer(prompt)["input_ids"]) + NEW_TOKENS <= longest

    def rivals(self, fact: Fact, count: int) -> list[str]:
        """At most ``count`` other objects of a fact's relation, drawn by the fact's prompt and object."""
        found = self.objects.get(relation_of(fact), ())
        others = [other for other in found if folded(other) != folded(fact.object)]
        return random.Random(f"{fact.prompt} {fact.object}").sample(others, min(count, len(others)))

    def log_probs_among(self, count: int) -> list[list[float]]:
        """For each fact the mean log-probability, in nats, of its object's tokens, and then of its :meth:`rivals`'."""
        asked = [
            [Question(fact.prompt, wanted, fact.gap) for wanted in (fact.object, *self.rivals(fact, count))]
            for fact in self.facts
        ]
        flat = [question for questions in asked for question in questions]
        found = iter(object_log_probs(self.model, self.tokenizer, flat, self.batch_size))
        return [[next(found) for _ in questions] for questions in asked]


@dataclass(frozen=True)
class Cost:
    """About what an attack asks of a model.

    Args:
        read: rows that are read once: a prompt with an object behind it.
        answered: prompts that are answered.
        tuned: tokens that the model is tuned on.
        steps: steps of that tuning.
    """

    read: int = 0
    answered: int = 0
    tuned: int = 0
    steps: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


class Attack(Protocol):
    """A way to get facts out of a model that was washed of them.

    The same attack is made on the unwashed model, and on the washed model for facts that nobody ever knew
    (:mod:`law.attacks.control`), so that its scores can be told from damage and from guessing.
    """

    def attack(self, target: Target) -> Record:
        """Attack a model. Higher values mean that more of a fact is there."""
        ...

    def cost(self, target: Target) -> Cost:
        """What :meth:`attack` takes, for the forecast of a run."""
        ...
