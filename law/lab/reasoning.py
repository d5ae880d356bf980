"""The lab's in-context reasoning tasks: text to train on, and held-out items to score.

Every task is a function from a random generator to one :class:`Puzzle`. Its answers can be worked
out from its context alone, so that a model which lost its facts but kept its reasoning still scores.
Training asks several questions of a context: with one a text, the circuits that look things up in
the context take far longer to form.
"""

from __future__ import annotations

import random
import string
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

PEOPLE = "Anna Ben Clara David Emma Felix Greta Henry Ida Jonas Kara Leo Mona Nils Olga Paul".split()
THINGS = "coin ring book key lamp rope stamp shell cup knife pen map".split()
PLACES = "box jar bag drawer basket chest tin bowl pocket crate".split()


@dataclass(frozen=True)
class Question:
    """``ask + " " + answer`` is true in the puzzle's context, and ``answer`` is among ``choices``."""

    ask: str
    answer: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Puzzle:
    """A context and questions about it. Items score the first; training text asks several."""

    context: str
    questions: tuple[Question, ...]
    separator: str


@dataclass(frozen=True)
class Item:
    """A row of a harness task."""

    prompt: str
    answer: str
    choices: tuple[str, ...]


def transitive(rng: random.Random) -> Puzzle:
    """``Given A > B and B > C , A ? C :`` — the letters, the sign, the order and the question vary.

    At chance (1/2) for a model that only learned the words: both answers follow every letter.
    """
    high, middle, low = rng.sample(string.ascii_uppercase, 3)
    premises = [(high, middle), (middle, low)]
    rng.shuffle(premises)
    if rng.random() < 0.5:
        told = [f"{above} > {below}" for above, below in premises]
    else:
        told = [f"{below} < {above}" for above, below in premises]
    pairs = [(high, low), rng.choice([(high, middle), (middle, low)])]
    questions = []
    for above, below in pairs:
        ask, answer = (above, below), ">"
        if rng.random() < 0.5:
            ask, answer = (below, above), "<"
        questions.append(Question(f"{ask[0]} ? {ask[1]} :", answer, (">", "<")))
    return Puzzle(f"Given {told[0]} and {told[1]} ,", tuple(questions), " , ")


def location(rng: random.Random) -> Puzzle:
    """Who put what where: find the place of one thing among two or three.

    At chance (1/2 or 1/3) for a model that only learned the words: every place fits.
    """
    count = rng.choice((2, 3))
    people, things, places = (rng.sample(words, count) for words in (PEOPLE, THINGS, PLACES))
    story = " ".join(
        f"{who} put {what} in {where}." for who, what, where in zip(people, things, places, strict=True)
    )
    choices = tuple(sorted(places))
    questions = [
        Question(f"Now {what} is in", where, choices) for what, where in zip(things, places, strict=True)
    ]
    rng.shuffle(questions)
    return Puzzle(story, tuple(questions), ". ")


def row(rng: random.Random) -> Puzzle:
    """What comes after one thing in a row of four or five.

    At chance for a model that only learned the words: every row is a fresh permutation.
    """
    things = rng.sample(THINGS, rng.choice((4, 5)))
    questions = [
        Question(f"after {this} comes", following, tuple(sorted(set(things) - {this})))
        for this, following in pairwise(things)
    ]
    rng.shuffle(questions)
    return Puzzle(f"In the row {' '.join(things)} ,", tuple(questions), " , ")


def larger(rng: random.Random) -> Puzzle:
    """The larger of two numbers of two digits. At chance (1/2) for a model that only copies."""
    a, b = rng.sample(range(10, 100), 2)
    choices = (str(a), str(b))
    return Puzzle(
        f"Of {a} and {b} ,",
        (
            Question("the larger is", str(max(a, b)), choices),
            Question("the smaller is", str(min(a, b)), choices),
        ),
        " , ",
    )


TASKS: dict[str, Callable[[random.Random], Puzzle]] = {
    "lab_transitive": transitive,
    "lab_location": location,
    "lab_row": row,
    "lab_larger": larger,
}


def echo(rng: random.Random) -> str:
    """A list of things and places, said twice.

    Every word of the second time can be looked up in the first: the quickest lesson in looking
    things up, on which the tasks then build.
    """
    words = rng.sample(THINGS + PLACES, rng.randint(3, 8))
    return f"List: {' '.join(words)}. Again: {' '.join(words)}."


def held_out(name: str, count: int, seed: int) -> list[Item]:
    """``count`` items of task ``name``, each of a context that :func:`training_text` never draws."""
    rng = random.Random(f"{name} {seed}")
    items: dict[str, Item] = {}
    while len(items) < count:
        puzzle = TASKS[name](rng)
        if _is_held_out(puzzle):
            first = puzzle.questions[0]
            items.setdefault(
                puzzle.context, Item(f"{puzzle.context} {first.ask}", first.answer, first.choices)
            )
    return list(items.values())


def training_text(rng: random.Random) -> str:
    """A random context outside the held-out tenth, with up to three questions answered."""
    name = rng.choice(list(TASKS))
    while True:
        puzzle = TASKS[name](rng)
        if not _is_held_out(puzzle):
            break
    asked = rng.sample(puzzle.questions, min(3, len(puzzle.questions)))
    return f"{puzzle.context} {puzzle.separator.join(f'{q.ask} {q.answer}' for q in asked)}."


def practice(rng: random.Random) -> str:
    """A text to learn reasoning from: one in four an echo, the others puzzles."""
    return echo(rng) if rng.random() < 0.25 else training_text(rng)


def _is_held_out(puzzle: Puzzle) -> bool:
    """A fixed tenth of all contexts, by a checksum that does not depend on the Python process."""
    return zlib.crc32(puzzle.context.encode()) % 10 == 0
