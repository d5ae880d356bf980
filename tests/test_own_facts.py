"""Facts that a user writes down, as CSV and as JSON lines."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from law.base.errors import LawError
from law.facts.counterfact import CounterFact, read_counterfact
from law.facts.custom import Custom, read_custom
from law.facts.fact import Fact, Question
from law.facts.record_files import clean
from law.facts.subject import places

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
        (
            "Ada,He was born in,Rome,",
            "column 'prompt': the subject 'Ada' occurs 0 times as a whole word in 'He was born in'",
        ),
        ("Ada,Ada's Ada is,Rome,", "column 'prompt': the subject 'Ada' occurs 2 times as a whole word in"),
        ("Ada,{} and {} are,Rome,", "column 'prompt': '{} and {} are' marks more than one place"),
        ("Ada,[[Ada]] and {} are,Rome,", "column 'prompt': '[[Ada]] and {} are' marks more than one"),
        ("Bo,[[Ada]] is,Rome,", "column 'subject': it is 'Bo', but 'prompt' marks [[Ada]]"),
        (",{} was born in,Rome,", "column 'subject': it is missing or empty"),
        ("Ada,,Rome,", "column 'prompt': it is missing or empty"),
        ("Ada,{} was born in,,", "column 'object': it is missing or empty"),
        (
            "Ada,{} was born in,Rome,Ostia is near",
            "column 'neighbours': \"Ostia is near\" is not a prompt with",
        ),
        ("Ada,{} was born in,Rome", "it has 3 columns; expected 4 as in the header"),
        ('Ada,"{} was born in,Rome,', "not a valid table"),
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
        (
            {"question": "Who is [[A]]?", "object": "x"},
            "column 'object': 'question' stands beside it; .* Did you mean 'answer'\\?",
        ),
        (
            {"prompt": "[[A]] is", "object": "x", "answer": "x"},
            "'answer': 'prompt' stands beside it; .*answer.$",
        ),
        ({"question": "Who is [[A]]?"}, "column 'answer': it is missing or empty"),
        ({"question": "Who is A?", "answer": "x"}, "column 'subject': it is missing or empty"),
        ({"subject": "A", "prompt": "{} is", "object": True}, "column 'object': it is true; expected a text"),
        ({"subject": "A", "prompt": "{} is", "object": ["x"]}, r"column 'object': it is \[\"x\"\]; expected"),
        ({"subject": "A", "prompt": "{} is", "object": {}}, r"column 'object': it is {}; expected a text"),
        (
            {"subject": "A", "prompt": "{} is", "object": "  "},
            "column 'object': it is \"  \"; expected a text",
        ),
        (
            {"subject": "A", "prompt": "{} is", "object": "x", "paraphrases": "a"},
            "'paraphrases': it is \"a\"; ",
        ),
        (
            {"subject": "A", "prompt": "{} is", "object": "x", "paraphrases": [[]]},
            r"'paraphrases': it is \[\]; ",
        ),
        (
            {"subject": "A", "prompt": "{} is", "object": "x", "neighbours": ["a"]},
            '"a" is not a prompt with its',
        ),
        ({"subject": "A", "prompt": "{} is", "object": "x", "id": ["a"]}, r"column 'id': it is \[\"a\"\]"),
        (
            {"subject": "A", "prompt": "{} is", "object": "x", "id": 1},
            "column 'id': line 1 has the id '1' too",
        ),
        ([1], r"\[1\] is not a JSON object"),
    ],
)
def test_what_is_wrong_in_a_jsonl_is_named(tmp_path: Path, row: Any, problem: str) -> None:
    good = {"subject": "Cy", "prompt": "{} is", "object": "x"}
    text = f"{json.dumps(good)}\n\n{json.dumps(row)}\n"
    with pytest.raises(LawError, match=rf"facts\.jsonl, line 3[,:] .*{problem}"):
        custom(tmp_path, text, "facts.jsonl")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (
            "subject,prompt,answer",
            "column 'answer': 'prompt' stands beside it; expected prompt and object, or question and answer. "
            "Did you mean 'object'?",
        ),
        (
            "object,question",
            "column 'object': 'question' stands beside it; expected prompt and object, or question and answer. "
            "Did you mean 'answer'?",
        ),
        ("object,answer", "column 'answer': 'object' stands beside it; expected prompt and object, or "),
        ("prompt,question", "column 'question': 'prompt' stands beside it; expected prompt and object, or "),
        ("prompt", "column 'object': it is missing or empty; expected prompt and object, or question and"),
        ("answer,id", "column 'question': it is missing or empty; expected prompt and object, or question"),
        ("subject", "column 'prompt': it is missing or empty; expected prompt and object, or question and"),
    ],
)
def test_a_header_without_a_pair_of_columns_is_refused(tmp_path: Path, header: str, problem: str) -> None:
    with pytest.raises(LawError) as error:
        custom(tmp_path, f"\n{header}\n")  # no row is needed
    assert f"facts.csv, line 2, {problem}" in str(error.value)


def test_rows_of_a_table_may_have_different_pairs(tmp_path: Path) -> None:
    table = "prompt,object,question,answer\n[[A]] is,x,,\n,,Who is [[B]]?,y\n"
    assert [(fact.prompt, fact.object) for fact in custom(tmp_path, table)] == [
        ("A is", "x"),
        ("Who is B? Answer:", "y"),
    ]
    with pytest.raises(LawError, match=r"line 2, column 'question': 'prompt' stands beside it"):
        custom(tmp_path, "prompt,object,question,answer\n[[A]] is,x,Who is [[A]]?,x\n")


def test_other_files_that_give_no_facts(tmp_path: Path) -> None:
    with pytest.raises(LawError, match=r"line 2: the header \[\"id\", \"id\"\] names a column twice"):
        custom(tmp_path, "\nid,id\n1,2\n")
    with pytest.raises(LawError, match=r"line 1, column 'promt': there is no such.* Did you mean 'prompt'"):
        custom(tmp_path, "subject,promt,object\nA,{} is,x\n")
    for text in ("[" * 100_000, f'{{"id": {"9" * 5000}}}'):
        with pytest.raises(LawError, match=r"facts\.jsonl, line 2: not valid JSON"):
            custom(tmp_path, f"\n{text}", "facts.jsonl")
        path = tmp_path / "facts.json"
        path.write_text(f"[\n{text}")
        with pytest.raises(LawError, match=r"facts\.json, line 2: not valid JSON"):
            read_counterfact(path)
    path = tmp_path / "latin.csv"
    path.write_bytes("subject,prompt,object\nSøren,{} is,x\n".encode("latin-1"))
    with pytest.raises(LawError, match=r"latin\.csv, line 2, byte 2 of that line: 0xf8 is not UTF-8 text"):
        read_custom(path)
    with pytest.raises(LawError, match=r"facts\.json ends in none of \.csv, \.tsv and \.jsonl"):
        read_custom(tmp_path / "facts.json")
    with pytest.raises(LawError, match=r"nowhere\.csv can't be read: No such file"):
        read_custom(tmp_path / "nowhere.csv")
    with pytest.raises(LawError, match=r"folder\.csv can't be read: Is a directory"):
        folder = tmp_path / "folder.csv"
        folder.mkdir()
        read_custom(folder)


@pytest.mark.parametrize(
    ("subject", "prompt", "template"),
    [
        ("Iran", "Before an Iranian, Iran had", "Before an Iranian, {} had"),
        ("Ann", "Ann left Annapolis for", "{} left Annapolis for"),
        ("Iran", "The Iranian capital is", None),
        ("Apollo 1", "Apollo 11 landed on the", None),
        ("Анна", "Анна и Аннам в", "{} и Аннам в"),
        ("Zoe", "Zoe\u0301 and Zoe\u0301, not Zoe, are", "Zo\u00e9 and Zo\u00e9, not {}, are"),
        ("x", "x\u0302 is not x but", "x\u0302 is not {} but"),  # no letter composes these two
        ("Ada", "(Ada)'s or Ada's", None),
        ("Ada", "_Ada's", "_{}'s"),
        ("中国", "中国的首都是", "{}的首都是"),
        ("中国", "新中国1949", "新{}1949"),
        ("서울", "서울은 어느 나라에", "{}은 어느 나라에"),
        ("哈哈", "哈哈哈", None),
    ],
)
def test_a_subject_is_a_whole_word(tmp_path: Path, subject: str, prompt: str, template: str | None) -> None:
    row = json.dumps({"subject": subject, "prompt": prompt, "object": "x"})
    if template is None:
        with pytest.raises(
            LawError, match=r"column 'prompt': the subject .* occurs [02] times as a whole word"
        ):
            custom(tmp_path, row, "facts.jsonl")
    else:
        (fact,) = custom(tmp_path, row, "facts.jsonl")
        assert fact.template == template


@given(subject=st.text("ab1", min_size=1, max_size=3), prompt=st.text("ab1 .-", max_size=12))
def test_whole_words_against_a_regular_expression(subject: str, prompt: str) -> None:
    # a point between two digits belongs to their number
    before = r"(?<!\w)(?<!1\.)" if subject.startswith("1") else r"(?<!\w)"
    after = r"(?!\w)(?!\.1)" if subject.endswith("1") else r"(?!\w)"
    found = re.finditer(rf"{before}(?={subject}{after})", prompt)
    assert places(subject, prompt) == [match.start() for match in found]


@given(st.text())
def test_a_clean_text_stays_as_it_is(text: str) -> None:
    once = clean(text)
    assert clean(once) == once == once.strip()
    assert clean(normalize("NFD", text)) == once


NFD = "Brasi\u0301lia"
NFC = "Bras\u00edlia"


@pytest.mark.parametrize("name", ["facts.csv", "facts.jsonl"])
def test_texts_are_stripped_and_composed(tmp_path: Path, name: str) -> None:
    row: dict[str, Any] = {
        "subject": f" {NFD} ",
        "prompt": f"  The  land of {NFD} is ",
        "object": f"\t{NFD}\u00a0",
    }
    if name == "facts.jsonl":
        row |= {"paraphrases": [f"{NFD}: "], "neighbours": [{"prompt": f" {NFD}, ", "object": f"{NFD} "}]}
        text = json.dumps(row)
    else:
        text = f'subject,prompt,object,paraphrases,neighbours\n{",".join(row.values())},{NFD}: | ,"{NFD},  => {NFD} "'
    (fact,) = custom(tmp_path, text, name)
    assert (fact.subject, fact.object) == (NFC, NFC)
    assert fact.prompt == f"The  land of {NFC} is"
    assert (fact.paraphrases, fact.neighbours) == ((f"{NFC}:",), (Question(f"{NFC},", NFC),))


@pytest.mark.parametrize(
    ("name", "delimiter", "told"),
    [
        ("FACTS.CSV", ",", None),
        ("facts.tsv", "\t", None),
        ("facts.Tsv", "\t", None),
        ("facts.csv", ";", "semicolons separate the columns"),
        ("facts.csv", "\t", "tabs separate the columns"),
    ],
)
def test_tables_of_any_delimiter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, delimiter: str, told: str | None
) -> None:
    caplog.set_level("INFO")
    rows = [["subject", "prompt", "object"], ["Ada", "In May, {} went; to", "Rome,\tor; Oslo"]]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    (fact,) = custom(tmp_path, f"{delimiter * 2}\r\n{text.getvalue()}", name)
    assert (fact.template, fact.object) == ("In May, {} went; to", "Rome,\tor; Oslo")
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == ([told] if told else [])


def test_a_number_is_its_text(tmp_path: Path) -> None:
    row = '{"id": 7, "subject": 1984, "prompt": "{} came out in", "object": %s}'
    for number in ("1949", "3.50", "1e6", "0", "-2"):
        (fact,) = custom(tmp_path, row % number, "facts.JSONL")
        assert (fact.id, fact.subject, fact.object) == ("7", "1984", number)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("facts.csv", ""),
        ("facts.csv", "\ufeff\r\n"),
        ("facts.csv", "subject,prompt,object\n"),
        ("facts.tsv", "subject\tprompt\tobject\n\t\t\n"),
        ("facts.jsonl", "\n \n"),
        ("facts.json", "[]"),
    ],
)
def test_a_file_without_facts_is_refused(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    with pytest.raises(LawError, match=r"facts\.\w+ holds no fact\. .* set dataset\.path to another one"):
        (CounterFact if name == "facts.json" else Custom)(str(path)).load()


def test_a_byte_order_mark_and_windows_line_ends_in_json_lines(tmp_path: Path) -> None:
    row = json.dumps({"subject": "Ada", "prompt": "{} is", "object": "x"})
    (fact,) = custom(tmp_path, f"\ufeff{row}\r\n\r\n", "facts.jsonl")
    assert (fact.id, fact.object) == ("1", "x")


def test_a_long_text_is_shortened_in_a_message(tmp_path: Path) -> None:
    with pytest.raises(LawError) as error:
        custom(tmp_path, f"subject,prompt,object\nAda,{'x' * 10_000} is,Rome\n")
    assert "'xxxx" in str(error.value) and "xxx is'" in str(error.value) and len(str(error.value)) < 500


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "facts.csv").write_text("subject,prompt,object\nAda,{} is,x\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [fact.subject for fact in Custom("~/facts.csv").load().wash] == ["Ada"]
    with pytest.raises(LawError, match=r"facts file ~nobody-here/facts\.csv can't be read"):
        Custom("~nobody-here/facts.csv").load()


plain = st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="{}[]")
label = st.text(plain, min_size=1).map(clean).filter(bool)
around = st.lists(label, max_size=3).map(" ".join)


@given(
    rows=st.lists(st.tuples(label, around, around, label), min_size=1, max_size=5),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    layout=st.sampled_from([".csv,", ".csv;", ".csv\t", ".tsv\t", ".jsonl "]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, str, str]],
    end: str,
    quoting: Any,
    layout: str,
) -> None:
    columns = ("id", "subject", "prompt", "object")
    cells = [(str(n), s, clean(f"{b} {{}} {a}"), o) for n, (s, b, a, o) in enumerate(rows)]
    suffix, delimiter = layout[:-1], layout[-1]
    path = tmp_path_factory.mktemp("custom") / f"facts{suffix}"
    text = io.StringIO()
    if suffix == ".jsonl":
        text.writelines(json.dumps(dict(zip(columns, row, strict=True))) + end for row in cells)
    else:
        writer = csv.writer(text, lineterminator=end, quoting=quoting, delimiter=delimiter)
        writer.writerows([columns, *cells])
    path.write_bytes(text.getvalue().encode())
    expected = {(p.replace("{}", s), o): (s, p) for _, s, p, o in reversed(cells)}
    facts = read_custom(path)
    assert {(f.prompt, f.object): (f.subject, f.template) for f in facts} == expected
    assert len(facts) == len(expected)
