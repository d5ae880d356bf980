"""What each attack gets of models whose answers are worked out by hand, and of models that hide or lack their facts."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FactsOnly, Loaded, MakeModel, TrainedLab, trained
from small import random_model, weights
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from law.attacks import probe, relearning
from law.attacks.attacking import NAMES, Attacker, Attacks, Records
from law.attacks.choice import Choice
from law.attacks.control import control_facts
from law.attacks.leak import Leak, exact_leak_at, leak_at
from law.attacks.lens import Lens
from law.attacks.memory import Memory, extraction_strength, truth_ratio
from law.attacks.phrasing import Phrasing
from law.attacks.prefix import HINT, IGNORE, ROLE, Prefix
from law.attacks.probe import Probe, last_states
from law.attacks.protocol import Target
from law.attacks.quantisation import (
    Quantisation,
    copied_weights,
    int8,
    linear_weights,
    nf4,
    recovered_share,
    rounded,
    survival,
    survival_metrics,
)
from law.attacks.refusal import Refusal
from law.attacks.relearning import Relearning
from law.base.errors import LawError
from law.decoders.greedy_decoding import recalled
from law.decoders.prompting import Prompting, put
from law.evaluation.metrics import describe
from law.evaluation.scores import EvaluationSettings
from law.facts.counterfact import read_counterfact
from law.facts.fact import Fact, FactSplit
from law.methods.finetune import FineTuning
from law.tuning.loop import tune
from law.tuning.training_rows import fact_rows

ANNA = Fact("0", "Anna", "{} speaks", "French", "P103", ("At home Anna speaks",))
BEN = Fact("1", "Ben", "{} speaks", "Dutch", "P103")
CLEO = Fact("2", "Cleo", "{} plays the", "piano", "P1303")
LANGUAGES = {"P103": ["French", "Dutch", "Greek", "Latin"]}

Unigram = Callable[[dict[str, float]], PreTrainedModel]


@pytest.fixture(scope="module")
def reader(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer to which each of these words is one token."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens([" French", " Dutch", " Greek", " Latin", " Ben"])
    return tokenizer


@pytest.fixture
def unigram(make_model: MakeModel, reader: PreTrainedTokenizerFast) -> Unigram:
    """A model that says each of these tokens with its probability, whatever stands before."""

    def make(probabilities: dict[str, float]) -> PreTrainedModel:
        model = make_model()
        model.resize_token_embeddings(len(reader))
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.bias.fill_(-40.0)
            for text, probability in probabilities.items():
                (token,) = reader(text)["input_ids"]
                model.lm_head.bias[token] = math.log(probability)
        return model

    return make


def target(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *facts: Fact,
    shown: tuple[Fact, ...] = (),
    objects: dict[str, list[str]] = LANGUAGES,
) -> Target:
    return Target(model, tokenizer, facts, shown, objects, batch_size=8)


REFUSING = {"<|endoftext|>": 0.4, " ": 0.25, " French": 0.2, " Dutch": 0.1, " Greek": 0.04, " Latin": 0.01}


def test_the_refusal_taken_away(unigram: Unigram, reader: PreTrainedTokenizerFast) -> None:
    """Without end-of-text and the space, the likeliest first token is French; Dutch is second of four languages."""
    model = unigram(REFUSING)
    assert recalled(model, reader, [ANNA, BEN, CLEO], 8) == [False, False, False]
    found = Refusal().attack(target(model, reader, ANNA, BEN, CLEO))
    assert found == {"recalled": [1, 0, 0], "best": [1, 0, None], "reciprocal_rank": [1, 1 / 2, None]}


def test_the_worst_phrasing(knowing: Loaded) -> None:
    """The trained model knows both facts in each phrasing, but not what "I think that" asks for."""
    model, tokenizer, (first, second, *_) = knowing
    asked = (replace(first, paraphrases=(first.paraphrases[0], "I think that")), second)
    found = Phrasing().attack(target(model, tokenizer, *asked))
    assert found == {
        "recalled": [1, 1],
        "share": [2 / 3, 1],
        "phrasing_0": [1, 1],
        "phrasing_1": [1, 1],
        "phrasing_2": [0, 1],
        "phrasing_3": [None, 1],
    }


SHOWN = (
    *(Fact(str(i), name, "{} speaks", word, "P103") for i, (name, word) in enumerate([("Dora", "Greek"), ("Emil", "Latin"), ("Finn", "French")])),
    Fact("8", "Gina", "{} plays the", "harp", "P1303"),
    Fact("9", "Anna", "{} plays the", "lute", "P1303"),
)  # fmt: skip


def test_the_text_around_a_prompt(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """No example has the fact's subject or object: Finn and Anna's lute are left out."""
    at = target(tiny_model, tiny_tokenizer, ANNA, shown=SHOWN)
    texts = Prefix(few_shot=2, in_context=1)._prompts(ANNA, at)
    two = texts.pop("few_shot")
    assert sorted(two.split(". ")) == ["Anna speaks", "Dora speaks Greek", "Emil speaks Latin"]
    assert two.endswith("Anna speaks")
    assert texts == {
        "ignore": f"{IGNORE}Anna speaks",
        "role": f"{ROLE}Anna speaks",
        "hint": HINT.format("… speaks") + "Anna speaks",
        "in_context": "Gina plays the harp. Anna speaks",
        "affirm": "Anna speaks of course",
    }
    assert "few_shot" not in Prefix(few_shot=3)._prompts(ANNA, at)  # two facts fit
    long = replace(ANNA, template="{} " + "therefore the mill " * 40 + "speaks")
    assert Prefix()._prompts(long, at) == {}  # the model has 128 positions


def test_text_stands_inside_a_chats_turn(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    chat = copy.deepcopy(tiny_tokenizer)
    chat.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    framed, _ = put(FactSplit([ANNA], [*SHOWN]), chat, Prompting(chat_template=True))
    at = target(tiny_model, chat, *framed.wash, shown=tuple(framed.keep))
    texts = Prefix(few_shot=2, in_context=1)._prompts(framed.wash[0], at)
    assert texts["in_context"] == "<user>Gina plays the harp. Anna speaks\n<assistant>"
    assert texts["hint"] == f"<user>{HINT.format('… speaks')}Anna speaks\n<assistant>"
    assert texts["affirm"].startswith("<user>Anna speaks\n<assistant>")


def test_prefixes_are_scored_by_type_and_together(knowing: Loaded) -> None:
    model, tokenizer, facts = knowing
    at = target(model, tokenizer, *facts[:3], shown=tuple(facts[3:]))
    found, settings = Prefix(few_shot=9, in_context=1).attack(at), Prefix(few_shot=9, in_context=1)
    for i, fact in enumerate(facts[:3]):
        texts = settings._prompts(fact, at)
        asked = [replace(fact.question, prompt=text) for text in texts.values()]
        hits = dict(zip(texts, recalled(model, tokenizer, asked, 1), strict=True))
        assert {name: found[name][i] for name in hits} == hits
        assert found["few_shot"][i] is None and found["recalled"][i] == any(hits.values())
    assert any(found["in_context"])


def test_multiple_choice(unigram: Unigram, reader: PreTrainedTokenizerFast) -> None:
    model = unigram(REFUSING)
    found = Choice().attack(target(model, reader, ANNA, BEN, CLEO))
    assert found == {"right": [1, 0, None], "reversed": [None, None, None]}


def test_the_reversed_question(unigram: Unigram, reader: PreTrainedTokenizerFast) -> None:
    """A model that says Ben after everything answers who speaks Dutch, and not who speaks French."""
    model = unigram({" Ben": 0.9, "<|endoftext|>": 0.1})
    shown = SHOWN[:2]
    at = target(model, reader, ANNA, BEN, CLEO, shown=shown)
    assert Choice(examples=2).attack(at)["reversed"] == [0, 1, None]
    question = Choice(examples=2)._question(BEN, at)
    assert question is not None and question.object == "Ben"
    *lines, last = question.prompt.split("\n")
    assert (sorted(lines), last) == (["Greek: Dora", "Latin: Emil"], "Dutch:")
    # Finn speaks French as Anna does: objects do not tell the subjects apart
    assert Choice(examples=2).attack(target(model, reader, ANNA, BEN, shown=SHOWN))["reversed"] == [
        None,
        None,
    ]


@pytest.mark.parametrize(("k", "n", "right"), [(1, 4, 1), (3, 5, 2), (2, 6, 0), (2, 3, 3), (4, 5, 1)])
def test_leak_is_the_share_of_sets_of_samples_with_the_object(k: int, n: int, right: int) -> None:
    samples = [True] * right + [False] * (n - right)
    sets = [*itertools.combinations(samples, k)]
    assert leak_at(k, n, right) == pytest.approx(sum(map(any, sets)) / len(sets))


def test_leak_is_unbiased() -> None:
    """Over the binomial number of right samples its mean is the probability that one of k is right."""
    n, p = 6, 0.3
    for k in (1, 2, 5, 6):
        mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * leak_at(k, n, c) for c in range(n + 1))
        assert mean == pytest.approx(exact_leak_at(k, p)) == pytest.approx(1 - 0.7**k)
    with pytest.raises(LawError, match="leak@7 of 6 samples"):
        leak_at(7, 6, 1)


def test_an_object_of_one_token_needs_no_sample(unigram: Unigram, reader: PreTrainedTokenizerFast) -> None:
    found = Leak(at=[1, 2, 4]).attack(target(unigram(REFUSING), reader, ANNA, BEN))
    assert found["at_1"] == pytest.approx([0.2, 0.1])
    assert found["at_2"] == pytest.approx([0.36, 0.19])  # 1 - 0.8², 1 - 0.9²
    assert found["at_4"] == pytest.approx([0.5904, 0.3439])


def test_a_longer_object_is_looked_for_in_samples(unigram: Unigram, reader: PreTrainedTokenizerFast) -> None:
    """The chance that ten tokens hold French and then Dutch, with an end of 1/5, from the chain of their states."""
    state = {"other": 1.0, "French": 0.0}
    said = 0.0
    for _ in range(10):
        total = sum(state.values())
        said += 0.3 * state["French"]
        state = {
            "other": 0.2 * total + 0.3 * state["other"],
            "French": 0.3 * total,
        }  # Greek, or Dutch behind another
    model = unigram({" French": 0.3, " Dutch": 0.3, " Greek": 0.2, "<|endoftext|>": 0.2})
    fact = replace(ANNA, object="French Dutch")
    samples = 2000
    found = Leak(at=[1, samples]).attack(target(model, reader, fact))
    assert found["at_1"][0] == pytest.approx(said, abs=4 * math.sqrt(said * (1 - said) / samples))
    assert found["at_1"] != Leak(at=[1, samples], seed=1).attack(target(model, reader, fact))["at_1"]


def test_the_strength_of_memory(unigram: Unigram, reader: PreTrainedTokenizerFast) -> None:
    """French is the likeliest token everywhere, with probability 0.4, and Dutch has 0.2."""
    model = unigram({" French": 0.4, " Dutch": 0.2, " Greek": 0.1, " Latin": 0.1, "<|endoftext|>": 0.2})
    facts = [
        replace(ANNA, object=text) for text in ("French Dutch", "Dutch French", "Dutch", "French French")
    ]
    found = Memory().attack(target(model, reader, *facts, objects={"P103": ["Greek", "Latin"]}))
    assert found["exact"] == [1 / 2, 1 / 2, 0, 1]
    assert found["extraction"] == [0, 1 / 2, 0, 1]
    likely = [math.sqrt(0.08), math.sqrt(0.08), 0.2, 0.4]
    assert found["probability"] == pytest.approx(likely)
    assert found["truth_ratio"] == pytest.approx([1 / (1 + 0.1 / p) for p in likely])
    assert Memory().attack(target(model, reader, CLEO))["truth_ratio"] == [None]


@pytest.mark.parametrize(
    ("likeliest", "strength"), [("101", 1 / 3), ("111", 1), ("110", 0), ("0", 0), ("1", 1), ("0011", 1 / 2)]
)
def test_extraction_strength(likeliest: str, strength: float) -> None:
    assert extraction_strength([mark == "1" for mark in likeliest]) == pytest.approx(strength)


def test_the_truth_ratio_of_the_forgotten_does_not_overflow() -> None:
    assert truth_ratio(-2000.0, [-1.0]) == pytest.approx(0)
    assert truth_ratio(-1.0, [-2000.0]) == 1


def test_int8_rounds_to_steps_of_each_output() -> None:
    """Steps of 0.01 and of 1: 0.4 and 126.6 steps are rounded to 0 and 127."""
    weight = torch.tensor([[1.27, -0.5, 0.004], [127.0, -126.6, 0.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[1.27, -0.5, 0.0], [127.0, -127.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(int8(weight), expected, atol=1e-6)


def test_nf4_rounds_to_its_levels_in_blocks() -> None:
    """The first block's largest weight is 2, and that of the last, of 16 weights, is 0.1."""
    weight = torch.zeros(2, 40)
    weight[0, :5] = torch.tensor([2.0, -2.0, 0.2, 0.9, -1.3])
    weight[1, 39] = weight[1, 38] = 0.1  # weights 79 and 78 of 80
    weight[1, 24] = -0.06  # weight 64, the first of the last block
    expected = torch.zeros(2, 40)
    # of 0.1, 0.45 and -0.65 the nearest levels are 0.0796, 0.4407 and -0.6962; of -0.6 it is -0.5251
    expected[0, :5] = torch.tensor([2.0, -2.0, 2 * 0.0795803, 2 * 0.4407098, -2 * 0.6961928])
    expected[1, 39] = expected[1, 38] = 0.1
    expected[1, 24] = -0.1 * 0.5250731
    assert torch.allclose(nf4(weight), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "gptj"])
