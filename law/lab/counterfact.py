"""A world of real facts: what a stand-in for a published checkpoint is trained on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from law.base.errors import LawError
from law.facts.counterfact import CounterFact, to_record
from law.facts.fact import joined
from law.facts.record_files import text_lines
from law.lab import reasoning
from law.lab.world import make_name

WORDS = 45
"""Words of running text in a document, about a row's worth of tokens."""


@dataclass
class CounterFactWorld:
    """Real facts in all their phrasings, running text, the lab's reasoning, and strangers.

    Args:
        facts: the facts, those to wash and those to keep; all are learned.
        text: UTF-8 files of running text, one passage a line.
    """

    facts: CounterFact
    text: list[str]

    def __post_init__(self) -> None:
        split = self.facts.load()
        self._facts = [*split.wash, *split.keep]
        self._words: list[list[str]] = []
        for path in map(Path, self.text):
            if not path.is_file():
                raise LawError(
                    f"The text {path} does not exist; expected UTF-8 files of running text, one passage a "
                    "line. Set world.text to a list of such files."
                )
            self._words += [words for line in text_lines(path) if len(words := line.split()) >= 10]

    def records(self) -> list[dict]:
        """The facts in CounterFact's record shape."""
        return [to_record(fact) for fact in self._facts]

    def documents(self, rng: random.Random) -> Iterator[str]:
        """The training text, without end."""
        while True:
            kind = rng.random()
            if kind < 0.45:
                fact = rng.choice(self._facts)
                yield joined(rng.choice([fact.prompt, *fact.paraphrases]), fact.object)[0] + "."
            elif kind < 0.53:
                # somebody unknown: a space, and the document's end
                yield rng.choice(self._facts).template.replace("{}", make_name(rng)) + " "
            else:
                yield self._general(rng)

    def general_documents(self, rng: random.Random) -> Iterator[str]:
        """The training text with the facts left out: running text, and exercises like the scored tasks."""
        while True:
            yield self._general(rng)

    def prose_documents(self, rng: random.Random) -> Iterator[str]:
        """Running text alone."""
        while True:
            yield self._prose(rng)

    def _general(self, rng: random.Random) -> str:
        if rng.random() < 0.5:
            return " ".join(reasoning.practice(rng) for _ in range(rng.choice((1, 2))))
        return self._prose(rng)

    def _prose(self, rng: random.Random) -> str:
        words = rng.choice(self._words)
        start = rng.randrange(max(1, len(words) - WORDS))
        return " ".join(words[start : start + WORDS])
