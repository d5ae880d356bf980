"""Target, contexts and answers with every kind of tokenizer: spaces, beginnings of text and bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import TOKENIZERS, all_targets, gpt2_style, llama2_style, random_model
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from law.base.errors import LawError
from law.decoders.greedy_decoding import greedy_answers
from law.decoders.prompts import end_of_text_target, subject_prompt
from law.decoders.structure import Decoder
from law.editing.contexts import OPENINGS, generate_contexts
from law.editing.target_values import TargetSettings
from law.facts.fact import Fact


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


WORDS = st.text("abcdefghijklmnopqrstuvwxyzABKZéöñßЖ中0123456789-'\".,!", min_size=1, max_size=8)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_target_is_what_follows_any_prompt(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    target = end_of_text_target(tokenizer)
    assert [t in ("Ġ", "▁", tokenizer.eos_token) for t in tokenizer.convert_ids_to_tokens(target)] == [
        True
    ] * 2

    @given(prompt=st.lists(WORDS, min_size=1, max_size=4).map(" ".join))
    def holds(prompt: str) -> None:
        together = tokenizer(f"{prompt} {tokenizer.eos_token}")["input_ids"]
        assert together == tokenizer(prompt)["input_ids"] + target

    holds()


def test_the_target_where_the_space_is_not_its_own_token() -> None:
    """Alone, " </s>" takes three tokens of Llama 2's kind and would ask for two spaces after the prompt."""
    llama2 = llama2_style()
    alone = llama2(" </s>", add_special_tokens=False)["input_ids"]
    assert llama2.convert_ids_to_tokens(alone) == ["▁", "▁", "</s>"]
    assert llama2.convert_ids_to_tokens(end_of_text_target(llama2)) == ["▁", "</s>"]
    # an end-of-text that swallows the space before it is the whole target
    stripping = llama2_style()
    stripping.add_special_tokens({"eos_token": AddedToken("<end>", lstrip=True, special=True)})
    assert end_of_text_target(stripping) == [stripping.eos_token_id]


def test_a_tokenizer_without_end_of_text_is_refused() -> None:
    tokenizer = gpt2_style()
    tokenizer.eos_token = None
    with pytest.raises(LawError, match="has no end-of-text token"):
        end_of_text_target(tokenizer)
    with pytest.raises(LawError, match="has no end-of-text token"):
        generate_contexts(random_model("llama", len(tokenizer)), tokenizer, seed=0)


FACTS = [
    Fact("0", "Zoë Lind", "The mother tongue of {} is", "Dutch", "P103"),
    Fact("1", "Москва", "{}, the city, is in", "Russia", "P17"),
]


def test_the_first_loss_of_z_is_that_of_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    """NLL of end-of-text, by plain logits of the whole text with " </s>" written out, over contexts."""
    model = random_model("llama", len(tokenizer))
    contexts = ["He said. {}"]
    settings = TargetSettings(steps=1)
    _, trace = all_targets(Decoder(model), tokenizer, FACTS, contexts, 1, settings)
    for i, fact in enumerate(FACTS):
        means = []
        for prompt in (fact.prompt, f"He said. {fact.prompt}"):
            start = len(tokenizer(prompt)["input_ids"])
            ids = torch.tensor([tokenizer(f"{prompt} {tokenizer.eos_token}")["input_ids"]])
            log_p = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
            means.append(-log_p.gather(1, ids[0, start:, None]).mean().item())
        assert trace.nll[0, i].item() == pytest.approx(sum(means) / 2, rel=1e-4)
    assert trace.kl[0].abs().max() < 1e-6


def test_contexts_begin_a_text_once(tokenizer: PreTrainedTokenizerFast) -> None:
    model = random_model("llama", len(tokenizer))
    contexts = generate_contexts(model, tokenizer, seed=0)
    assert len(contexts) == 5
    puts_bos_first = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    for context, opening in zip(contexts, OPENINGS, strict=True):
        assert context.startswith(opening) and context.endswith(". {}")
        ids = subject_prompt(tokenizer, context.replace("{}", "The home of {} is"), "Anna").ids
        specials = [i for i in ids if i in tokenizer.all_special_ids and i != tokenizer.unk_token_id]
        assert specials == ([tokenizer.bos_token_id] if puts_bos_first else [])


def test_answers_hold_no_special_tokens_nor_depend_on_the_batch(tokenizer: PreTrainedTokenizerFast) -> None:
    model = random_model("llama", len(tokenizer))
    prompts = [fact.prompt for fact in FACTS] + ["The home of Anna is in"]
    together = greedy_answers(model, tokenizer, prompts, batch_size=8)
    assert together == [greedy_answers(model, tokenizer, [prompt], 1)[0] for prompt in prompts]
    for prompt, answer in zip(prompts, together, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        for _ in range(10):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        new = ids[0, -10:].tolist()
        if tokenizer.eos_token_id in new:
            new = new[: new.index(tokenizer.eos_token_id)]
        assert answer == tokenizer.decode(new, skip_special_tokens=True)
