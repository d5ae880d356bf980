from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from law.base.errors import LawError
from law.facts.wiki_latest import WikiLatest, read_wiki
from law.facts.wikidata_triples import FALLBACK, Counts, build_facts, read_templates, template_of

ROOT = Path(__file__).parents[1]
STATUS = Path("/proc/self/status")
STATEMENTS = ROOT.parent / "shared" / "data" / "wikidata_qa" / "bigbench_qa_wikidata.jsonl"

ROWS = [
    "Ada\tplace of birth\tLondon",
    "Bo\tspouse\tCy",
    "",
    "Ada\tplace of birth\tLondon",  # a duplicate
    "Bo\tspouse\tDi",  # ambiguous with line 2
    "Bo\tspouse\tCy",  # a duplicate of what is ambiguous
    "only\ttwo",
    "Ada\tspouse\t ",
    "Søren\tcapital of\tDanmark",
    "Ada\tinstance of\thuman",
]
FACTS = [
    {
        "subject": "Ada",
        "relation": "place of birth",
        "object": "London",
        "template": "The place of birth of {} is",
    },
    {"subject": "Søren", "relation": "capital of", "object": "Danmark", "template": "{} is capital of"},
    {"subject": "Ada", "relation": "instance of", "object": "human", "template": "{} is an instance of"},
]
COUNTS = Counts(9, 2, 2, 2, 1, 3, "line 7: it has 2 columns, not 3.")


def built(
    tmp_path: Path, text: str, name: str = "triples.tsv", partitions: int = 3
) -> tuple[Counts, list[dict]]:
    source, output = tmp_path / name, tmp_path / "facts.jsonl"
    source.write_bytes(text.encode())
    counts = build_facts(source, output, read_templates(), partitions, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name, "facts.jsonl"}
    return counts, [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_triples_by_hand(tmp_path: Path, end: str, mark: str) -> None:
    assert built(tmp_path, mark + end.join(ROWS)) == (COUNTS, FACTS)
    facts = read_wiki(tmp_path / "facts.jsonl")
    assert [fact.prompt for fact in facts] == [
        "The place of birth of Ada is",
        "Søren is capital of",
        "Ada is an instance of",
    ]
    assert len(WikiLatest(str(tmp_path / "facts.jsonl"), wash=1).load().keep) == 2


def test_the_command(tmp_path: Path) -> None:
    source, output = tmp_path / "triples.tsv", tmp_path / "facts.jsonl"
    source.write_text("\n".join(ROWS), encoding="utf-8")
    command = [sys.executable, str(ROOT / "experiments" / "build_wiki.py"), str(source), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "9 rows read: 2 malformed, 2 duplicates, 2 ambiguous triples of 1 pairs, 3 facts" in done.stderr
    assert "triples.tsv, line 7: it has 2 columns" in done.stderr
    assert len(output.read_text(encoding="utf-8").splitlines()) == 3
    with pytest.raises(LawError, match="0 partitions were asked for; expected at least 1"):
        build_facts(source, output, {}, partitions=0)


def test_jsonl_gives_the_same(tmp_path: Path) -> None:
    rows = [dict(zip(("subject", "relation", "object"), row.split("\t"), strict=False)) for row in ROWS]
    text = "\n".join(json.dumps(row) if row["subject"] else "" for row in rows)
    counts, facts = built(tmp_path, text, "triples.jsonl")
    assert facts == FACTS
    assert asdict(counts) == asdict(COUNTS) | {"first_malformed": "line 7: it has no 'object'."}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (b'{"subject": "a"', "it is not valid JSON"),
        (b'["a", "r", "o"]', "is not a JSON object"),
        (b'{"subject": "a\\nb", "relation": "r", "object": "o"}', 'its subject "a\\nb" is not one line'),
        (b'{"subject": "a", "relation": "r\\t", "object": "o\\tp"}', 'its object "o\\tp" is not one line'),
        (b'{"subject": "a", "relation": "{}", "object": "o"}', 'its relation "{}" holds {}'),
        (b'{"subject": "\\ud800", "relation": "r", "object": "o"}', "is not Unicode text"),
        (b'{"subject": "S\xf8ren", "relation": "r", "object": "o"}', "it is not UTF-8"),
        (b'{"subject": true, "relation": "r", "object": "o"}', "its 'subject' is true, not a text"),
        (b'{"context": "Who knows", "continuation": "o"}', "has the form of no known template"),
        (b'{"context": "The capital of Italy is"}', "it has no 'continuation'"),
    ],
)
def test_a_malformed_row_is_counted_and_named(tmp_path: Path, row: bytes, problem: str) -> None:
    source = tmp_path / "t.jsonl"
    source.write_bytes(b'{"subject": "a", "relation": "r", "object": "o"}\n' + row + b"\n" + row)
    counts = build_facts(source, tmp_path / "facts.jsonl", read_templates())
    assert (counts.read, counts.malformed, counts.written) == (3, 2, 1)
    assert counts.first_malformed.startswith("line 2: ") and problem in counts.first_malformed


