from __future__ import annotations

import copy
import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import law
from law.base.errors import LawError
from law.base.files import FileHashes
from law.evaluation.estimates import Estimate
from law.evaluation.local_rows import harness_folders
from law.evaluation.reasoning import mean_accuracy, mean_kept, score_reasoning, tasks_at_chance
from law.evaluation.reasoning_tasks import (
    ReasoningSettings,
    RowSource,
    chance_levels,
    check_chat_template,
    load_tasks,
    tasks_key,
)

ROWS = Path(law.__file__).parent / "evaluation" / "tasks" / "lab"
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
LAB = ["lab_rank", "lab_code", "lab_row", "lab_larger"]


@torch.no_grad()
def log_likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, context: str, continuation: str
) -> float:
    ids, given = tokenizer(context + continuation)["input_ids"], len(tokenizer(context)["input_ids"])
    log_probabilities = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_probabilities[i - 1, ids[i]].item() for i in range(given, len(ids)))


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: ReasoningSettings
) -> dict[str, Estimate]:
    return score_reasoning(model, tokenizer, load_tasks(settings), settings)


def test_the_labs_tasks_are_scored(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = ReasoningSettings(tasks=LAB, limit=10, batch_size=4)
    scores = score(tiny_model, tiny_tokenizer, settings)
    assert scores.keys() == {f"{task}/acc" for task in LAB}
    for task in LAB:
        right = 0
        lines = (ROWS / f"{task.removeprefix('lab_')}.jsonl").read_text().splitlines()[:10]
        for place, line in enumerate(lines):
            row = json.loads(line)
            likelihoods = {
                choice: log_likelihood(tiny_model, tiny_tokenizer, row["prompt"], f" {choice}")
                for choice in row["choices"]
            }
            hit = max(likelihoods, key=likelihoods.__getitem__) == row["answer"]
            assert scores[f"{task}/acc"].items[place] == hit
            right += hit
        # The standard error of a mean of ten zeros and ones.
        p = right / 10
        assert scores[f"{task}/acc"].value == pytest.approx(p)
        assert scores[f"{task}/acc"].stderr == pytest.approx((p * (1 - p) / 9) ** 0.5)
        assert scores[f"{task}/acc"].n == 10
        assert sum(scores[f"{task}/acc"].items) / 10 == pytest.approx(p)
    assert len({scores[f"{task}/acc"].value for task in LAB}) > 1
    mean = mean_accuracy(scores)
    assert mean is not None and mean.stderr is not None
    assert mean.value == pytest.approx(sum(scores[f"{task}/acc"].value for task in LAB) / 4)
    assert mean.stderr**2 * 16 == pytest.approx(sum((s.stderr or 0) ** 2 for s in scores.values()))
    assert mean.n == 40


def test_tasks_loaded_once_are_scored_twice_alike(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = ReasoningSettings(tasks=["lab_larger"], limit=10)
    tasks = load_tasks(settings)
    first = score_reasoning(tiny_model, tiny_tokenizer, tasks, settings)
    assert score_reasoning(tiny_model, tiny_tokenizer, tasks, settings) == first


def test_a_single_item_has_no_standard_error(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    only = score(tiny_model, tiny_tokenizer, ReasoningSettings(["lab_larger"], limit=1))["lab_larger/acc"]
    assert only.value in (0.0, 1.0)
    assert (only.stderr, only.n) == (None, 1)
    assert mean_accuracy({"lab_larger/acc": only}) == only


def test_no_task_no_score(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert score(tiny_model, tiny_tokenizer, ReasoningSettings()) == {}
    assert mean_accuracy({}) is None


def test_an_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(LawError) as failure:
        load_tasks(ReasoningSettings(tasks=["lab_row", "lab_rnak"]))
    message = str(failure.value)
    assert "Unknown reasoning task 'lab_rnak'. Did you mean 'lab_rank'?" in message
    assert all(task in message for task in [*LAB, "lambada_openai", "boolq"])
    assert "evaluation.reasoning.tasks" in message


def test_a_harness_task_without_local_rows_is_not_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    # the folder of one task in place of all of the harness's, which take long to index
    monkeypatch.setattr(
        "law.evaluation.reasoning_tasks._all_harness_tasks", lambda: harness_folders(["boolq"]).all_tasks
    )
    for name in ("boolq-seq2seq", "super-glue-lm-eval-v1-seq2seq"):  # a task and a tag
        with pytest.raises(LawError) as failure:
            load_tasks(ReasoningSettings(tasks=[name], data="rows"))
        message = str(failure.value)
        assert f"The reasoning task {name!r} belongs to the lm-evaluation-harness, but its rows" in message
        assert "the hub can't be reached" in message and "evaluation.reasoning.source=hub" in message
    with pytest.raises(LawError, match=r"Unknown reasoning task .bolq-seq.\. Did you mean .boolq-seq2seq.\?"):
        load_tasks(ReasoningSettings(tasks=["bolq-seq"], data="rows"))


def test_a_single_name_is_no_list() -> None:
    with pytest.raises(LawError, match=r"Set evaluation\.reasoning\.tasks=\[arc_easy\]"):
        ReasoningSettings(tasks="arc_easy")


def test_without_a_hub_a_task_needs_a_folder(tmp_path: Path) -> None:
    tasks = ["lambada_openai"]
    with pytest.raises(LawError, match=r"the hub can't be reached, .* lambada_openai\.jsonl"):
        load_tasks(ReasoningSettings(tasks))
    with pytest.raises(LawError, match="its source is local, and evaluation"):
        load_tasks(ReasoningSettings(tasks, RowSource.local))
    with pytest.raises(LawError, match=rf"{tmp_path}/lambada_openai\.jsonl, do not exist"):
        load_tasks(ReasoningSettings(tasks, data=str(tmp_path)))


def test_a_hub_that_was_asked_for_must_be_there() -> None:
    with pytest.raises(LawError, match=r"evaluation\.reasoning\.source=local"):
        load_tasks(ReasoningSettings(["piqa"], RowSource.hub))


@pytest.mark.parametrize("reachable", [True, False])
def test_auto_is_the_hub_where_it_can_be_reached(
    lambada: ReasoningSettings, monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    rows = datasets.DatasetDict({"test": datasets.Dataset.from_list([{"text": "from the hub"}])})
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: rows)
    monkeypatch.setattr("law.evaluation.reasoning_tasks.hub_reachable", lambda: reachable)
    found = {name: len(task.eval_docs) for name, task in load_tasks(lambada).items()}
    assert found == ({"lambada_openai": 1} if reachable else {"lambada_openai_mirror": 3})


@pytest.fixture
def lambada(tmp_path: Path) -> ReasoningSettings:
    texts = ["Anna walked to the", 'the bread, she said, "is Ben\'s"', "Zoë's  lamp"]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "lambada_openai.jsonl").write_text(rows)
    return ReasoningSettings(["lambada_openai"], data=str(tmp_path))


def test_a_mirror_is_scored_and_says_so(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, lambada: ReasoningSettings
) -> None:
    assert score(tiny_model, tiny_tokenizer, lambada)["lambada_openai_mirror/acc"].value == 0
    # A model that says " the" after anything.
    (the,) = tiny_tokenizer(" the")["input_ids"]
    with torch.no_grad():
        tiny_model.lm_head.bias[the] += 20
    found = score(tiny_model, tiny_tokenizer, lambada)["lambada_openai_mirror/acc"]
    assert found.value == pytest.approx(1 / 3)
    assert found.n == 3


def test_other_rows_and_prompts_are_other_scores(
    lambada: ReasoningSettings, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tasks = load_tasks(lambada)
    before = tasks_key(tasks, tiny_tokenizer, lambada, FileHashes(None))
    assert before["tasks"] == ["lambada_openai_mirror"]
    chat = copy.deepcopy(tiny_tokenizer)
    chat.chat_template = CHAT
    assert tasks_key(tasks, chat, lambada, FileHashes(None)) == before  # the template is not used
    others = [
        tasks_key(tasks, tiny_tokenizer, replace(lambada, few_shot=1), FileHashes(None)),
        tasks_key(tasks, chat, replace(lambada, chat_template=True), FileHashes(None)),
        tasks_key(tasks, chat, replace(lambada, chat_template=True, system="Think."), FileHashes(None)),
    ]
    (Path(str(lambada.data)) / "lambada_openai.jsonl").write_text('{"text": "Anna walked"}\n')
    others.append(tasks_key(tasks, tiny_tokenizer, lambada, FileHashes(None)))
    assert len({json.dumps(key) for key in [before, *others]}) == 5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"text": "a b"}\n{"txt": "a b"}\n', "line 2: the row is malformed: it has no 'text'"),
        ('{"text": "a b"}\n{"text": "a', "line 2: not valid JSON .Unterminated string"),
        ('{"text": "a b"}\n{"text": 7}\n', "the rows are not of one kind"),
        ("[1]\n", "line 1: the row is malformed"),
    ],
)
def test_broken_rows_are_told(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "lambada_openai.jsonl").write_text(rows)
    with pytest.raises(LawError, match=f"lambada_openai.jsonl.*{message}"):
        load_tasks(ReasoningSettings(["lambada_openai"], data=str(tmp_path)))


@pytest.fixture
def arc(tmp_path: Path) -> ReasoningSettings:
    """Three items, one of them with four choices, and two rows for examples."""

    def rows(*choices: list[str]) -> str:
        found = ({"query": f"Question: {c[0]}?", "choices": c, "gold": 1} for c in choices)
        return "".join(json.dumps(row) + "\n" for row in found)

    (tmp_path / "arc_easy.jsonl").write_text(rows(["a", "b"], ["c", "d"], ["e", "f", "g", "h"]))
    (tmp_path / "arc_easy_train.jsonl").write_text(rows(["k", "l"], ["m", "n"]))
    return ReasoningSettings(["arc_easy"], RowSource.local, str(tmp_path))


def prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: ReasoningSettings
) -> list[tuple[str, str]]:
    """What the harness gives the model to read: each context with its continuation."""
    tasks: dict[str, Any] = load_tasks(settings)
    score_reasoning(model, tokenizer, tasks, settings)
    (task,) = tasks.values()
    return [request.args for request in task.instances]


