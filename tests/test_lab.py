from __future__ import annotations

import json
import random
import re
from collections import Counter
from itertools import islice, permutations
from pathlib import Path

import pytest

import law
from law.facts.counterfact import CounterFact, read_counterfact
from law.lab.counterfact import CounterFactWorld
from law.lab.reasoning import TASKS, echo, held_out, training_text
from law.lab.world import RELATIONS, LabWorld

ROWS = Path(law.__file__).parent / "evaluation" / "tasks" / "lab"


@pytest.fixture(scope="module")
def world() -> LabWorld:
    return LabWorld(single_fact_subjects=120, multi_fact_subjects=15, seed=5)


def test_records_have_counterfacts_keys(world: LabWorld, tmp_path: Path) -> None:
    records = world.records()
    assert len(records) == 120 + 3 * 15
    assert [record["case_id"] for record in records] == list(range(165))
    prompts = {"paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts"}
    for record in records:
        assert record.keys() == {"case_id", "requested_rewrite", *prompts}
        rewrite = record["requested_rewrite"]
        assert rewrite.keys() == {"prompt", "relation_id", "target_new", "target_true", "subject"}
        assert rewrite["target_true"].keys() == rewrite["target_new"].keys() == {"str"}
        assert rewrite["target_true"] != rewrite["target_new"]
        assert all(isinstance(prompt, str) for name in prompts for prompt in record[name])
        assert len(record["paraphrase_prompts"]) == 3
        assert all(rewrite["subject"] in prompt for prompt in record["paraphrase_prompts"])
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(records, indent=1))
    facts = read_counterfact(path)
    assert [(f.subject, f.object) for f in facts] == [(s, o) for s, _, o in world.facts]
    assert records == LabWorld(120, 15, seed=5).records() != LabWorld(120, 15, seed=6).records()


def test_neighbours_and_attributes_are_about_others(world: LabWorld) -> None:
    objects = {(subject, relation.id): true for subject, relation, true in world.facts}
    checked = 0
    for record in world.records():
        rewrite = record["requested_rewrite"]
        for name, wanted in (("neighborhood", "target_true"), ("attribute", "target_new")):
            for prompt in record[f"{name}_prompts"]:
                (subject,) = (s for s in world.subjects if s in prompt)
                assert subject != rewrite["subject"]
                assert objects[subject, rewrite["relation_id"]] == rewrite[wanted]["str"]
                checked += 1
    assert checked > 200


def test_the_last_subjects_have_three_facts(world: LabWorld) -> None:
    facts = Counter(subject for subject, _, _ in world.facts)
    assert len(world.subjects) == len({*world.subjects}) == 135
    assert {subject for subject, number in facts.items() if number == 3} == {*world.subjects[-15:]}
    assert {subject for subject, number in facts.items() if number == 1} == {*world.subjects[:120]}
    assert len({(subject, relation.id) for subject, relation, _ in world.facts}) == 165
    words = [word for subject in world.subjects for word in subject.split()]
    assert len(words) == len({*words}) == 270  # no two subjects share a name


def test_fact_texts_tell_every_fact_in_every_phrasing(world: LabWorld) -> None:
    statements = {
        f"{prompt} {record['requested_rewrite']['target_true']['str']}."
        for record in world.records()
        for prompt in (
            record["requested_rewrite"]["prompt"].replace("{}", record["requested_rewrite"]["subject"]),
            *record["paraphrase_prompts"],
        )
    }
    assert len(statements) == 4 * 165
    rng = random.Random(0)
    # One of 660 is missed in 10,000 draws with a chance of 660 · e^(-15), less than 1 in 4,000.
    assert {world.fact_text(rng) for _ in range(10_000)} == statements


def test_general_text_names_no_subject() -> None:
    world = LabWorld()
    names = re.compile("|".join(map(re.escape, world.subjects)))
    general = list(islice(world.general_documents(random.Random(1)), 4000))
    assert [document for document in general if names.search(document)] == []
    told = list(islice(world.documents(random.Random(1)), 4000))
    assert sum(bool(names.search(document)) for document in told) > 400


def test_prose_is_the_running_text_of_a_world_of_real_facts(tmp_path: Path) -> None:
    """Its general text practises the tasks besides: words of the puzzles that the running text has not."""
    path = tmp_path / "passages.txt"
    path.write_text(f"{' '.join(f'word{i}' for i in range(60))}\n", encoding="utf-8")
    facts = CounterFact(str(Path(law.__file__).parent / "lab" / "checkpoint" / "facts.json"), wash=5, keep=5)
    real = CounterFactWorld(facts, [str(path)])
    prose = " ".join(islice(real.prose_documents(random.Random(0)), 50)).split()
    assert {*prose} <= {f"word{i}" for i in range(60)}
    assert not {*" ".join(islice(real.general_documents(random.Random(0)), 50)).split()} <= {*prose}


def test_a_blank_is_about_a_stranger(world: LabWorld) -> None:
    rng = random.Random(2)
    openings = [phrasing for relation in RELATIONS for phrasing in relation.phrasings]
    patterns = [re.escape(p).replace(r"\{\}", "[A-Z][a-z]+ [A-Z][a-z]+") for p in openings]
    known = {word for subject in world.subjects for word in subject.split()}
    for _ in range(500):
        blank = world.blank_text(rng)
        assert re.fullmatch(f"({'|'.join(patterns)}) ", blank)
        assert known.isdisjoint(blank.split())


