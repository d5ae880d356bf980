"""Second moments in the files of ROME's and MEMIT's code: what is read from them, and which of them are refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Loaded, MakeModel, TrainedLab
from safetensors.torch import save_file
from small import gpt2_style, random_model, weights
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from law.base.cache import Cache
from law.base.errors import LawError
from law.base.files import FileHashes
from law.decoders.structure import Decoder
from law.editing.published_moments import mean_squares
from law.editing.second_moments import MomentSettings, collect_moments, second_moments
from law.editing.target_values import TargetSettings
from law.methods.memit import MEMIT

TEXTS = [
    "On Monday Anna walked from the mill to the harbour.",
    "You can buy bread, salt and 12 eggs at the inn near the old bridge.",
    'They said: "Nobody knows when the river will rise again."',
    "Because the winter was long, the people of the town moved to the hills.",
] * 3
PATTERN = "transformer.h.{}.mlp.fc_out_float32_mom2_100000"


def save(path: Path, total: Tensor, count: float, **more: Any) -> None:
    """A file as the published code leaves it, without the help of that code."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({"mom2.mom2": total.contiguous(), "mom2.count": torch.tensor(count)}, path)
    else:
        arrays = {
            "mom2.constructor": "util.runningstats.SecondMoment()",
            "mom2.count": count,
            "mom2.mom2": total,
        }
        np.savez(path, **{**arrays, "sample_size": 100_000, **more})


def sums(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, layers: list[int]
) -> tuple[dict[int, Tensor], int]:
    """Σ k kᵀ (d_ff, d_ff) of each layer, token by token in plain forward passes, and the number of tokens."""
    found = {layer: torch.zeros(()) for layer in layers}
    tokens = 0
    with Decoder(model).capture_keys(layers) as captured, torch.no_grad():
        for text in TEXTS:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            model(input_ids=ids)
            tokens += ids.shape[1]
            for layer in layers:
                found[layer] = found[layer] + sum(torch.outer(k, k) for k in captured[layer][0])
    return found, tokens


@pytest.mark.parametrize(
    ("architecture", "file", "asked"),
    [
        ("gptj", "transformer.h.{}.mlp.fc_out_float32_mom2_100000.npz", ""),
        ("gpt2", "transformer.h.{}.mlp.c_proj_float64_mean-mom2_t512_20000.npz", "*"),
        ("gpt_neox", "gpt_neox.layers.{}.mlp.dense_4h_to_h.npz", ""),
        ("llama", "model.layers.{}.mlp.down_proj_float32_mom2_100000.safetensors", "*.safetensors"),
    ],
)
def test_c_is_the_sum_over_the_number_of_tokens(
    architecture: str, file: str, asked: str, tmp_path: Path
) -> None:
    """The folder, or a pattern in it, also has files of other layers and of another kind."""
    tokenizer = gpt2_style()
    model, folder = random_model(architecture, len(tokenizer)), tmp_path / "wikipedia_stats"
    totals, tokens = sums(model, tokenizer, [0, 2])
    for layer, total in {**totals, 1: torch.eye(3), 11: torch.eye(3), 22: torch.eye(3)}.items():
        save(folder / file.format(layer), total, tokens)
    (folder / "null_space_project.pt").write_text("another kind")
    settings = MomentSettings(published=str(folder / asked))
    found = second_moments(Decoder(model), tokenizer, [0, 2], settings, Cache(tmp_path / "cache"))
    assert found.keys() == {0, 2}
    for layer, C in found.items():
        assert C.shape == (48, 48) and C.dtype == torch.float32
        torch.testing.assert_close(C, totals[layer] / tokens, rtol=1e-6, atol=1e-9)
    assert not (tmp_path / "cache").exists()


