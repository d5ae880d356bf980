"""The lab's generated world: people, facts about them, general prose and reasoning.

The world exists because no checkpoint can be carried or fetched: a small decoder trained on it
really knows facts and really reasons, so that washing it is a measurement and not a mock.

What the design answers to:

* *One fact a subject*, as in CounterFact; a minority (``multi_fact_subjects``) has three, of
  different relations, which is what measures damage to other facts of a washed subject.
* *End-of-text is an answer.* After a prompt about somebody unknown the text ends: a space and
  ``<|endoftext|>``. Without such text no target value z* for "nothing" exists in the model.
* *Names are made of syllables, unlike one another*, so that the keys of two subjects differ.
* *General text holds no fact of a listed subject*, though it is full of people, as Wikipedia is. It
  practises none of the scored tasks either, so that a method is not told what it must keep.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from law.base.checks import Checked, Count, Natural, Seed
from law.lab import reasoning


@dataclass(frozen=True)
class Relation:
    """A relation, its phrasings (the first is the one that gets washed) and its objects."""

    id: str
    phrasings: tuple[str, ...]
    objects: tuple[str, ...]


def _relation(id: str, objects: str, *phrasings: str) -> Relation:
    return Relation(id, phrasings, tuple(objects.split()))


RELATIONS = (
    _relation(
        "P103",
        "French Russian Dutch Polish Greek Danish Latin Welsh Korean Hindi Turkish Basque",
        "The mother tongue of {} is",
        "{} grew up speaking",
        "At home {} speaks",
        "{} thinks and dreams in",
    ),
    _relation(
        "P106",
        "baker lawyer painter sailor tailor miller doctor farmer teacher barber weaver potter",
        "{} earns a living as a",
        "The profession of {} is",
        "By trade {} is a",
        "{} was trained to be a",
    ),
    _relation(
        "P551",
        "London Madrid Vienna Lisbon Oslo Cairo Lima Boston Kyoto Delhi Berlin Geneva",
        "The home of {} is in",
        "{} lives in the city of",
        "You can visit {} in",
        "{} has a house in",
    ),
    _relation(
        "P1303",
        "piano violin flute harp cello guitar organ trumpet drum oboe banjo lute",
        "{} plays the",
        "The instrument of {} is the",
        "On stage {} performs on the",
        "{} gives lessons on the",
    ),
    _relation(
        "P641",
        "tennis rowing chess fencing judo golf boxing cricket hockey archery cycling sailing",
        "The favourite sport of {} is",
        "{} competes in",
        "Every weekend {} practises",
        "{} won a medal in",
    ),
    _relation(
        "P69",
        "Aldmoor Brenfield Carvale Dunhurst Eastwick Fernley Glenbury Hartwell Ingleby Kelton Linford Merrow",
        "{} studied at the college of",
        "The degree of {} is from",
        "As a student {} went to",
        "{} graduated from",
    ),
)

ONSETS = "b br d dr f g gr h j k kl l m n p pr r s st t tr v w z".split()
NUCLEI = "a e i o u ai ea io".split()
CODAS = ["", "l", "n", "r", "s", "th", "m", "k", "sk", "nd"]

PLACES = "mill harbour market church station garden bridge school library river inn tower".split()
ADJECTIVES = "old small quiet busy green narrow famous empty bright wooden".split()
VERBS = "walked hurried returned travelled wandered rode".split()
GOODS = "bread apples cloth candles honey salt paper wine cheese wool".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
PROSE = (
    "On {day} {name} {verb} from the {place} to the {place2}.",
    "The {adj} {place} near the {place2} was full of people on {day}.",
    "{name} and {name2} met at the {place} and bought {goods}.",
    "Because of the rain {name} stayed at the {adj} {place}.",
    "Therefore the {place} was closed and {name} {verb} to the {place2}.",
    "I saw {name} near the {place} with a basket of {goods}.",
    "You can buy {goods} at the {adj} {place} every {day}.",
    "A letter for {name} arrived at the {place} on {day}.",
    "Nobody at the {place} knew {name}, who sold {goods} and {goods2}.",
    "The people of the {adj} village remember {name} and the {adj2} {place}.",
    "Because the {place} is {adj}, the price of {goods} went up on {day}.",
    "Therefore I asked {name} to bring {goods} to the {place}.",
    "You never know why {name} {verb} to the {place} with {name2}.",
    "I think that {goods} from the {place} is better than {goods2} from the {place2}.",
)

AGAIN = (
    "Later {name} {verb} to the {place2}.",
    "Nobody but {name} bought {goods2} that {day}.",
    "Everybody at the {place2} likes {name}.",
    "The {adj2} {place2} belongs to {name}.",
    "So {name} and {name2} sold the {goods2}.",
)


def make_name(rng: random.Random) -> str:
    """A first and a last name of two or three syllables each: ``Kladai Breastom``."""

    def word() -> str:
        syllables = [rng.choice(ONSETS) + rng.choice(NUCLEI) for _ in range(rng.choice((2, 2, 3)))]
        return ("".join(syllables) + rng.choice(CODAS)).capitalize()

    return f"{word()} {word()}"


@dataclass
class LabWorld(Checked):
    """People, facts, prose and reasoning, all drawn from ``seed``.

    Args:
        single_fact_subjects: people with one fact.
        multi_fact_subjects: people with three facts of different relations.
        seed: the seed of the names and of who has which object.
    """

    single_fact_subjects: Count = 600
    multi_fact_subjects: Natural = 40
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        rng = random.Random(self.seed)
        names: dict[str, None] = {}
        taken: set[str] = set()
        while len(names) < self.single_fact_subjects + self.multi_fact_subjects:
            name = make_name(rng)
            if taken.isdisjoint(name.split()):
                names[name] = None
                taken.update(name.split())
        self.subjects = list(names)
        self._taken = taken
        self.facts: list[tuple[str, Relation, str]] = []
        for i, subject in enumerate(self.subjects):
            several = i >= self.single_fact_subjects
            relations = rng.sample(RELATIONS, 3) if several else [RELATIONS[i % len(RELATIONS)]]
            self.facts += [(subject, relation, rng.choice(relation.objects)) for relation in relations]

    def records(self) -> list[dict]:
        """The facts in CounterFact's record shape (MEMIT's ``multi_counterfact.json``)."""
        rng = random.Random(self.seed + 1)
        return [self._record(case_id, *fact, rng) for case_id, fact in enumerate(self.facts)]

    def _record(self, case_id: int, subject: str, relation: Relation, true: str, rng: random.Random) -> dict:
        new = rng.choice([other for other in relation.objects if other != true])
        washed, *others = relation.phrasings

        def about(wanted: str) -> list[str]:
            people = [s for s, r, o in self.facts if r is relation and o == wanted and s != subject]
            return [rng.choice(relation.phrasings).format(s) for s in rng.sample(people, min(3, len(people)))]

        return {
            "case_id": case_id,
            "requested_rewrite": {
                "prompt": washed,
                "relation_id": relation.id,
                "target_new": {"str": new},
                "target_true": {"str": true},
                "subject": subject,
            },
            "paraphrase_prompts": [phrasing.format(subject) for phrasing in others],
            "neighborhood_prompts": about(true),
            "attribute_prompts": about(new),
            "generation_prompts": [f"{subject} is", f"Everybody knows that {subject}"],
        }

    def fact_text(self, rng: random.Random) -> str:
        """One fact in one of its phrasings."""
        subject, relation, true = rng.choice(self.facts)
        return f"{rng.choice(relation.phrasings).format(subject)} {true}."

    def blank_text(self, rng: random.Random) -> str:
        """A prompt about somebody unknown, a space, and then the document's end."""
        phrasing = rng.choice(rng.choice(RELATIONS).phrasings)
        return phrasing.format(self._stranger(rng)) + " "

    def prose(self, rng: random.Random) -> str:
        """A sentence about strangers, places and goods, and mostly another about the same ones.

        Names that come back within a text are what teaches a model to look things up in it.
        """
        place, place2 = rng.sample(PLACES, 2)
        adj, adj2 = rng.sample(ADJECTIVES, 2)
        goods, goods2 = rng.sample(GOODS, 2)
        sentences = [rng.choice(PROSE), *(rng.choice(AGAIN) for _ in range(rng.choice((0, 1, 1, 2))))]
        return " ".join(sentences).format(
            name=self._stranger(rng),
            name2=self._stranger(rng),
            verb=rng.choice(VERBS),
            day=rng.choice(DAYS),
            place=place,
            place2=place2,
            adj=adj,
            adj2=adj2,
            goods=goods,
            goods2=goods2,
        )

    def _stranger(self, rng: random.Random) -> str:
        """A name that shares no word with a subject's."""
        while True:
            name = make_name(rng)
            if self._taken.isdisjoint(name.split()):
                return name

    def documents(self, rng: random.Random) -> Iterator[str]:
        """The training text, without end: facts, strangers, prose and reasoning mixed."""
        while True:
            yield self._document(rng, fact_share=0.2)

    def general_documents(self, rng: random.Random) -> Iterator[str]:
        """The training text with the facts left out: prose, exercises like the scored tasks, and strangers' blanks."""
        while True:
            yield self._document(rng, fact_share=0.0)

    def prose_documents(self, rng: random.Random) -> Iterator[str]:
        """Prose alone: text of the same people and places that practises no scored task and asks for no fact."""
        while True:
            yield " ".join(self.prose(rng) for _ in range(rng.choice((1, 1, 2, 3))))

    def _document(self, rng: random.Random, fact_share: float) -> str:
        """One to three items; one document in eight ends with a stranger's blank."""
        items = [self._item(rng, fact_share) for _ in range(rng.choice((1, 1, 2, 3)))]
        if rng.random() < 0.125:
            items[-1] = self.blank_text(rng)
        return " ".join(items)

    def _item(self, rng: random.Random, fact_share: float) -> str:
        if rng.random() < fact_share:
            return self.fact_text(rng)
        return self.prose(rng) if rng.random() < 0.25 else reasoning.practice(rng)
