from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from law.base.cache import Cache, content_hash, model_hash
from law.base.files import file_hash, replacing, write_json, write_json_lines
from law.base.item_cache import TensorItems, json_items
from law.base.tensor_files import save_tensors
from law.decoders.saving import Save, save_washed, snapshot


class Counted:
    """A computation that counts how often it ran and never gives the same twice."""

    def __init__(self) -> None:
        self.runs = 0

    def value(self) -> Any:
        self.runs += 1
        return {"run": self.runs, "text": "é ✓", "list": [1.5, None, True]}

    def tensors(self) -> dict[str, Tensor]:
        self.runs += 1
        return {"a": torch.full((2, 3), self.runs), "b": torch.arange(6.0).view(2, 3).double().T}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_json_is_kept_under_its_key(tmp_path: Path) -> None:
    cache, count = Cache(tmp_path / "new" / "folder"), Counted()
    first = {"run": 1, "text": "é ✓", "list": [1.5, None, True]}
    assert cache.json("scores", {"a": 1, "b": [2, {"x": 0, "y": 1}]}, count.value) == first
    assert cache.json("scores", {"b": [2, {"y": 1, "x": 0}], "a": 1}, count.value) == first
    assert Cache(cache.folder).json("scores", {"a": 1, "b": [2, {"x": 0, "y": 1}]}, count.value) == first
    assert count.runs == 1
    assert cache.json("scores", {"a": 1, "b": [2, {"x": 0, "y": 2}]}, count.value)["run"] == 2
    assert cache.json("other", {"a": 1, "b": [2, {"x": 0, "y": 1}]}, count.value)["run"] == 3
    assert len(files(tmp_path / "new" / "folder")) == 3


def test_tensors_are_kept_under_their_key(tmp_path: Path) -> None:
    cache, tensors = Cache(tmp_path), Counted().tensors()
    assert cache.tensors("moments", {"a": 1}) is None
    cache.keep("moments", {"a": 1}, tensors, seconds=2.5)
    for number in range(1, 3):
        found = cache.tensors("moments", {"a": 1})
        assert found is not None and found.keys() == {"a", "b"}
        assert found["a"].tolist() == [[1, 1, 1], [1, 1, 1]]
        assert found["b"].tolist() == [[0, 3], [1, 4], [2, 5]] and found["b"].dtype == torch.float64
        assert cache.spared_s == 2.5 * number
    assert cache.tensors("moments", {"a": 2}) is None
    assert len(files(tmp_path)) == 1


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]  # a number that is a number still
    damages = {"cut short": whole[:-5], "garbage": b"\xff" * len(whole), "empty": b"", "one bit": flipped}
    path.write_bytes(damages[how])


DAMAGES = pytest.mark.parametrize("how", ["cut short", "garbage", "empty", "one bit"])


@DAMAGES
def test_damaged_tensors_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    cache, count = Cache(tmp_path), Counted()
    cache.keep("moments", {}, count.tensors(), 1.0)
    (path,) = tmp_path.iterdir()
    damage(path, how)
    with caplog.at_level(logging.WARNING):
        assert cache.tensors("moments", {}) is None
    assert path.name in caplog.text and "damaged" in caplog.text
    cache.keep("moments", {}, count.tensors(), 1.0)  # mends the file
    assert cache.tensors("moments", {})["a"][0, 0] == 2
    assert sorted(tmp_path.iterdir()) == [path, path.with_name(f"{path.name}.damaged")]


@DAMAGES
def test_damaged_json_is_computed_again_and_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    def value() -> dict[str, float]:
        return {"a": 12345678.25, "b": 87654321.25}

    cache = Cache(tmp_path)
    cache.json("scores", {}, value)
    (path,) = tmp_path.iterdir()
    damage(path, how)
    with caplog.at_level(logging.WARNING):
        assert cache.json("scores", {}, value) == value()
    assert f"{path} is damaged (" in caplog.text
    assert sorted(tmp_path.iterdir()) == [path, path.with_name(f"{path.name}.damaged")]
    assert cache.json("scores", {}, Counted().value) == value()
    assert cache.holds_json("scores", {}) and not cache.holds_json("scores", {"a": 1})


