from __future__ import annotations

import copy
import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from small import GPT2_FILES, TOKENIZERS, gpt2_style, published_gpt2, random_model
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import BertJapaneseTokenizer, PreTrainedTokenizerFast

from law.base.errors import LawError
from law.decoders.greedy_decoding import greedy_answers
from law.decoders.prompts import (
    AnsweredPrompt,
    answered_prompts,
    check_length,
    equal_length_batches,
    pad_right,
    subject_prompt,
    token_ids,
)
from law.decoders.structure import Decoder
from law.facts.fact import Fact, Question
from law.tuning.training_rows import Row, fact_rows

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def published() -> PreTrainedTokenizerFast:
    if not GPT2_FILES.is_dir():
        pytest.skip(f"needs GPT-2's vocabulary in {GPT2_FILES}")
    return published_gpt2()


def check_position(tokenizer: PreTrainedTokenizerFast, before: str, subject: str, after: str) -> None:
    """The tokens up to the position spell all of the subject, and without the last one not all of it."""
    found = subject_prompt(tokenizer, f"{before}{{}}{after}", subject)
    assert found.ids == tokenizer(before + subject + after)["input_ids"]
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    assert decode(found.ids) == before + subject + after
    assert before + subject in decode(found.ids[: found.position + 1])
    assert before + subject not in decode(found.ids[: found.position])
    assert subject not in decode(found.ids[: found.position])


CASES = [
    ("", "Anna", " plays the"),
    ("The mother tongue of ", "Danielle Darrieux", " is"),
    ("Everybody knows ", "Danielle Darrieux", ""),
    ("", "Danielle Darrieux", ""),
    ("The home of ", "Zoë Çelik-Ångström", " is in"),
    ("The home of ", "毛泽东", " is in"),
    ("", "Москва", ", the city, is in"),
    ("The home of ", "Jean-Luc", " is in"),
    ("The home of ", "Louis 14", ", the king, is in"),
    ("The home of ", "Apollo 11", "'s crew is in"),
    ("", "Anna", "'s crew is in"),
    ("The home of ", 'Joe "the Cat" O\'Neill', " is in"),
    ('Of "', "Anna", '" we know'),
    ("Known as (", "Anna", ")-the"),
    ("At home\n", "Anna", "\n speaks"),
]


@pytest.mark.parametrize(("before", "subject", "after"), CASES)
def test_the_position_ends_the_subject(
    tokenizer: PreTrainedTokenizerFast, before: str, subject: str, after: str
) -> None:
    if "\n" in before and tokenizer.convert_tokens_to_ids("\n") == tokenizer.unk_token_id:
        after = before = before.replace("\n", " ")  # NFKC makes it a space
    check_position(tokenizer, before, subject, after)


@pytest.mark.parametrize(("before", "subject", "after"), CASES)
def test_the_position_in_gpt2s_own_tokens(
    published: PreTrainedTokenizerFast, before: str, subject: str, after: str
) -> None:
    check_position(published, before, subject, after)


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


def test_a_subject_that_leaves_no_token() -> None:
    tokenizer = gpt2_style()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(LawError, match=r"has no token of its own in 'The \{\} is'"):
        subject_prompt(tokenizer, "The {} is", "\u200b")