def test_inputs_that_give_nothing(tmp_path: Path) -> None:
    with pytest.raises(LawError, match=r"t\.tsv gives no fact"):
        built(tmp_path, "a,b,c\n", "t.tsv")
    assert not (tmp_path / "facts.jsonl").exists()
    with pytest.raises(LawError, match=r"t\.csv is neither \.tsv nor \.jsonl"):
        built(tmp_path, "a,b,c\n", "t.csv")
    with pytest.raises(LawError, match=r"none\.tsv does not exist"):
        build_facts(tmp_path / "none.tsv", tmp_path / "facts.jsonl", {})


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "can't be read"), ("[]", "no JSON object"), ('{"r": "who"}', "of 'r' is \"who\"")],
)
def test_templates_that_are_none(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "templates.json"
    path.write_text(text)
    with pytest.raises(LawError, match=problem):
        read_templates(path)


label = st.text("ab é", min_size=1, max_size=2)
row = st.one_of(st.tuples(label, label, label).map("\t".join), st.sampled_from(["", "x\ty", "a\tb\tc\td"]))


@given(rows=st.lists(row, max_size=40), partitions=st.sampled_from([1, 2, 7]))
def test_against_a_plain_count(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str], partitions: int
) -> None:
    """Whatever the rows and the number of partitions, as sets and dictionaries have it."""
    rows.append("z\tz\tz")  # one fact at least
    objects: dict[tuple[str, str], set[str]] = defaultdict(set)
    order, read, malformed = [], 0, 0
    for text in rows:
        cells = [cell.strip() for cell in text.split("\t")]
        read += bool(text.strip())
        if len(cells) != 3 or not all(cells):
            malformed += bool(text.strip())
            continue
        subject, relation, object = cells
        if object not in objects[subject, relation]:
            order.append((subject, relation, object))
        objects[subject, relation].add(object)
    expected = [triple for triple in order if len(objects[triple[:2]]) == 1]
    ambiguous = [len(found) for found in objects.values() if len(found) > 1]

    counts, facts = built(tmp_path_factory.mktemp("rows"), "\n".join(rows), partitions=partitions)
    assert [(f["subject"], f["relation"], f["object"]) for f in facts] == expected
    assert (counts.read, counts.malformed, counts.written) == (read, malformed, len(expected))
    assert (counts.ambiguous, counts.pairs) == (sum(ambiguous), len(ambiguous))
    assert counts.read == counts.malformed + counts.duplicates + counts.ambiguous + counts.written


def test_the_output_does_not_depend_on_the_partitions(tmp_path: Path) -> None:
    rows = [f"s{n * n % 1009}\tr{n % 5}\to{n * n % 13 // 12}" for n in range(2000)]
    one = built(tmp_path, "\n".join(rows), partitions=1)
    assert built(tmp_path, "\n".join(rows), partitions=31) == one
    assert one[0].ambiguous and one[0].duplicates and one[0].written


def test_each_template_is_its_own(tmp_path: Path) -> None:
    templates = read_templates()
    assert len(set(templates.values())) == len(templates)
    relations = [*templates, "shoe size"]
    texts = [
        {"context": template_of(relation, templates).replace("{}", "Duke of York"), "continuation": "x"}
        for relation in relations
    ]
    counts, facts = built(tmp_path, "\n".join(map(json.dumps, texts)), "s.jsonl")
    assert [(f["subject"], f["relation"]) for f in facts] == [("Duke of York", r) for r in relations]
    assert counts.written == len(relations)
    assert template_of("shoe size", templates) == FALLBACK.replace("{relation}", "shoe size")


def test_real_statements(tmp_path: Path) -> None:
    if not STATEMENTS.exists():
        pytest.skip(f"{STATEMENTS} is absent")
    statements = [json.loads(line) for line in STATEMENTS.read_text(encoding="utf-8").splitlines()]
    counts, facts = built(tmp_path, STATEMENTS.read_text(encoding="utf-8"), STATEMENTS.name)
    assert counts.read == len(statements) == 20_321
    # labels without a verb, which no template is made of, and statements with a mask left in
    unknown = (
        " writing languages| convicted of| named after| given name| endemic to| influenced by| replaced by"
        "| owned by| practiced by| programming language| calculated from| [MASK]"
    )
    assert (
        counts.malformed == sum(s["context"].endswith(tuple(unknown.split("|"))) for s in statements) == 462
    )
    # one context has two continuations
    assert (counts.duplicates, counts.pairs, counts.ambiguous) == (0, 1, 2)
    told = {(s["context"].strip(), s["continuation"].strip()) for s in statements}
    assert all((f["template"].replace("{}", f["subject"]), f["object"]) in told for f in facts)
    by_subject = {(f["subject"], f["relation"]): f["object"] for f in facts}
    assert by_subject["Luis Aparicio", "country of citizenship"] == "Venezuela"
    assert by_subject["Shane Victorino", "sport"] == "baseball"
    assert len(read_wiki(tmp_path / "facts.jsonl")) == counts.written


def many(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for n in range(rows):
            file.write(
                f"Some Subject of Wikipedia, the {n * 7919 % rows}th\trelation {n % 400}\tobject {n}\n"
            )


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason=f"{STATUS}, which tells the peak of memory, is absent")
def test_memory_is_bounded_by_a_partition(tmp_path: Path) -> None:
    """The peak of a process of its own; resource.getrusage would tell the parent's where that is higher."""
    rows = 300_000
    source = tmp_path / "triples.tsv"
    many(source, rows)
    script = (
        "import sys; from pathlib import Path; from law.facts.wikidata_triples import build_facts\n"
        "print(build_facts(Path(sys.argv[1]), Path(sys.argv[2]), {}, int(sys.argv[3])).written)\n"
        f"print(Path({str(STATUS)!r}).read_text().partition('VmHWM:')[2].split()[0])"
    )

    def peak_kilobytes(partitions: int) -> int:
        command = [sys.executable, "-c", script, str(source), str(tmp_path / "facts.jsonl"), str(partitions)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        written, kilobytes = map(int, done.stdout.split())
        assert written == rows
        return kilobytes

    one, sixty_four = peak_kilobytes(1), peak_kilobytes(64)
    assert one > sixty_four + 50_000
    assert sixty_four < 100_000
