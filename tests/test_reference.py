"""The textbook in ``tests/reference`` against recordings of the authors' code, and by hand.

It is the oracle of other tests, so it is held to the arrays in ``shared/golden/gpt2``, defects included.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reference.golden import parts_of, read_facts, read_lines
from reference.model import GPT2, GPTJ, LLAMA, Parts, block_states, key_states, subject_position, weight
from reference.stages import (
    greedy_answer,
    is_known,
    keys_of_facts,
    outputs_of_facts,
    second_moment,
    target_value,
)
from reference.updates import ascend, constraint, objective, search, solve
from reference.washing import Layer, Problem, initial_updates, law, undo, weights
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

RECORDED = Path(__file__).parents[2] / "shared" / "golden" / "gpt2"
CARRIED = Path(__file__).parent / "golden" / "gptj"
recorded_only = pytest.mark.skipif(
    not (RECORDED / "golden.npz").exists(), reason=f"no recording of the authors' code in {RECORDED}"
)


def load(path: Path) -> SimpleNamespace:
    hparams = json.loads((path / "hparams.json").read_text())
    arrays = np.load(path / "golden.npz")
    model = AutoModelForCausalLM.from_pretrained(path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(path / "model")
    layers, parts = hparams["memit"]["layers"], parts_of(hparams["memit"])
    facts = read_facts(path)
    by_id = {fact.id: fact for fact in facts}
    problem = Problem(
        model,
        tokenizer,
        parts,
        layers,
        [by_id[i] for i in arrays["known_case_ids"].tolist()],
        json.loads((path / "templates.json").read_text())[1],
        {layer: torch.tensor(arrays[f"cov_L{layer}"]) for layer in layers},
        torch.tensor(arrays["zs"]),
    )
    stages = json.loads((path / "stages.json").read_text())
    return SimpleNamespace(
        path=path, hparams=hparams, arrays=arrays, facts=facts, problem=problem, stages=stages
    )


@pytest.fixture(scope="module")
def authors() -> SimpleNamespace:
    return load(RECORDED)


def error(found: Tensor, recorded: np.ndarray) -> float:
    """Relative Frobenius error."""
    wanted = recorded.astype(np.float64)
    return float(np.linalg.norm(found.double().numpy() - wanted) / np.linalg.norm(wanted))


# --- against the authors' code -------------------------------------------------------------------


@recorded_only
def test_answers(authors: SimpleNamespace) -> None:
    p = authors.problem
    recorded = json.loads((authors.path / "predictions.json").read_text())["get_predictions"]["before"]
    answers = {str(fact.id): greedy_answer(p.model, p.tokenizer, fact.prompt) for fact in authors.facts}
    assert answers == recorded
    known = [fact for fact in authors.facts if is_known(answers[str(fact.id)], fact.object)]
    assert known == p.facts


@recorded_only
def test_keys_outputs_and_second_moments(authors: SimpleNamespace) -> None:
    p, arrays = authors.problem, authors.arrays
    keys = keys_of_facts(p.model, p.tokenizer, p.parts, 1, p.facts, p.contexts)
    assert error(keys, arrays["K_clean_L1"]) < 1e-6
    outputs = outputs_of_facts(p.model, p.tokenizer, p.parts, 3, p.facts)
    assert error(outputs, arrays["cur_zs_clean"]) < 1e-6
    texts = read_lines(authors.path / "corpus.txt")
    assert error(second_moment(p.model, p.tokenizer, p.parts, 2, texts), arrays["cov_L2"]) < 1e-6


@recorded_only
def test_target_values(authors: SimpleNamespace) -> None:
    p, arrays = authors.problem, authors.arrays
    for i in (0, 17, 80, 113):
        z, trace = target_value(p.model, p.tokenizer, p.parts, 3, p.facts[i], p.contexts)
        assert error(z, arrays["zs"][:, i]) < 1e-5
        # loss and its parts were printed with three decimals; the probability was not
        np.testing.assert_allclose(trace[:, :4], arrays["z_trace"][i, :, :4], atol=6e-4)
        np.testing.assert_allclose(trace[:, 4], arrays["z_trace"][i, :, 4], atol=1e-5)


@recorded_only
@pytest.mark.parametrize("name", ["search", "skip"])
def test_updates_from_recorded_stages(authors: SimpleNamespace, name: str) -> None:
    """Given K, C, z* and h_L: λ, the search's trail and the updates."""
    p, arrays = authors.problem, authors.arrays
    stages = authors.stages[name]
    for i, layer in enumerate(p.layers):
        keys = arrays["K_clean_L1" if i == 0 else f"{name}.K_init_L{layer}"]
        outputs = arrays["cur_zs_clean" if i == 0 else f"{name}.cur_zs_L{layer}"]
        residual = (p.targets - torch.tensor(outputs)) / (len(p.layers) - i)
        C, K = p.moments[layer], torch.tensor(keys)
        if name == "search":
            delta, trail = search(1000.0, C, K, residual, weight(p.model, p.parts, layer))
            recorded = stages["lambda_and_update_norm_trail"][f"L{layer}"]
            np.testing.assert_allclose(trail, recorded, rtol=0, atol=6e-5)
            assert trail[-1][0] == arrays["search.lambda"][i]
        else:
            delta = solve(1000.0, C, K, residual)
        assert error(delta, arrays[f"{name}.delta_init_L{layer}"]) < 1e-6


