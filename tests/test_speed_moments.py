"""Second moments, text and answers: made fast, and equal to the textbook's; and the benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import model as textbook_model
from reference import stages as textbook
from small import rows_of
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast

from law.base.cache import Cache, seconds_of
from law.base.errors import LawError
from law.base.files import FileHashes
from law.decoders.greedy_decoding import greedy_answers, recalled, recalls
from law.decoders.structure import Decoder
from law.editing import second_moments as moments_module
from law.editing.second_moments import MomentSettings, collect_moments, second_moments
from law.facts.fact import Question

# --- second moments -----------------------------------------------------------------------------

DOCUMENTS = [
    "On Monday Anna walked from the mill to the harbour.",
    "Given A > B and B > C , A ? C : >.",
    "",
    "You can buy bread.",
    "The old mill near the inn was full of people on Friday. " * 20,
    "a",
    "You can buy salt.",
]


@pytest.mark.parametrize("batch_size", [None, 1, 40, 10_000])
def test_moments_are_the_textbooks(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, batch_size: int | None
) -> None:
    texts = [text[:300] for text in DOCUMENTS]
    found, _ = collect_moments(Decoder(tiny_model), tiny_tokenizer, texts, [0, 2], batch_size)
    for layer, c in found.items():
        expected = textbook.second_moment(
            tiny_model, tiny_tokenizer, textbook_model.GPTJ, layer, [text for text in texts if text]
        )
        torch.testing.assert_close(c.double(), expected, rtol=1e-5, atol=1e-9)


def test_killed_moments_go_on_and_leave_nothing_half_done(
    tiny_model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, cache = tmp_path / "general.txt", Cache(tmp_path / "cache")
    text.write_text("\n".join(DOCUMENTS) + "\n", encoding="utf-8")
    settings = MomentSettings(str(text), save_every=0.0)
    decoder = Decoder(tiny_model)
    expected = second_moments(decoder, tiny_tokenizer, [0, 2], settings, Cache(None))

    monkeypatch.setattr(moments_module, "CHUNK", 2)
    grams, documents = moments_module._grams, []

    def counted(decoder: Decoder, rows: list[list[int]], layers: list[int]) -> Any:
        documents.extend(rows)
        if fail_at is not None and len(documents) > fail_at:
            raise KeyboardInterrupt
        return grams(decoder, rows, layers)

    monkeypatch.setattr(moments_module, "_grams", counted)
    fail_at: int | None = 4  # in the third chunk
    with pytest.raises(KeyboardInterrupt):
        second_moments(decoder, tiny_tokenizer, [0, 2], settings, cache)
    (left,) = cache.folder.iterdir()
    assert left.name.endswith(".part.safetensors")
    spent = seconds_of(left)
    assert spent > 0
    fail_at = None
    documents.clear()
    found = second_moments(decoder, tiny_tokenizer, [0, 2], settings, cache)
    assert len(documents) == 2  # the chunk left: ["a", "You can buy salt."]
    for layer, c in expected.items():
        torch.testing.assert_close(found[layer], c, rtol=1e-6, atol=1e-9)
    kept = [*cache.folder.iterdir()]  # one of each layer
    assert len(kept) == 2 and not any(path.name.endswith("part.safetensors") for path in kept)
    # what the killed process spent counts as well, now and for whoever takes C from the cache
    assert cache.spared_s == spent < sum(map(seconds_of, kept))


def test_sums_that_nobody_goes_on_from_are_removed(
    tiny_model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, cache = tmp_path / "general.txt", Cache(tmp_path / "cache")
    text.write_text("\n".join(DOCUMENTS) + "\n", encoding="utf-8")
    settings, decoder = MomentSettings(str(text), save_every=0.0), Decoder(tiny_model)
    monkeypatch.setattr(moments_module, "CHUNK", 2)

    def parts_of(layers: list[int], settings: MomentSettings, processes: int = 1) -> set[Path]:
        """What a pass leaves that is killed after it has saved its sums, in the first of some processes."""

        def killed(path: Path, tensors: Any) -> None:
            save(path, tensors)
            raise KeyboardInterrupt

        before = {*cache.folder.glob("*.part.safetensors")}
        with monkeypatch.context() as patch:
            save = moments_module.save_tensors
            patch.setattr(moments_module, "save_tensors", killed)
            patch.setattr(moments_module, "world", lambda: processes)
            with pytest.raises(KeyboardInterrupt):
                second_moments(decoder, tiny_tokenizer, layers, settings, cache)
        return {*cache.folder.glob("*.part.safetensors")} - before

    more, two = parts_of([0, 1], settings), parts_of([0], settings, processes=2)
    others = parts_of([2], settings) | parts_of([0], MomentSettings(str(text), documents=5, save_every=0.0))
    assert [len(each) for each in (more, two, others)] == [1, 1, 2]
    second_moments(decoder, tiny_tokenizer, [0], settings, cache)
    # sums of another layer, and of other documents, are still of use
    assert {*cache.folder.glob("*.part.safetensors")} == others
    # a slower pass over the same layer saves its sums after all
    (late,) = two
    late.write_bytes(b"")
    second_moments(decoder, tiny_tokenizer, [0], settings, cache)
    assert {*cache.folder.glob("*.part.safetensors")} == others


def test_moments_out_of_memory_count_no_token_twice(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, tokens = collect_moments(Decoder(tiny_model), tiny_tokenizer, DOCUMENTS, [0, 2], 1)
    grams, refused = moments_module._grams, []

    def small(decoder: Decoder, rows: list[list[int]], layers: list[int]) -> Any:
        found = grams(decoder, rows, layers)
        if len(rows) > 2:
            refused.append(len(rows))
            raise torch.OutOfMemoryError("no room")
        return found

    monkeypatch.setattr(moments_module, "_grams", small)
    found, again = collect_moments(Decoder(tiny_model), tiny_tokenizer, DOCUMENTS, [0, 2], 10_000)
    assert refused and again == tokens
    for layer, c in expected.items():
        torch.testing.assert_close(found[layer], c, rtol=1e-6, atol=1e-9)


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_text_from_lines_json_lines_and_data_sets(tmp_path: Path) -> None:
    lines = tmp_path / "a.txt"
    lines.write_text("one\n\n \t\nthree Ж", encoding="utf-8")
    assert list(MomentSettings(str(lines)).read()) == ["one", "three Ж"]
    second = jsonl(tmp_path / "wiki" / "2.jsonl", [{"text": "c", "body": "C"}])
    first = jsonl(tmp_path / "wiki" / "1.jsonl", [{"text": "a"}, {"text": "\n "}, {"text": "b\nb"}])
    both = MomentSettings(str(tmp_path / "wiki" / "*.jsonl"))
    both.check()
    assert list(both.read()) == ["a", "b\nb", "c"]
    assert list(MomentSettings(str(second), column="body").read()) == ["C"]
    before = both.identity(FileHashes(None))
    jsonl(first, [{"text": "a"}, {"text": "bb"}])
    assert both.identity(FileHashes(None)) != before
    folder = jsonl(tmp_path / "set" / "train.jsonl", [{"body": "x"}, {"body": ""}, {"body": "y"}]).parent
    dataset = MomentSettings(dataset=str(folder), column="body")
    dataset.check()
    assert list(dataset.read()) == ["x", "y"]


def wrong_texts(tmp_path: Path) -> Iterator[tuple[MomentSettings, str]]:
    folder = str(jsonl(tmp_path / "set" / "train.jsonl", [{"body": "x"}]).parent)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    yield MomentSettings(), "expected one of them"
    yield MomentSettings("a.txt", dataset="b"), "expected one of them"
    yield MomentSettings(""), "does not exist"
    yield MomentSettings(str(tmp_path / "*.text")), "does not exist"
    yield MomentSettings(str(tmp_path)), "is no file"
    (tmp_path / "latin").write_bytes("Zoë".encode("latin-1"))
    yield MomentSettings(str(tmp_path / "latin")), "latin is not UTF-8 text"
    yield MomentSettings(dataset="wikimedia/wikipedia", config="20231101.en"), "moments.text to a local file"
    yield MomentSettings(dataset=folder, split="test"), "Available splits"
    yield (
        MomentSettings(dataset=folder),
        "holds no text in 'text'; it has: body. Set the method's moments.column",
    )
    yield MomentSettings(str(broken)), r"broken.jsonl, line 2: not valid JSON"
    yield MomentSettings(str(jsonl(tmp_path / "list.jsonl", [["a"]]))), r"line 1, holds no text in 'text'"


def test_text_that_cannot_be_read_is_refused_in_words(tmp_path: Path) -> None:
    for settings, message in wrong_texts(tmp_path):
        with pytest.raises(LawError, match=message):
            settings.check()
            list(settings.read())


# --- answers ------------------------------------------------------------------------------------

PROMPTS = [
    "Anna",
    "The mother tongue of Kladai Breastom is",
    "Because of the rain",
    "Ben",
    "Anna",
    "Given A > B and",
]


def questions(objects: list[str]) -> list[Question]:
    return [Question(prompt, wanted) for prompt, wanted in zip(PROMPTS, objects, strict=True)]


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_recalled_is_what_the_whole_answers_say_and_stops_there(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, batch_size: int | None
) -> None:
    answers = greedy_answers(tiny_model, tiny_tokenizer, PROMPTS, batch_size)
    assert answers == [
        textbook.greedy_answer(tiny_model, tiny_tokenizer, prompt).replace(tiny_tokenizer.eos_token, "")
        for prompt in PROMPTS
    ]
    rows = rows_of(tiny_model.transformer.h[0])
    # what stands at the start, in the middle, at the end of the answer, and nowhere
    objects = [answer[i : i + 3] for answer, i in zip(answers, (0, 5, -3, 0, 8, 0), strict=True)]
    objects = [wanted.strip() or "nowhere" for wanted in objects]
    objects[3] = "not said"
    expected = [recalls(answer, wanted) for answer, wanted in zip(answers, objects, strict=True)]
    found = recalled(tiny_model, tiny_tokenizer, questions(objects), batch_size)
    assert found == expected and set(found) == {True, False}
    assert sum(count for count, _ in rows) < 10 * len(PROMPTS)
    rows.clear()
    recalled(tiny_model, tiny_tokenizer, questions(["not said"] * 6), batch_size)
    assert sum(count for count, _ in rows) == 10 * len(PROMPTS)


def test_a_model_that_keeps_nothing_answers_alike(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = greedy_answers(tiny_model, tiny_tokenizer, PROMPTS, 2)
    objects = [answer[:4] for answer in expected]
    forward = tiny_model.forward

    def forgetful(input_ids: torch.Tensor, **_: Any) -> CausalLMOutputWithPast:
        return CausalLMOutputWithPast(logits=forward(input_ids=input_ids, use_cache=False).logits)

    monkeypatch.setattr(tiny_model, "forward", forgetful)
    assert greedy_answers(tiny_model, tiny_tokenizer, PROMPTS, 2) == expected
    assert all(recalled(tiny_model, tiny_tokenizer, questions(objects), 3))


# --- the benchmark ------------------------------------------------------------------------------


@pytest.mark.slow
def test_benchmark_compares_and_times_every_stage(tmp_path: Path) -> None:
    """On a tiny shape, with made-up facts and text; no time is judged."""
    script = Path(__file__).parents[1] / "experiments" / "benchmark.py"
    command = [sys.executable, str(script), "--shape", "tiny", "--repeats", "1"]
    command += ["--data", str(tmp_path / "none"), "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, timeout=600)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["stage"] for row in rows] == [
        "z*",
        "second moments, 3 layers",
        "known facts",
        *["ascent, float64"] * 3,
        *["ascent, float32"] * 3,
    ]
    for row in rows:
        assert row["ratio_min"] <= row["ratio_median"] <= row["ratio_max"]
        assert row["growth"]["ours"]["n"][-1] >= row["n"] > 0
        assert row["ours_s"] > 0 and row["ours_flop_per_s"] > 0
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000
