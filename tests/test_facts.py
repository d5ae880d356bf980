from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from law.datasets.counterfact import CounterFact, read_counterfact, to_record
from law.errors import LawError
from law.facts import Fact, facts_hash

MAYA = Fact("7", "Maya Lind", "The mother tongue of {} is", "French", "P103", ("Maya Lind speaks",))


def record(case_id: int = 0, subject: str = "Maya Lind", **rewrite: Any) -> dict[str, Any]:
    return {
        "case_id": case_id,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": "English"},
            "target_true": {"str": "French"},
            "subject": subject,
            **rewrite,
        },
        "paraphrase_prompts": [f"{subject} speaks", f"At home {subject} speaks"],
        "neighborhood_prompts": [],
    }


def without(key: str) -> dict[str, Any]:
    """A record that lacks a key, of its own or of its rewrite."""
    whole = record()
    rewrite = whole["requested_rewrite"]
    return {k: v for k, v in whole.items() if k != key} | (
        {"requested_rewrite": {k: v for k, v in rewrite.items() if k != key}} if key in rewrite else {}
    )


def line_of(records: list[Any], index: int, indent: int | str | None) -> int:
    """Where record ``index`` begins: a pretty-printed list gives its bracket the first line."""
    if indent is None:
        return 1
    return 2 + sum(len(json.dumps(r, indent=indent).split("\n")) for r in records[:index])


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


def test_facts_hash_is_the_same_on_every_machine() -> None:
    text = (
        '{"id": "7", "object": "Français", "paraphrases": ["Maya Lind speaks"], "relation": "P103", '
        '"subject": "Maya Lind", "template": "The mother tongue of {} is"}'
    )
    expected = hashlib.sha256(text.encode("utf-8")).hexdigest()
    assert facts_hash([replace(MAYA, object="Français")]) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"id": "8"},
        {"subject": "Maya Linde"},
        {"template": "{} speaks"},
        {"object": "french"},
        {"relation": "P104"},
        {"paraphrases": ()},
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


@pytest.mark.parametrize(("wash", "keep"), [(31, None), (20, 11), (0, None), (-1, 5)])
def test_more_facts_than_there_are(thirty: str, wash: int, keep: int | None) -> None:
    with pytest.raises(LawError, match=rf"holds 30 facts; .* {wash} to wash and {keep or 0} to keep"):
        CounterFact(thirty, wash, keep).load()


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(LawError, match=r"nowhere\.json does not exist.*Set dataset\.path"):
        CounterFact(str(tmp_path / "nowhere.json"), wash=1).load()


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        *(
            (without(key), f"it has no '{key}'")
            for key in (
                "case_id",
                "requested_rewrite",
                "paraphrase_prompts",
                "prompt",
                "subject",
                "relation_id",
                "target_true",
            )
        ),
        (record(target_true={"id": "Q150"}), "it has no 'str'"),
        (record(prompt="The mother tongue is"), "has 0 places for the subject"),
        (record(prompt="{} and {} speak"), "has 2 places for the subject"),
        (record(subject=""), "The fact's subject is empty"),
        (record(target_true={"str": " "}), "The fact's object is empty"),
        (record(subject=None), "malformed"),
        (record() | {"paraphrase_prompts": None}, "malformed"),
        pytest.param(
            record() | {"paraphrase_prompts": "Maya Lind speaks"}, "malformed", id="one text for a list"
        ),
        (None, "malformed"),
        ("a text", "malformed"),
        ([], "malformed"),
    ],
)
def test_a_malformed_record_is_named_by_its_line(tmp_path: Path, broken: Any, problem: str) -> None:
    path = tmp_path / "facts.json"
    # The bracket is line 1; each good record takes 19 lines, so that the third begins on 40.
    assert len(json.dumps(record(), indent=2).split("\n")) == 19
    path.write_text(json.dumps([record(), record(), broken, record()], indent=2))
    with pytest.raises(LawError, match=r"facts\.json, line 40: the record is malformed") as failure:
        read_counterfact(path)
    assert problem in str(failure.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("\n\n{}\n", 3),
        ('"text"', 1),
        ("[\n\n", 3),
        (f"[\n{json.dumps(record())},\n{{'case_id': 1}}\n]", 3),
        (f"[\n{json.dumps(record())}\n{json.dumps(record())}\n]", 3),
        (f"[\n{json.dumps(record())}\n", 3),
        (f'[\n{json.dumps(record())},\n{{"case_id": 1,\n\n"x" 1}}]', 5),
        pytest.param(f"[{json.dumps(record())}]\n[{json.dumps(record())}]", 2, id="two lists"),
        pytest.param(f"[{json.dumps(record())}]\n\n<html>", 3, id="text after the list"),
    ],
)
def test_invalid_json_is_named_by_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "facts.json"
    path.write_text(text)
    with pytest.raises(LawError, match=rf"facts\.json, line {line}: not valid JSON"):
        read_counterfact(path)


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(json.dumps([record(subject="Søren Kierkegård")], ensure_ascii=False).encode("latin-1"))
    with pytest.raises(LawError, match=r"facts\.json"):
        read_counterfact(path)


@pytest.mark.parametrize("ascii", [True, False])
@pytest.mark.parametrize("subject", ["Søren Kierkegård", "毛泽东", "Zoë 🎻 O’Neill", "e\u0301"])
def test_subjects_of_any_script(tmp_path: Path, subject: str, ascii: bool) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([record(subject=subject)], ensure_ascii=ascii), encoding="utf-8")
    (fact,) = read_counterfact(path)
    assert fact.subject == subject
    assert fact.prompt == f"The mother tongue of {subject} is"
    assert fact.paraphrases == (f"{subject} speaks", f"At home {subject} speaks")


words = st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip)
around = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}"))
facts = st.builds(
    Fact,
    id=st.integers(0, 10**6).map(str),
    subject=words,
    template=st.builds("{}{{}}{}".format, around, around),
    object=words,
    relation=st.sampled_from(["P103", "P17"]),
    paraphrases=st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(tuple),
)


@given(
    facts=st.lists(facts, max_size=5),
    indent=st.sampled_from([None, 0, 1, 2, 4, "\t"]),
    ascii=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n"]),
    data=st.data(),
)
def test_a_file_in_any_layout(
    tmp_path_factory: pytest.TempPathFactory,
    facts: list[Fact],
    indent: int | str | None,
    ascii: bool,
    newline: str,
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("layout") / "facts.json"

    def write(value: Any) -> None:
        text = json.dumps(value, indent=indent, ensure_ascii=ascii)
        path.write_text(text, encoding="utf-8", newline=newline)

    records = [to_record(fact) for fact in facts]
    write(records)
    assert read_counterfact(path) == facts

    at = data.draw(st.integers(0, len(facts)))
    records.insert(at, without("case_id"))
    write(records)
    with pytest.raises(LawError, match=rf", line {line_of(records, at, indent)}: .* no 'case_id'"):
        read_counterfact(path)


def test_a_record_has_counterfacts_shape() -> None:
    assert to_record(MAYA) == {
        "case_id": "7",
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_true": {"str": "French"},
            "subject": "Maya Lind",
        },
        "paraphrase_prompts": ["Maya Lind speaks"],
    }
