from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from records import MAYA, record

from law.base.errors import LawError, shortened
from law.base.files import FileHashes
from law.facts.counterfact import CounterFact, read_counterfact
from law.facts.fact import Fact, Question, facts_hash, joined
from law.facts.source import Part, part_of, unscored


def test_a_prompt_is_its_template_with_the_subject() -> None:
    assert MAYA.prompt == "The mother tongue of Maya Lind is"
    assert replace(MAYA, subject="{} {0}").prompt == "The mother tongue of {} {0} is"


@pytest.mark.parametrize(
    ("prompt", "answer", "text"),
    [
        ("The home of Anna is in", "Rome", "The home of Anna is in| Rome"),
        ("The home of Anna is in \t", " Rome ", "The home of Anna is in| Rome"),
        ("The home of Anna is in\u00a0", "Rome", "The home of Anna is in| Rome"),
        ("The home of Anna is in:", "Rome", "The home of Anna is in:| Rome"),
        ("The home of Anna (1980)", "Rome", "The home of Anna (1980)| Rome"),
        ("한국의 수도는", "서울", "한국의 수도는| 서울"),  # Korean is written with spaces
        ("中国的首都是", "北京", "中国的首都是|北京"),
        ("中国的首都是 ", "Beijing", "中国的首都是|Beijing"),
        ("它叫什么？", "Rome", "它叫什么？|Rome"),  # a full-width question mark
        ("The capital of China is", "北京", "The capital of China is|北京"),
        ("アンナの故郷は", "ローマ", "アンナの故郷は|ローマ"),
        ("Anna:", "ひらがな", "Anna:|ひらがな"),
        ("บ้านของแอนนาอยู่ที่", "โรม", "บ้านของแอนนาอยู่ที่|โรม"),
        ("ເຮືອນຢູ່", "ໂລມ", "ເຮືອນຢູ່|ໂລມ"),
        ("ផ្ទះនៅ", "រ៉ូម", "ផ្ទះនៅ|រ៉ូម"),
        ("အိမ်", "ရောမ", "အိမ်|ရောမ"),
        ("ཁྱིམ་", "རོམ", "ཁྱིམ་|རོམ"),
        ("Anna lives in (", "Rome", "Anna lives in (|Rome"),
        ("Anna lives in [", "Rome", "Anna lives in [|Rome"),
        ('Anna said "', "Rome", 'Anna said "|Rome'),
        ('Anna said ("', "Rome", 'Anna said ("|Rome'),
        ("Anna said “", "Rome", "Anna said “|Rome"),
        ('The home of "Anna"', "Rome", 'The home of "Anna"| Rome'),
        ("The home of „Anna“", "Rome", "The home of „Anna“| Rome"),  # “ closes in German
        ("The players'", "Rome", "The players'| Rome"),
        ("Where does Anna live?\n", "Rome", "Where does Anna live?\n|Rome"),
        ("Where does Anna live?\n ", "Rome", "Where does Anna live?\n|Rome"),
        ("<|assistant|>", "Rome", "<|assistant|>|Rome"),
        ("<｜Assistant｜>", "Rome", "<｜Assistant｜>|Rome"),
        ("Anna > Ben, Ben >", "Rome", "Anna > Ben, Ben >| Rome"),
        ("", "Rome", "|Rome"),
    ],
)
def test_an_object_joins_its_prompt_as_its_script_is_written(prompt: str, answer: str, text: str) -> None:
    before, _, behind = text.rpartition("|")
    assert joined(prompt, answer) == (before + behind, len(before) + len(behind) - len(behind.strip()))


def test_white_space_at_a_prompts_end_is_not_its_own() -> None:
    assert replace(MAYA, template="The mother tongue of {} is ").prompt == MAYA.prompt
    assert replace(MAYA, template="We know {}", subject="Maya Lind ").prompt == "We know Maya Lind"
    assert Question("Ada speaks  ", " Greek\n") == Question("Ada speaks", "Greek")
    assert Question("Ada speaks\n ", "Greek").prompt == "Ada speaks\n"


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


