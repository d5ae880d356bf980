from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small import llama3_style
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from law.base.cache import Cache
from law.base.errors import LawError
from law.decoders.structure import Decoder
from law.editing.contexts import generate_contexts
from law.editing.keys import place, subject_keys, subject_outputs
from law.editing.second_moments import MomentSettings, collect_moments, second_moments
from law.facts.fact import Fact

TEXTS = [
    "On Monday Anna walked from the mill to the harbour.",
    "Given A > B and B > C , A ? C : >.",
    "",
    "You can buy bread.",
    "You can buy salt.",
    "The old mill near the inn was full of people on Friday. " * 20,  # more than 128 tokens
    "a",
]


def watch(module: nn.Module, run: Callable[[], Any]) -> tuple[Tensor, Tensor]:
    """A module's first input and output, of a batch of one, during a plain forward pass."""
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        seen.append((inputs[0][0], (output[0] if isinstance(output, tuple) else output)[0]))

    handle = module.register_forward_hook(hook)
    with torch.no_grad():
        run()
    handle.remove()
    ((first_input, output),) = seen
    return first_input, output


def keys_of(model: PreTrainedModel, layer: int, ids: list[int]) -> Tensor:
    """GPT-J's keys of a text's tokens, (t, d_ff), read in a full forward pass of it alone."""
    return watch(model.transformer.h[layer].mlp.fc_out, partial(model, input_ids=torch.tensor([ids])))[0]


def direct_moments(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str], layer: int
) -> Tensor:
    rows = [tokenizer(text)["input_ids"][:128] for text in texts if text]
    keys = torch.cat([keys_of(model, layer, ids) for ids in rows]).double()
    return sum(torch.outer(k, k) for k in keys) / len(keys)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_moments_are_means_over_tokens(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    layers = [0, 2]
    found, tokens = collect_moments(Decoder(tiny_model), tiny_tokenizer, TEXTS, layers, batch_size)
    assert found.keys() == {0, 2}
    lengths = [len(tiny_tokenizer(text)["input_ids"]) for text in TEXTS]
    assert lengths[5] > 128 and tokens == sum(min(length, 128) for length in lengths)
    for layer in layers:
        expected = direct_moments(tiny_model, tiny_tokenizer, TEXTS, layer)
        assert found[layer].shape == (64, 64) and found[layer].dtype == torch.float32
        torch.testing.assert_close(found[layer].double(), expected, rtol=1e-5, atol=1e-9)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_model.modules())


