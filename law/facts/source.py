"""What every data set does alike: find its file, and choose the facts to wash and those to keep."""

from __future__ import annotations

import difflib
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from law.base.checks import Checked, Count, Natural, Seed
from law.base.errors import LawError
from law.facts.fact import Fact, FactSplit


@dataclass
class FactSource(Checked, ABC):
    """A file of facts, and which of them to wash and to keep.

    Args:
        path: the file; ``null`` fetches the published one, where there is one.
        wash: how many facts to wash, drawn by ``seed``; ``null`` takes all that ``keep`` leaves.
        keep: how many of the others score what is retained; ``null`` takes all.
        seed: of the draw. Which facts are washed changes with it.
        relations: draw from the facts of these relations alone; ``null`` from all.
    """

    path: str | None
    wash: Count | None = None
    keep: Natural | None = None
    seed: Seed = 0
    relations: list[str] | None = None

    @abstractmethod
    def read(self, path: Path) -> list[Fact]:
        """All facts of a file, in its order."""

    @abstractmethod
    def fetch(self) -> Path:
        """The published file, for a ``path`` of ``null``; an error where none is published."""

    def load(self) -> FactSplit:
        """Read the file and split it.

        Raises:
            LawError: no such file, a malformed record, an unknown relation, or fewer facts than asked for.
        """
        path = self.fetch() if self.path is None else Path(self.path)
        facts = self.read(path)
        if self.relations is not None:
            facts = _of_relations(facts, self.relations, path)
        wash = len(facts) - (self.keep or 0) if self.wash is None else self.wash
        keep = len(facts) - wash if self.keep is None else self.keep
        if wash < 1 or keep < 0 or wash + keep > len(facts):
            wanted = "all the others" if self.wash is None else self.wash
            raise LawError(
                f"{path} holds {len(facts)} facts; the configuration asks for {wanted} to wash and "
                f"{self.keep or 0} to keep. Set dataset.wash (at least 1) and dataset.keep so that their sum "
                f"is at most {len(facts)}."
            )
        order = random.Random(self.seed).sample(facts, len(facts))
        return FactSplit(wash=order[:wash], keep=order[wash : wash + keep])


def _of_relations(facts: Sequence[Fact], relations: Sequence[str], path: Path) -> list[Fact]:
    """The facts of some relations, each of which has to occur."""
    known = sorted({fact.relation for fact in facts} - {""})
    for relation in relations:
        if relation not in known:
            near = difflib.get_close_matches(relation, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            some = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "") if known else "none"
            raise LawError(
                f"{path} has no fact of the relation {relation!r}.{hint} Expected some of its {len(known)} "
                f"relations: {some}. Mend dataset.relations, or set it to null to take all."
            )
    wanted = set(relations)
    return [fact for fact in facts if fact.relation in wanted]
