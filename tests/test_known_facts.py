"""Kinds of known facts, by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from law.decoders.greedy_decoding import Recall
from law.evaluation.known_facts import Kind, count_kinds, kinds_of, list_known_facts
from law.facts.fact import Fact


def fact(number: int, subject: str, object: str, template: str = "{} speaks", relation: str = "P103") -> Fact:
    return Fact(str(number), subject, template, object, relation)


SPEAKERS = [fact(i, f"Person {i}", language) for i, language in enumerate(["Dutch"] * 6 + ["Greek"] * 6)]


class Asked:
    """A model that answers from a table, and notes down what it was asked."""

    def __init__(self, answers: dict[str, str], otherwise: str) -> None:
        self.answers, self.otherwise, self.prompts = answers, otherwise, list[str]()

    def __call__(self, prompts: Sequence[str]) -> Mapping[str, str]:
        self.prompts += prompts
        return {prompt: self.answers.get(prompt, self.otherwise) for prompt in prompts}


def kind(known: Fact, asked: Asked, pool: Sequence[Fact] = SPEAKERS, rule: Recall = Recall.substring) -> Kind:
    return kinds_of([known], pool, asked, rule)[known]


def test_an_object_in_the_prompt() -> None:
    asked = Asked({}, "")
    toyota = fact(0, "Toyota SA", "Toyota", "{}, developed by", "P176")
    assert kind(toyota, asked) is Kind.in_prompt
    assert asked.prompts == []
    # "Iran" stands within "Iranian", not as a word
    iranian = fact(0, "The Iranian", "Iran", "{} is from")
    assert kind(iranian, Asked({}, "nowhere"), rule=Recall.substring) is Kind.in_prompt
    assert kind(iranian, Asked({}, "nowhere"), rule=Recall.whole_word) is Kind.subject


def test_an_object_in_the_frame_of_all_prompts_is_not_in_the_prompt() -> None:
    system = "Answer in Dutch. "
    framed = [replace(each, template=f"{system}{each.template}", lead=len(system)) for each in SPEAKERS]
    assert kind(framed[0], Asked({}, "French"), framed) is Kind.subject
    assert kind(framed[0], Asked({}, "Dutch"), framed) is Kind.usual_answer  # copied for each subject
    assert kind(replace(framed[0], subject="Dutch Ann"), Asked({}, ""), framed) is Kind.in_prompt


@pytest.mark.parametrize(
    ("said_of", "expected"), [(0, Kind.subject), (1, Kind.subject), (2, Kind.usual_answer)]
)
def test_an_object_that_the_model_says_of_others(said_of: int, expected: Kind) -> None:
    """Person 0 speaks Dutch. Only the six who speak another language are asked for."""
    dutch = {f"Person {i} speaks": "Dutch, of course" for i in range(6, 6 + said_of)}
    asked = Asked(dutch, "French")
    assert kind(SPEAKERS[0], asked) is expected
    assert sorted(asked.prompts) == sorted(f"Person {i} speaks" for i in range(6, 12))


def test_ten_others_are_asked_and_the_pools_order_does_not_matter() -> None:
    many = [fact(i, f"Person {i}", "Greek") for i in range(40)]
    one, other = Asked({}, ""), Asked({}, "")
    assert kind(SPEAKERS[0], one, many) is kind(SPEAKERS[0], other, many[::-1]) is Kind.subject
    assert len(one.prompts) == 10 and one.prompts == other.prompts


def test_too_few_others_leave_it_undecided() -> None:
    pool = [fact(i, f"Person {i}", "Greek") for i in range(4)]
    assert kind(SPEAKERS[10], Asked({}, ""), pool) is Kind.undecided
    known = fact(0, "Zoë", "Dutch")
    assert kind(known, Asked({}, "French"), pool) is Kind.undecided
    assert kind(known, Asked({}, "Dutch"), pool) is Kind.usual_answer  # it is said of others, few as they are


def test_without_a_relation_the_template_tells_who_is_alike() -> None:
    pool = [replace(each, relation="") for each in SPEAKERS]
    others = [fact(i, f"Town {i}", "Lima", "{} lies in", "") for i in range(6)]
    asked = Asked({}, "French")
    assert kind(pool[0], asked, [*pool, *others]) is Kind.subject
    assert not any("Town" in prompt for prompt in asked.prompts)


def test_kinds_are_counted() -> None:
    kinds = {SPEAKERS[0]: Kind.subject, SPEAKERS[1]: Kind.in_prompt, SPEAKERS[2]: Kind.subject}
    assert count_kinds(SPEAKERS[:2], kinds) == {
        "facts/known_subject": 1,
        "facts/known_in_prompt": 1,
        "facts/known_usual_answer": 0,
        "facts/known_undecided": 0,
    }


def test_known_facts_are_listed() -> None:
    facts = [*SPEAKERS, fact(12, "Dutch Harbor", "Dutch"), fact(13, "Nobody", "Latin")]
    asked = Asked({f"Person {i} speaks": "Dutch" for i in range(6)} | {"Person 6 speaks": "Greek"}, "nothing")
    asked.answers["Dutch Harbor speaks"] = "Dutch"
    found = list_known_facts(facts, [], asked, Recall.substring, of_subject=True)
    assert found == {
        "recall": "substring",
        "listed": "subject",
        "asked": 14,
        "recalled": 8,  # six who speak Dutch, one who speaks Greek, and the harbour with Dutch in its name
        "kinds": {"subject": 7, "in_prompt": 1, "usual_answer": 0, "undecided": 0},
        "ids": ["0", "1", "2", "3", "4", "5", "6"],
    }
    everything = list_known_facts(facts, [], asked, Recall.substring, of_subject=False)
    assert everything["ids"] == sorted([*found["ids"], "12"])