@pytest.mark.slow  # its parts are proved above, and that keys are taken of what is edited by then, below
@recorded_only
def test_initial_updates_end_to_end(authors: SimpleNamespace) -> None:
    p = authors.problem
    before = weights(p.model, p.parts, p.layers)
    for update in initial_updates(p, 1000.0, searching=False):
        assert error(update.delta, authors.arrays[f"skip.delta_init_L{update.layer}"]) < 1e-5
        assert torch.equal(weight(p.model, p.parts, update.layer), before[update.layer])


def run_variant(golden: SimpleNamespace, name: str) -> list[Layer]:
    """A LAW variant as the authors' code runs it, from the recorded initial updates."""
    p, settings = golden.problem, golden.hparams[name]
    kind = "skip" if settings["skip_search"] else "search"
    starts = [torch.tensor(golden.arrays[f"{kind}.delta_init_L{layer}"]).double() for layer in p.layers]
    before = weights(p.model, p.parts, p.layers)
    try:
        return law(
            p,
            starts,
            settings["learning_rate"],
            settings.get("lr_after_hitting_boundary"),
            settings["total_iters"],
            settings["beta_ratio"],
            literal=True,
            integer_ids=name.endswith("intids"),
        )
    finally:
        undo(p.model, p.parts, before)


VARIANTS = [
    "law_skip",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "law_search_intids",
            "law_search",
            "law_skip_bnd",
            "law_search_lr1e-6",
            "law_skip_lr1e-6",
        )
    ),
]


@recorded_only
@pytest.mark.parametrize("name", VARIANTS)
def test_law_as_the_authors_code_runs_it(authors: SimpleNamespace, name: str) -> None:
    """Updates (alias and all), elimination, the loss and the scalars of every layer."""
    recorded = authors.stages["variants"][name]
    found = run_variant(authors, name)
    assert [f"L{part.layer}" for part in found] == list(recorded)
    stored = "law_search" if name == "law_search_intids" else name
    for part in found:
        stage, ascent = recorded[f"L{part.layer}"], part.ascent
        C, K = authors.problem.moments[part.layer].double(), part.keys.double()
        assert error(part.delta, authors.arrays[f"{stored}.delta_L{part.layer}"]) < 1e-6
        trace = authors.arrays[f"{stored}.loss_trace_L{part.layer}"]
        np.testing.assert_allclose(ascent.trace, trace, rtol=2e-6)
        assert [fact.id for fact in part.used] == stage["case_ids_used"]
        assert [fact.id for fact in part.recalled] == stage["case_ids_still_recalled"]
        assert ascent.beta == pytest.approx(stage["beta"], rel=1e-6)
        assert ascent.best_iteration == stage["best_iteration"]
        assert len(ascent.projections) == stage["n_projections"]
        for delta, key in ((ascent.snapshot, "snapshot_at_best"), (ascent.last, "last_iterate")):
            values = [objective(delta, K).item(), constraint(delta, C).item() / ascent.beta]
            assert values == pytest.approx(stage[f"{key}_obj_and_con_over_beta"], rel=1e-6)
        assert constraint(part.delta, C).item() == pytest.approx(stage["constraint_after"], rel=1e-6)
        # what the method means: within the constraint, and no worse than any start of an iteration
        assert constraint(ascent.best, C) <= ascent.beta * (1 + 1e-12)
        assert objective(ascent.best, K).item() >= max(ascent.trace.tolist()) * (1 - 1e-12)