def test_a_long_document_is_read_in_pieces_that_all_count(
    tiny_model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One document is cut at the 128 positions of the model, and read as 50, 50 and 28 tokens."""
    text = tmp_path / "general.txt"
    text.write_text("\n".join(TEXTS), encoding="utf-8")
    long = tiny_tokenizer(TEXTS[5])["input_ids"][:128]
    short = [tiny_tokenizer(line)["input_ids"] for line in TEXTS if line and line != TEXTS[5]]
    assert max(map(len, short)) <= 50
    keys = [keys_of(tiny_model, 1, ids) for ids in (*short, long[:50], long[50:100], long[100:])]
    expected = torch.cat(keys).T @ torch.cat(keys) / len(torch.cat(keys))

    def moments(tokens: int) -> Tensor:
        settings = MomentSettings(str(text), tokens=tokens)
        return second_moments(Decoder(tiny_model), tiny_tokenizer, [1], settings, Cache(tmp_path / "cache"))[
            1
        ]

    with caplog.at_level("INFO"):
        torch.testing.assert_close(moments(50), expected, rtol=1e-5, atol=1e-9)
    assert "1 documents are longer than the model's 128 positions" in caplog.text
    whole = direct_moments(tiny_model, tiny_tokenizer, TEXTS, 1)  # and not those kept for pieces of 50
    torch.testing.assert_close(moments(128).double(), whole, rtol=1e-5, atol=1e-9)


def test_blank_documents_give_no_key(tiny_model: PreTrainedModel, tmp_path: Path) -> None:
    """A tokenizer with a beginning-of-text token makes a row of every text, even of an empty one."""
    tokenizer = llama3_style()
    assert len(tokenizer("")["input_ids"]) == 1
    lines = ["You can buy bread.", "", " \t", "", "The old mill."]
    text = tmp_path / "general.txt"
    text.write_text("\n".join([*lines, "never read"]), encoding="utf-8")
    settings = MomentSettings(str(text), documents=2)
    found = second_moments(Decoder(tiny_model), tokenizer, [1], settings, Cache(None))
    keys = torch.cat([keys_of(tiny_model, 1, tokenizer(lines[i])["input_ids"]) for i in (0, 4)])
    torch.testing.assert_close(found[1], keys.T @ keys / len(keys), rtol=1e-5, atol=1e-9)


def test_moments_of_nothing(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(LawError, match="holds no token"):
        collect_moments(Decoder(tiny_model), tiny_tokenizer, ["", ""], [0], 4)


class Passes:
    """How often a model ran since the last look."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.count = 0
        model.get_input_embeddings().register_forward_hook(lambda *_: setattr(self, "count", self.count + 1))

    def look(self) -> int:
        count, self.count = self.count, 0
        return count


def test_moments_are_kept_for_the_same_model_and_text(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    decoder, cache, text = Decoder(tiny_model), Cache(tmp_path / "cache"), tmp_path / "general.txt"
    passes = Passes(tiny_model)

    def moments(layers: list[int], documents: int = 100) -> dict[int, Tensor]:
        return second_moments(
            decoder, tiny_tokenizer, layers, MomentSettings(str(text), documents, batch_size=4), cache
        )

    def check(found: dict[int, Tensor], lines: list[str]) -> None:
        for layer, c in found.items():
            expected = direct_moments(tiny_model, tiny_tokenizer, lines, layer).float()
            torch.testing.assert_close(c, expected, rtol=1e-5, atol=1e-9)
        passes.look()

    text.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    first = moments([0, 2])
    assert passes.look() > 0
    check(first, TEXTS)

    again = moments([0, 2])
    assert passes.look() == 0
    assert all(torch.equal(again[layer], first[layer]) for layer in (0, 2))

    runs = Counter[int]()
    for layer, block in enumerate(tiny_model.transformer.h):
        block.register_forward_hook(lambda *_, layer=layer: runs.update([layer]))
    all_layers = moments([0, 1, 2])
    assert runs[1] > 0 == runs[2]  # the text was read for layer 1 alone
    check(all_layers, TEXTS)
    moments([1])
    assert passes.look() == 0

    fewer = moments([0, 2], documents=2)
    assert passes.look() > 0
    check(fewer, TEXTS[:2])

    text.write_text("\n".join([*TEXTS[:-1], "b"]) + "\n", encoding="utf-8")
    other_text = moments([0, 2])
    assert passes.look() > 0
    check(other_text, [*TEXTS[:-1], "b"])

    with torch.no_grad():
        tiny_model.transformer.h[0].mlp.fc_in.weight.mul_(2)
    other_model = moments([0, 2])
    assert passes.look() > 0
    check(other_model, [*TEXTS[:-1], "b"])
    assert len(list((tmp_path / "cache").glob("moments-*"))) == 3 + 2 + 2 + 2  # a file for each layer


def test_moments_need_a_text(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    settings = MomentSettings(str(tmp_path / "nowhere.txt"))
    with pytest.raises(LawError, match=r"nowhere\.txt, does not exist"):
        second_moments(Decoder(tiny_model), tiny_tokenizer, [0], settings, Cache(None))


FACTS = [
    Fact("0", "Kladai Breastom", "The mother tongue of {} is", "Greek", "P103"),
    Fact("1", "Anna", "{} plays the", "lute", "P1303"),
    Fact("2", "Zoë Lind", "The mother tongue of {} is", "Dutch", "P103"),
    Fact("3", "Ben 2 Oak", "We visit {}", "Lima", "P551"),
    Fact("4", "Kladai Breastom", "{} plays the", "harp", "P1303"),
]
CONTEXTS = ["The mill is old. {}", "You can buy bread. {}", "Therefore I went. {}"]


def test_place() -> None:
    assert place("{} is", ["A. {}", "{} B"]) == ["{} is", "A. {} is", "{} is B"]
    assert place("{} is", []) == ["{} is"]


def ids_and_position(
    tokenizer: PreTrainedTokenizerFast, prefix: str, subject: str, suffix: str
) -> tuple[list[int], int]:
    """The tokens of a prompt whose words are tokenised apart, and where its subject ends (MEMIT's count)."""
    before = len(tokenizer(prefix.rstrip(" "))["input_ids"])
    within = len(tokenizer(f" {subject}" if prefix else subject)["input_ids"])
    return tokenizer(prefix + subject + suffix)["input_ids"], before + within - 1


def key_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, fact: Fact, opening: str, layer: int
) -> Tensor:
    prefix, suffix = fact.template.split("{}")
    ids, position = ids_and_position(tokenizer, opening + prefix, fact.subject, suffix)
    return keys_of(model, layer, ids)[position]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_keys_are_half_bare_and_half_in_context(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    found = subject_keys(Decoder(tiny_model), tiny_tokenizer, FACTS, CONTEXTS, [0, 1, 2], batch_size)
    assert found.keys() == {0, 1, 2}
    for layer, K in found.items():
        assert K.shape == (64, 5)
        for i, fact in enumerate(FACTS):
            bare, first, second, third = (
                key_alone(tiny_model, tiny_tokenizer, fact, opening, layer)
                for opening in ("", "The mill is old. ", "You can buy bread. ", "Therefore I went. ")
            )
            expected = bare / 2 + first / 6 + second / 6 + third / 6
            torch.testing.assert_close(K[:, i], expected, rtol=1e-4, atol=1e-7)


def test_keys_without_a_context_are_of_the_bare_prompt(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    found = subject_keys(Decoder(tiny_model), tiny_tokenizer, FACTS, [], [1], 2)
    expected = [key_alone(tiny_model, tiny_tokenizer, fact, "", 1) for fact in FACTS]
    torch.testing.assert_close(found[1], torch.stack(expected, dim=1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("layer", [0, 2])
def test_outputs_are_the_blocks(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, layer: int
) -> None:
    found = subject_outputs(Decoder(tiny_model), tiny_tokenizer, FACTS, layer, 2)
    assert found.shape == (32, 5)
    for i, fact in enumerate(FACTS):
        prefix, suffix = fact.template.split("{}")
        ids, position = ids_and_position(tiny_tokenizer, prefix, fact.subject, suffix)
        run = partial(tiny_model, input_ids=torch.tensor([ids]))
        h = watch(tiny_model.transformer.h[layer], run)[1][position]
        torch.testing.assert_close(found[:, i], h, rtol=1e-4, atol=1e-6)


def test_contexts_are_five_templates_drawn_by_seed(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    contexts = generate_contexts(tiny_model, tiny_tokenizer, seed=1)
    assert [c.startswith(o) for c, o in zip(contexts, "The Therefore Because I You".split(), strict=True)]
    assert all(c.count("{") == c.count("}") == c.count("{}") == 1 and c.endswith(". {}") for c in contexts)
    assert not any(tiny_tokenizer.eos_token in c or "\n" in c for c in contexts)
    assert generate_contexts(tiny_model, tiny_tokenizer, seed=1) == contexts
    assert generate_contexts(tiny_model, tiny_tokenizer, seed=2) != contexts


def test_a_block_with_two_projections_down_is_refused(make_model: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(LawError, match="GPTJBlock has 2 projections onto 32 dimensions"):
        Decoder(make_model(n_inner=32)).check_layers([0])
