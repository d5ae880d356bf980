"""The loop that the gradient-based baselines share, and its adapters."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeModel
from hydra import compose, initialize_config_dir
from small import rows_of, weights
from torch import Tensor
from transformers import PreTrainedModel

from law.base.errors import LawError
from law.decoders.structure import Decoder
from law.methods import grad_diff, npo, rmu
from law.runs.configuration import build
from law.tuning.adapters import Lora, adapters_off
from law.tuning.loop import Term, Tuning, _trainable, accumulate, tune
from law.tuning.training_rows import IGNORED, Row, cross_entropy, pad, token_logits, tokens

# --- the loop -----------------------------------------------------------------------------------


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def ragged(model: PreTrainedModel, seed: int = 0) -> list[Row]:
    """Five rows of different lengths, the first tokens of some unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in (3, 9, 5, 2, 7):
        ids = torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()
        rows.append(Row(ids, [IGNORED] * (length // 3) + ids[length // 3 :]))
    return rows


def objective(model: PreTrainedModel) -> list[Term]:
    """Every kind of term there is: by token, by row, by all tokens."""
    decoder = Decoder(model)

    def forget(batch: Any) -> Tensor:
        log_p = npo.span_log_p(token_logits(model, batch), batch.labels)
        return npo.loss(log_p, torch.arange(-9.0, 0.0)[batch.index], 0.1)

    def hold(batch: Any) -> Tensor:
        return rmu.loss(decoder.hidden_states(batch.ids, batch.mask, 1), torch.ones(32), batch.mask)

    def keep(batch: Any) -> Tensor:
        return cross_entropy(token_logits(model, batch), batch.labels)

    return [
        Term("forget", ragged(model), 3, forget, units=lambda _: 1),
        Term("retain", ragged(model, 1), 5, keep, weight=0.7),
        Term("hold", ragged(model, 2), 5, hold, weight=0.1, units=tokens),
    ]


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_accumulated_gradients_are_those_of_the_whole_batch(tiny_model: PreTrainedModel, micro: int) -> None:
    terms, draws = objective(tiny_model), [[4, 0, 2], [0, 1, 2, 3, 4], [3, 1]]
    whole = accumulate(tiny_model, terms, draws, 5, None)
    expected = gradients(tiny_model)
    assert accumulate(tiny_model, terms, draws, micro, None) == pytest.approx(whole, rel=1e-5)
    for name, found in gradients(tiny_model).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6)


def test_neither_padding_nor_company_changes_a_rows_loss(tiny_model: PreTrainedModel) -> None:
    rows = ragged(tiny_model)
    for term in objective(tiny_model):
        together = term.loss(pad(rows, range(5), tiny_model.device))
        alone = [term.loss(pad([row], [i], tiny_model.device)) for i, row in enumerate(rows)]
        assert [len(values) for values in alone] == [term.units(row) for row in rows]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_the_objective_is_the_weighted_sum_of_means(tiny_model: PreTrainedModel) -> None:
    """GradDiff's step against Hugging Face's own loss of each row, weighted by its predicted tokens."""
    rows = ragged(tiny_model)
    forget = Term("forget", rows, 2, lambda b: grad_diff.loss(token_logits(tiny_model, b), b.labels))
    keep = Term("retain", rows, 2, lambda b: cross_entropy(token_logits(tiny_model, b), b.labels), weight=3.0)
    accumulate(tiny_model, [forget, keep], [[0, 1], [4, 2]], 2, None)
    found = gradients(tiny_model)

    def mean(draw: list[int]) -> Tensor:
        losses, counts = [], []
        for i in draw:
            ids, labels = torch.tensor([rows[i].ids]), torch.tensor([rows[i].labels])
            losses.append(tiny_model(input_ids=ids, labels=labels).loss)
            counts.append(sum(label != IGNORED for label in rows[i].labels[1:]))
        return sum(x * n for x, n in zip(losses, counts, strict=True)) / sum(counts)

    (3.0 * mean([4, 2]) - mean([0, 1])).backward()
    for name, expected in gradients(tiny_model).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)


def test_out_of_memory_halves_the_pass_and_changes_no_step(
    tiny_model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory for two rows, and three while nothing is held yet: some gradient is there when it runs out."""
    start = copy.deepcopy(tiny_model.state_dict())
    passes: list[int] = []

    def run(room: int) -> dict[str, Tensor]:
        tiny_model.load_state_dict(start)

        def loss(batch: Any) -> Tensor:
            passes.append(len(batch.ids))
            if len(batch.ids) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return cross_entropy(token_logits(tiny_model, batch), batch.labels)

        terms = [Term(name, ragged(tiny_model), size, loss) for name, size in (("first", 2), ("second", 5))]
        tune(tiny_model, terms, Tuning(learning_rate=1e-2, epochs=2), lambda _: None)
        return weights(tiny_model)

    expected = run(room=5)
    passes.clear()
    with caplog.at_level(logging.WARNING):
        found = run(room=2)
    assert passes[:4] == [2, 5, 2, 3]  # five, then three at most, then two
    assert max(passes[4:]) == 2
    assert caplog.text.count("out of memory") == 2
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)
    with pytest.raises(LawError, match="not hold the gradient of a single row"):
        run(room=0)


def test_an_epoch_sees_every_row_once_and_the_seed_sets_the_order(tiny_model: PreTrainedModel) -> None:
    def orders(seed: int) -> list[list[int]]:
        seen: list[list[int]] = [[], []]

        def watch(at: int) -> Callable[[Any], Tensor]:
            def loss(batch: Any) -> Tensor:
                seen[at].extend(batch.index)
                return cross_entropy(token_logits(tiny_model, batch), batch.labels)

            return loss

        terms = [
            Term("first", ragged(tiny_model), 2, watch(0)),
            Term("second", ragged(tiny_model), 5, watch(1)),
        ]
        tune(tiny_model, terms, Tuning(learning_rate=1e-4, epochs=2, seed=seed), lambda _: None)
        return seen

    first, second = orders(seed=3)
    assert sorted(first[:5]) == sorted(first[5:]) == [0, 1, 2, 3, 4]
    # six steps of a batch of five go over the second term's rows six times
    assert all(sorted(second[at : at + 5]) == [0, 1, 2, 3, 4] for at in range(0, 30, 5))
    assert first[:5] != first[5:]
    assert orders(seed=3) == [first, second]
    assert orders(seed=4)[0] != first


def test_dropout_hangs_on_the_seed_alone(make_model: MakeModel) -> None:
    model = make_model(resid_pdrop=0.3)
    start = copy.deepcopy(model.state_dict())

    def run(seed: int, global_seed: int) -> Tensor:
        model.load_state_dict(start)
        torch.manual_seed(global_seed)
        term = Term("loss", ragged(model)[:1], 1, lambda b: cross_entropy(token_logits(model, b), b.labels))
        tune(model, [term], Tuning(learning_rate=1e-3, seed=seed), lambda _: None)
        return model.transformer.h[0].mlp.fc_out.weight.detach().clone()

    assert torch.equal(run(0, 1), run(0, 2))
    assert not torch.equal(run(0, 1), run(5, 1))
    assert not model.training


def test_autocast_computes_in_bfloat16_and_keeps_the_weights_dtype(tiny_model: PreTrainedModel) -> None:
    seen: list[torch.dtype] = []

    def loss(batch: Any) -> Tensor:
        logits = token_logits(tiny_model, batch)
        seen.append(logits.dtype)
        return cross_entropy(logits, batch.labels)

    before = weights(tiny_model)
    settings = Tuning(learning_rate=1e-3, autocast="bfloat16")
    tune(tiny_model, [Term("loss", ragged(tiny_model), 5, loss)], settings, lambda _: None)
    assert seen == [torch.bfloat16]
    after = weights(tiny_model)
    assert all(after[name].dtype == torch.float32 for name in before)
    assert any(not torch.equal(after[name], before[name]) for name in before)


# --- LoRA ---------------------------------------------------------------------------------------

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 3, "n_head": 2}


@pytest.mark.parametrize(("changes", "tuned"), [({}, 6), (GPT2, 3)], ids=["gptj", "gpt2"])
def test_merged_adapters_give_the_logits_of_unmerged_ones(
    make_model: MakeModel, changes: dict[str, Any], tuned: int
) -> None:
    model = make_model(**changes)
    before, batch = weights(model), pad(ragged(model), range(5), model.device)
    with torch.no_grad():
        plain = token_logits(model, batch)
    torch.manual_seed(0)
    with _trainable(model, Lora(rank=2, alpha=8, dropout=0.5), None) as adapters:
        assert sum(p.numel() for p in adapters) < 0.1 * model.num_parameters()
        with torch.no_grad():
            for adapter in adapters:
                adapter.normal_(std=0.3)
        model.eval()
        with torch.no_grad():
            unmerged = token_logits(model, batch)
            with adapters_off(model):
                assert torch.equal(token_logits(model, batch), plain)
        assert all(p.requires_grad for p in adapters)
    model.eval()
    with torch.no_grad():
        merged = token_logits(model, batch)
    assert (merged - plain).abs().max() > 1e-2
    torch.testing.assert_close(merged, unmerged, rtol=1e-4, atol=1e-4)
    after = weights(model)
    assert list(after) == list(before)
    assert all(p.requires_grad for p in model.parameters())
    assert sum(not torch.equal(after[name], before[name]) for name in before) == tuned
    assert not hasattr(model, "peft_config")


def test_adapters_are_one_override_away() -> None:
    conf = Path(__file__).parents[1] / "conf"
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        method = build(compose("config", overrides=["method=finetune", "method.lora.rank=8"]).method)
        assert build(compose("config", overrides=["method=finetune"]).method).lora.rank == 0
    assert method.lora == Lora(rank=8, alpha=32, dropout=0.1)


@pytest.mark.parametrize("reentrant", [False, True], ids=["saved tensors", "reentrant"])
@pytest.mark.parametrize("lora", [Lora(rank=4, dropout=0.0), Lora()], ids=["LoRA", "one weight of a block"])
def test_gradient_checkpointing_changes_no_step(
    tiny_model: PreTrainedModel, lora: Lora, reentrant: bool
) -> None:
    """Blocks run twice a step. Frozen embeddings give a block no input with a gradient, unless that is asked for."""
    found: list[dict[str, Tensor]] = []
    runs: list[int] = []
    rows = ragged(tiny_model)
    for checkpointing in (False, True):
        model = copy.deepcopy(tiny_model)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        passes = rows_of(model.transformer.h[1].mlp)
        loss = Term("loss", rows, 5, lambda b, m=model: cross_entropy(token_logits(m, b), b.labels))
        tuned = None if lora.rank else [model.transformer.h[1].mlp.fc_out.weight]
        torch.manual_seed(0)  # of the adapters' first values
        tune(model, [loss], Tuning(1e-2, epochs=2, batch_size=5, lora=lora), lambda _: None, tuned)
        found.append(weights(model))
        runs.append(len(passes))
    assert runs == [2, 4]
    name = "transformer.h.1.attn.q_proj.weight" if lora.rank else "transformer.h.1.mlp.fc_out.weight"
    assert (found[0][name] - weights(tiny_model)[name]).abs().max() > 1e-3
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight)