def test_what_earlier_versions_kept_without_a_hash_is_taken(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    path = cache.path("scores", {}, "json")
    assert path is not None
    write_json(path, {"a": 1})
    assert cache.json("scores", {}, Counted().value) == {"a": 1}
    tensors = cache.path("moments", {}, "safetensors")
    assert tensors is not None
    save_file({"a": torch.ones(2), "seconds": torch.tensor(1.0)}, tensors)
    assert (cache.tensors("moments", {}) or {})["a"].tolist() == [1, 1]


class Squares:
    """Computes the square of each item, and notes down which items it was asked for."""

    def __init__(self, items: list[str]) -> None:
        self.items, self.asked = items, list[list[str]]()

    def tensors(self, missing: list[int]) -> dict[str, Tensor]:
        asked = [self.items[i] for i in missing]
        self.asked.append(asked)
        return {"square": torch.tensor([[float(item) ** 2] for item in asked])}

    def values(self, asked: list[str]) -> list[float]:
        self.asked.append(asked)
        return [float(item) ** 2 for item in asked]


def read(store: TensorItems, items: list[str]) -> tuple[list[float], list[list[str]]]:
    """The squares by their places, and which items were computed for them."""
    squares = Squares(items)
    places = store.get(items, squares.tensors)
    return [store.files[file]()["square"][row].item() for file, row in places], squares.asked


@pytest.mark.parametrize("on_disk", [True, False])
def test_an_item_is_computed_once_whatever_is_asked_with_it(tmp_path: Path, on_disk: bool) -> None:
    cache = Cache(tmp_path if on_disk else None)
    store = TensorItems(cache, "squares", {"a": 1})
    assert read(store, ["2", "3", "2"]) == ([4.0, 9.0, 4.0], [["2", "3"]])
    again = TensorItems(cache, "squares", {"a": 1})
    expected = [["5"]] if on_disk else [["3", "5", "2"]]
    assert read(again, ["3", "5", "2"]) == ([9.0, 25.0, 4.0], expected)
    assert read(TensorItems(cache, "squares", {"a": 2}), ["2"])[1] == [["2"]]
    if on_disk:
        assert read(TensorItems(Cache(tmp_path), "squares", {"a": 1}), ["5", "2"]) == ([25.0, 4.0], [])


def test_the_seconds_of_items_taken_from_a_cache_add_up(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    store = TensorItems(cache, "squares", {})
    store.get(["1", "2", "3", "4"], Squares(["1", "2", "3", "4"]).tensors)
    assert cache.spared_s == 0.0
    (path,) = tmp_path.glob("squares-*/*.safetensors")
    save_tensors(path, {**load_file(path), "seconds": torch.tensor(8.0)})  # as if it had taken longer
    later = Cache(tmp_path)
    TensorItems(later, "squares", {}).get(["1", "4", "1"], Squares([]).tensors)
    assert later.spared_s == 4.0  # two of four items


@DAMAGES
def test_items_of_a_damaged_file_are_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    cache = Cache(tmp_path)
    read(TensorItems(cache, "squares", {}), ["1", "2"])
    json_items(cache, "texts", {}, ["1", "2"], Squares([]).values)
    for path in tmp_path.glob("*/*"):
        damage(path, how)
    with caplog.at_level(logging.WARNING):
        assert read(TensorItems(cache, "squares", {}), ["1", "2"]) == ([1.0, 4.0], [["1", "2"]])
        squares = Squares([])
        assert json_items(cache, "texts", {}, ["1", "2"], squares.values) == [1.0, 4.0]
    assert squares.asked == [["1", "2"]]
    assert caplog.text.count(" is damaged (") == 2
    assert read(TensorItems(cache, "squares", {}), ["1", "2"])[1] == []


@pytest.mark.parametrize("on_disk", [True, False])
def test_json_items_are_computed_once(tmp_path: Path, on_disk: bool) -> None:
    cache, squares = Cache(tmp_path if on_disk else None), Squares([])
    assert json_items(cache, "texts", {"a": 1}, ["2", "3", "2"], squares.values) == [4.0, 9.0, 4.0]
    assert json_items(cache, "texts", {"a": 1}, ["3", "5"], squares.values) == [9.0, 25.0]
    assert json_items(cache, "texts", {"a": 2}, ["3"], squares.values) == [9.0]
    expected = [["2", "3"], ["5"], ["3"]] if on_disk else [["2", "3"], ["3", "5"], ["3"]]
    assert squares.asked == expected


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache, count = Cache(None), Counted()
    assert [cache.json("a", {}, count.value)["run"] for _ in range(2)] == [1, 2]
    cache.keep("a", {}, count.tensors(), 1.0)
    assert cache.tensors("a", {}) is None
    assert files(tmp_path) == []


def test_a_failed_computation_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Any:
        raise RuntimeError("no")

    cache = Cache(tmp_path)
    with pytest.raises(RuntimeError):
        cache.json("a", {}, fail)
    assert files(tmp_path) == []
    assert cache.json("a", {}, Counted().value)["run"] == 1


def test_json_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": ["Zoë", 0.1], "a": None})
    assert path.read_bytes() == '{\n "b": [\n  "Zoë",\n  0.1\n ],\n "a": null\n}\n'.encode()


def test_a_reader_sees_the_old_file_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, ["old"] * 1000)
    with path.open() as reader:
        begun = reader.read(10)
        write_json(path, ["new"])
        assert json.loads(begun + reader.read()) == ["old"] * 1000
    assert json.loads(path.read_text()) == ["new"]
    with pytest.raises(TypeError):
        write_json(path, ["newer", object()])
    assert json.loads(path.read_text()) == ["new"]
    assert files(tmp_path) == ["a.json"]


@pytest.mark.parametrize("old", [None, "file", "folder"])
def test_nothing_takes_the_place_of_a_path_before_it_is_whole(tmp_path: Path, old: str | None) -> None:
    path = tmp_path / "washed"
    if old == "file":
        path.write_text("old")
    elif old == "folder":
        path.mkdir()
        (path / "old").write_text("old")
    before = files(tmp_path)

    def write(fail: bool) -> None:
        with replacing(path) as partial:
            partial.mkdir()
            (partial / "config.json").write_text("new")
            assert path.exists() is (old is not None)
            if fail:
                raise OSError("the disk is full")
            (partial / "weights").write_text("new")

    with pytest.raises(OSError):
        write(fail=True)
    assert files(tmp_path) == before
    assert old != "folder" or files(path) == ["old"]
    if old != "file":  # a checkpoint's folder never stands where a file did
        write(fail=False)
        assert files(tmp_path) == ["washed"] and files(path) == ["config.json", "weights"]


def test_two_machines_write_one_path_under_different_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one disk they may well have the same number of their process."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "a.json"
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one" and files(tmp_path) == ["a.json"]


def test_a_cache_removes_what_a_killed_run_left_half_written(tmp_path: Path) -> None:
    """But not what another run may be writing just now."""
    (tmp_path / "targets-1.items").mkdir()
    kept = [tmp_path / "moments-1.safetensors", tmp_path / "moments-1.b.partial"]
    left = [tmp_path / "moments-1.a.partial", tmp_path / "targets-1.items" / "1.safetensors.a.partial"]
    for path in (*kept, *left):
        path.write_text("{")
    for path in left:
        os.utime(path, (time.time() - 7200,) * 2)
    Cache(tmp_path)
    assert all(path.exists() for path in kept) and not any(path.exists() for path in left)


def test_rows_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    write_json_lines(path, [{"a": "é"}])

    def rows() -> Iterator[dict[str, Any]]:
        yield {"a": 1}
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        write_json_lines(path, rows())
    assert path.read_text(encoding="utf-8") == '{"a": "é"}\n'
    assert files(tmp_path) == ["predictions.jsonl"]


def test_content_hash() -> None:
    text = '{"a": "é", "b": [1, {"c": null, "d": 2.5}]}'
    expected = hashlib.sha256(text.encode("utf-8")).hexdigest()
    assert content_hash({"b": [1, {"d": 2.5, "c": None}], "a": "é"}) == expected
    assert content_hash({"a": "é", "b": [1, {"c": None, "d": 2.5}]}) == expected
    assert content_hash({"a": "é", "b": [{"c": None, "d": 2.5}, 1]}) != expected


def test_file_hash(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # The example of FIPS 180-4.
    assert file_hash(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def one_ulp_off(model: PreTrainedModel) -> Iterator[str]:
    """Every weight tensor in turn, its last entry changed by the least that float32 can hold."""
    for name, tensor in model.state_dict().items():
        last = tensor.view(-1)[-1:]
        before = last.clone()
        last.copy_(torch.nextafter(before, torch.tensor(torch.inf)))
        yield name
        last.copy_(before)


def test_model_hash_sees_every_weight(tiny_model: PreTrainedModel) -> None:
    unchanged = model_hash(tiny_model)
    assert model_hash(copy.deepcopy(tiny_model)) == unchanged
    hashes = {name: model_hash(tiny_model) for name in one_ulp_off(tiny_model)}
    # A GPT-J block has 10 tensors; then there are the embedding, the last norm's 2 and the head's 2.
    assert len(hashes) == 3 * 10 + 5
    assert len({unchanged, *hashes.values()}) == 36
    assert model_hash(tiny_model) == unchanged
    assert model_hash(tiny_model.to(torch.bfloat16)) != unchanged


def test_a_snapshot_is_a_copy(tiny_model: PreTrainedModel) -> None:
    weight = tiny_model.lm_head.weight
    before = weight.detach().clone()
    kept = snapshot(tiny_model)
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(kept["lm_head.weight"], before)


def test_a_delta_holds_what_changed(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    unwashed = snapshot(tiny_model)
    weight = tiny_model.transformer.h[1].mlp.fc_out.weight
    with torch.no_grad():
        weight[0, 0] += 1
    save_washed(tiny_model, tiny_tokenizer, unwashed, tmp_path / "none", Save.nothing)
    assert files(tmp_path) == []
    save_washed(tiny_model, tiny_tokenizer, unwashed, tmp_path / "new" / "delta", Save.delta)
    assert files(tmp_path / "new" / "delta") == ["delta.safetensors"]
    delta = load_file(tmp_path / "new" / "delta" / "delta.safetensors")
    assert delta.keys() == {"transformer.h.1.mlp.fc_out.weight"}
    assert torch.equal(delta["transformer.h.1.mlp.fc_out.weight"], weight)