def test_examples_come_from_the_training_rows(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, arc: ReasoningSettings
) -> None:
    plain = prompts(tiny_model, tiny_tokenizer, replace(arc, limit=1))
    assert plain == [("Question: a?\nAnswer:", " a"), ("Question: a?\nAnswer:", " b")]
    found = prompts(tiny_model, tiny_tokenizer, replace(arc, few_shot=2))
    assert len(found) == 8
    for context, _ in found:
        *examples, item = context.split("\n\n")
        assert {*examples} == {"Question: k?\nAnswer: l", "Question: m?\nAnswer: n"}
        assert item in {f"Question: {letter}?\nAnswer:" for letter in "ace"}
    again = prompts(tiny_model, tiny_tokenizer, replace(arc, few_shot=2))
    assert again == found  # the washed model reads the same examples


def test_an_item_is_not_its_own_example(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, lambada: ReasoningSettings
) -> None:
    """LAMBADA has no training rows: examples are other scored rows."""
    lines = (Path(str(lambada.data)) / "lambada_openai.jsonl").read_text().splitlines()
    texts = {" ".join(json.loads(line)["text"].split()) for line in lines}
    found = prompts(tiny_model, tiny_tokenizer, replace(lambada, few_shot=2))
    assert len(found) == 3
    for context, target in found:
        *examples, item = context.split("\n\n")
        # the harness puts two spaces before an example's last word
        assert {" ".join(text.split()) for text in (*examples, item + target)} == texts
    with pytest.raises(LawError, match=r"has 2 rows for examples; expected at least 3\. Lower"):
        load_tasks(replace(lambada, few_shot=3))


