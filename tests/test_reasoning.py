from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import law
from law.errors import LawError
from law.evaluation.reasoning import ReasoningSettings, load_tasks, score_reasoning

ROWS = Path(law.__file__).parent / "evaluation" / "tasks" / "lab"
LAB = ["lab_rank", "lab_code", "lab_row", "lab_larger"]


@torch.no_grad()
def log_likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, context: str, continuation: str
) -> float:
    ids, given = tokenizer(context + continuation)["input_ids"], len(tokenizer(context)["input_ids"])
    log_probabilities = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_probabilities[i - 1, ids[i]].item() for i in range(given, len(ids)))


def test_the_labs_tasks_are_scored(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = ReasoningSettings(tasks=LAB, limit=10, batch_size=4)
    scores = score_reasoning(tiny_model, tiny_tokenizer, settings)
    assert scores.keys() == {f"{task}/{key}" for task in LAB for key in ("acc", "acc_stderr")}
    for task in LAB:
        right = 0
        for line in (ROWS / f"{task.removeprefix('lab_')}.jsonl").read_text().splitlines()[:10]:
            row = json.loads(line)
            likelihoods = {
                choice: log_likelihood(tiny_model, tiny_tokenizer, row["prompt"], f" {choice}")
                for choice in row["choices"]
            }
            right += max(likelihoods, key=likelihoods.__getitem__) == row["answer"]
        assert 0 <= scores[f"{task}/acc"] <= 1
        assert scores[f"{task}/acc"] == pytest.approx(right / 10)
        # The standard error of a mean of ten zeros and ones.
        p = right / 10
        assert scores[f"{task}/acc_stderr"] == pytest.approx((p * (1 - p) / 9) ** 0.5)
    assert len({scores[f"{task}/acc"] for task in LAB}) > 1


def test_a_single_item_has_no_standard_error(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = ReasoningSettings(tasks=["lab_larger"], limit=1)
    assert score_reasoning(tiny_model, tiny_tokenizer, settings)["lab_larger/acc"] in (0.0, 1.0)


def test_no_task_no_score(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert score_reasoning(tiny_model, tiny_tokenizer, ReasoningSettings()) == {}


def test_an_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(LawError) as failure:
        load_tasks(ReasoningSettings(tasks=["lab_row", "lab_rnak"]))
    message = str(failure.value)
    assert "Unknown reasoning task 'lab_rnak'. Did you mean 'lab_rank'?" in message
    assert all(task in message for task in [*LAB, "lambada_openai_mirror"])
    assert "evaluation.reasoning.tasks" in message


def test_a_mirror_needs_a_folder(tmp_path: Path) -> None:
    tasks = ["lambada_openai_mirror"]
    with pytest.raises(LawError, match=r"lambada_openai\.jsonl\..* evaluation\.reasoning\.data"):
        load_tasks(ReasoningSettings(tasks))
    with pytest.raises(LawError, match=rf"{tmp_path}/lambada_openai\.jsonl does not exist"):
        load_tasks(ReasoningSettings(tasks, data=str(tmp_path)))


@pytest.fixture
def mirror(tmp_path: Path) -> ReasoningSettings:
    texts = ["Anna walked to the", 'the bread, she said, "is Ben\'s"', "Zoë's  lamp"]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "lambada_openai.jsonl").write_text(rows)
    return ReasoningSettings(["lambada_openai_mirror"], data=str(tmp_path), bootstrap_iters=10)


REQUESTS = [
    ("Anna walked to", " the"),
    ('the bread, she said, "is', " Ben's\""),
    ("Zoë's ", " lamp"),
]


def test_lambada_asks_for_the_last_word(mirror: ReasoningSettings) -> None:
    manager, names = load_tasks(mirror)
    assert names == ["lambada_openai_mirror"]
    task = manager.load(names)["tasks"]["lambada_openai_mirror"]
    task.build_all_requests()
    assert [instance.args for instance in task.instances] == REQUESTS
    assert {instance.request_type for instance in task.instances} == {"loglikelihood"}


def test_lambada_is_scored(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, mirror: ReasoningSettings
) -> None:
    assert score_reasoning(tiny_model, tiny_tokenizer, mirror)["lambada_openai_mirror/acc"] == 0
    # A model that says " the" after anything.
    (the,) = tiny_tokenizer(" the")["input_ids"]
    with torch.no_grad():
        tiny_model.lm_head.bias[the] += 20
    scores = score_reasoning(tiny_model, tiny_tokenizer, mirror)
    assert scores["lambada_openai_mirror/acc"] == pytest.approx(1 / 3)