def test_a_space_after_the_subject_is_the_next_words(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = subject_prompt(tokenizer, "The home of {} is", "Anna")
    assert subject_prompt(tokenizer, "The home of {}is", "Anna ") == plain


def test_a_tokenizer_without_offsets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[PAD]\nAnna\n", encoding="utf-8")
    with pytest.raises(LawError, match="BertJapaneseTokenizer does not tell which characters"):
        slow = BertJapaneseTokenizer(
            str(tmp_path / "vocab.txt"), word_tokenizer_type="basic", subword_tokenizer_type="wordpiece"
        )
        subject_prompt(slow, "{} is", "Anna")


def memit_position(tokenizer: PreTrainedTokenizerFast, template: str, subject: str) -> int:
    """MEMIT's count, ``get_words_idxs_in_templates``, with what the tokenizer puts first counted once."""
    prefix = template[: template.index("{}")].rstrip(" ")
    own = tokenizer(f" {subject}" if prefix else subject, add_special_tokens=False)["input_ids"]
    return len(tokenizer(prefix)["input_ids"]) + len(own) - 1


word = st.text("abcdefghijklmnopqrstuvwxyzABKZéöñßЖ中0123456789-'\".,!", min_size=1, max_size=8)


def text(min_size: int) -> st.SearchStrategy[str]:
    return st.lists(word, min_size=min_size, max_size=4).map(" ".join)


@pytest.mark.parametrize("kind", ["gpt2", "llama3"])
def test_the_position_is_memits(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()

    @given(before=text(0), subject=text(1), after=text(0))
    @example(before="", subject="Anna", after="")
    @example(before="", subject="'s 12", after="'s")
    @example(before="The", subject="Anna", after="")
    def holds(before: str, subject: str, after: str) -> None:
        template = " ".join(part for part in (before, "{}", after) if part)
        expected = memit_position(tokenizer, template, subject)
        assert subject_prompt(tokenizer, template, subject).position == expected

    holds()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_position_ends_any_subject(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()

    @given(before=text(0), subject=text(1), after=text(0), glue=st.sampled_from([" ", "", "'s "]))
    def holds(before: str, subject: str, after: str, glue: str) -> None:
        before = f"{before} " if before else ""
        assume(subject not in before + subject[:-1])
        check_position(tokenizer, before, subject, f"{glue}{after}" if after else "")

    holds()


@pytest.mark.skipif(not (SHARED / "counterfact").is_dir(), reason=f"needs CounterFact in {SHARED}")
def test_the_position_is_memits_on_counterfact(published: PreTrainedTokenizerFast) -> None:
    records = json.loads((SHARED / "counterfact" / "counterfact_1000_full.json").read_text("utf-8"))
    rewrites = [(r["requested_rewrite"]["prompt"], r["requested_rewrite"]["subject"]) for r in records]
    wrong = [
        (prompt, subject)
        for prompt, subject in rewrites
        if subject_prompt(published, prompt, subject).position != memit_position(published, prompt, subject)
    ]
    assert len(rewrites) == 1000 and wrong == []


def test_prompts_longer_than_the_model_are_refused_where_they_are_known() -> None:
    tokenizer = gpt2_style()
    for name in ("gpt2", "llama"):
        model = random_model(name, len(tokenizer))
        check_length(model, 64, "A prompt")
        prompt = "a," * 28 + "a"  # 57 tokens, which leave no room for an answer of ten
        assert len(tokenizer(prompt)["input_ids"]) == 57
        with pytest.raises(
            LawError, match=r"The prompt 'a,a,.* with its answer takes 67 tokens; expected at most 64"
        ):
            greedy_answers(model, tokenizer, [prompt], 1)
        with pytest.raises(LawError, match="A prompt takes 65 tokens; expected at most 64"):
            Decoder(model).hidden_states(torch.zeros(1, 65, dtype=torch.long), None, 0)


# --- a prompt with its object ---------------------------------------------------------------------


def characters(merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """BPE over characters, a space among them, with these merges; ids in the order of ``x在中国 [b``."""
    vocab = {token: i for i, token in enumerate([*"x在中国 [b", *map("".join, merges), "<end>"])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab, merges)), eos_token="<end>")


@pytest.mark.parametrize(
    ("merges", "prompt", "answer", "expected"),
    [
        ([], "x在", "中国", AnsweredPrompt([0, 1, 2, 3], 2, 2)),
        ([("在", "中")], "x在", "中国", AnsweredPrompt([0, 7, 3], 1, 1)),  # 在中 holds some of the prompt
        ([("在", "中")], "在", "中国", AnsweredPrompt([7, 3], 0, 0)),
        ([("[", "b")], "x [", "b", AnsweredPrompt([0, 4, 7], 2, 2)),
        ([], "x", "b", AnsweredPrompt([0, 4, 6], 1, 2)),  # the space is a token of its own
        ([(" ", "b")], "x", "bb", AnsweredPrompt([0, 7, 6], 1, 1)),
        ([(" ", "b")], "x ", " bb", AnsweredPrompt([0, 7, 6], 1, 1)),
    ],
)
def test_where_the_objects_tokens_begin(
    merges: list[tuple[str, str]], prompt: str, answer: str, expected: AnsweredPrompt
) -> None:
    assert answered_prompts(characters(merges), [Question(prompt, answer)]) == [expected]


def test_an_object_that_leaves_no_token_is_refused() -> None:
    tokenizer = characters([])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(LawError, match=r"The object '\\u200b' has no token of its own behind 'x'"):
        answered_prompts(tokenizer, [Question("x", "b"), Question("x", "\u200b")])


def test_a_fact_is_one_text_for_all_who_read_it(tokenizer: PreTrainedTokenizerFast) -> None:
    """A space at the template's end is dropped by keys, decoding, likelihood and training rows alike."""
    plain = Fact("0", "Anna", "The home of {} is in", "Rome", "")
    spaced = Fact("0", "Anna", "The home of {} is in ", " Rome ", "")
    ids = tokenizer("The home of Anna is in Rome")["input_ids"]
    given = tokenizer("The home of Anna is in")["input_ids"]
    for fact in (plain, spaced):
        assert subject_prompt(tokenizer, fact.template, fact.subject).ids == given
        assert token_ids(tokenizer, [fact.prompt]) == [given]
        question = Question(fact.template.replace("{}", "Anna"), fact.object)
        answered = AnsweredPrompt(ids, len(given), len(given))
        assert answered_prompts(tokenizer, [fact, question]) == [answered, answered]
        assert fact_rows(tokenizer, [fact]) == [Row(ids, ids)]


# --- batches ------------------------------------------------------------------------------------


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
