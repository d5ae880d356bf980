from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from records import record, write, zsre

from law.base.errors import LawError
from law.facts.counterfact import Selection, read_counterfact
from law.facts.fact import Fact, Question
from law.facts.wiki_latest import WikiLatest, read_wiki
from law.facts.zsre import read_zsre

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"


def shared(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


# zsRE


def test_a_zsre_record_by_hand(tmp_path: Path) -> None:
    assert read_zsre(write(tmp_path / "z.json", [zsre()])) == [
        Fact(
            id="0",
            subject="Ada",
            template="Where was {} born? Answer:",
            object="Paris",
            relation="",
            paraphrases=("What is Ada's birthplace? Answer:",),
            neighbours=(Question("who sang it? Answer:", "Bo"),),
        )
    ]


def test_a_zsre_record_may_lack_what_only_scores(tmp_path: Path) -> None:
    records = [zsre(loc=None, loc_ans=None, rephrase="")]
    (fact,) = read_zsre(write(tmp_path / "z.json", records))
    assert fact.paraphrases == fact.neighbours == ()


def test_blemished_zsre_records_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [
        zsre(),
        zsre(src="Where was Bo born?"),
        zsre(rephrase="Where does Ada come from?"),  # the question of line 2 again
        zsre(answers=[]),
        zsre(answers=[" "]),
        zsre(src="Is Ada Ada?"),
        zsre(subject=""),
        zsre(answers=["Rome"]),
    ]
    facts = read_zsre(write(tmp_path / "z.json", records))
    assert [(fact.id, fact.object) for fact in facts] == [("0", "Paris"), ("7", "Rome")]
    told = [record.getMessage().partition("left out ")[2] for record in caplog.records]
    assert told == [
        "2 records: the question does not name the subject once; the first on line 3",
        "1 records: the prompt and its object have occurred before; the first on line 4",
        "2 records: there is no answer; the first on line 5",
        "1 records: there is no subject; the first on line 8",
    ]


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ({key: value for key, value in zsre().items() if key != "answers"}, "it has no 'answers'"),
        ({key: value for key, value in zsre().items() if key != "loc"}, "it has no 'loc'"),
        (zsre(answers="Paris"), "'answers' is \"Paris\", not a list of texts"),
        (zsre(answers=[True]), "'answers' is [true], not a list of texts"),
        (zsre(subject=None), "'subject' is null, not a text"),
        (zsre(loc=["x"]), "'loc' is [\"x\"], not a text"),
        ("Ada", '"Ada" is not a JSON object'),
    ],
)
def test_a_malformed_zsre_record_is_named(tmp_path: Path, broken: Any, problem: str) -> None:
    path = write(tmp_path / "z.json", [zsre(), broken])
    with pytest.raises(LawError, match=r"z\.json, line 3: the record is malformed: .*MEND's schema") as error:
        read_zsre(path)
    assert problem in str(error.value)


def test_the_shared_zsre_file() -> None:
    path = shared("zsre/zsre_eval_1538.json")
    records = json.loads(path.read_text(encoding="utf-8"))
    good = [r for r in records if r["src"].count(r["subject"]) == 1 and r["answers"]]
    assert len({(r["src"], r["answers"][0]) for r in good}) == len(good)
    facts = read_zsre(path)
    assert len(facts) == len(good) == 1538
    for fact, given in zip(facts, good, strict=True):
        assert fact.prompt == given["src"] + " Answer:"
    asked = [fact for fact in facts if fact.neighbours]
    assert len(asked) == 1538 - 501
    assert not any("nq question" in fact.neighbours[0].prompt for fact in asked)
    assert all(fact.neighbours[0].prompt.endswith("? Answer:") for fact in asked)
    assert any("Carolina Rodríguez" in fact.prompt for fact in facts)


def test_a_zsre_subject_is_a_whole_word(tmp_path: Path) -> None:
    questions = ["Which Iranian ruled Iran?", "Which Iranian was it?"]
    facts = read_zsre(write(tmp_path / "z.json", [zsre("Iran", question) for question in questions]))
    assert [fact.template for fact in facts] == ["Which Iranian ruled {}? Answer:"]


# every data set


NFD, NFC = "Brasi\u0301lia", "Bras\u00edlia"


def test_counterfacts_texts_are_stripped_and_composed(tmp_path: Path) -> None:
    rewrite = {"prompt": " The land of {} is ", "target_true": {"str": f" {NFD}"}}
    prompts = {
        "paraphrase_prompts": [f"{NFD} is "],
        "generation_prompts": [f" {NFD}"],
        "neighborhood_prompts": [f" {NFD}s "],
    }
    (fact,) = read_counterfact(write(tmp_path / "c.json", [record(0, f"{NFD} ", **rewrite) | prompts]))
    assert (fact.subject, fact.prompt, fact.object) == (NFC, f"The land of {NFC} is", NFC)
    assert (fact.paraphrases, fact.generation_prompts) == ((f"{NFC} is",), (NFC,))
    assert fact.neighbours == (Question(f"{NFC}s", NFC),)


