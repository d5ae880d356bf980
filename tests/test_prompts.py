from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from law.errors import LawError
from law.prompts import equal_length_batches, pad_right, subject_prompt

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.parametrize(
    ("before", "subject", "after"),
    [
        ("", "Kladai Breastom", " plays the"),
        ("The mother tongue of ", "Kladai Breastom", " is"),
        ("Everybody knows ", "Kladai Breastom", ""),
        ("", "Kladai Breastom", ""),
        ("The home of ", "Zoë Çelik-Ångström", " is in"),
        ("The home of ", "毛泽东", " is in"),
        ("The home of ", "Jean-Luc", " is in"),
        ("The home of ", "Louis 14", ", the king, is in"),
        ("The home of ", "Apollo 11", "'s crew is in"),
        ("The home of ", 'Joe "the Cat" O\'Neill', " is in"),
        ('Of "', "Anna", '" we know'),
        ("Known as (", "Anna", ")-the"),
        ("At  home\n", "Anna", "\n speaks"),
    ],
)
def test_the_position_ends_the_subject(
    tiny_tokenizer: PreTrainedTokenizerFast, before: str, subject: str, after: str
) -> None:
    found = subject_prompt(tiny_tokenizer, f"{before}{{}}{after}", subject)
    assert tiny_tokenizer.decode(found.ids) == before + subject + after
    # The tokens up to it spell all of the subject, and without the last one not all of it.
    assert tiny_tokenizer.decode(found.ids[: found.position + 1]) == before + subject
    assert tiny_tokenizer.decode(found.ids[: found.position]) != before + subject


def test_a_token_that_goes_on_beyond_the_subject_counts(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tiny_tokenizer("A the")["input_ids"]) == 2
    assert subject_prompt(tiny_tokenizer, "A {}e", "th").position == 1
    assert subject_prompt(tiny_tokenizer, "A t{}", "he").position == 1


def test_a_token_before_the_text_is_counted(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with_bos = copy.deepcopy(tiny_tokenizer)
    end = (tiny_tokenizer.eos_token, tiny_tokenizer.eos_token_id)
    with_bos.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{end[0]} $A", special_tokens=[end]
    )
    for template in ("{} is", "The home of {} is in"):
        plain = subject_prompt(tiny_tokenizer, template, "Kladai Breastom")
        shifted = subject_prompt(with_bos, template, "Kladai Breastom")
        assert shifted.ids == [tiny_tokenizer.eos_token_id, *plain.ids]
        assert shifted.position == plain.position + 1


@pytest.mark.parametrize("template", ["The king", "{} and {}"])
def test_the_template_has_one_place(tiny_tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    with pytest.raises(LawError, match=r"expected exactly one \{\}"):
        subject_prompt(tiny_tokenizer, template, "Anna")


def test_a_subject_without_a_token(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(LawError, match="The subject '' has no token of its own"):
        subject_prompt(tiny_tokenizer, "The {} is", "")


def memit_position(tokenizer: PreTrainedTokenizerFast, template: str, subject: str) -> int:
    """MEMIT's count, ``get_words_idxs_in_templates``."""
    prefix = template[: template.index("{}")].rstrip(" ")
    tokens = [len(tokenizer(text)["input_ids"]) for text in (prefix, f" {subject}" if prefix else subject)]
    return sum(tokens) - 1


word = st.text("abcdefghijklmnopqrstuvwxyzABKZéöñßЖ中0123456789-'\".,!", min_size=1, max_size=8)


def text(min_size: int) -> st.SearchStrategy[str]:
    return st.lists(word, min_size=min_size, max_size=4).map(" ".join)


@given(before=text(0), subject=text(1), after=text(0))
@example(before="", subject="Anna", after="")
@example(before="", subject="'s 12", after="'s")
@example(before="The", subject="Anna", after="")
def test_the_position_is_memits(
    tiny_tokenizer: PreTrainedTokenizerFast, before: str, subject: str, after: str
) -> None:
    template = " ".join(part for part in (before, "{}", after) if part)
    expected = memit_position(tiny_tokenizer, template, subject)
    assert subject_prompt(tiny_tokenizer, template, subject).position == expected


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs CounterFact and GPT-2's vocabulary in {SHARED}")
def test_the_position_is_memits_on_counterfact() -> None:
    files = [str(SHARED / "gpt2_tokenizer" / name) for name in ("vocab.json", "merges.txt")]
    bpe = Tokenizer(models.BPE.from_file(*files))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    gpt2 = PreTrainedTokenizerFast(tokenizer_object=bpe)
    records = json.loads((SHARED / "counterfact" / "counterfact_1000_full.json").read_text("utf-8"))
    rewrites = [(r["requested_rewrite"]["prompt"], r["requested_rewrite"]["subject"]) for r in records]
    wrong = [
        (prompt, subject)
        for prompt, subject in rewrites
        if subject_prompt(gpt2, prompt, subject).position != memit_position(gpt2, prompt, subject)
    ]
    assert len(rewrites) == 1000 and wrong == []


@given(lengths=st.lists(st.integers(1, 6), max_size=40), batch_size=st.integers(1, 8))
def test_batches_part_the_rows_by_length(lengths: list[int], batch_size: int) -> None:
    batches = list(equal_length_batches(lengths, batch_size))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len({lengths[i] for i in batch}) == 1 for batch in batches)
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    # No more batches than it takes: rows of a length over the batch size, rounded up.
    assert len(batches) == sum(-(-count // batch_size) for count in Counter(lengths).values())


def test_padding_stands_right() -> None:
    ids, mask = pad_right([[5, 6, 7], [8], [9, 3]], 1, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1], [9, 3, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert ids.dtype == mask.dtype == torch.int64