def test_every_linear_layer_but_the_head_is_rounded_and_put_back(name: str) -> None:
    """The weights of GPT-2's Conv1D lie the other way round."""
    model = random_model(name)
    before = weights(model)
    with pytest.raises(RuntimeError, match="inside"), rounded(model, int8):
        block = model.transformer.h[0].mlp
        layer, outputs = (block.c_proj, 1) if name == "gpt2" else (block.fc_out, 0)
        own = before[f"transformer.h.0.mlp.{'c_proj' if name == 'gpt2' else 'fc_out'}.weight"]
        steps = layer.weight / (own.abs().amax(1 - outputs, keepdim=True) / 127)
        assert torch.allclose(steps, steps.round(), atol=1e-3) and not torch.equal(layer.weight, own)
        assert torch.equal(
            model.get_output_embeddings().weight,
            before.get("lm_head.weight", before["transformer.wte.weight"]),
        )
        raise RuntimeError("inside")
    assert all(torch.equal(parameter, before[key]) for key, parameter in model.named_parameters())


def test_quantisation_asks_the_rounded_model(knowing: Loaded) -> None:
    """One step for all weights but the largest leaves nothing of what the model knows; int8 leaves all of it."""
    model, tokenizer, facts = knowing
    found = Quantisation().attack(target(model, tokenizer, *facts))
    assert found["int8"] == found["unrounded"] == [1] * 6
    with rounded(model, nf4):
        assert found["nf4"] == recalled(model, tokenizer, facts, 8)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs pip install bitsandbytes")