# --- by hand -------------------------------------------------------------------------------------


def test_search_by_hand() -> None:
    """One dimension, C = K = W = 1: Δ = r / (λ + 1), wanted between 1/3 and 3/4."""
    one = torch.ones(1, 1)
    delta, trail = search(0.0, one, one, torch.full((1, 1), 200_000.0), one)
    expected = [(lam, 200_000 / (lam + 1)) for lam in (0.0, 100_000.0, 200_000.0, 300_000.0)]
    np.testing.assert_allclose(trail, expected)
    assert delta.item() == pytest.approx(200_000 / 300_001)

    _, trail = search(3.0, one, one, one, one)  # 1/4; 1/3.25 at λ = 9/4; 1/2.6875 at 27/16
    np.testing.assert_allclose(trail, [(3.0, 1 / 4), (2.25, 1 / 3.25), (1.6875, 1 / 2.6875)])
    with pytest.raises(ArithmeticError, match="no λ"):
        search(0.0, one, one, torch.zeros(1, 1), one)


def test_ascent_and_its_alias_by_hand() -> None:
    """C = diag(1, 100), K = diag(2, 1), Δ = (1, 0.1), learning rate 1/2, two steps.

    Adam's first step is one learning rate an entry, to (1.5, 0.6), where 2.25 + 36 exceeds
    1.1 · (1 + 1): the projection shrinks it below the start. The authors' "best" matrix is that one,
    which the second step then changes and the second projection leaves where it stands.
    """
    C, K = torch.diag(torch.tensor([1.0, 100.0])), torch.diag(torch.tensor([2.0, 1.0]))
    start = np.array([1.0, 0.1])
    projected = np.array([1.5, 0.6]) * math.sqrt(2.2 / 38.25)
    first, second = (np.array([8.0, 2.0]) * delta for delta in (start, projected))  # gradients
    m = (0.09 * first + 0.1 * second) / (1 - 0.9**2)
    v = (0.000999 * first**2 + 0.001 * second**2) / (1 - 0.999**2)
    stepped = projected + 0.5 * m / np.sqrt(v)
    last = stepped * math.sqrt(2.2 / (stepped**2 @ [1.0, 100.0]))

    found = ascend(torch.tensor(start)[:, None], C, K, 0.5, None, iterations=2)
    assert found.beta == pytest.approx(2.2 / 101, rel=1e-6)
    assert (found.best_iteration, found.projections) == (0, [0, 1])
    np.testing.assert_allclose(found.trace, [4.01, 4 * projected[0] ** 2 + projected[1] ** 2], rtol=1e-6)
    for matrix, expected in (
        (found.best, start),
        (found.snapshot, projected),
        (found.literal, stepped),
        (found.last, last),
    ):
        np.testing.assert_allclose(matrix[:, 0], expected, rtol=1e-6)
    assert constraint(found.literal, C.double()) > found.beta


# --- architectures -------------------------------------------------------------------------------

SMALL = {"vocab_size": 600, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
ARCHITECTURES = {
    "gpt2": (GPT2, GPT2Config(n_embd=32, n_layer=3, n_head=2, n_inner=48, n_positions=64, **SMALL)),
    "gptj": (
        GPTJ,
        GPTJConfig(n_embd=32, n_layer=3, n_head=2, n_inner=48, rotary_dim=8, n_positions=64, **SMALL),
    ),
    "llama": (
        LLAMA,
        LlamaConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, **SMALL
        ),
    ),
}


