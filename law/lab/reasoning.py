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
    """A context and questions about it. Items score the first; training text asks up to three.

    ``key`` is the same for contexts that say the same in another order, so that holding one out
    holds out all of them.
    """

    context: str
    questions: tuple[Question, ...]
    key: str

    @property
    def item(self) -> Item:
        """The row that scores the first question."""
        first = self.questions[0]
        return Item(f"{self.context} {first.ask}", first.answer, first.choices)


@dataclass(frozen=True)
class Item:
    """A row of a harness task."""

    prompt: str
    answer: str
    choices: tuple[str, ...]


def rank(rng: random.Random) -> Puzzle:
    """``Given A > B and B > C , then C is``: which of three is the highest, which the lowest.

    At chance (1/2) for a model that only learned the words: both answers follow every letter.
    """
    high, middle, low = rng.sample(string.ascii_uppercase, 3)
    premises = [f"{high} > {middle}", f"{middle} > {low}"]
    rng.shuffle(premises)
    choices = ("highest", "lowest")
    questions = [
        Question(f"then {high} is", "highest", choices),
        Question(f"then {low} is", "lowest", choices),
    ]
    rng.shuffle(questions)
    return Puzzle(f"Given {premises[0]} and {premises[1]} ,", tuple(questions), f"{high} {middle} {low}")


def code(rng: random.Random) -> Puzzle:
    """Look a thing up in a table of two to four.

    At chance (1/2 to 1/4) for a model that only learned the words: every table is drawn afresh.
    """
    count = rng.choice((2, 3, 4))
    things, codes = rng.sample(THINGS, count), rng.sample(PLACES, count)
    table = [f"{thing} {word}" for thing, word in zip(things, codes, strict=True)]
    questions = [
        Question(f"the code of {thing} is", word, tuple(sorted(codes)))
        for thing, word in zip(things, codes, strict=True)
    ]
    rng.shuffle(questions)
    return Puzzle(f"Codes : {' , '.join(table)} ;", tuple(questions), " ".join(sorted(table)))


def ends(rng: random.Random) -> Puzzle:
    """The first and the last of a row of three to five letters.

    At chance (1/3 to 1/5) for a model that only learned the words.
    """
    letters = rng.sample(string.ascii_uppercase, rng.choice((3, 4, 5)))
    questions = [
        Question("the first is", letters[0], tuple(sorted(letters))),
        Question("the last is", letters[-1], tuple(sorted(letters))),
    ]
    rng.shuffle(questions)
    return Puzzle(f"In the row {' '.join(letters)} ,", tuple(questions), " ".join(letters))


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
    return Puzzle(f"In the row {' '.join(things)} ,", tuple(questions), " ".join(things))


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
        f"{min(a, b)} {max(a, b)}",
    )


TASKS: dict[str, Callable[[random.Random], Puzzle]] = {
    "lab_rank": rank,
    "lab_code": code,
    "lab_row": row,
    "lab_ends": ends,
    "lab_larger": larger,
}


def echo(rng: random.Random) -> str:
    """A list of things and places, said twice.

    Every word of the second time can be looked up in the first: the quickest lesson in looking
    things up, on which the tasks then build.
    """
    words = rng.sample(THINGS + PLACES, rng.randint(3, 8))
    return f"List: {' '.join(words)}. Again: {' '.join(words)}."


def held_out(name: str, count: int, seed: int) -> list[Puzzle]:
    """``count`` puzzles of task ``name``, each in a context that :func:`training_text` never draws."""
    rng = random.Random(f"{name} {seed}")
    puzzles: dict[str, Puzzle] = {}
    while len(puzzles) < count:
        puzzle = TASKS[name](rng)
        if _is_held_out(puzzle):
            puzzles.setdefault(puzzle.context, puzzle)
    return list(puzzles.values())


def training_text(rng: random.Random) -> str:
    """A random context outside the held-out tenth, with up to three questions answered."""
    name = rng.choice(list(TASKS))
    while True:
        puzzle = TASKS[name](rng)
        if not _is_held_out(puzzle):
            break
    asked = rng.sample(puzzle.questions, min(3, len(puzzle.questions)))
    return f"{puzzle.context} {' , '.join(f'{q.ask} {q.answer}' for q in asked)}."


def practice(rng: random.Random) -> str:
    """A text to learn reasoning from: one in four an echo, the others puzzles."""
    return echo(rng) if rng.random() < 0.25 else training_text(rng)


def _is_held_out(puzzle: Puzzle) -> bool:
    """A fixed tenth of all contexts, by a checksum of their key that does not depend on the Python process."""
    return zlib.crc32(puzzle.key.encode()) % 10 == 0
