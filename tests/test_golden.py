"""Stage by stage against the authors' own implementation, whose recorded arrays this project did not choose.

Every folder under ``LAW_GOLDEN`` (default ``../shared/golden``) is compared.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from law.architectures import Decoder
from law.datasets.counterfact import read_counterfact
from law.keys import subject_keys, subject_outputs
from law.methods.law import LAW, ascend
from law.methods.memit import MEMIT, Problem, System
from law.moments import MomentSettings, collect_moments
from law.recall import greedy_answers, recalls
from law.targets import TargetSettings, target_values

ROOT = Path(os.environ.get("LAW_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
FOLDERS = sorted(path.parent for path in ROOT.glob("*/golden.npz"))

pytestmark = pytest.mark.skipif(not FOLDERS, reason=f"no golden folder under {ROOT} (set LAW_GOLDEN)")


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def golden(request: pytest.FixtureRequest) -> SimpleNamespace:
    folder = request.param
    arrays = np.load(folder / "golden.npz")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    facts = read_counterfact(folder / "facts.json")
    by_id = {fact.id: fact for fact in facts}
    layers = json.loads((folder / "hparams.json").read_text())["law_skip"]["layers"]
    return SimpleNamespace(
        folder=folder,
        arrays=arrays,
        model=model,
        tokenizer=tokenizer,
        decoder=Decoder(model),
        facts=facts,
        known=[by_id[str(case_id)] for case_id in arrays["known_case_ids"]],
        contexts=json.loads((folder / "templates.json").read_text())[1],
        stages=json.loads((folder / "stages.json").read_text()),
        layers=layers,
        moments={layer: torch.tensor(arrays[f"cov_L{layer}"]) for layer in layers},
    )


def error(found: torch.Tensor, recorded: np.ndarray) -> float:
    """Relative Frobenius error in float64."""
    recorded = recorded.astype(np.float64)
    return float(np.linalg.norm(found.double().numpy() - recorded) / np.linalg.norm(recorded))


def test_answers_and_known_facts(golden: SimpleNamespace) -> None:
    recorded = json.loads((golden.folder / "predictions.json").read_text())["get_predictions"]["before"]
    answers = greedy_answers(golden.model, golden.tokenizer, [f.prompt for f in golden.facts], batch_size=64)
    assert {fact.id: answer for fact, answer in zip(golden.facts, answers, strict=True)} == recorded
    known = {f.id for f, answer in zip(golden.facts, answers, strict=True) if recalls(answer, f.object)}
    assert known == {fact.id for fact in golden.known}


def test_keys_and_outputs(golden: SimpleNamespace) -> None:
    first, last = golden.layers[0], golden.layers[-1]
    keys = subject_keys(golden.decoder, golden.tokenizer, golden.known, golden.contexts, [first], 64)
    assert error(keys[first], golden.arrays[f"K_clean_L{first}"]) < 1e-5
    outputs = subject_outputs(golden.decoder, golden.tokenizer, golden.known, last, 64)
    assert error(outputs, golden.arrays["cur_zs_clean"]) < 1e-5


def test_second_moments(golden: SimpleNamespace) -> None:
    texts = [line for line in (golden.folder / "corpus.txt").read_text().split("\n") if line]
    moments, _ = collect_moments(golden.decoder, golden.tokenizer, texts, golden.layers, batch_size=32)
    for layer in golden.layers:
        assert error(moments[layer], golden.arrays[f"cov_L{layer}"]) < 1e-5


def test_target_values_and_their_trace(golden: SimpleNamespace) -> None:
    facts = golden.known[:24]
    targets, trace = target_values(
        golden.decoder, golden.tokenizer, facts, golden.contexts, golden.layers[-1], TargetSettings()
    )
    assert error(targets, golden.arrays["zs"][:, : len(facts)]) < 1e-3
    recorded = golden.arrays["z_trace"][: len(facts)]  # (n, steps, 5), printed with three decimals
    for part, values in enumerate((trace.loss, trace.nll, trace.kl, trace.decay)):
        np.testing.assert_allclose(values.T.numpy(), recorded[:, :, part], atol=1e-3)


@pytest.mark.parametrize("search", [True, False], ids=["search", "skip"])
def test_initial_updates_and_lambdas(golden: SimpleNamespace, search: bool) -> None:
    settings = LAW(
        MEMIT(golden.layers, lam=1000.0, moments=MomentSettings(text="")),
        learning_rate=1e-4,
        search=search,
    )
    targets = torch.tensor(golden.arrays["zs"])
    problem = Problem(
        golden.decoder, golden.tokenizer, golden.known, golden.contexts, golden.moments, targets
    )
    before = {layer: golden.decoder.weight(layer).clone() for layer in golden.layers}
    lambdas: list[float] = []
    starts = settings._initialise(problem, lambda values: lambdas.append(values["lambda"]))
    name = "search" if search else "skip"
    assert lambdas == pytest.approx(golden.arrays[f"{name}.lambda"].tolist())
    for layer in golden.layers:
        assert error(starts[layer], golden.arrays[f"{name}.delta_init_L{layer}"]) < 1e-3
        assert torch.equal(golden.decoder.weight(layer), before[layer])


def test_update_from_recorded_stages(golden: SimpleNamespace) -> None:
    """With K, C, z* and h_L as recorded, the solution itself is compared."""
    first = golden.layers[0]
    residual = (golden.arrays["zs"] - golden.arrays["cur_zs_clean"]) / len(golden.layers)
    system = System(
        golden.moments[first].double(),
        torch.tensor(golden.arrays[f"K_clean_L{first}"]).double(),
        torch.tensor(residual).double(),
    )
    assert error(system.solve(1000.0), golden.arrays[f"skip.delta_init_L{first}"]) < 1e-4


def test_ascent_keeps_the_best_feasible_iterate(golden: SimpleNamespace) -> None:
    """The objective along the ascent is the authors'; what is returned stays within the constraint."""
    first = golden.layers[0]
    settings = LAW(
        MEMIT(golden.layers, lam=1000.0, moments=MomentSettings(text="")), learning_rate=1e-4, iterations=200
    )
    ascent = ascend(
        torch.tensor(golden.arrays[f"skip.delta_init_L{first}"]).double(),
        golden.moments[first].double(),
        torch.tensor(golden.arrays[f"K_clean_L{first}"]).double(),
        settings,
        lambda _: None,
        first,
    )
    recorded = golden.stages["variants"]["law_skip"][f"L{first}"]
    trace = golden.arrays[f"law_skip.loss_trace_L{first}"]
    assert ascent.objective_before == pytest.approx(recorded["objective_before"], rel=1e-6)
    assert ascent.constraint_before == pytest.approx(recorded["constraint_before"], rel=1e-6)
    assert ascent.beta == pytest.approx(recorded["beta"], rel=1e-6)
    # the trace holds unprojected and projected starts of iterations alike; ours is its best feasible one
    assert ascent.objective == pytest.approx(trace.max(), rel=1e-6)
    assert ascent.constraint <= ascent.beta * (1 + 1e-12)