def test_validation_and_test_share_no_subject(tmp_path: Path) -> None:
    # SHA-256 of "france" begins with the byte 44, of "paris" with 22, of "berlin" with 251: below 64 is validation
    assert [part_of(replace(MAYA, subject=name)).value for name in ("France", "PARIS", "Berlin")] == [
        *("validation", "validation", "test")
    ]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([record(i, f"Person {i % 40}", relation=f"P{i}") for i in range(80)]))
    parts = {part: CounterFact(str(path), part=part).load().wash for part in Part}
    subjects = {part: {fact.subject for fact in facts} for part, facts in parts.items()}
    assert subjects[Part.validation] and subjects[Part.test]
    assert not subjects[Part.validation] & subjects[Part.test]
    assert sorted(f.id for part in (Part.validation, Part.test) for f in parts[part]) == sorted(
        fact.id for fact in parts[Part.all]
    )
    with pytest.raises(
        LawError, match=r"holds \d+ facts of the part validation; the configuration asks for 80"
    ):
        CounterFact(str(path), wash=80, part=Part.validation).load()


def test_a_method_learns_from_no_subject_that_is_asked_about() -> None:
    def fact(subject: str, **prompts: Any) -> Fact:
        return Fact(subject, subject, "{} speaks", "French", "", **prompts)

    washed = fact(
        "Maya Lind",
        paraphrases=("As a child, Maya Lind spoke",),
        neighbours=(Question("Ada Byron speaks", "French"),),
    )
    others = [fact(name) for name in ("MAYA LIND", "Ada Byron", "Ben Holm", "Zoe Park", "Ada Byron II")]
    free = unscored([washed], [fact("Ben Holm")], others)
    assert [one.subject for one in free] == ["Zoe Park", "Ada Byron II"]


def test_a_method_learns_from_the_part_that_is_drawn_from(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([record(i, f"Person {i}.") for i in range(80)]), encoding="utf-8")
    split = CounterFact(str(path), wash=5, keep=5, part=Part.validation).load()
    assert split.unscored and {part_of(fact) for fact in split.unscored} == {Part.validation}
    scored = {fact.id for fact in (*split.wash, *split.keep)}
    assert scored.isdisjoint(fact.id for fact in split.unscored)
    assert {part_of(fact) for fact in split.others} == {Part.validation, Part.test}


def test_facts_are_drawn_from_a_list_of_ids(thirty: str, tmp_path: Path) -> None:
    listed = tmp_path / "known.json"
    listed.write_text(json.dumps({"ids": ["3", "5", 8, "of another file"]}))
    split = CounterFact(thirty, wash=2, ids=str(listed)).load()
    assert sorted(fact.id for fact in (*split.wash, *split.keep)) == ["3", "5", "8"]
    one = CounterFact(thirty, wash=1, keep=1, ids=str(listed)).load()
    assert (
        one.others[0].id in {"3", "5", "8"} and len(one.others) == 28
    )  # what may be drawn, then the file's other facts
    with pytest.raises(
        LawError, match=r"holds 3 facts of the list .*known\.json; the configuration asks for 4"
    ):
        CounterFact(thirty, wash=4, ids=str(listed)).load()
    hashes = FileHashes(None)
    before = CounterFact(thirty, ids=str(listed)).content(hashes)
    for text, problem in (
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError"),
        ('{"ids": "12"}', "TypeError"),
        ('{"ids": 3}', "TypeError"),
    ):
        listed.write_text(text)
        with pytest.raises(LawError, match=f'lists no ids .{problem}.*a JSON object with a list "ids"'):
            CounterFact(thirty, ids=str(listed)).load()
    assert CounterFact(thirty, ids=str(listed)).content(hashes) != before  # the list is an input of the run
    listed.write_text('{"ids": ["elsewhere"]}')
    with pytest.raises(LawError, match="has none of the 1 facts that"):
        CounterFact(thirty, ids=str(listed)).load()


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


def twice(tmp_path: Path) -> str:
    """Thirty persons' facts and, for each of the first ten, one that repeats it."""
    records = [record(i, f"Person {i}") for i in range(30)]
    repeats = (
        {"prompt": "{} speaks", "relation_id": "P1412"},  # subject and object
        {"prompt": "{} grew up with", "target_true": {"str": "Greek"}},  # subject and relation
        {"relation_id": "P1412", "target_true": {"str": "Greek"}},  # the prompt
        {"prompt": "{} speaks", "relation_id": None, "target_true": {"str": "french"}},  # subject and object
    )
    records += [record(30 + i, f"Person {i}", **repeats[i % 4]) for i in range(10)]
    path = tmp_path / "twice.json"
    path.write_text(json.dumps(records))
    return str(path)