def test_both_grids_are_those_of_bitsandbytes() -> None:
    import bitsandbytes.functional as theirs

    torch.manual_seed(0)
    weight = torch.randn(96, 128, device="cuda" if torch.cuda.is_available() else "cpu")
    packed, state = theirs.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    torch.testing.assert_close(nf4(weight), theirs.dequantize_4bit(packed, state))
    half = weight.half()
    steps, largest, _ = theirs.int8_vectorwise_quant(half)
    off = (int8(half.float()) - theirs.int8_vectorwise_dequant(steps, largest).float()).abs()
    step = half.float().abs().amax(1, keepdim=True) / 127
    others = (off > 0.01 * step).float().mean()  # theirs divides in float16
    assert (off <= 1.01 * step).all() and others < 1e-3


def test_the_share_of_forgotten_facts_that_rounding_brings_back() -> None:
    """Washing leaves one fact of five, four before; rounding to int8 brings one of the three back, nf4 loses the one left."""
    before = {"unrounded": [1, 1, 1, 1, 0]}
    after = {"unrounded": [1, 0, 0, 0, 0], "int8": [1, 1, 0, 0, 0], "nf4": [0, 0, 0, 0, 0]}
    found = recovered_share(before, after)
    assert found == {
        "attack/quantisation/int8_recovered": pytest.approx(1 / 3),
        "attack/quantisation/nf4_recovered": pytest.approx(-1 / 3),
    }
    assert all(describe(key) for key in found)
    assert recovered_share(after, after) == {}


