"""What all data sets have in common: finding the file, and choosing the facts to wash and to keep."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

from law.base.checks import Checked, Count, Natural, Seed
from law.base.errors import LawError, did_you_mean, shortened
from law.base.files import FileHashes
from law.base.settings import FILES
from law.facts.fact import Fact, FactSplit
from law.facts.record_files import clean, read_text

log = logging.getLogger(__name__)

MOST_UNSCORED = 20_000
"""The most facts that a method may learn from."""


class Known(Enum):
    """Which facts count as known.

    ``recalled``: the answer holds the object (the paper's rule). ``subject``: besides, the object does not stand in
    the prompt, and is not what the model answers for other subjects (:mod:`law.evaluation.known_facts`).
    """

    recalled = "recalled"
    subject = "subject"


class Part(Enum):
    """Which facts of a file are drawn from: all of them, or one of two parts that have no subject in common.

    Settings are chosen on ``validation``, about a quarter of the facts, so that no result on ``test`` was tuned for.
    The part hangs on the SHA-256 of the subject alone: it is the same in every file, on every machine.
    """

    all = "all"
    validation = "validation"
    test = "test"


@dataclass
class FactSource(Checked, ABC):
    """A file of facts, and which of them to wash and to keep.

    Args:
        path: the file; ``~`` is the home folder. ``null``: the published file, if there is one.
        wash: how many facts to wash, drawn at random. ``null``: all that ``keep`` leaves.
        keep: how many of the other facts to score as kept ones. ``null``: all of them. A fact that repeats a
            washed one (see :func:`_keys`) is not kept; where possible, another one is kept in its place. They are drawn
            from the end of the order whose beginning is washed, so that a sweep over ``wash`` keeps the same facts.
        seed: the seed of the draw.
        relations: draw only from the facts of these relations. ``null``: from all.
        part: draw only from this part of the facts.
        ids: a JSON file whose ``ids`` are the facts to draw from, such as ``experiments/known_facts.py`` writes of the
            facts that a model knows. ``null``: all.
        known: which facts count as known. Only known facts are washed and scored.
    """

    path: str | None = field(metadata=FILES)
    wash: Count | None = None
    keep: Natural | None = None
    seed: Seed = 0
    relations: list[str] | None = None
    part: Part = Part.all
    ids: str | None = field(default=None, metadata=FILES)
    known: Known = Known.recalled

    @abstractmethod
    def read(self, path: Path) -> list[Fact]:
        """The facts of a file, in its order."""

    @abstractmethod
    def fetch(self) -> Path:
        """The published file; a LawError if none is published."""

    def file(self) -> Path:
        """The file that is read: ``path``, or the published one.

        Raises:
            LawError: nothing is published, or it can't be fetched.
        """
        return self.fetch() if self.path is None else Path(self.path)

    def content(self, hashes: FileHashes) -> Any:
        """What the file's name ends in, its hash and that of the list of ids; ``None`` where a file is not here."""
        try:
            path = self.file()
        except LawError:
            return None
        listed = Path(self.ids) if self.ids is not None else None
        if not path.is_file() or (listed is not None and not listed.is_file()):
            return None
        return [path.suffix, hashes.of(path), listed and hashes.of(listed)]

    def load(self) -> FactSplit:
        """Read the file and split it.

        Raises:
            LawError: there is no such file, a record is malformed, a relation is unknown, or the file holds
                fewer facts than asked for.
        """
        path = self.file()
        facts = self.read(path)
        if not facts:
            raise LawError(
                f"{path} holds no fact. Expected at least one record that gives a fact; docs/datasets.md shows the "
                "formats. Add facts to the file, or set dataset.path to another one."
            )
        everything = facts
        if self.relations is not None:
            facts = _of_relations(facts, [clean(relation) for relation in self.relations], path)
        if self.ids is not None:
            facts = _of_ids(facts, Path(self.ids), path)
        if self.part is not Part.all:
            facts = [fact for fact in facts if part_of(fact) is self.part]
        wash = len(facts) - (self.keep or 0) if self.wash is None else self.wash
        keep = len(facts) - wash if self.keep is None else self.keep
        if wash < 1 or keep < 0 or wash + keep > len(facts):
            wanted = "all the others" if self.wash is None else self.wash
            raise LawError(
                f"{path} holds {len(facts)} facts{self._drawn_from()}; the configuration asks for {wanted} to wash and "
                f"{self.keep or 0} to keep. Set dataset.wash (at least 1) and dataset.keep so that their sum "
                f"is at most {len(facts)}."
            )
        order = random.Random(self.seed).sample(facts, len(facts))
        washed, others = order[:wash], order[wash:]
        if self.wash is None:
            washed, kept, repeats = _exchanged(washed, others)
        else:
            kept, repeats = _apart(washed, others, keep, order)
        if repeats:
            log.info("%s: %d facts repeat a washed fact and are not among the kept ones", path, repeats)
        if self.keep is not None and len(kept) < self.keep:
            raise LawError(
                f"{path}: only {len(kept)} facts can be kept; dataset.keep asks for {self.keep}. The other facts "
                "repeat a washed fact: its prompt, its subject and relation, or its subject and object. Lower "
                "dataset.keep or dataset.wash."
            )
        chosen = {id(fact) for fact in (*washed, *kept)}
        drawn = {id(fact) for fact in order}
        rest = [*order, *(fact for fact in everything if id(fact) not in drawn)]
        others = [fact for fact in rest if id(fact) not in chosen]
        alike = others if self.part is Part.all else [fact for fact in others if part_of(fact) is self.part]
        return FactSplit(washed, kept, others, unscored(washed, kept, alike))

    def _drawn_from(self) -> str:
        """What the draw is limited to, for messages."""
        limits = [f"the relations {', '.join(self.relations)}"] if self.relations is not None else []
        limits += [f"the part {self.part.value}"] if self.part is not Part.all else []
        limits += [f"the list {self.ids}"] if self.ids is not None else []
        return f" of {' and '.join(limits)}" if limits else ""


def part_of(fact: Fact) -> Part:
    """The part that a fact belongs to."""
    first_byte = hashlib.sha256(fact.subject.casefold().encode()).digest()[0]
    return Part.validation if first_byte < 64 else Part.test


def unscored(washed: Sequence[Fact], kept: Sequence[Fact], others: Iterable[Fact]) -> list[Fact]:
    """The others that a method may learn from: no scored prompt speaks of their subjects.

    A subject that stands anywhere in a prompt of a washed or kept fact is left out, and so is one that stands in a
    neighbour's prompt. The first :data:`MOST_UNSCORED` are taken, so that memory does not grow with the file.
    """
    asked = [q.prompt for fact in washed for q in fact.neighbours]
    asked += [prompt for fact in (*washed, *kept) for prompt in (fact.prompt, *fact.paraphrases)]
    text = "\n".join(asked).casefold()
    free = (fact for fact in others if fact.subject.casefold() not in text)
    return [*islice(free, MOST_UNSCORED)]


def _keys(fact: Fact) -> list[tuple[str, ...]]:
    """A fact repeats another if they share one of these: prompt, subject and object, subject and relation."""
    subject = fact.subject.casefold()
    keys: list[tuple[str, ...]] = [(fact.prompt.casefold(),), ("object", subject, fact.object.casefold())]
    return [*keys, ("relation", subject, fact.relation)] if fact.relation else keys


def _apart(
    washed: Sequence[Fact], others: Sequence[Fact], keep: int, order: Sequence[Fact]
) -> tuple[list[Fact], int]:
    """The last ``keep`` of the others that repeat no washed fact, and the number of those that do.

    Facts that repeat no other one of ``order`` come first: whether they are kept does not hang on which are washed.
    """
    if not keep:
        return [], 0
    taken = {key for fact in washed for key in _keys(fact)}
    counts = Counter(key for fact in order for key in _keys(fact))
    free = [fact for fact in reversed(others) if taken.isdisjoint(_keys(fact))]
    free.sort(key=lambda fact: any(counts[key] > 1 for key in _keys(fact)))  # stable
    chosen = {id(fact) for fact in free[:keep]}
    return [fact for fact in others if id(fact) in chosen], len(others) - len(free)


def _exchanged(washed: Sequence[Fact], kept: Sequence[Fact]) -> tuple[list[Fact], list[Fact], int]:
    """Wash the kept facts that repeat a washed one, and keep as many others, which repeat no washed fact.

    Returns the washed facts, the kept facts, and the number of repeats. There are fewer kept facts than
    before if too few washed ones can take the place of the repeats.
    """
    if not kept:
        return [*washed], [], 0
    counts = Counter(key for fact in washed for key in _keys(fact))
    moved: list[Fact] = []
    # a fact that is moved may itself be repeated by a kept one, so this is done until none is left
    while repeats := [fact for fact in kept if not counts.keys().isdisjoint(_keys(fact))]:
        kept = [fact for fact in kept if counts.keys().isdisjoint(_keys(fact))]
        counts.update(key for fact in repeats for key in _keys(fact))
        moved += repeats
    alone = [i for i in reversed(range(len(washed))) if all(counts[key] == 1 for key in _keys(washed[i]))]
    exchanged = set(alone[: len(moved)])
    stay = [fact for i, fact in enumerate(washed) if i not in exchanged]
    return [*stay, *moved], [*kept, *(washed[i] for i in sorted(exchanged))], len(moved)


def _of_relations(facts: Sequence[Fact], relations: Sequence[str], path: Path) -> list[Fact]:
    """The facts of some relations. A LawError if a relation has no fact."""
    known = sorted({fact.relation for fact in facts} - {""})
    for relation in relations:
        if relation not in known:
            some = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "") if known else "none"
            raise LawError(
                f"{path} has no fact of the relation {relation!r}.{did_you_mean(relation, known)} Expected some of its {len(known)} "
                f"relations: {some}. Mend dataset.relations, or set it to null to take all."
            )
    wanted = set(relations)
    return [fact for fact in facts if fact.relation in wanted]


def _of_ids(facts: Sequence[Fact], listed: Path, path: Path) -> list[Fact]:
    """The facts whose ids a file lists. A LawError if it is no such file, or lists none of them."""
    expected = 'a JSON object with a list "ids"'
    try:
        ids = json.loads(read_text(listed, expected))["ids"]
        if not isinstance(ids, list):
            raise TypeError(f"its ids are {shortened(repr(ids))}")
        wanted = set(map(str, ids))
    except (ValueError, KeyError, TypeError) as error:
        raise LawError(
            f"{listed} lists no ids ({type(error).__name__}: {error}); expected {expected}. Set dataset.ids to such a "
            "file, or to null."
        ) from error
    found = [fact for fact in facts if fact.id in wanted]
    if not found:
        raise LawError(
            f"{path} has none of the {len(wanted)} facts that {listed} lists. Expected a list made of the same file. "
            "Make it with experiments/known_facts.py, or set dataset.ids to null."
        )
    log.info("%s: %d of %d facts are in %s", path, len(found), len(facts), listed)
    return found