def persons(facts: Sequence[Fact]) -> set[str]:
    return {fact.subject for fact in facts}


@pytest.mark.parametrize(("wash", "keep"), [(10, None), (10, 15), (None, 15), (None, 8)])
def test_no_kept_fact_repeats_a_washed_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wash: int | None, keep: int | None
) -> None:
    path = twice(tmp_path)
    mended = 0
    caplog.set_level("INFO")
    for seed in range(6):
        order = random.Random(seed).sample(read_counterfact(Path(path)), 40)
        first = 40 - (keep or 0) if wash is None else wash
        split = CounterFact(path, wash, keep, seed).load()
        assert not persons(split.wash) & persons(split.keep)
        assert len(split.wash) == first
        apart = [fact for fact in order[first:] if fact.subject not in persons(order[:first])]
        if keep is None:
            assert split.keep == apart
        else:
            assert len(split.keep) == keep
            if wash is None:
                assert split.keep[: len(apart)] == apart[:keep]
            else:  # the last ones, and persons of one fact before those of two
                once = [fact for fact in apart if fact.subject not in {f"Person {i}" for i in range(10)}]
                twice_told = [fact for fact in apart if fact not in once]
                chosen = [*once[-keep:], *twice_told[len(twice_told) - max(0, keep - len(once)) :]]
                assert split.keep == [fact for fact in apart if fact in chosen]
        if wash is not None:
            assert split.wash == order[:wash]
        seen = order[first:] if wash is not None else order[first:][:keep]
        mended += not persons(order[:first]).isdisjoint(persons(seen))
    assert mended > 0 and len(caplog.records) == mended
    assert "facts repeat a washed fact and are not among the kept ones" in caplog.text


@pytest.mark.parametrize("repeats", [False, True])
def test_a_sweep_over_the_washed_facts_keeps_the_same_facts(
    repeats: bool, thirty: str, tmp_path: Path
) -> None:
    """And washes more of the same: each draw's washed facts are the beginning of the next one's."""
    path = twice(tmp_path) if repeats else thirty
    for seed in range(6):
        splits = [CounterFact(path, wash, keep=12, seed=seed).load() for wash in (1, 3, 6, 9)]
        assert len({tuple(fact.id for fact in split.keep) for split in splits}) == 1
        for fewer, more in pairwise(splits):
            assert more.wash[: len(fewer.wash)] == fewer.wash


def test_facts_that_only_share_a_subject_may_be_kept(tmp_path: Path) -> None:
    other = {"prompt": "{} plays", "target_true": {"str": "chess"}}
    path = tmp_path / "facts.json"
    path.write_text(
        json.dumps([record(0, relation_id=None), record(1, relation_id=None, **other), record(2, "Bo")])
    )
    for seed in range(6):
        order = random.Random(seed).sample(read_counterfact(path), 3)
        split = CounterFact(str(path), wash=1, seed=seed).load()
        assert [*split.wash, *split.keep] == order


def test_too_few_facts_that_repeat_none(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([record(i) for i in range(4)]))
    for wash in (2, None):
        with pytest.raises(LawError, match=r"only 0 facts can be kept; dataset\.keep asks for 2.*Lower"):
            CounterFact(str(path), wash=wash, keep=2).load()
    assert CounterFact(str(path), wash=2).load().keep == []


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_labs_draw_has_no_repeats(seed: int) -> None:
    path = Path(__file__).parents[1] / "law" / "lab" / "checkpoint" / "facts.json"
    facts = read_counterfact(path)
    split = CounterFact(str(path), wash=200, seed=seed).load()
    assert [*split.wash, *split.keep] == random.Random(seed).sample(facts, len(facts))


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
        (None, 30, "all the others to wash and 30"),
    ],
)
def test_more_facts_than_there_are(thirty: str, wash: int | None, keep: int | None, wanted: str) -> None:
    with pytest.raises(LawError, match=rf"holds 30 facts; .* {wanted} to keep"):
        CounterFact(thirty, wash, keep).load()


@pytest.mark.parametrize(
    ("wash", "keep", "problem"),
    [(0, None, "wash is 0; expected"), (-1, 5, "wash is -1; expected"), (5, -1, "keep is -1; expected")],
)
def test_numbers_of_facts_out_of_range(thirty: str, wash: int, keep: int | None, problem: str) -> None:
    with pytest.raises(LawError, match=problem):
        CounterFact(thirty, wash, keep)