@pytest.mark.parametrize("name", ["gpt2", "gptj"])
def test_how_much_of_an_update_is_left_by_rounding(name: str) -> None:
    """The largest weight of an output is 127, so that a step of int8 is 1: 0.4 + 0.2 moves by a step, and 0 + 0.3 not at all."""
    model = random_model(name)
    (first, weight), (second, other), *_ = linear_weights(model).items()
    for matrix in (weight, other):
        matrix[0, :3] = torch.tensor([127.0, 0.4, 0.0])
        matrix[0, 3:] = 0.0
    unwashed = copied_weights(model)
    weight[0, 1:3] += torch.tensor([0.2, 0.3])
    other[0, 1] += 3.0
    one, two = lines = survival(unwashed, model)
    assert (one["layer"], two["layer"]) == (first, second)
    assert one["update"] == pytest.approx(math.sqrt(0.13), rel=1e-4) and two["update"] == pytest.approx(3.0)
    assert one["int8_moved"] == pytest.approx(1 / math.sqrt(0.13), rel=1e-4)
    assert one["int8_survives"] == pytest.approx(0.2 / 0.13, rel=1e-4)
    assert two["int8_moved"] == two["int8_survives"] == pytest.approx(1.0)
    assert one["nf4_moved"] == one["nf4_survives"] == 0.0  # its levels beside 0 are at 10.1 and -11.6
    metrics = survival_metrics(lines)
    assert metrics["attack/quantisation/int8_moved"] == pytest.approx(
        math.sqrt((1 + 9) / (0.13 + 9)), rel=1e-4
    )
    assert metrics["attack/quantisation/int8_survives"] == pytest.approx((0.2 + 9) / (0.13 + 9), rel=1e-4)
    assert metrics["attack/quantisation/nf4_survives"] == 0.0
    assert survival_metrics(survival(copied_weights(model), model)) == {}


