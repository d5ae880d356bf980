"""A mirror asks what the harness's own task asks of the same record, and scores it alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from law.evaluation.local_rows import MIRRORS, harness_folders, mirrored
from law.evaluation.reasoning_tasks import ReasoningSettings, RowSource, load_tasks

Row = dict[str, Any]
DATA = Path(__file__).parents[2] / "shared" / "data" / "lm_eval"

# for each task two records as its data set on the hub has them, and the same two as flat rows
RECORDS: dict[str, tuple[list[Row], list[Row]]] = {
    "lambada_openai": (
        [{"text": "Anna walked to the mill"}, {"text": 'she said, "this\n\nis  Ben\'s"'}],
        [{"text": "Anna walked to the mill"}, {"text": 'she said, "this\n\nis  Ben\'s"'}],
    ),
    "hellaswag": (
        [
            {
                "activity_label": "Baking bread",
                "ctx_a": "A baker is at a table.",
                "ctx_b": "the dough",
                "endings": ["rises [step] slowly.", "sings.", "walks away.", "is: blue."],
                "label": "0",
            },
            {
                "activity_label": "Home",
                "ctx_a": "How to mend a lamp [title] Unplug it.",
                "ctx_b": "",
                "endings": ["Wait.", "Shout.", "Paint it.", "Sit on it."],
                "label": "2",
            },
        ],
        [
            {
                "query": "Baking bread: A baker is at a table. The dough",
                "choices": ["rises slowly.", "sings.", "walks away.", "is: blue."],
                "label": 0,
            },
            {
                "query": "Home: How to mend a lamp. Unplug it.",
                "choices": ["Wait.", "Shout.", "Paint it.", "Sit on it."],
                "label": 2,
            },
        ],
    ),
    "arc_easy": (
        [
            {
                "question": "What melts?",
                "choices": {"text": ["ice", "sand"], "label": ["A", "B"]},
                "answerKey": "A",
            },
            {
                "question": "Question: which?",
                "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]},
                "answerKey": "3",
            },
        ],
        [
            {"query": "Question: What melts?", "choices": ["ice", "sand"], "gold": 0},
            {"query": "Question: Question: which?", "choices": ["x", "y", "z"], "gold": 2},
        ],
    ),
    "piqa": (
        [
            {"goal": "To dry a shirt", "sol1": "Hang it up.", "sol2": "Eat it.", "label": 0},
            {"goal": "dresser", "sol1": "a", "sol2": "b ", "label": 1},
        ],
        [
            {"query": "Question: To dry a shirt\n", "choices": ["Hang it up.", "Eat it."], "gold": 0},
            {"query": "Question: dresser\n", "choices": ["a", "b "], "gold": 1},
        ],
    ),
    "winogrande": (
        [
            {
                "sentence": "The cup broke the plate since the _ was hard.",
                "option1": "cup",
                "option2": "plate",
                "answer": "1",
            },
            {"sentence": "_ met Ben's mother.", "option1": "Anna", "option2": "Ben", "answer": "2"},
        ],
        [
            {
                "context_options": [
                    "The cup broke the plate since the cup",
                    "The cup broke the plate since the plate",
                ],
                "continuation": "was hard.",
                "gold": 0,
            },
            {"context_options": ["Anna", "Ben"], "continuation": "met Ben's mother.", "gold": 1},
        ],
    ),
    "logiqa": (
        [
            {
                "context": "All mills are old. B. is a mill.",
                "question": "What follows?",
                "options": ["B. is old.", "B. is new.", "All is\nold.", "Nothing"],
                "label": "a",
            },
            {"context": "", "question": "Which?", "options": ["1", "2", "3", "4"], "label": "d\n"},
        ],
        [
            {
                "query": "Context: All mills are old. B. is a mill.\nQuestion: What follows?\nChoices: A. B. is old.\n"
                "B. B. is new.\nC. All is\nold.\nD. Nothing\n",
                "choices": ["A", "B", "C", "D"],
                "gold": 0,
            },
            {
                "query": "Context: \nQuestion: Which?\nChoices: A. 1\nB. 2\nC. 3\nD. 4\n",
                "choices": ["A", "B", "C", "D"],
                "gold": 3,
            },
        ],
    ),
    "boolq": (
        [
            {
                "passage": "Mill -- A mill grinds. Question: not this?",
                "question": "does a mill grind",
                "label": 1,
            },
            {"passage": "Ice\nmelts.", "question": "is ice a metal", "label": 0},
        ],
        [
            {
                "query": "Passage: Mill -- A mill grinds. Question: not this?\nQuestion: does a mill grind?",
                "choices": ["no", "yes"],
                "gold": 1,
            },
            {"query": "Passage: Ice\nmelts.\nQuestion: is ice a metal?", "choices": ["no", "yes"], "gold": 0},
        ],
    ),
}


@pytest.fixture
def from_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[Row]], Any]:
    """The harness's task as it loads it from the hub, with records in place of the hub."""

    def load(name: str, records: list[Row]) -> Any:
        rows = datasets.Dataset.from_list(records)
        splits = datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), rows))
        monkeypatch.setattr(datasets, "load_dataset", lambda **_: splits)
        return harness_folders([name]).load([name])["tasks"][name]

    return load