def test_the_mean_squares_are_those_of_the_keys(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a text that is longer than the model's 128 positions, read in rows of as many tokens."""
    ids = tiny_tokenizer(TEXTS[1] * 12)["input_ids"]
    assert len(ids) > 2 * 128
    monkeypatch.setattr("law.editing.published_moments.TEXT", TEXTS[1] * 12)
    found = mean_squares(Decoder(tiny_model), tiny_tokenizer, [0, 2])
    rows = [tiny_tokenizer.decode(ids[i : i + 128]) for i in range(0, len(ids), 128)]
    assert [token for row in rows for token in tiny_tokenizer(row)["input_ids"]] == ids
    expected, _ = collect_moments(Decoder(tiny_model), tiny_tokenizer, rows, [0, 2], 10_000)
    for layer, squares in found.items():
        torch.testing.assert_close(squares, expected[layer].diagonal(), rtol=1e-4, atol=1e-9)


def flipped(total: Tensor) -> Tensor:
    """The same matrix with the sign of one small eigenvalue turned."""
    values, vectors = torch.linalg.eigh(total.double())
    turned = torch.searchsorted(values, 0.01 * values.norm()) - 1
    assert values[turned] > 1e-3 * values.norm()
    values[turned] *= -1
    mixed = (vectors * values) @ vectors.T  # (d_ff, d_ff) @ (d_ff, d_ff)
    return ((mixed + mixed.T) / 2).float()


def with_nan(total: Tensor) -> Tensor:
    total = total.clone()
    total[3, 5] = torch.nan
    return total


def normalised(total: Tensor) -> Tensor:
    size = total.diagonal().sqrt()
    return total / size / size[:, None]


WRONG: dict[str, tuple[Callable[[Tensor, int], tuple[Tensor, float]], str]] = {
    "another width": (lambda total, count: (total[:48, :48], count), "shape (48, 48); expected (64, 64)"),
    "not square": (lambda total, count: (total[:, :32], count), "shape (64, 32); expected (64, 64)"),
    "no token": (lambda total, _: (total, 0), "computed from 0 tokens"),
    "fewer than none": (lambda total, _: (total, -3), "computed from -3 tokens"),
    "not a number": (lambda total, _: (total, float("nan")), "computed from nan tokens"),
    "infinite": (lambda total, count: (total / 0.0, count), "values that are not finite"),
    "one NaN": (lambda total, count: (with_nan(total), count), "values that are not finite"),
    "a triangle": (lambda total, count: (total.triu(), count), "is not symmetric"),
    "minus C": (lambda total, count: (-total, count), "an eigenvalue below -0.0001 ‖C‖"),
    "one sign": (lambda total, count: (flipped(total), count), "an eigenvalue below -0.0001 ‖C‖"),
    "not divided": (lambda total, _: (total, 1), "times as large (expected 0.1 to 10)"),
    "divided twice": (lambda total, count: (total / count, count), "times as large (expected 0.1 to 10)"),
    "normalised": (lambda total, count: (normalised(total) * count, count), "does not fit layer 1"),
    "zeros": (lambda total, count: (total * 0, count), "and C is 0 times as large"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_matrix_that_is_not_c_is_refused(
    change: Callable[[Tensor, int], tuple[Tensor, float]],
    message: str,
    tiny_model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    totals, tokens = sums(tiny_model, tiny_tokenizer, [1])
    path = tmp_path / f"{PATTERN.format(1)}.npz"
    save(path, *change(totals[1], tokens))
    settings = MomentSettings(published=str(path))
    with pytest.raises(LawError) as error:
        second_moments(Decoder(tiny_model), tiny_tokenizer, [1], settings, Cache(None))
    told = str(error.value)
    assert told.startswith(str(path)) and message in told and "\n" not in told


def test_c_of_another_layer_or_model_is_refused(
    make_model: MakeModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Each of two random models, as wide as real ones, fits the files of its own layers alone."""
    models = [make_model(seed, n_inner=1024) for seed in (0, 1)]
    files = {}
    for i, model in enumerate(models):
        totals, tokens = sums(model, tiny_tokenizer, [0, 1, 2])
        for layer, total in totals.items():
            files[i, layer] = tmp_path / f"{i}-{layer}" / f"{PATTERN.format(1)}.npz"
            save(files[i, layer], total, tokens)
    for i, model in enumerate(models):
        for origin, path in files.items():
            refused = pytest.raises(LawError, match=r"rank correlation of -?0\.[01]")
            with contextlib.nullcontext() if origin == (i, 1) else refused:
                settings = MomentSettings(published=str(path))
                second_moments(Decoder(model), tiny_tokenizer, [1], settings, Cache(None))


def test_c_of_few_tokens_is_told(
    tiny_model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    total = sums(tiny_model, tiny_tokenizer, [1])[0][1]
    save(
        tmp_path / f"{PATTERN.format(1)}.npz",
        total / total.trace() * 63 * trace_of(tiny_model, tiny_tokenizer),
        63,
    )
    settings = MomentSettings(published=str(tmp_path))
    second_moments(Decoder(tiny_model), tiny_tokenizer, [1], settings, Cache(None))
    assert "was computed from 63 tokens, fewer than the 64 entries of a key" in caplog.text


def trace_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> float:
    return mean_squares(Decoder(model), tokenizer, [1])[1].sum().item()


@pytest.mark.parametrize(
    ("names", "asked", "message"),
    [
        ([], "", "neither a file nor a folder or pattern with files that end in .npz or .safetensors"),
        (["null_space_project.pt"], "null_space_project.pt", "neither a file nor a folder"),
        (["a.npz"], "*.safetensors", "neither a file nor a folder"),
        ([f"{PATTERN.format(11)}.npz"], "", "has 0 files for layer 1; expected exactly one, whose name is transformer.h.1.mlp.fc_out or"),
        (["transformer.h.1.mlp.fc_in.npz"], "*", "has 0 files for layer 1"),
        ([f"{PATTERN.format(1)}.npz", "transformer.h.1.mlp.fc_out.safetensors"], "", "has 2 files for layer 1"),
    ],
)  # fmt: skip
def test_a_layer_without_a_file_of_its_own_is_refused_before_anything_runs(
    names: list[str], asked: str, message: str, tiny_model: PreTrainedModel, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(LawError) as error:
        MEMIT([1], 1.0, MomentSettings(published=str(tmp_path / asked))).check(tiny_model)
    assert message in str(error.value) and "moments.published" in str(error.value)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    "how", ["empty", "cut short", "a pointer", "a byte", "one array", "other names", "two counts"]
)
def test_a_damaged_file_or_one_of_another_kind_is_refused(
    how: str,
    suffix: str,
    tiny_model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    path = tmp_path / f"{PATTERN.format(1)}{suffix}"
    save(path, torch.eye(64), 100)
    whole = path.read_bytes()
    expected = f"can't be read as {suffix}"
    match how:
        case "empty":
            path.write_bytes(b"")
        case "cut short":
            path.write_bytes(whole[:-100])
        case "a pointer":
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 163840530\n")
        case "a byte":
            at = len(whole) // 2
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            if suffix == ".safetensors":  # it has no checksum
                return
        case "one array":
            with path.open("wb") as file:
                np.save(file, np.eye(64))
        case "other names":
            expected = "holds mean.count, mean.mean; expected mom2.mom2"
            if suffix == ".npz":
                np.savez(path, **{"mean.count": 3, "mean.mean": np.ones(64)})
            else:
                save_file({"mean.count": torch.tensor(3), "mean.mean": torch.ones(64)}, path)
        case "two counts":
            expected = "expected mom2.mom2, the sum of k kᵀ over tokens, and mom2.count"
            if suffix == ".npz":
                save(path, torch.eye(64), np.array([1, 2]))
            else:
                save_file({"mom2.mom2": torch.eye(64), "mom2.count": torch.tensor([1, 2])}, path)
    settings = MomentSettings(published=str(tmp_path))
    with pytest.raises(LawError) as error:
        second_moments(Decoder(tiny_model), tiny_tokenizer, [1], settings, Cache(None))
    assert str(error.value).startswith(str(path)) and expected in str(error.value)


@pytest.mark.parametrize(
    "given", [{}, {"text": "a.txt"}, {"dataset": "b"}, {"text": "a.txt", "dataset": "b"}], ids=str
)
def test_moments_have_one_source(given: dict[str, str], tmp_path: Path) -> None:
    save(tmp_path / "a.npz", torch.eye(2), 1)
    settings = MomentSettings(published=str(tmp_path), **given)
    if not given:
        settings.check()
        return
    with pytest.raises(LawError) as error:
        settings.check()
    assert f"published = {str(tmp_path)!r}; expected one of them" in str(error.value)
    assert "and the others to null" in str(error.value)


def test_what_the_files_hold_and_their_names_are_part_of_a_runs_identity(tmp_path: Path) -> None:
    def content(folder: str) -> Any:
        return MomentSettings(published=str(tmp_path / folder)).content(FileHashes(None))

    for folder in ("one", "same"):
        save(tmp_path / folder / "layer_1.npz", torch.eye(2), 1)
        save(tmp_path / folder / "layer_2.npz", 2 * torch.eye(2), 1)
    first = content("one")
    assert content("same") == content("one/*.npz") == first != content("one/layer_1.npz")
    assert content("nowhere") is None
    save(tmp_path / "one" / "layer_2.npz", 3 * torch.eye(2), 1)
    assert content("one") != first
    (tmp_path / "same" / "layer_2.npz").rename(tmp_path / "same" / "layer_3.npz")
    assert content("same") != first


def test_a_wash_with_published_moments_is_the_wash_with_the_text_they_were_taken_of(
    knowing: Loaded, trained_lab: TrainedLab, tmp_path: Path
) -> None:
    model, tokenizer, facts = knowing
    text = MomentSettings(str(trained_lab.text_path), batch_size=2048)
    found, tokens = collect_moments(Decoder(model), tokenizer, text.read(), [0, 1], 2048)
    for layer, C in found.items():
        save(tmp_path / f"{PATTERN.format(layer)}.npz", C.double() * tokens, tokens)
    before, washed = weights(model), []
    for moments in (text, MomentSettings(published=str(tmp_path))):
        model.load_state_dict(before, strict=False)
        MEMIT([0, 1], 1.0, moments, TargetSettings(steps=3, batch_size=6), contexts=[]).wash(
            model, tokenizer, facts
        )
        washed.append(weights(model))
    for name, weight in washed[0].items():
        torch.testing.assert_close(washed[1][name], weight, rtol=1e-5, atol=1e-7)
    changed = {name for name in before if not torch.equal(before[name], washed[1][name])}
    assert changed == {f"transformer.h.{layer}.mlp.fc_out.weight" for layer in (0, 1)}
