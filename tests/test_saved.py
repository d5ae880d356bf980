"""A washed model that a run kept is an ordinary checkpoint: the same logits, the same scores, no code of ours."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from small import ARCHITECTURES, TEXTS, gpt2_style, llama2_style, random_model
from test_architectures import METHODS
from test_mixtures import MIXTURES, mixture
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from law.base.errors import LawError
from law.decoders.greedy_decoding import greedy_answers, recalls
from law.decoders.prompts import pad_right
from law.decoders.saving import Save, check_checkpoint, check_delta, save_washed, snapshot, tensors_of
from law.editing.second_moments import MomentSettings
from law.evaluation.estimates import Estimate
from law.evaluation.reasoning import score_reasoning
from law.evaluation.reasoning_tasks import LOCAL_TASKS, ReasoningSettings, load_tasks
from law.facts.fact import Fact
from law.methods.law import LAW
from law.methods.memit import MEMIT

TASK = "lab_larger"
FACTS = [
    Fact("0", "Danielle Darrieux", "The mother tongue of {} is", "French", "P103"),
    Fact("1", "Zoë Çelik-Ångström", "The mother tongue of {} is", "Swedish", "P103"),
    Fact("2", "Anna", "The home of {} is in", "Berlin", "P551"),
]
KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {"gpt2": gpt2_style, "llama": llama2_style}


def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """A few seconds on the facts and on half of the task's rows, so that there is something to lose."""
    lines = (LOCAL_TASKS / "lab" / "larger.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [f"{row['prompt']} {row['answer']}" for row in map(json.loads, lines[::2])]
    rows = tokenizer(texts + [f"{f.prompt} {f.object}." for f in FACTS] * 10)["input_ids"]
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(10):
        for batch in torch.randperm(len(rows)).split(16):
            ids, mask = pad_right([rows[i] for i in batch], tokenizer.pad_token_id, model.device)
            loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@dataclass(frozen=True)
class Washed:
    """A washed model in memory, what it scores there, and the folder it was saved to."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    scores: dict[str, Estimate]
    folder: Path


@pytest.fixture(scope="module", params=KINDS)
def washed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Washed:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "general.txt").write_text("\n".join(dict.fromkeys(TEXTS)), encoding="utf-8")
    tokenizer = KINDS[request.param]()
    model = random_model(request.param, len(tokenizer))
    model.config.bos_token_id, model.config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    train(model, tokenizer)
    answers = greedy_answers(model, tokenizer, [fact.prompt for fact in FACTS], batch_size=8)
    known = [fact for fact, answer in zip(FACTS, answers, strict=True) if recalls(answer, fact.object)]
    assert known, f"the fixture's model knows no fact: {answers}"
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    start = MEMIT([0, 1], 1.0, MomentSettings(str(folder / "general.txt")), contexts=["He said. {}"])
    LAW(start, learning_rate=1e-3, iterations=20).wash(model, tokenizer, known)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())
    save_washed(model, tokenizer, before, folder / "washed", Save.model)
    settings = ReasoningSettings(tasks=[TASK], batch_size=32)
    scores = score_reasoning(model, tokenizer, load_tasks(settings), settings)
    return Washed(model, tokenizer, scores, folder / "washed")


@torch.no_grad()
def test_plain_transformers_loads_the_same_model(washed: Washed) -> None:
    model = AutoModelForCausalLM.from_pretrained(washed.folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(washed.folder)
    for text in [*TEXTS[:6], "The home of 毛泽东 is"]:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert ids.tolist() == [washed.tokenizer(text)["input_ids"]]
        assert torch.equal(model(ids).logits, washed.model(ids).logits)


@pytest.mark.slow  # starting the harness and indexing its tasks takes most of it
def test_the_harness_command_line_scores_the_same(washed: Washed, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf"),
        *("--model_args", f"pretrained={washed.folder},dtype=float32", "--tasks", TASK),
        *("--include_path", str(LOCAL_TASKS), "--device", "cpu", "--batch_size", "32"),
        *("--output_path", str(tmp_path / "scores")),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    (results,) = (tmp_path / "scores").rglob("results_*.json")
    found = json.loads(results.read_text(encoding="utf-8"))["results"][TASK]
    in_the_run = washed.scores[f"{TASK}/acc"]
    assert found["acc,none"] == in_the_run.value
    assert found["acc_stderr,none"] == pytest.approx(in_the_run.stderr)
    assert 0.5 < found["acc,none"] < 1  # better than a guess, and not a score that any model would get


# --- what was saved is what was scored ------------------------------------------------------------


def plain(folder: Path, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The saved checkpoint's weights, as transformers alone loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype).state_dict()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_saved_as_it_washed(method: str, tmp_path: Path) -> None:
    """GPT-2's head is tied to its embeddings: washing the weights of one changes both, saved or not."""
    (tmp_path / "general.txt").write_text("\n".join(dict.fromkeys(TEXTS)), encoding="utf-8")
    tokenizer = gpt2_style()
    model = random_model("gpt2", len(tokenizer))
    unwashed, before = snapshot(model), copy.deepcopy(model)
    METHODS[method][0](tmp_path / "general.txt").wash(model, tokenizer, FACTS)
    for what in (Save.delta, Save.model):
        save_washed(model, tokenizer, unwashed, tmp_path / what.value, what)
    before.load_state_dict(load_file(tmp_path / "delta" / "delta.safetensors"), strict=False)
    saved = plain(tmp_path / "model", model)
    assert any(not torch.equal(tensor, unwashed[name]) for name, tensor in tensors_of(model).items())
    for name, tensor in model.state_dict().items():
        assert torch.equal(before.state_dict()[name], tensor)
        assert torch.equal(saved[name], tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*ARCHITECTURES, *MIXTURES])