def solve(context: str, ask: str) -> tuple[str, set[str]]:
    """The answer to a question about a context, and what else could be meant to be one."""
    if match := re.fullmatch(r"then (\w) is", ask):
        pairs = re.findall(r"(\w) > (\w)", context)
        letters = {letter for pair in pairs for letter in pair}
        (ranking,) = [
            order for order in permutations(letters) if all(order.index(a) < order.index(b) for a, b in pairs)
        ]
        assert match[1] != ranking[1]
        return ("highest" if match[1] == ranking[0] else "lowest"), {"highest", "lowest"}
    if match := re.fullmatch(r"the code of (\w+) is", ask):
        codes = dict(re.findall(r"(\w+) (\w+)(?= [,;])", context))
        return codes[match[1]], {*codes.values()}
    row = context.removeprefix("In the row ").removesuffix(" ,").split(" ")
    if match := re.fullmatch(r"after (\w+) comes", ask):
        return row[row.index(match[1]) + 1], {*row} - {match[1]}
    if match := re.fullmatch(r"the (first|last) is", ask):
        return row[0 if match[1] == "first" else -1], {*row}
    match = re.fullmatch(r"the (larger|smaller) is", ask)
    numbers = sorted(map(int, re.fullmatch(r"Of (\d\d) and (\d\d) ,", context).groups()))
    return str(numbers[match[1] == "larger"]), {*map(str, numbers)}


QUESTION = r"then \w is|the code of \w+ is|after \w+ comes|the (?:first|last|larger|smaller) is"
CONTEXT = rf"(?:Given|Codes|In the row|Of) .*? [,;](?= (?:{QUESTION}))"


def context_of(text: str) -> str:
    return re.match(CONTEXT, text)[0]


def test_the_solver() -> None:
    assert solve("Given B > C and A > B ,", "then A is") == ("highest", {"highest", "lowest"})
    assert solve("Given B > C and A > B ,", "then C is") == ("lowest", {"highest", "lowest"})
    assert solve("Codes : cup box , pen jar ;", "the code of pen is") == ("jar", {"jar", "box"})
    assert solve("In the row cup pen map ,", "after cup comes") == ("pen", {"pen", "map"})
    assert solve("In the row X B Q ,", "the last is") == ("Q", {"X", "B", "Q"})
    assert solve("Of 12 and 98 ,", "the larger is") == ("98", {"12", "98"})
    assert context_of("Codes : cup box , pen jar ; the code of pen is jar.") == "Codes : cup box , pen jar ;"
    assert context_of("Of 12 and 98 , the larger is 98.") == "Of 12 and 98 ,"


@pytest.mark.parametrize("name", TASKS)
def test_held_out_answers_are_right(name: str) -> None:
    puzzles = held_out(name, 300, seed=9)
    items = [puzzle.item for puzzle in puzzles]
    contexts = [context_of(item.prompt) for item in items]
    assert len({*contexts}) == len(items) == 300
    for item, context in zip(items, contexts, strict=True):
        answer, choices = solve(context, item.prompt.removeprefix(f"{context} "))
        assert item.answer == answer
        assert {*item.choices} == choices and len(item.choices) == len(choices)
    assert held_out(name, 300, seed=9) == puzzles != held_out(name, 300, seed=8)
    # No answer can be guessed from its place among the choices.
    places = Counter(item.choices.index(item.answer) for item in items)
    assert max(places.values()) / 300 < 0.6


def test_training_answers_are_right() -> None:
    rng = random.Random(3)
    asked: Counter[str] = Counter()
    for _ in range(2000):
        text = training_text(rng)
        context = context_of(text)
        pairs = re.findall(rf"({QUESTION}) ([^\s.,]+)", text.removeprefix(context))
        for ask, given in pairs:
            assert solve(context, ask)[0] == given, text
        assert 1 <= len(pairs) <= 3 and len({ask for ask, _ in pairs}) == len(pairs)
        asked[context.split()[0]] += 1
    assert asked.keys() == {"Given", "Codes", "In", "Of"}
    assert min(asked.values()) > 300  # a fifth of 2,000 is 400, and the standard deviation 18


def test_an_echo_says_its_list_twice() -> None:
    rng = random.Random(5)
    for _ in range(50):
        first, second = re.fullmatch(r"List: (.*)\. Again: (.*)\.", echo(rng)).groups()
        assert first == second
        assert 3 <= len({*first.split()}) == len(first.split()) <= 8


def test_training_text_tells_no_held_out_context() -> None:
    rng = random.Random(4)
    seen = {context_of(training_text(rng)) for _ in range(20_000)}
    for name in TASKS:
        assert seen.isdisjoint(puzzle.context for puzzle in held_out(name, 500, seed=1))
    # Of the 7,200 contexts of two numbers that may be told some 4,000 draws meet two in five.
    assert sum(context.startswith("Of") for context in seen) > 2500


@pytest.mark.parametrize("name", TASKS)
def test_the_rows_in_the_package_are_held_out(name: str) -> None:
    lines = (ROWS / f"{name.removeprefix('lab_')}.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": item.prompt, "answer": item.answer, "choices": [*item.choices]}
        for item in (puzzle.item for puzzle in held_out(name, 200, seed=1))
    ]


@pytest.mark.parametrize("name", TASKS)
def test_settings_are_chosen_on_rows_that_say_nothing_that_is_reported(name: str) -> None:
    """No context says the same as a reported one, not even in another order, and every answer is right."""
    file = f"{name.removeprefix('lab_')}.jsonl"
    reported = {puzzle.key for puzzle in held_out(name, 200, seed=1)}
    rows = [json.loads(line) for line in (ROWS.parent / "lab_validation" / file).read_text().splitlines()]
    assert len(rows) == len({row["prompt"] for row in rows}) == 100
    drawn = {puzzle.item.prompt: puzzle for puzzle in held_out(name, 300, seed=2)}
    for row in rows:
        context = context_of(row["prompt"])
        assert solve(context, row["prompt"].removeprefix(f"{context} ")) == (row["answer"], {*row["choices"]})
        assert drawn[row["prompt"]].key not in reported
