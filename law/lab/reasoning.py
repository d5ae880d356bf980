"""The lab's in-context reasoning tasks: text to train on, and held-out items to score.

Every task is a function from a random generator to one :class:`Item`. An item is a prompt, the
answer, and the choices among which a model picks. The answer can be worked out from the prompt
alone, so that a model which lost its facts but kept its reasoning still scores.
"""

from __future__ import annotations

import random
import string
import zlib
from collections.abc import Callable
from dataclasses import dataclass

PEOPLE = "Anna Ben Clara David Emma Felix Greta Henry Ida Jonas Kara Leo Mona Nils Olga Paul".split()
THINGS = "coin ring book key lamp rope stamp shell cup knife pen map".split()
PLACES = "box jar bag drawer basket chest tin bowl pocket crate".split()


@dataclass(frozen=True)
class Item:
    """One question: ``prompt + " " + answer`` is a true sentence, and ``answer in choices``."""

    prompt: str
    answer: str
    choices: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.answer}"


def transitive(rng: random.Random) -> Item:
    """``Given A > B and B > C , A ? C :`` — the symbols, their order and the question vary.

    At chance (1/2) for a model that only learned the words: both answers follow every letter.
    """
    high, middle, low = rng.sample(string.ascii_uppercase, 3)
    premises = [_relation(high, middle, rng), _relation(middle, low, rng)]
    rng.shuffle(premises)
    first, second = rng.sample([high, low], 2)
    answer = ">" if first == high else "<"
    return Item(f"Given {premises[0]} and {premises[1]} , {first} ? {second} :", answer, (">", "<"))


def _relation(high: str, low: str, rng: random.Random) -> str:
    return f"{high} > {low}" if rng.random() < 0.5 else f"{low} < {high}"


def location(rng: random.Random) -> Item:
    """Who put what where: find the place of one thing among two or three.

    At chance (1/2 or 1/3) for a model that only learned the words: every place fits.
    """
    count = rng.choice((2, 3))
    people, things, places = (rng.sample(words, count) for words in (PEOPLE, THINGS, PLACES))
    story = " ".join(
        f"{who} put the {what} in the {where}."
        for who, what, where in zip(people, things, places, strict=True)
    )
    asked = rng.randrange(count)
    return Item(f"{story} Now the {things[asked]} is in the", places[asked], tuple(sorted(places)))


def row(rng: random.Random) -> Item:
    """What comes after one thing in a row of four or five.

    At chance for a model that only learned the words: every row is a fresh permutation.
    """
    things = rng.sample(THINGS, rng.choice((4, 5)))
    asked = rng.randrange(len(things) - 1)
    choices = tuple(sorted(set(things) - {things[asked]}))
    return Item(
        f"In the row {' '.join(things)} , after {things[asked]} comes", things[asked + 1], choices
    )


def larger(rng: random.Random) -> Item:
    """The larger of two numbers of two digits. At chance (1/2) for a model that only copies."""
    a, b = rng.sample(range(10, 100), 2)
    choices = (str(a), str(b))
    return Item(f"The larger of {a} and {b} is", str(max(a, b)), choices)


TASKS: dict[str, Callable[[random.Random], Item]] = {
    "lab_transitive": transitive,
    "lab_location": location,
    "lab_row": row,
    "lab_larger": larger,
}


def held_out(name: str, count: int, seed: int) -> list[Item]:
    """``count`` distinct items of task ``name`` that :func:`training_text` never draws."""
    rng = random.Random(f"{name} {seed}")
    items: dict[str, Item] = {}
    while len(items) < count:
        item = TASKS[name](rng)
        if _is_held_out(item):
            items.setdefault(item.prompt, item)
    return list(items.values())


def training_text(rng: random.Random) -> str:
    """The text of one random item of a random task, drawn outside the held-out tenth."""
    name = rng.choice(list(TASKS))
    while True:
        item = TASKS[name](rng)
        if not _is_held_out(item):
            return item.text


def _is_held_out(item: Item) -> bool:
    """A fixed tenth of all prompts, by a checksum that does not depend on the Python process."""
    return zlib.crc32(item.prompt.encode()) % 10 == 0