def test_every_architecture_is_saved_as_it_is(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Mixtures, too, which transformers stores expert by expert: fine-tuning may wash them."""
    (mixture(name) if name in MIXTURES else random_model(name)).save_pretrained(tmp_path / "start")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "start", dtype=dtype)
    save_washed(model, gpt2_style(), {}, tmp_path / "washed", Save.model)
    saved = plain(tmp_path / "washed", model)
    assert all(torch.equal(saved[key], tensor) for key, tensor in model.state_dict().items())


def altered(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def one_off(folder: Path) -> None:
    altered(folder, lambda tensors: tensors["transformer.h.1.mlp.c_proj.bias"][3:4].add_(1e-6))


def one_less(folder: Path) -> None:
    altered(folder, lambda tensors: tensors.pop("transformer.h.2.ln_1.weight"))


def one_more(folder: Path) -> None:
    altered(folder, lambda tensors: tensors.update(another=torch.ones(1)))


def other_type(folder: Path) -> None:
    name = "transformer.wpe.weight"
    altered(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.bfloat16)}))


def setting(key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {key: value}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (one_off, r"transformer\.h\.1\.mlp\.c_proj\.bias is .* with other values"),
        (one_less, r"missing_keys: \['transformer\.h\.2\.ln_1\.weight'\]"),
        (one_more, r"unexpected_keys: \['another'\]"),
        (other_type, r"transformer\.wpe\.weight is torch\.bfloat16 .* there and torch\.float32"),
        (setting("tie_word_embeddings", False), r"missing_keys: \['lm_head\.weight'\]"),
        (setting("layer_norm_epsilon", 0.1), r"layer_norm_epsilon in config\.json is 0\.1, not 1e-05"),
        (setting("n_layer", 2), r"unexpected_keys: \['transformer\.h\.2\."),
    ],
)
def test_a_checkpoint_that_is_not_the_model_in_memory_is_refused(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    model = random_model("gpt2")
    save_washed(model, gpt2_style(), {}, tmp_path, Save.model)
    check_checkpoint(model, tmp_path)
    damage(tmp_path)
    with pytest.raises(LawError, match=f"is not the washed model that was scored: .*{message}"):
        check_checkpoint(model, tmp_path)


def test_a_checkpoint_in_several_files_is_compared_with_all_of_them(tmp_path: Path) -> None:
    model = random_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2
    check_checkpoint(model, tmp_path)
    tensors = load_file(files[-1])
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 1}, files[-1], {"format": "pt"})
    with pytest.raises(LawError, match=f"{name} is torch.float32"):
        check_checkpoint(model, tmp_path)


def test_a_delta_that_does_not_give_the_washed_model_is_refused(tmp_path: Path) -> None:
    model = random_model("gpt2")
    unwashed = snapshot(model)
    weight = model.transformer.h[0].mlp.c_proj.weight
    weight.data[0, 0] += 1
    save_washed(model, gpt2_style(), unwashed, tmp_path, Save.delta)
    delta = load_file(tmp_path / "delta.safetensors")
    name = "transformer.h.0.mlp.c_proj.weight"
    assert delta.keys() == {name}
    for wrong in ({name: delta[name] + 1}, {"transformer.h.0.mlp.c_fc.bias": torch.zeros(48)}):
        save_file(wrong, tmp_path / "delta.safetensors")
        with pytest.raises(LawError, match=r"is not the washed model .*: transformer\.h\.0\.mlp"):
            check_delta(model, unwashed, tmp_path / "delta.safetensors")


def test_an_adapter_written_in_place_of_the_weights_is_refused(tmp_path: Path) -> None:
    """What ``save_pretrained`` does with a model that transformers has attached an adapter to."""
    model = random_model("llama")
    model.add_adapter(LoraConfig(r=2, target_modules=["down_proj"]))
    with pytest.raises((LawError, OSError)):
        save_washed(model, gpt2_style(), {}, tmp_path / "washed", Save.model)
    assert [*tmp_path.iterdir()] == []
