from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import law
from law.base.errors import LawError
from law.evaluation.estimates import Estimate
from law.evaluation.reasoning import (
    ReasoningSettings,
    RowSource,
    load_tasks,
    mean_accuracy,
    score_reasoning,
    tasks_key,
)

ROWS = Path(law.__file__).parent / "evaluation" / "tasks" / "lab"
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
        for line in (ROWS / f"{task.removeprefix('lab_')}.jsonl").read_text().splitlines()[:10]:
            row = json.loads(line)
            likelihoods = {
                choice: log_likelihood(tiny_model, tiny_tokenizer, row["prompt"], f" {choice}")
                for choice in row["choices"]
            }
            right += max(likelihoods, key=likelihoods.__getitem__) == row["answer"]
        # The standard error of a mean of ten zeros and ones.
        p = right / 10
        assert scores[f"{task}/acc"].value == pytest.approx(p)
        assert scores[f"{task}/acc"].stderr == pytest.approx((p * (1 - p) / 9) ** 0.5)
        assert scores[f"{task}/acc"].n == 10
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
    monkeypatch.setattr("law.evaluation.reasoning.hub_reachable", lambda: reachable)
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


def test_other_rows_are_other_scores(lambada: ReasoningSettings) -> None:
    tasks = load_tasks(lambada)
    before = tasks_key(tasks, lambada)
    assert before["tasks"] == ["lambada_openai_mirror"]
    (Path(str(lambada.data)) / "lambada_openai.jsonl").write_text('{"text": "Anna walked"}\n')
    assert tasks_key(tasks, lambada) != before


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