def from_folder(name: str, rows: list[Row], folder: Path) -> Any:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / MIRRORS[name].file).write_text(text, encoding="utf-8")
    (task,) = mirrored([name], str(folder)).values()
    return task


def requests(task: Any) -> list[tuple[str, int, tuple[str, str]]]:
    task.build_all_requests()
    return [(request.request_type, request.doc_id, request.args) for request in task.instances]


def scores(task: Any, best: int) -> list[dict[str, float]]:
    """What each record scores when the model prefers the continuation ``best``, or says the target."""
    found = []
    for doc_id, doc in task.doc_iterator():
        count = sum(request.doc_id == doc_id for request in task.instances)
        replies = [(-1.0 if i == best else -3.0 - i, best == 0) for i in range(count)]
        found.append(task.process_results(doc, replies))
    return found


def test_every_mirror_has_a_record_here() -> None:
    assert RECORDS.keys() == MIRRORS.keys()


@pytest.mark.parametrize("shape", ["flat", "exported"])
@pytest.mark.parametrize("name", [*MIRRORS])
def test_a_mirror_is_the_task(
    name: str, shape: str, from_hub: Callable[[str, list[Row]], Any], tmp_path: Path
) -> None:
    records, flat = RECORDS[name]
    original = from_hub(name, records)
    mirror = from_folder(name, flat if shape == "flat" else records, tmp_path)
    assert mirror.task_name == f"{name}_mirror"
    assert requests(mirror) == requests(original)
    assert len(requests(original)) >= 2
    for best in range(2):
        assert scores(mirror, best) == scores(original, best)
    assert scores(original, 0) != scores(original, 1)
    assert mirror.aggregation() == original.aggregation()
    assert mirror.higher_is_better() == original.higher_is_better()
    for setting in ("output_type", "target_delimiter", "num_fewshot", "description", "filter_list"):
        assert mirror.get_config(setting) == original.get_config(setting)


def expected(name: str, row: Row) -> Iterator[tuple[str, str]]:
    """The requests of a flat row, written out."""
    match name:
        case "lambada_openai":
            context, _, word = row["text"].rpartition(" ")
            yield context, f" {word}"
        case "winogrande":
            for context in row["context_options"]:
                yield context, f" {row['continuation']}"
        case "logiqa":
            context, _, options = row["query"].partition("\nChoices: A. ")
            passage = context.replace("Context: ", "Passage: ", 1)
            texts = [options]
            for letter in "BCD":
                texts[-1:] = texts[-1].split(f"\n{letter}. ", 1)
            texts[-1] = texts[-1].removesuffix("\n")
            listed = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", texts, strict=True))
            for text in texts:
                yield f"{passage}\nChoices:{listed}\nAnswer:", f" {text}"
        case "hellaswag":
            for choice in row["choices"]:
                yield row["query"], f" {choice}"
        case _:
            for choice in row["choices"]:
                yield (
                    f"{row['query'].strip()}\nAnswer:".replace("Passage: ", "", name == "boolq"),
                    f" {choice}",
                )


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is absent")
@pytest.mark.parametrize("name", [*MIRRORS])
def test_published_rows_give_the_requests_they_should(name: str, tmp_path: Path) -> None:
    with (DATA / MIRRORS[name].file).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][::20]
    task = from_folder(name, rows, tmp_path)
    found = [args for _, _, args in requests(task)]
    wanted = [request for row in rows for request in expected(name, row)]
    different = [pair for pair in zip(found, wanted, strict=True) if pair[0] != pair[1]]
    # the harness cleans HellaSwag's text, which leaves cleaned text as it is but for leftover spaces
    assert len(different) <= (0.001 * len(wanted) if name == "hellaswag" else 0), different[:2]
    gold = [row.get("gold", row.get("label", 0)) for row in rows]
    targets = [
        task.doc_to_text(doc) if name == "winogrande" else task.doc_to_target(doc) for doc in task.eval_docs
    ]
    assert name == "lambada_openai" or targets == gold


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is absent")
def test_all_published_rows_are_read() -> None:
    tasks = load_tasks(ReasoningSettings([*MIRRORS], RowSource.local, str(DATA)))
    assert {name: len(task.eval_docs) for name, task in tasks.items()} == {
        "lambada_openai_mirror": 5153,
        "hellaswag_mirror": 10042,
        "arc_easy_mirror": 2376,
        "piqa_mirror": 1838,
        "winogrande_mirror": 1267,
        "logiqa_mirror": 651,
        "boolq_mirror": 3270,
    }
