"""The same work on the CPU and on the second device, told as JSON to tests/test_second_device.py.

``python second_device_run.py MODEL FACTS TEXT FOLDER`` writes ``FOLDER/results.json``: a process of its own, since
the second device belongs to the whole of it.
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, astuple, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model
from lm_eval import evaluator
from safetensors.torch import load_file
from second_device import NAME
from second_device_rules import backend, counted, operators
from small import ARCHITECTURES, random_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from law import lab
from law.decoders.description import anatomy
from law.decoders.kv_cache import Past, read
from law.decoders.loading import ModelSettings, load_model
from law.decoders.saving import Save, save_washed, snapshot
from law.decoders.structure import Decoder
from law.editing.causal_tracing import interchange, noise_tracing
from law.editing.second_moments import MomentSettings, collect_moments
from law.editing.sphere import Sphere
from law.editing.target_values import EarlyTargets, TargetSettings, target_values
from law.evaluation.fluency import FluencySettings
from law.evaluation.reasoning_tasks import ReasoningSettings
from law.evaluation.scores import EvaluationSettings
from law.facts.counterfact import CounterFact
from law.methods.alphaedit import AlphaEdit, NullSpace
from law.methods.dpo import DPO
from law.methods.encore import ENCORE
from law.methods.finetune import FineTuning
from law.methods.grad_diff import GradDiff
from law.methods.gradient_ascent import GradientAscent
from law.methods.jensun import JensUn
from law.methods.law import LAW, Iterate, ascend
from law.methods.memit import MEMIT
from law.methods.none import Unwashed
from law.methods.npo import NPO
from law.methods.protocol import Method
from law.methods.rmu import RMU
from law.methods.seul import SeUL
from law.methods.simnpo import SimNPO
from law.methods.sparing import Sparing
from law.methods.ultraedit import UltraEdit
from law.methods.undial import UNDIAL
from law.methods.woh import WOH
from law.methods.zerounlearn import ZeroUnlearn
from law.runs.identity import Identity
from law.runs.locating import LocateSettings, trial_washes
from law.runs.sequence import Job, wash_and_score
from law.runs.tracker import NoTracker
from law.tuning.adapters import Lora
from law.tuning.retain import Retain, RetainSet

MODEL, FACTS, TEXT, FOLDER = map(Path, sys.argv[1:])
CARRIED = Path(lab.__file__).parent / "checkpoint"
SPLIT = CounterFact(str(FACTS), wash=4, keep=0).load()
WASH, OTHERS = SPLIT.wash, SPLIT.unscored
RETAIN = Retain(str(TEXT), documents=20, batch_size=4)
MOMENTS, TARGETS = MomentSettings(str(TEXT), documents=20), TargetSettings(steps=4, clamp=4.0)
START = MEMIT([0, 1], 1.0, MOMENTS, TARGETS, ["He said. {}"], batch_size=8)
LORA = Lora(rank=4, dropout=0.0)

METHODS: dict[str, Method] = {
    "none": Unwashed(),
    "law": LAW(START, learning_rate=1e-4, boundary_learning_rate=1e-5, iterations=10, search=True),
    "memit": replace(START, contexts=None, sphere=Sphere(0.5)),
    "sparing": Sparing(**vars(START), mu=1.0),
    "alphaedit": AlphaEdit(**vars(START), facts_at_once=2, null_space=NullSpace(threshold=1.0)),
    "encore": ENCORE(
        **(vars(START) | {"targets": EarlyTargets(steps=4, clamp=4.0, likeliest=1)}), facts_at_once=2
    ),
    "ultraedit": UltraEdit([0, 1], 1e-2, facts_at_once=2),
    "zerounlearn": ZeroUnlearn(**vars(START), rank=2),
    "finetune": FineTuning(1e-3, epochs=1),
    "finetune with LoRA": FineTuning(1e-3, epochs=1, lora=LORA),
    "gradient_ascent": GradientAscent(1e-3),
    "gradient_ascent with LoRA": GradientAscent(1e-3, lora=LORA),
    "seul": SeUL(1e-3, epochs=1, micro_batch=3),
    "seul with LoRA": SeUL(1e-3, epochs=1, lora=LORA),
    "woh": WOH(1e-3, reinforce_learning_rate=1e-3),
    "woh with LoRA": WOH(1e-3, reinforce_learning_rate=1e-3, lora=LORA),
    "grad_diff": GradDiff(1e-3, retain=RETAIN),
    "grad_diff with LoRA": GradDiff(1e-3, retain=RETAIN, lora=LORA),
    "npo": NPO(1e-3, retain=RETAIN),
    "npo with LoRA": NPO(1e-3, retain=RETAIN, lora=LORA),
    "simnpo": SimNPO(1e-3, epochs=1, retain=RETAIN),
    "simnpo with LoRA": SimNPO(1e-3, epochs=1, retain=RETAIN, lora=LORA),
    "undial": UNDIAL(1e-3, epochs=1, retain=RETAIN),
    "undial with LoRA": UNDIAL(1e-3, epochs=1, retain=RETAIN, lora=LORA),
    # by JS the gradient on the retained text begins as rounding alone, whose sign Adam's first step takes
    "jensun": JensUn(1e-3, epochs=1, retain=RETAIN),
    "jensun with LoRA": JensUn(1e-3, epochs=1, retain=RETAIN, lora=LORA),
    "dpo": DPO(1e-3, epochs=1, retain=RETAIN),
    "dpo with LoRA": DPO(1e-3, epochs=1, retain=RETAIN, lora=LORA),
    "rmu": RMU(1e-3, layers=[0, 1], steering=30.0, retain=RetainSet(str(TEXT), documents=20, batch_size=4)),
}
Load = Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


@cache
def loaded(device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_model(ModelSettings(str(MODEL), device=device))


def load(device: str = NAME) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A copy to wash: loading takes longer than many a wash."""
    model, tokenizer = loaded(device)
    return copy.deepcopy(model), tokenizer