def test_zsres_texts_are_stripped_and_composed(tmp_path: Path) -> None:
    changes = {"answers": [f"{NFD} "], "rephrase": f" {NFD}? ", "loc_ans": f" {NFD}"}
    (fact,) = read_zsre(write(tmp_path / "z.json", [zsre(f" {NFD}", f"Where is {NFD}? ", **changes)]))
    assert (fact.subject, fact.prompt, fact.object) == (NFC, f"Where is {NFC}? Answer:", NFC)
    assert (fact.paraphrases, fact.neighbours[0].object) == ((f"{NFC}? Answer:",), NFC)


def test_wiki_latests_texts_are_stripped_and_composed(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    row = {"subject": f" {NFD}", "relation": f"{NFD} ", "template": " {} is ", "object": f"{NFD}\n"}
    path.write_text(json.dumps(row))
    assert read_wiki(path) == [Fact("1", NFC, "{} is", NFC, NFC)]
    assert WikiLatest(str(path), relations=[NFD]).load().wash == read_wiki(path)


def test_a_number_is_its_text_in_every_data_set(tmp_path: Path) -> None:
    """As written: 3.50 is not 3.5."""
    path = tmp_path / "facts"
    path.write_text(json.dumps([record(target_true={"str": 1945})]).replace("1945", "3.50"))
    assert read_counterfact(path)[0].object == "3.50"
    path.write_text(json.dumps([zsre(answers=[1945])]))
    assert read_zsre(path)[0].object == "1945"
    path.write_text('{"subject": 7, "relation": "r", "template": "{} is", "object": 3.50}')
    assert read_wiki(path) == [Fact("1", "7", "{} is", "3.50", "r")]


# CounterFact


def test_the_shared_counterfact_file() -> None:
    path = shared("counterfact/counterfact.json")
    records = json.loads(path.read_text(encoding="utf-8"))
    facts = read_counterfact(path)
    assert len(facts) == len(records) == 21_919
    assert sum(fact.relation == "" for fact in facts) == sum(
        r["requested_rewrite"]["relation_id"] is None for r in records
    )
    for fact, given in zip(facts, records, strict=True):
        assert [q.prompt for q in fact.neighbours] == given["neighborhood_prompts"]
        assert {q.object for q in fact.neighbours} == {given["requested_rewrite"]["target_true"]["str"]}
    chosen = read_counterfact(path, Selection.multi)
    assert [f.id for f in chosen] == [str(r["case_id"]) for r in records if r["mcf_like"]]
    assert len(chosen) == 20_891


def test_the_computed_selection_against_the_official_one(tmp_path: Path) -> None:
    """The file marks which of its first records are among the official file's first 10,000."""
    records = json.loads(shared("counterfact/counterfact.json").read_text(encoding="utf-8"))
    official = {str(r["case_id"]) for r in records if r["in_mcf_first10000"]}
    last = max(int(id) for id in official)
    for r in records:
        del r["mcf_like"]
    computed = {f.id for f in read_counterfact(write(tmp_path / "c.json", records), Selection.multi)}
    assert len(computed) == 20_936  # the official file has 20,877
    computed = {id for id in computed if int(id) <= last}
    assert (len(official), len(official - computed), len(computed - official)) == (10_000, 0, 22)


def test_full_records_have_all_their_prompts() -> None:
    facts = read_counterfact(shared("counterfact/counterfact_1000_full.json"))
    assert len(facts) == 1000
    shapes = {(len(f.paraphrases), len(f.neighbours), len(f.generation_prompts)) for f in facts}
    assert shapes == {(2, 10, 10)}


# Wiki-Latest


def test_wiki_latest_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    row = {
        "subject": "Søren",
        "relation": "place of birth",
        "template": "{} was born in",
        "object": "København",
    }
    path.write_text(f"\n{json.dumps(row, ensure_ascii=False)}\n\n{json.dumps(row)}\n", encoding="utf-8")
    facts = read_wiki(path)
    assert facts[0] == Fact("2", "Søren", "{} was born in", "København", "place of birth")
    assert [fact.id for fact in facts] == ["2", "4"]
    assert facts[0].template is facts[1].template
    assert WikiLatest(str(path), wash=1).load().keep == []  # the other fact repeats the washed one


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"subject": "A", "relation": "r", "object": "o"}', "it has no 'template'"),
        ('{"subject": "A", "relation": "r", "template": "t", "object": "o"}', "has 0 places for the subject"),
        ('{"subject": " ", "relation": "r", "template": "{} t", "object": "o"}', "subject is empty"),
        ("[1]", "[1] is not a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_a_malformed_wiki_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "facts.jsonl"
    good = {"subject": "A", "relation": "r", "template": "{} t", "object": "o"}
    path.write_text(f"{json.dumps(good)}\n{line}\n")
    with pytest.raises(LawError, match=r"facts\.jsonl, line 2: ") as error:
        read_wiki(path)
    assert problem in str(error.value)


def test_a_wiki_line_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(b'\n{"subject": "S\xf8ren"}\n')
    with pytest.raises(LawError, match=r"facts\.jsonl, line 2, byte 15 of that line: 0xf8 is not UTF-8 text"):
        read_wiki(path)
