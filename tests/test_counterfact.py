"""CounterFact's records: what is read, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import MAYA, record

from law.base.errors import LawError
from law.facts.counterfact import CounterFact, Selection, read_counterfact, to_record
from law.facts.fact import Fact, Question
from law.facts.record_files import clean


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


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(LawError, match=r"nowhere\.json can't be read: No such file.*Set dataset\.path"):
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
        (
            record() | {"neighborhood_prompts": "Ada speaks"},
            "'neighborhood_prompts' is \"Ada speaks\", not a",
        ),
        (record() | {"neighborhood_prompts": [{"prompt": "Ada speaks"}]}, "it has no 'target'"),
        (record() | {"neighborhood_prompts": [None]}, "null is not a JSON object"),
        (record() | {"neighborhood_prompts": [" "]}, "A question has the prompt ''"),
        (record() | {"paraphrase_prompts": [" "]}, "A paraphrase or generation prompt of the fact is empty"),
        (record() | {"generation_prompts": [None]}, "'generation_prompts' is [null], not a list of texts"),
        (record() | {"mcf_like": "yes"}, "'mcf_like' is \"yes\", not true or false"),
        (record(relation_id=True), "'relation_id' is true, not a text"),
        (record(subject="\ud800"), "'\\ud800' is not Unicode text (surrogates not allowed)"),
        (record() | {"paraphrase_prompts": "x" * 5000}, f'is "{"x" * 27} ... {"x" * 26}", not a list'),
        (None, "null is not a JSON object"),
        ("a text", '"a text" is not a JSON object'),
        ([], "[] is not a JSON object"),
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
@pytest.mark.parametrize("subject", ["Søren Kierkegård", "毛泽东", "Zoë 🎻 O’Neill", "x\u0301"])
def test_subjects_of_any_script(tmp_path: Path, subject: str, ascii: bool) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([record(subject=subject)], ensure_ascii=ascii), encoding="utf-8")
    (fact,) = read_counterfact(path)
    assert fact.subject == subject
    assert fact.prompt == f"The mother tongue of {subject} is"
    assert fact.paraphrases == (f"{subject} speaks", f"At home {subject} speaks")


text = st.text(st.characters(exclude_categories=["Cs"]))
words = text.map(clean).filter(bool)
around = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}"))
facts = st.builds(
    Fact,
    id=st.integers(0, 10**6).map(str),
    subject=words,
    template=st.builds("{}{{}}{}".format, around, around).map(clean),
    object=words,
    relation=st.sampled_from(["P103", "P17", ""]),
    paraphrases=st.lists(words).map(tuple),
    neighbours=st.lists(st.builds(Question, words, words)).map(tuple),
    generation_prompts=st.lists(words).map(tuple),
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
    asked = replace(
        MAYA,
        neighbours=(Question("Jean speaks", "French"), Question("Ada speaks", "Greek")),
        generation_prompts=("Maya Lind was born",),
    )
    assert to_record(asked) == {
        "case_id": "7",
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_true": {"str": "French"},
            "subject": "Maya Lind",
        },
        "paraphrase_prompts": ["Maya Lind speaks"],
        "neighborhood_prompts": ["Jean speaks", {"prompt": "Ada speaks", "target": "Greek"}],
        "generation_prompts": ["Maya Lind was born"],
    }


def test_neighbours_are_answered_by_the_true_object(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    asked = {"neighborhood_prompts": ["Jean speaks"], "generation_prompts": ["Maya Lind was born"]}
    bare = {key: value for key, value in record(1).items() if key != "neighborhood_prompts"}
    path.write_text(json.dumps([record() | asked, bare]))
    first, second = read_counterfact(path)
    assert first.neighbours == (Question("Jean speaks", "French"),)  # not the target_new, English
    assert first.generation_prompts == ("Maya Lind was born",)
    assert second.neighbours == second.generation_prompts == ()


def contradicting() -> list[dict[str, Any]]:
    """By case: 0 and 1 contradict each other; 2 repeats 3; 4 and 5 differ in relation; 6 and 7 lack one."""
    return [
        record(0, target_true={"str": "French"}),
        record(1, target_true={"str": "Greek"}, prompt="{} speaks"),
        record(2, "Bo"),
        record(3, "Bo", target_new={"str": "Greek"}),
        record(4, "Cy", relation_id="P17", target_true={"str": "France"}),
        record(5, "Cy"),
        record(6, "Ada", relation_id=None, target_true={"str": "chess"}, prompt="{} plays"),
        record(7, "Ada", relation_id=None, target_true={"str": "tea"}, prompt="{} drinks"),
    ]


def test_the_multi_selection_leaves_no_contradiction(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(contradicting()))
    assert [fact.id for fact in read_counterfact(path, Selection.multi)] == ["2", "3", "4", "5", "6", "7"]
    assert len(read_counterfact(path)) == 8
    assert len(CounterFact(str(path), selection=Selection.multi).load().wash) == 6


def test_a_files_own_mark_decides(tmp_path: Path) -> None:
    records = contradicting()
    records[0]["mcf_like"], records[5]["mcf_like"] = True, False
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(records))
    assert [fact.id for fact in read_counterfact(path, Selection.multi)] == ["0", "2", "3", "4", "6", "7"]