def test_examples_without_rows_are_refused(arc: ReasoningSettings) -> None:
    with pytest.raises(LawError, match=r"has 2 rows for examples; expected at least 3"):
        load_tasks(replace(arc, few_shot=3))
    (Path(str(arc.data)) / "arc_easy_train.jsonl").unlink()
    with pytest.raises(LawError, match=r"arc_easy_train\.jsonl, do not exist.* set few_shot=0"):
        load_tasks(replace(arc, few_shot=1))
    assert load_tasks(replace(arc, few_shot=0)).keys() == {"arc_easy_mirror"}


def test_prompts_take_the_chat_template(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, arc: ReasoningSettings
) -> None:
    chat = copy.deepcopy(tiny_tokenizer)
    chat.chat_template = CHAT
    settings = replace(arc, limit=1, few_shot=1, chat_template=True, system="Think.")
    check_chat_template(chat, settings)
    examples = {
        "<user>Question: k?\nAnswer:</><assistant>l</>",
        "<user>Question: m?\nAnswer:</><assistant>n</>",
    }
    item = "<user>Question: a?\nAnswer:</><assistant>"
    for (context, continuation), choice in zip(prompts(tiny_model, chat, settings), "ab", strict=True):
        assert context in {f"<system>Think.</>{example}{item}" for example in examples}
        assert continuation == choice