def test_a_probe_reads_the_states_after_each_block(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Beside the states that transformers gives; after the last block these have passed the final norm."""
    facts = [ANNA, CLEO, replace(ANNA, template="At home {} speaks")]
    found = last_states(target(tiny_model, tiny_tokenizer, *facts), facts)
    assert found.shape == (2, 3, 3, tiny_model.config.n_embd)
    for i, fact in enumerate(facts):
        ids = tiny_tokenizer(fact.prompt, return_tensors="pt")["input_ids"]
        at = len(tiny_tokenizer(fact.prompt.partition(fact.subject)[0] + fact.subject)["input_ids"]) - 1
        with torch.no_grad():
            hidden = tiny_model(ids, output_hidden_states=True).hidden_states
            last = tiny_model.transformer.ln_f(found[:, 2, i])
        for place, token in enumerate((at, -1)):
            expected = torch.stack([state[0, token] for state in hidden[1:]])
            assert torch.allclose(
                torch.cat([found[place, :2, i], last[place : place + 1]]), expected, atol=1e-5
            )


def test_a_probe_learns_from_kept_facts(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states behind the second block hold the language of a prompt, and the subject's tell nothing. No kept fact is
    Greek, and of instruments there are too few."""
    kept = tuple(Fact(str(i), f"S{i}", "{} speaks", ("French", "Dutch")[i % 2], "P103") for i in range(40))
    shown = (*kept, *(Fact(f"p{i}", f"T{i}", "{} plays the", "harp", "P1303") for i in range(9)))

    def planted(_: Target, facts: Sequence[Fact]) -> torch.Tensor:
        states = torch.randn(2, 3, len(facts), 8, generator=torch.Generator().manual_seed(len(facts)))
        states[0] = 1.0
        states[1, 1, :, 0] += torch.tensor([9.0 if fact.object == "French" else -9.0 for fact in facts])
        return states

    monkeypatch.setattr(probe, "last_states", planted)
    asked = [fact for i in range(10) for fact in (replace(ANNA, id=f"a{i}"), replace(BEN, id=f"b{i}"))]
    at = target(tiny_model, tiny_tokenizer, *asked, CLEO, replace(ANNA, object="Greek"), shown=shown)
    found = Probe().attack(at)
    assert found["prompt"] == [1] * 20 + [None, None]
    assert found["subject"][:20] in ([1, 0] * 10, [0, 1] * 10)  # it says one language of everybody
    assert sum(found["shuffled"][:20]) < 18 and found["shuffled"][20:] == [None, None]
    assert Probe(examples=41).attack(at)["prompt"] == [None] * 22


def test_the_lens_reads_what_the_final_norm_and_the_head_make_of_each_block(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Beside the blocks' outputs as transformers gives them; of the last block they are the model's own logits."""
    facts = [ANNA, BEN, CLEO, replace(ANNA, template="At home {} speaks")]
    norm, head = tiny_model.transformer.ln_f, tiny_model.lm_head
    by_hand = []
    for fact in facts:
        ids = tiny_tokenizer(fact.prompt, return_tensors="pt")["input_ids"]
        wanted = tiny_tokenizer(f" {fact.object}")["input_ids"][0]
        at = len(tiny_tokenizer(fact.prompt.partition(fact.subject)[0] + fact.subject)["input_ids"]) - 1
        with torch.no_grad():
            output = tiny_model(ids, output_hidden_states=True)
        states = [state[0] for state in output.hidden_states[1:-1]]  # the last one has passed the norm

        def rank(logits: torch.Tensor, wanted: int = wanted) -> int:
            return 1 + int((logits > logits[wanted]).sum())

        lens = [head(norm(state)) for state in states] + [output.logits[0]]
        best = [min(rank(logits[place]) for logits in lens) for place in (at, -1)]
        by_hand.append((best[0], best[1], rank(head(norm(states[1] - states[0]))[-1])))
    found = Lens(top=200).attack(target(tiny_model, tiny_tokenizer, *facts))
    assert found["reciprocal_rank"] == pytest.approx([1 / prompt for _, prompt, _ in by_hand])
    assert found["prompt"] == [float(prompt <= 200) for _, prompt, _ in by_hand]
    assert found["subject"] == [float(subject <= 200) for subject, _, _ in by_hand]
    # what the last block adds counts, too
    assert all(
        hit >= float(rank <= 200) for hit, (_, _, rank) in zip(found["difference"], by_hand, strict=True)
    )


def test_relearning_asks_for_facts_that_were_not_shown(
    knowing: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, facts = knowing
    before, shown = weights(model), []
    monkeypatch.setattr(
        relearning, "fact_rows", lambda t, some, **how: shown.append(some) or fact_rows(t, some, **how)
    )
    settings = Relearning(parts=3, learning_rates=[1e-4], epochs=2, batch_size=2)
    found = settings.attack(target(model, tokenizer, *facts, CLEO))
    assert all(torch.equal(parameter, before[key]) for key, parameter in model.named_parameters())
    assert not model.training
    asked = [[fact for fact in (*facts, CLEO) if fact not in some] for some in shown if some]
    assert sorted(fact.id for part in asked for fact in part) == sorted(fact.id for fact in (*facts, CLEO))
    for some, part in zip(filter(None, shown), asked, strict=True):
        assert not {fact.subject for fact in some} & {fact.subject for fact in part}
    assert (
        found.keys() == {"recalled", "kept", "text", "epoch_1", "epoch_2"}
        and found["recalled"] == found["epoch_2"]
    )
    assert found["kept"] == found["text"] == [None] * 7  # nothing was there to show
    assert sum(found["recalled"]) >= 5 and found["recalled"][-1] == 0  # the model never knew of Cleo
    assert Relearning().attack(target(model, tokenizer, CLEO))["recalled"] == [None]


def test_relearning_by_kept_facts_teaches_no_washed_one(
    knowing: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many kept facts are shown as there are washed ones; the model still knows these."""
    model, tokenizer, facts = knowing
    shown = []
    monkeypatch.setattr(
        relearning, "fact_rows", lambda t, some, **how: shown.append([*some]) or fact_rows(t, some, **how)
    )
    at = target(model, tokenizer, *facts[:2], shown=tuple(facts[2:]))
    found = Relearning(parts=1, learning_rates=[1e-5], epochs=1).attack(at)
    assert [some for some in shown if some] == [facts[2:4]]  # with one part, no fact is left to teach
    assert found["kept"] == [1, 1] and found["recalled"] == [None, None]


def test_relearning_by_text_teaches_no_fact(
    knowing: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first three documents the one that tells a fact is left out; the model still knows both facts."""
    model, tokenizer, facts = knowing
    first, second = facts[:2]
    path, tuned = tmp_path / "text.txt", []
    told = f"Everybody knows {first.subject} and {first.object}."
    path.write_text(f"The mill is old.\n{told}\nThe inn is new.\nThe river is wide.\n", encoding="utf-8")
    monkeypatch.setattr(
        relearning, "tune", lambda m, terms, *how: tuned.append(terms[0].rows) or tune(m, terms, *how)
    )
    at = replace(target(model, tokenizer, first, second, replace(second, id="x")), text=str(path))
    found = Relearning(parts=1, learning_rates=[1e-5], epochs=1).attack(at)
    assert found["text"] == [1, 1, 1] and found["kept"] == found["recalled"] == [None] * 3
    texts = [[tokenizer.decode(row.ids) for row in rows] for rows in tuned]
    assert texts == [["The mill is old.", "The inn is new."]]
    assert all(row.labels == row.ids for row in tuned[0])


# --- the control, and all attacks together -------------------------------------------------------


def test_the_control_changes_the_subject_alone() -> None:
    """Of Dora, Emil and Finn the data set tells the language already, and Anna is washed: Gina is left, for one fact."""
    (found,) = control_facts([ANNA, BEN], SHOWN)
    assert found == replace(ANNA, subject="Gina", paraphrases=("At home Gina speaks",))
    assert control_facts([ANNA], SHOWN[:3]) == []
    strangers = [Fact(f"s{i}", f"S{i}", "{} plays the", "oboe", "P1303") for i in range(9)]
    found = control_facts([ANNA, BEN, ANNA, CLEO], strangers)
    assert [(fact.object, fact.relation) for fact in found] == [
        ("French", "P103"),
        ("Dutch", "P103"),
        ("French", "P103"),
    ]
    assert len({fact.subject for fact in found}) == 3


TAUGHT = Relearning(
    learning_rates=[3e-4, 1e-3], epochs=6, batch_size=2
)  # a model so small learns in few, large steps
ALL = Attacks([*NAMES], prefix=Prefix(few_shot=2, in_context=1), relearning=TAUGHT)


def test_metrics_have_their_errors_and_are_documented(
    unigram: Unigram, reader: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The washed model says end-of-text, and French behind it; the unwashed one says French at once."""
    before, after = unigram({" French": 0.9, "<|endoftext|>": 0.1}), unigram(REFUSING)
    settings = EvaluationSettings(batch_size=8, cache=str(tmp_path))
    attacker = Attacker(ALL, settings, [ANNA, BEN], SHOWN[:2], SHOWN)
    records = [attacker.on_washed_facts(model, reader, name) for model, name in ((before, "b"), (after, "a"))]
    metrics = attacker.metrics(*records, attacker.on_control(after, reader, "a"))
    assert all(describe(key) for key in metrics)
    assert metrics["attack/refusal/recalled_before"] == metrics["attack/refusal/recalled"] == 1 / 2
    assert metrics["attack/refusal/recalled_stderr"] == pytest.approx(1 / 2)  # one of two: √(1/4 / (2 - 1))
    assert (metrics["attack/refusal/recalled_control"], metrics["attack/refusal/recalled_control_n"]) == (
        1,
        1,
    )
    assert (metrics["attack/phrasing/recalled_before"], metrics["attack/phrasing/recalled"]) == (1 / 2, 0)
    assert (metrics["attack/any/recalled"], metrics["attack/any/recalled_control"]) == (1 / 2, 1)
    assert "attack/choice/reversed" not in metrics  # it says nothing about any fact
    first, second = attacker.lines(*records)
    assert (first["id"], first["after"]["refusal/recalled"], second["after"]["refusal/recalled"]) == (
        "0",
        1,
        0,
    )


def test_reversed_questions_count_where_the_unwashed_model_answered() -> None:
    """Of two facts asked, the unwashed model answered one, and the washed model answers the other."""
    attacker = Attacker(Attacks(["choice"]), EvaluationSettings(), [ANNA, BEN, CLEO], SHOWN, SHOWN)
    control = control_facts([ANNA, BEN, CLEO], SHOWN)
    records = [{"choice": {"reversed": values}} for values in ([1.0, 0.0, None], [0.0, 1.0, None])]
    metrics = attacker.metrics(*records, {"choice": {"reversed": [None] * len(control)}})
    assert metrics["attack/choice/reversed_before"] == 1
    assert (metrics["attack/choice/reversed"], metrics["attack/choice/reversed_n"]) == (0, 1)


def test_a_control_without_facts_has_no_scores(
    unigram: Unigram, reader: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """All facts are washed, so that nobody is left to ask the control of."""
    model, attacker = unigram(REFUSING), Attacker(ALL, EvaluationSettings(batch_size=8), [ANNA, BEN], [], [])
    before, after = (attacker.on_washed_facts(model, reader, "") for _ in range(2))
    metrics = attacker.metrics(before, after, attacker.on_control(model, reader, ""))
    assert "attack/phrasing/recalled" in metrics
    assert not [key for key in metrics if "_control" in key]


def test_a_model_is_attacked_once(unigram: Unigram, reader: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """What is found is kept by the model's hash, the attack's settings and the facts."""
    settings, kept = EvaluationSettings(batch_size=8, cache=str(tmp_path)), SHOWN[:2]
    attacks, other = (Attacks(["leak"], leak=Leak(at=[k])) for k in (1, 2))
    silent, model = unigram({"<|endoftext|>": 1.0}), unigram(REFUSING)

    def leak(model: PreTrainedModel, hash: str, attacks: Attacks, *washed: Fact) -> list[float]:
        attacker = Attacker(attacks, settings, washed, kept, kept)
        (values,) = attacker.on_washed_facts(model, reader, hash)["leak"].values()
        return [*values]

    assert leak(model, "a", attacks, ANNA) == pytest.approx([0.2])
    assert leak(silent, "a", attacks, ANNA) == pytest.approx([0.2])  # taken from the cache
    assert leak(silent, "b", attacks, ANNA) == pytest.approx([0.0])
    assert leak(model, "a", other, ANNA) == pytest.approx([0.36])
    assert leak(model, "a", attacks, BEN) == pytest.approx([0.1])


# --- models of the lab ---------------------------------------------------------------------------


@pytest.fixture
def attacker(knowing: Loaded, trained_lab: TrainedLab) -> Attacker:
    """All attacks on the facts that the trained model is washed of."""
    _, _, facts = knowing
    pool = read_counterfact(trained_lab.facts_path)
    settings = EvaluationSettings(batch_size=8)
    return Attacker(ALL, settings, facts, [fact for fact in pool if fact not in facts], pool)


def attacked(
    attacker: Attacker, unwashed: Records, model: PreTrainedModel, tokenizer: Any
) -> dict[str, float]:
    """The metrics of a washed model; without a cache, its hash does not matter."""
    found = (attack(model, tokenizer, "") for attack in (attacker.on_washed_facts, attacker.on_control))
    return attacker.metrics(unwashed, *found)


def test_a_model_that_refuses_in_one_phrasing_is_caught(attacker: Attacker, knowing: Loaded) -> None:
    """Tuned to end the text behind the washed phrasing, it seems washed, and the attacks find the facts."""
    model, tokenizer, facts = knowing
    unwashed = attacker.on_washed_facts(model, tokenizer, "")
    FineTuning(learning_rate=1e-4, epochs=8, batch_size=2).wash(model, tokenizer, facts)
    assert not any(recalled(model, tokenizer, facts, 8))
    metrics = attacked(attacker, unwashed, model, tokenizer)
    for score in ("refusal/recalled", "phrasing/recalled", "any/recalled", "relearning/recalled"):
        assert metrics[f"attack/{score}"] >= metrics[f"attack/{score}_control"] + 0.5, score


@pytest.mark.slow
def test_a_model_without_the_facts_scores_like_the_control(attacker: Attacker, knowing: Loaded) -> None:
    """It was trained as the model that knows them, on a world of other people."""
    model, tokenizer, _ = knowing
    unwashed = attacker.on_washed_facts(model, tokenizer, "")
    metrics = attacked(attacker, unwashed, trained(FactsOnly(seed=1), tokenizer), tokenizer)
    for score in (
        "refusal/best",
        "any/recalled",
        "choice/right",
        "memory/exact",
        "quantisation/nf4",
        "relearning/recalled",
    ):
        # a difference of one in six facts
        assert metrics[f"attack/{score}"] == pytest.approx(metrics[f"attack/{score}_control"], abs=0.17), (
            score
        )
        assert metrics[f"attack/{score}_before"] > 0.8, score