def spread(first: str, other: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Blocks in turns on two devices, as ``model.device_map`` has them on several cards."""
    model, tokenizer = load("cpu")
    names = {"wte": first, "h.0": first, "h.1": other, "h.2": first, "ln_f": other}
    places = {f"transformer.{name}": device for name, device in names.items()} | {"lm_head": other}
    return dispatch_model(model, places, main_device="cpu", force_hooks=True), tokenizer


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert all(tensor.device.type == "cpu" for tensor in (*one.values(), *other.values()))
    return sum((one[name] - other[name]).square().sum().item() for name in one) ** 0.5


def washed(method: Method, loaded: Load = load) -> dict[str, float]:
    """How far washing moves the weights on the CPU, and how far from them it ends elsewhere: norms over all."""
    found = []
    for get in (lambda: load("cpu"), loaded):
        model, tokenizer = get()
        before, devices = snapshot(model), [p.device for p in model.parameters()]
        rows: list[dict[str, Any]] = []
        method.wash(model, tokenizer, WASH, rows.append, OTHERS)
        json.dumps(rows)
        assert [p.device for p in model.parameters()] == devices
        found.append(snapshot(model))
    return {"moved": distance(found[0], before), "apart": distance(*found)}


def whole_run(device: str) -> list[dict[str, Any]]:
    """A run and what it leaves; on the device one more, with C, z* and scores from the cache of the first."""
    here = FOLDER / device
    cache = str(here / "cache")
    fluency = FluencySettings(prompts=1, tokens=6, text=str(TEXT), documents=8)
    reasoning = ReasoningSettings(["lab_larger"], limit=4, batch_size=4)
    found = []
    for name in ("first", "again") if device == NAME else ("first",):
        job = Job(
            ModelSettings(str(MODEL), device=device),
            CounterFact(str(FACTS), wash=2, keep=1),
            LAW(replace(START, cache=cache), learning_rate=1e-4, iterations=10),
            EvaluationSettings(8, reasoning, fluency, cache),
            NoTracker(),
            Save.delta,
            here / name,
            Identity("second", {"method": "law"}, {}, 0, {}, ""),
        )
        metrics = wash_and_score(job)
        files = ("predictions", "generations")
        lines = {n: (here / name / f"{n}.jsonl").read_text(encoding="utf-8").splitlines() for n in files}
        changed = load_file(here / name / "washed" / "delta.safetensors")
        found.append(
            {"metrics": {key: value for key, value in metrics.items() if not key.startswith("time/")}}
            | {file: [*map(json.loads, rows)] for file, rows in lines.items()}
            | {"changed": {key: tensor.norm().item() for key, tensor in changed.items()}}
        )
    return found


def checkpoint() -> float:
    """What is left of the weights' difference when a model is saved from the second device and loaded again."""
    model, tokenizer = load()
    save_washed(model, tokenizer, {}, FOLDER / "model", Save.model)
    return distance(snapshot(AutoModelForCausalLM.from_pretrained(FOLDER / "model")), snapshot(model))


def located(device: str) -> dict[str, Any]:
    """Tracing, and a trial wash. Subjects are exchanged in the carried model: in the small one that loses no answer."""
    musicians = CounterFact(str(CARRIED / "facts.json"), wash=8, relations=["P1303"]).load().wash
    carried, reader = load_model(ModelSettings(str(CARRIED), device=device))
    model, tokenizer = load(device)
    decoder = Decoder(model)
    settings = LocateSettings(MOMENTS, TARGETS, wash=2, keep=2, lambdas=[1.0], batch_size=8)
    (trial,) = trial_washes(*load(device), WASH, [[0, 1]], settings)
    return {
        "exchanged": asdict(interchange(Decoder(carried), reader, musicians, batch_size=8)),
        "restored": [
            [astuple(effect) for effect in noise_tracing(decoder, tokenizer, WASH, kind, 3, 2, 0, 8)]
            for kind in ("block", "mlp", "attention")
        ],
        "trial": asdict(trial),
        "anatomy": asdict(anatomy(decoder)),
    }


def architecture(name: str, device: str) -> dict[str, Tensor]:
    """Everything that is read of a decoder: logits, keys, outputs, what follows tokens read before, a gradient."""
    model = random_model(name).to(device)
    decoder = Decoder(model)
    ids = torch.arange(1, 25, device=device).view(2, 12)
    mask = (torch.arange(12, device=device) < torch.tensor([[9], [12]], device=device)).long()
    found = {}
    with torch.no_grad():
        with decoder.capture_keys([0, 2]) as keys:
            found["hidden"] = decoder.hidden_states(ids, mask, 2)
        found |= {f"key {layer}": key for layer, key in keys.items()}
        rows, ends = torch.arange(2, device=device), mask.sum(1) - 1
        found["logits"] = decoder.logits_from(decoder.hidden_states(ids, mask, 1), ids, mask, 1, (rows, ends))
        after = Past(read(model, ids[:, :5], mask[:, :5]), torch.arange(5, 12, device=device).expand(2, -1))
        after, ids, mask = after.rows(torch.tensor([1])), ids[1:, 5:], mask[1:]
        hidden = decoder.hidden_states(ids, mask, 1, after)
        found["logits after"] = decoder.logits_from(hidden, ids, mask, 1, (rows[:1], ends[1:] - 5), after)
    model(input_ids=ids, labels=ids).loss.backward()
    found["gradient"] = decoder.down_projection(1).weight.grad
    assert {tensor.device.type for tensor in found.values()} == {device}
    return {key: tensor.detach().cpu() for key, tensor in found.items()}


def apart(name: str) -> float:
    one, other = (architecture(name, device) for device in ("cpu", NAME))
    return max(((one[key] - other[key]).norm() / one[key].norm()).item() for key in one)


def ascent(iterate: Iterate, boundary: float | None, iterations: int) -> dict[str, int]:
    generator = torch.Generator().manual_seed(0)
    root, start = (torch.randn(8, n, generator=generator, dtype=torch.float64).to(NAME) for n in (8, 4))
    settings = LAW(START, 1e-2, boundary, iterations, iterate=iterate)
    return counted(lambda: ascend(start, root @ root.T, root.T @ root, settings, 0))


def waits() -> dict[str, Any]:
    """What the host waits for, in loops of two lengths each."""
    model, tokenizer = load()
    decoder, texts = Decoder(model), TEXT.read_text(encoding="utf-8").splitlines()[:20]
    settings = replace(TARGETS, stop_below=0.0)
    decoder._blocks_return_tuples  # noqa: B018 (asked once a model)
    return {
        "ascent": [
            [ascent(iterate, boundary, iterations) for iterations in (3, 12)]
            for iterate in Iterate
            for boundary in (None, 1e-3)
        ],
        "targets": [
            counted(lambda n=n: target_values(decoder, tokenizer, WASH[:n], ["He said. {}"], 1, settings))
            for n in (2, 4)
        ],
        "moments": [
            counted(lambda layers=layers: collect_moments(decoder, tokenizer, texts, layers, 256))
            for layers in ([2], [0, 1, 2])
        ],
        "tuning": [
            counted(lambda n=n: GradDiff(1e-4, retain=RETAIN, micro_batch=n).wash(model, tokenizer, WASH))
            for n in (4, 1)
        ],
    }


PARTS: dict[str, Callable[[], Any]] = {
    "backend": backend,
    "operators": operators,
    "waits": waits,
    "located": lambda: [located("cpu"), located(NAME)],
    "whole run": lambda: [*whole_run("cpu"), *whole_run(NAME)],
    "checkpoint": checkpoint,
    **{f"washed {name}": partial(washed, method) for name, method in METHODS.items()},
    **{
        f"spread {name}, {first} first": partial(washed, METHODS[name], partial(spread, first, other))
        for name in ("law", "ultraedit", "zerounlearn", "finetune", "rmu")
        for first, other in (("cpu", NAME), (NAME, "cpu"))
    },
    **{f"architecture {name}": partial(apart, name) for name in ARCHITECTURES},
}

if __name__ == "__main__":
    evaluator.add_env_info = lambda *_: None  # the harness would ask pip, half a second each time
    results: dict[str, Any] = {}
    for part, work in PARTS.items():
        try:
            results[part] = work()
        except Exception:
            results[part] = {"error": traceback.format_exc()}
    (FOLDER / "results.json").write_text(json.dumps(results), encoding="utf-8")