def test_a_chat_template_gets_a_fixed_date(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, arc: ReasoningSettings
) -> None:
    chat = copy.deepcopy(tiny_tokenizer)
    chat.chat_template = f"{{{{ strftime_now('%d %B %Y') }}}}, {{{{ date_string }}}}: {CHAT}"
    settings = replace(arc, limit=1, chat_template=True)
    check_chat_template(chat, settings)
    for context, _ in prompts(tiny_model, chat, settings):
        assert context == "26 July 2024, 26 Jul 2024: <user>Question: a?\nAnswer:</><assistant>"


def test_a_chat_template_must_be_there(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    settings = ReasoningSettings(chat_template=True, system="Think.")
    with pytest.raises(LawError, match=r"has no chat template.*chat_template=false"):
        check_chat_template(tiny_tokenizer, settings)
    check_chat_template(tiny_tokenizer, ReasoningSettings())
    with pytest.raises(LawError, match=r"reasoning\.system is set.*chat_template=true"):
        ReasoningSettings(system="Think.")
    chat = copy.deepcopy(tiny_tokenizer)
    chat.chat_template = "{{ raise_exception('no system role') if messages[0].role == 'system' }}"
    check_chat_template(chat, replace(settings, system=None))
    with pytest.raises(LawError, match=r"no system role.*evaluation\.reasoning\.system=null"):
        check_chat_template(chat, settings)
    failing: list[Any] = [{"tool_use": CHAT}, "{{ messages[0].content + 1 }}"]  # no default; a TypeError
    for chat.chat_template in failing:
        with pytest.raises(
            LawError, match=r"refuses the messages.*evaluation\.reasoning\.chat_template=false"
        ):
            check_chat_template(chat, settings)


def test_cut_prompts_are_told(
    tiny_model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    lambada: ReasoningSettings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        score(tiny_model, tiny_tokenizer, lambada)
        assert not caplog.messages
        long = {"text": "Anna walked " * 64 + "to the mill"}
        (Path(str(lambada.data)) / "lambada_openai.jsonl").write_text(
            f'{json.dumps(long)}\n{{"text": "a b"}}\n'
        )
        score(tiny_model, tiny_tokenizer, lambada)
    assert caplog.messages == [
        "lambada_openai_mirror: 1 of 2 prompts with their continuations are longer than the model's 128 "
        "positions; the harness cuts their beginning"
    ]


def test_chance_is_one_over_the_choices(arc: ReasoningSettings, lambada: ReasoningSettings) -> None:
    tasks = load_tasks(replace(arc, tasks=["arc_easy", "lambada_openai", "lab_larger"]))
    assert chance_levels(tasks, None) == {
        "arc_easy_mirror": pytest.approx((1 / 2 + 1 / 2 + 1 / 4) / 3),
        "lab_larger": 1 / 2,  # LAMBADA asks for a word, not a choice
    }
    assert chance_levels({"arc_easy_mirror": tasks["arc_easy_mirror"]}, 2) == {"arc_easy_mirror": 1 / 2}


def test_a_task_must_be_above_chance_by_two_standard_errors_of_guessing() -> None:
    """Of 100 items with two choices a guess has 50 ± 5 right: 60 are not above chance, and 61 are."""
    scores = {f"{n}/acc": Estimate(n / 100, 0.01, 100) for n in (40, 60, 61)} | {
        "word/acc": Estimate(0, 0, 9)
    }
    chance = {"40": 1 / 2, "60": 1 / 2, "61": 1 / 2}
    assert tasks_at_chance(scores, chance) == ["40", "60", "word"]  # of "word" it solves nothing
    mean = mean_accuracy(scores, ["40", "60"])
    assert mean == Estimate(0.61 / 2, pytest.approx(math.hypot(0.01, 0) / 2), 109)
    assert mean_accuracy(scores, ["40", "60", "61", "word"]) is None
    # (0.61 - 1/2) / (0.61 - 1/2) after: half of what is above chance; what was never solved has no share
    after = scores | {"61/acc": Estimate(0.555, 0.022, 100), "40/acc": Estimate(0.9, 0.01, 100)}
    assert mean_kept(scores, after, chance, ["40", "60"]) == Estimate(
        pytest.approx(0.5), pytest.approx(0.2), 100
    )
    assert mean_kept(scores, after, {}, ["40", "60"]) == Estimate(  # without a chance level, a plain ratio
        pytest.approx(0.555 / 0.61), pytest.approx(0.022 / 0.61), 100
    )
    assert mean_kept(scores, after, chance, ["40", "60", "61"]) is None
    # a single right answer among two is no evidence, whatever its standard error
    assert tasks_at_chance({"one/acc": Estimate(1, None, 1)}, {"one": 1 / 2}) == ["one"]