@pytest.fixture(params=ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def architecture(request: pytest.FixtureRequest) -> tuple[Parts, PreTrainedModel]:
    parts: Parts
    config: PreTrainedConfig
    parts, config = request.param
    torch.manual_seed(0)
    return parts, AutoModelForCausalLM.from_config(config).double().eval()


def test_an_update_moves_the_output_by_delta_k(architecture: tuple[Parts, PreTrainedModel]) -> None:
    """In the last block nothing comes after the MLP: its output moves by Δᵀk, whatever the weight's layout."""
    parts, model = architecture
    ids = [5, 9, 2, 33]
    k = key_states(model, parts, 2, ids)  # (t, d_ff)
    before = block_states(model, parts, 2, ids)  # (t, d_model)
    delta = torch.randn(48, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    W = weight(model, parts, 2)
    W += delta
    after = block_states(model, parts, 2, ids)
    torch.testing.assert_close(after - before, k @ delta)  # (t, d_ff) @ (d_ff, d_model)


def test_first_evaluation_of_a_target_value_is_the_models_own_loss(
    architecture: tuple[Parts, PreTrainedModel], tiny_tokenizer: Any
) -> None:
    parts, model = architecture
    fact = SimpleNamespace(template="The home of {} is in", subject="Kladai Breastom")
    z, trace = target_value(
        model, tiny_tokenizer, parts, 1, fact, ["It rains. {}", "You know. {}"], steps=2, clamp=1e-3
    )
    losses = []
    for opening in ("", "It rains. ", "You know. "):
        ids = tiny_tokenizer(f"{opening}The home of Kladai Breastom is in")["input_ids"]
        answer = tiny_tokenizer(" <|endoftext|>")["input_ids"]
        labels = torch.tensor([[-100] * len(ids) + answer])
        losses.append(model(input_ids=torch.tensor([ids + answer]), labels=labels).loss.item())
    assert trace[0, 1].item() == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert trace[0, 2:4].tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
    assert trace[1, 1] < trace[0, 1]  # a tiny step, yet along the gradient
    h = block_states(model, parts, 1, tiny_tokenizer("The home of Kladai Breastom")["input_ids"])[-1]
    assert ((z - h).norm() / h.norm()).item() == pytest.approx(1e-3, rel=1e-6)


@pytest.mark.parametrize("template", ["{} is a", "The home of {} is in", "It rains. Therefore {} sings"])
def test_subject_position_is_where_the_text_up_to_the_subject_ends(
    template: str, tiny_tokenizer: Any
) -> None:
    subject = "Kladai Breastom"
    until = template[: template.index("{}")] + subject
    expected = len(tiny_tokenizer(until)["input_ids"]) - 1
    assert subject_position(tiny_tokenizer, template, subject) == expected


def test_a_subject_without_a_space_before_it_is_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="after a space"):
        subject_position(tiny_tokenizer, "The town ({}) lies", "Oslo")


# --- the carried folder --------------------------------------------------------------------------


@recorded_only
def test_the_carried_folder_has_the_recorded_format() -> None:
    """Names of files, arrays and entries; arrays of a layer that elimination left unreached are missing."""
    ours, theirs = (np.load(path / "golden.npz") for path in (CARRIED, RECORDED))
    assert set(ours.files) == set(theirs.files)
    assert [ours[name].ndim for name in theirs.files] == [array.ndim for array in theirs.values()]
    for name in ("hparams.json", "metrics.json"):
        mine, recorded = (json.loads((path / name).read_text()) for path in (CARRIED, RECORDED))
        assert set(mine) - {"before"} == set(recorded) - {"before"}
    mine, recorded = (json.loads((path / "stages.json").read_text()) for path in (CARRIED, RECORDED))
    assert set(recorded) - {"tf5_rerun"} <= set(mine)
    for variant, layers in recorded["variants"].items():
        for layer, scalars in layers.items():
            assert set(scalars) <= set(mine["variants"][variant][layer])


def test_the_carried_folder_is_of_use() -> None:
    """It is small, well conditioned, and both λ searched and λ kept forget something."""
    assert sum(path.stat().st_size for path in CARRIED.rglob("*") if path.is_file()) < 1_500_000
    stages = json.loads((CARRIED / "stages.json").read_text())
    facts = [fact for fact in read_facts(CARRIED) if fact.id < 5000]
    known = np.load(CARRIED / "golden.npz")["known_case_ids"]
    assert len(facts) > len(known) > 0.8 * len(facts)
    rerun = stages["float32_rerun"]
    assert max(e for layers in rerun["delta_rel_err"].values() for e in layers.values()) < 1e-3
    assert all(rerun["all_predictions_identical"].values())
    for name in ("law_search", "law_skip"):
        used = [layer["n_requests"] for layer in stages["variants"][name].values()]
        left = [layer["requests_left_reported"] for layer in stages["variants"][name].values()]
        assert used == [len(known), *left[:-1]]
        assert 0 < left[-1] < len(known)
    intids = stages["variants"]["law_search_intids"]
    assert list(intids) == ["L1"]
    assert (intids["L1"]["requests_left_reported"], intids["L1"]["n_requests"]) == (0, len(known))
