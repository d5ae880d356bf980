"""Facts that a user writes down, as CSV and as JSON lines."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from law.base.errors import LawError
from law.facts.custom import Custom, read_custom
from law.facts.fact import Fact, Question

ROOT = Path(__file__).parents[1]


def custom(tmp_path: Path, text: str, name: str = "facts.csv") -> list[Fact]:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return read_custom(path)


def example(language: str) -> str:
    """The block of ``docs/datasets.md`` that shows a file of facts."""
    docs = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    return docs.partition("## Your own facts")[2].partition(f"```{language}\n")[2].partition("```")[0]


def test_the_examples_of_the_docs(tmp_path: Path) -> None:
    tower = Fact(
        id="2",
        subject="the Eiffel Tower",
        template="The city of {} is",
        object="Paris",
        relation="location",
        paraphrases=("One finds the Eiffel Tower in", "the Eiffel Tower stands in"),
        neighbours=(Question("The city of Big Ben is", "London"),),
    )
    marie = Fact("3", "Marie Curie", "{} won the Nobel Prize in", "Physics, Chemistry", "award")
    assert custom(tmp_path, example("csv")) == [tower, marie]
    ada = Fact("1", "Ada Lovelace", "Where was {} born? Answer:", "London", "")
    linus = Fact("kernel", "Linux", "Who wrote {}? Answer:", "Linus Torvalds", "")
    assert custom(tmp_path, example("json"), "facts.jsonl") == [ada, linus]


@pytest.mark.parametrize(
    ("prompt", "template"),
    [
        ("{} was born in", "{} was born in"),
        ("Ada was born in", "{} was born in"),
        ("[[Ada]] was born in", "{} was born in"),
        ("Ada's mother, of {}, was", "Ada's mother, of {}, was"),
        ("[[Ada]]'s mother, not Ada, was", "{}'s mother, not Ada, was"),
    ],
)
def test_where_the_subject_stands(tmp_path: Path, prompt: str, template: str) -> None:
    (fact,) = custom(tmp_path, f'subject,prompt,object\nAda,"{prompt}",Rome\n')
    assert (fact.subject, fact.template, fact.object) == ("Ada", template, "Rome")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_of_any_editor(tmp_path: Path, end: str, mark: str) -> None:
    lines = [
        "subject,prompt,object",
        "",
        "Søren Kierkegård,{} wrote in,Dansk",
        ",,",
        '毛泽东,"{}, of",中国',
        "",
    ]
    facts = custom(tmp_path, mark + end.join(lines))
    assert [(f.id, f.subject, f.object) for f in facts] == [
        ("3", "Søren Kierkegård", "Dansk"),
        ("5", "毛泽东", "中国"),
    ]


def test_duplicates_are_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    facts = custom(
        tmp_path, "subject,prompt,object\nA,{} is,x\nA,{} is,y\nA,A is,x\nB,{} is,x\nA,[[A]] is,x\n"
    )
    assert [fact.id for fact in facts] == ["2", "3", "5"]
    assert "left out 2 records: the prompt and its object have occurred before; the first on line 4" in (
        caplog.text
    )


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("Ada,He was born in,Rome,", "column 'prompt': the subject 'Ada' occurs 0 times in 'He was born in'"),
        ("Ada,Ada's Ada is,Rome,", "column 'prompt': the subject 'Ada' occurs 2 times"),
        ("Ada,{} and {} are,Rome,", "column 'prompt': '{} and {} are' marks more than one place"),
        ("Ada,[[Ada]] and {} are,Rome,", "column 'prompt': '[[Ada]] and {} are' marks more than one"),
        ("Bo,[[Ada]] is,Rome,", "column 'subject': it is 'Bo', but 'prompt' marks [[Ada]]"),
        (",{} was born in,Rome,", "column 'subject': it is empty"),
        ("Ada,,Rome,", "column 'prompt': it is empty"),
        ("Ada,{} was born in,,", "column 'object': it is empty"),
        ("Ada,{} was born in,Rome,Ostia is near", "column 'neighbours': 'Ostia is near' is no prompt with"),
        ("Ada,{} was born in,Rome", "it has 3 columns; expected 4"),
        ('Ada,"{} was born in,Rome,', "not valid CSV"),
    ],
)
def test_what_is_wrong_in_a_csv_is_named(tmp_path: Path, row: str, problem: str) -> None:
    good = 'Cy,"{}\nwas born in",Rome,\n'  # lines 2 and 3
    with pytest.raises(LawError, match=r"facts\.csv, line 4[,:] ") as error:
        custom(tmp_path, f"subject,prompt,object,neighbours\n{good}{row}\n")
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"subject": "A", "promt": "{} is", "object": "x"}, "column 'promt': .* Did you mean 'prompt'?"),
        ({"question": "Who is [[A]]?", "object": "x"}, "column 'object': it stands beside 'question'"),
        ({"question": "Who is [[A]]?"}, "column 'answer': it is empty"),
        ({"question": "Who is A?", "answer": "x"}, "column 'subject': it is empty"),
        ({"subject": "A", "prompt": "{} is", "object": 7}, "column 'object': it is 7; expected a text"),
        (
            {"subject": "A", "prompt": "{} is", "object": "x", "paraphrases": "a"},
            "'paraphrases': it is 'a'; ",
        ),
        ({"subject": "A", "prompt": "{} is", "object": "x", "paraphrases": [1]}, "'paraphrases': it is 1; "),
        (
            {"subject": "A", "prompt": "{} is", "object": "x", "neighbours": ["a"]},
            "'a' is no prompt with its",
        ),
        ({"subject": "A", "prompt": "{} is", "object": "x", "id": ["a"]}, r"column 'id': it is \['a'\]"),
        (
            {"subject": "A", "prompt": "{} is", "object": "x", "id": 1},
            "column 'id': '1' is the fact of line 1 too",
        ),
        ([1], r"\[1\] is no JSON object"),
    ],
)
def test_what_is_wrong_in_a_jsonl_is_named(tmp_path: Path, row: Any, problem: str) -> None:
    good = {"subject": "Cy", "prompt": "{} is", "object": "x"}
    text = f"{json.dumps(good)}\n\n{json.dumps(row)}\n"
    with pytest.raises(LawError, match=rf"facts\.jsonl, line 3[,:] .*{problem}"):
        custom(tmp_path, text, "facts.jsonl")


def test_other_files_that_give_no_facts(tmp_path: Path) -> None:
    with pytest.raises(LawError, match=r"line 2: the header \['a', 'a'\] names a column twice"):
        custom(tmp_path, "\na,a\n1,2\n")
    path = tmp_path / "latin.csv"
    path.write_bytes("subject,prompt,object\nSøren,{} is,x\n".encode("latin-1"))
    with pytest.raises(LawError, match=r"latin\.csv, line 2 is not UTF-8"):
        read_custom(path)
    with pytest.raises(LawError, match=r"facts\.json ends neither in \.csv nor in \.jsonl"):
        read_custom(tmp_path / "facts.json")
    with pytest.raises(LawError, match=r"nowhere\.csv does not exist"):
        read_custom(tmp_path / "nowhere.csv")
    with pytest.raises(LawError, match=r"holds 0 facts"):
        custom(tmp_path, "subject,prompt,object\n")
        Custom(str(tmp_path / "facts.csv")).load()


label = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="{}[]"), min_size=1)
around = st.lists(label, max_size=3).map(" ".join)


@given(
    rows=st.lists(st.tuples(label, around, around, label), min_size=1, max_size=5),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    as_json=st.booleans(),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, str, str]],
    end: str,
    quoting: Any,
    as_json: bool,
) -> None:
    columns = ("id", "subject", "prompt", "object")
    cells = [(str(n), s, f"{b} {{}} {a}".strip(), o) for n, (s, b, a, o) in enumerate(rows)]
    path = tmp_path_factory.mktemp("custom") / ("facts.jsonl" if as_json else "facts.csv")
    text = io.StringIO()
    if as_json:
        text.writelines(json.dumps(dict(zip(columns, row, strict=True))) + end for row in cells)
    else:
        csv.writer(text, lineterminator=end, quoting=quoting).writerows([columns, *cells])
    path.write_bytes(text.getvalue().encode())
    expected = {(p.replace("{}", s), o): (s, p) for _, s, p, o in reversed(cells)}
    facts = read_custom(path)
    assert {(f.prompt, f.object): (f.subject, f.template) for f in facts} == expected
    assert len(facts) == len(expected)


# fetching
