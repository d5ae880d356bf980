from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from records import MAYA, record

from law.base.errors import LawError, shortened
from law.facts.counterfact import CounterFact
from law.facts.fact import Question, facts_hash


def test_a_prompt_is_its_template_with_the_subject() -> None:
    assert MAYA.prompt == "The mother tongue of Maya Lind is"
    assert replace(MAYA, subject="{} {0}").prompt == "The mother tongue of {} {0} is"


@pytest.mark.parametrize("name", ["subject", "object"])
@pytest.mark.parametrize("value", ["", "  \n"])
def test_a_fact_needs_words(name: str, value: str) -> None:
    with pytest.raises(LawError, match=f"The fact's {name} is empty"):
        replace(MAYA, **{name: value})


@pytest.mark.parametrize(("template", "places"), [("Who?", 0), ("{} or {}", 2), ("{0} is", 0)])
def test_a_template_has_one_place(template: str, places: int) -> None:
    with pytest.raises(LawError, match=f"has {places} places for the subject; expected exactly one"):
        replace(MAYA, template=template)


def test_a_long_text_is_quoted_without_its_middle() -> None:
    assert shortened("a" * 60) == "a" * 60
    assert shortened("a" * 30 + "b" * 31) == "a" * 28 + " ... " + "b" * 27


def test_facts_hash_is_the_same_on_every_machine() -> None:
    text = (
        '{"generation_prompts": [], "id": "7", "neighbours": [{"object": "Greek", "prompt": "Ada speaks"}], '
        '"object": "Français", "paraphrases": ["Maya Lind speaks"], "relation": "P103", '
        '"subject": "Maya Lind", "template": "The mother tongue of {} is"}'
    )
    expected = hashlib.sha256(text.encode("utf-8")).hexdigest()
    asked = replace(MAYA, object="Français", neighbours=(Question("Ada speaks", "Greek"),))
    assert facts_hash([asked]) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"id": "8"},
        {"subject": "Maya Linde"},
        {"template": "{} speaks"},
        {"object": "french"},
        {"relation": "P104"},
        {"paraphrases": ()},
        {"neighbours": (Question("Ada speaks", "Greek"),)},
        {"generation_prompts": ("Maya Lind was born",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_facts_hash_sees_every_field(change: dict[str, Any]) -> None:
    assert facts_hash([replace(MAYA, **change)]) != facts_hash([MAYA])


def test_facts_hash_sees_the_order_and_the_number() -> None:
    other = replace(MAYA, id="8")
    hashes = {facts_hash(facts) for facts in ([], [MAYA], [MAYA, MAYA], [MAYA, other], [other, MAYA])}
    assert len(hashes) == 5
    assert facts_hash(iter([MAYA, other])) == facts_hash((replace(MAYA), replace(other)))


@pytest.fixture
def thirty(tmp_path: Path) -> str:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([record(i, f"Person {i}") for i in range(30)]))
    return str(path)


def test_the_seed_splits(thirty: str) -> None:
    split = CounterFact(thirty, wash=10, keep=8, seed=3).load()
    wash, keep = ([fact.id for fact in facts] for facts in (split.wash, split.keep))
    assert len(wash) == 10 and len(keep) == 8
    assert len({*wash, *keep}) == 18 and {*wash, *keep} <= {str(i) for i in range(30)}
    assert CounterFact(thirty, wash=10, keep=8, seed=3).load() == split
    others = [{fact.id for fact in CounterFact(thirty, 10, 8, seed).load().wash} for seed in range(6)]
    assert len({frozenset(ids) for ids in others}) == 6  # of 30 million choices of ten


def test_without_a_number_all_others_are_kept(thirty: str) -> None:
    split = CounterFact(thirty, wash=10).load()
    assert len(split.keep) == 20
    assert {fact.id for fact in [*split.wash, *split.keep]} == {str(i) for i in range(30)}
    assert CounterFact(thirty, wash=30).load().keep == []


def test_without_a_number_all_that_keep_leaves_are_washed(thirty: str) -> None:
    split = CounterFact(thirty).load()
    assert len(split.wash) == 30 and split.keep == []
    split = CounterFact(thirty, keep=8).load()
    assert len(split.wash) == 22 and len(split.keep) == 8
    assert len({fact.id for fact in [*split.wash, *split.keep]}) == 30


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """Ten facts of P103, five of P17."""
    path = tmp_path / "mixed.json"
    path.write_text(
        json.dumps([record(i, f"Person {i}", relation_id="P103" if i % 3 else "P17") for i in range(15)])
    )
    return str(path)


def test_relations_choose(mixed: str) -> None:
    split = CounterFact(mixed, relations=["P17"]).load()
    assert {fact.id for fact in split.wash} == {"0", "3", "6", "9", "12"} and split.keep == []
    assert len(CounterFact(mixed, relations=["P17", "P103"]).load().wash) == 15
    with pytest.raises(LawError, match=r"no fact of the relation 'P130'. Did you mean 'P103'.*P103, P17"):
        CounterFact(mixed, relations=["P130"]).load()


@pytest.mark.parametrize(
    ("wash", "keep", "wanted"),
    [
        (31, None, "31 to wash and 0"),
        (20, 11, "20 to wash and 11"),
        (0, None, "0 to wash and 0"),
        (-1, 5, "-1 to wash and 5"),
        (5, -1, "5 to wash and -1"),
        (None, 30, "all the others to wash and 30"),
    ],
)
def test_more_facts_than_there_are(thirty: str, wash: int | None, keep: int | None, wanted: str) -> None:
    with pytest.raises(LawError, match=rf"holds 30 facts; .* {wanted} to keep"):
        CounterFact(thirty, wash, keep).load()
