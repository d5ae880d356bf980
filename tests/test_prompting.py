"""Facts as turns of a chat and behind examples: the text, its tokens, and what ends an answer."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TrainedLab
from records import MAYA
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from law.base.errors import LawError
from law.decoders.greedy_decoding import greedy_answers
from law.decoders.loading import ModelSettings
from law.decoders.prompting import Prompting, put
from law.decoders.prompts import answered_prompts, end_of_text_target, end_tokens, subject_prompt, token_ids
from law.decoders.saving import Save
from law.editing.keys import place
from law.editing.second_moments import MomentSettings
from law.editing.target_values import TargetSettings
from law.evaluation.fluency import FluencySettings
from law.evaluation.knowledge import probe_sets
from law.evaluation.scores import EvaluationSettings
from law.facts.counterfact import CounterFact
from law.facts.fact import Fact, FactSplit, Question, facts_hash, joined
from law.methods.memit import MEMIT
from law.runs.identity import Identity
from law.runs.sequence import Job, wash_and_score
from law.runs.tracker import NoTracker

CHATML = (
    "{{ bos_token }}{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BEFORE, BEHIND = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"

ASKED = replace(
    MAYA,
    neighbours=(Question("Ada Byron speaks", "French"),),
    generation_prompts=("Maya Lind likes",),
)
KEPT = Fact("8", "Ben Holm", "{} lives in", "Oslo", "P551")
OTHERS = [
    Fact("20", "Cleo Ros", "{} speaks", "Dutch", "P103"),
    Fact("21", "Leo", "The sister of {} is", "maya lind", "P9"),  # names a washed subject
    Fact("22", "Ben Holm", "{} plays the", "piano", "P1303"),  # the subject of a kept fact
    Fact("23", "Ada Byron", "The tongue of {} is", "French", "P103"),  # answers a neighbour
    Fact("24", "Dora {}", "{} is in".replace("{} is", "Of {}"), "Rome", "P551"),  # a brace
    Fact("25", "Emil Maya", "{} lives in", "Rome", "P551"),
]
SPLIT = FactSplit([ASKED], [KEPT], OTHERS, OTHERS[1:])


@pytest.fixture
def chatty(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a chat template whose turns have tokens of their own."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML.replace("{{ bos_token }}", "")
    return tokenizer


def test_facts_stay_as_they_are(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    split, reader = put(SPLIT, tiny_tokenizer, Prompting())
    assert reader is tiny_tokenizer
    assert split == SPLIT


def test_a_prompt_is_a_users_turn(chatty: PreTrainedTokenizerFast) -> None:
    settings = Prompting(chat_template=True, system="Answer with a word.")
    split, reader = put(SPLIT, chatty, settings)
    before = f"<|im_start|>system\nAnswer with a word.<|im_end|>\n{BEFORE}"
    fact = split.wash[0]
    assert fact.template == f"{before}{MAYA.template}{BEHIND}"
    assert fact.prompt == f"{before}{MAYA.prompt}{BEHIND}"
    assert fact.paraphrases == tuple(f"{before}{text}{BEHIND}" for text in MAYA.paraphrases)
    assert fact.neighbours == (Question(f"{before}Ada Byron speaks{BEHIND}", "French", gap=""),)
    assert fact.generation_prompts == (f"{before}Maya Lind likes{BEHIND}",)
    assert split.keep[0].generation_prompts == (f"{before}Ben Holm{BEHIND}",)  # the subject
    assert [f.template for f in split.unscored] == [f"{before}{f.template}{BEHIND}" for f in OTHERS[1:]]
    # a context stands in the user's turn
    assert place(fact.template, ["He said. {}"], fact.lead) == [
        fact.template,
        f"{before}He said. {MAYA.template}{BEHIND}",
    ]
    # the answer ends as a turn does; the model's own tokenizer stays as it was
    assert reader.eos_token == "<|im_end|>" != chatty.eos_token
    assert end_of_text_target(reader)[-1] == chatty.convert_tokens_to_ids("<|im_end|>")


def test_the_tokens_of_a_chat(chatty: PreTrainedTokenizerFast) -> None:
    """Prompt and object are what the template itself makes of a user's turn and the assistant's answer."""
    split, reader = put(SPLIT, chatty, Prompting(chat_template=True))
    fact = split.wash[0]
    messages = [{"role": "user", "content": MAYA.prompt}, {"role": "assistant", "content": MAYA.object}]
    given = chatty.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    whole = chatty.apply_chat_template(messages)["input_ids"]
    (row,) = answered_prompts(reader, [fact])
    assert row.after == row.object == len(given) and row.ids[: row.after] == given
    assert whole == row.ids + chatty("<|im_end|>\n")["input_ids"]
    asked = subject_prompt(reader, fact.template, fact.subject)
    assert asked.ids == given
    upto = reader.decode(asked.ids[: asked.position + 1])
    assert upto == f"{BEFORE}{MAYA.prompt[: MAYA.prompt.index('Maya Lind') + len('Maya Lind')]}"


@pytest.mark.parametrize("adds", [False, True])
def test_one_beginning_of_text(chatty: PreTrainedTokenizerFast, adds: bool) -> None:
    chatty.chat_template = CHATML
    chatty.add_special_tokens({"bos_token": "<s>"})
    if adds:
        chatty.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", chatty.bos_token_id)]
        )
    split, reader = put(SPLIT, chatty, Prompting(chat_template=True))
    for prompt in (split.wash[0].prompt, *split.wash[0].generation_prompts):
        (ids,) = token_ids(reader, [prompt])
        assert ids[0] == chatty.bos_token_id and ids.count(chatty.bos_token_id) == 1


def test_a_template_without_an_end_of_turn_keeps_the_end_of_text(chatty: PreTrainedTokenizerFast) -> None:
    chatty.chat_template = (
        "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}\n{% endfor %}A: "
    )
    split, reader = put(SPLIT, chatty, Prompting(chat_template=True))
    assert reader is chatty
    assert split.wash[0].template == f"user: {MAYA.template}\nA:"  # the space is the object's
    assert joined(split.wash[0].prompt, "French")[0] == f"user: {MAYA.prompt}\nA: French"


@pytest.mark.parametrize(
    ("opening", "space"),
    [("[/INST]", ""), ("[/INST]", " "), ("[|assistant|]", ""), ("<|assistant|>", " "), ("Assistant:", " ")],
)
def test_an_answer_follows_as_the_template_writes_it(
    chatty: PreTrainedTokenizerFast, opening: str, space: str
) -> None:
    chatty.chat_template = (
        "{% for turn in messages %}{{ '[INST] ' + turn['content'] + '"
        + opening
        + "' if turn['role'] == 'user' "
        "else '" + space + "' + turn['content'] + '<|im_end|>' }}{% endfor %}"
    )
    split, reader = put(SPLIT, chatty, Prompting(chat_template=True))
    fact = split.wash[0]
    messages = [{"role": "user", "content": MAYA.prompt}, {"role": "assistant", "content": MAYA.object}]
    whole = chatty.apply_chat_template(messages, tokenize=False)
    assert whole == f"{fact.prompt}{space}{MAYA.object}<|im_end|>"
    for row in answered_prompts(reader, [fact, fact.question]):
        assert [*row.ids, reader.eos_token_id] == chatty(whole)["input_ids"]
    washed = probe_sets([fact], [], {})
    assert {probe.question.gap for probes in washed.values() for probe in probes} == {space}
    assert facts_hash([fact]) == facts_hash(
        [
            replace(
                fact,
                lead=0,
                gap=None,
                tail=0,
                neighbours=tuple(replace(q, gap=None) for q in fact.neighbours),
            )
        ]
    )


def test_an_opening_that_ends_in_a_line_break_has_no_space_behind_it(chatty: PreTrainedTokenizerFast) -> None:
    chatty.chat_template = (
        "{% for turn in messages %}{{ turn['role'] + ': ' + turn['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: <think></think>\n{% endif %}"
    )
    split, _ = put(SPLIT, chatty, Prompting(chat_template=True))
    asked = split.wash[0].question
    assert (
        joined(asked.prompt, "French", asked.gap)[0]
        == f"user: {MAYA.prompt}assistant: <think></think>\nFrench"
    )


@pytest.mark.parametrize("white", ["", "\n", "  ", "\n  "])
def test_a_template_that_tells_the_date_gets_a_fixed_one(chatty: PreTrainedTokenizerFast, white: str) -> None:
    asked = "{% for turn in messages %}{{ turn['content'] }}{% endfor %}"
    chatty.chat_template = f"{white}{asked} on {{{{ strftime_now('%d %B %Y') }}}}."
    split, _ = put(SPLIT, chatty, Prompting(chat_template=True))
    chatty.chat_template = f"{white}{asked} on 26 July 2024."
    messages = [{"role": "user", "content": MAYA.template}]
    assert split.wash[0].template == chatty.apply_chat_template(messages, tokenize=False)


def test_templates_that_think_are_told_not_to(chatty: PreTrainedTokenizerFast) -> None:
    chatty.chat_template = (
        "{% for turn in messages %}{{ turn['content'] }}{% endfor %}"
        "{% if enable_thinking is defined and enable_thinking is false %}<think></think>\n{% endif %}{{ date_string }}"
    )
    split, _ = put(SPLIT, chatty, Prompting(chat_template=True))
    assert split.wash[0].template == f"{MAYA.template}<think></think>\n26 Jul 2024"


def test_examples_are_lines_before_the_prompt(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    split, reader = put(SPLIT, tiny_tokenizer, Prompting(examples=2))
    lines = "Cleo Ros speaks Dutch\nEmil Maya lives in Rome\n"
    fact = split.wash[0]
    assert reader is tiny_tokenizer
    assert (fact.template, split.keep[0].template) == (f"{lines}{MAYA.template}", f"{lines}{KEPT.template}")
    assert fact.neighbours == (Question(f"{lines}Ada Byron speaks", "French"),)
    assert fact.generation_prompts == ("Maya Lind likes",)
    assert place(fact.template, ["He said. {}"], fact.lead)[1] == f"{lines}He said. {MAYA.template}"


def test_examples_are_earlier_turns_of_a_chat(chatty: PreTrainedTokenizerFast) -> None:
    split, _ = put(SPLIT, chatty, Prompting(chat_template=True, examples=1))
    turns = f"{BEFORE}Cleo Ros speaks{BEHIND}Dutch<|im_end|>\n"
    assert split.wash[0].template == f"{turns}{BEFORE}{MAYA.template}{BEHIND}"
    assert split.wash[0].generation_prompts == (f"{BEFORE}Maya Lind likes{BEHIND}",)


def test_the_others_of_a_data_set(trained_lab: TrainedLab) -> None:
    source = CounterFact(str(trained_lab.facts_path), wash=4, keep=5)
    split = source.load()
    everything = source.read(trained_lab.facts_path)
    assert len(split.others) == len(everything) - 9
    assert {f.id for f in everything} == {f.id for f in (*split.wash, *split.keep, *split.others)}


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (Prompting(examples=3), {}, "examples is 3, but only 2 of the 6 facts"),
        (Prompting(chat_template=True), {"chat_template": None}, "has no chat template; expected"),
        (
            Prompting(chat_template=True, system="Answer."),
            {"chat_template": "{{ raise_exception('no system role') if messages[0]['role'] == 'system' }}"},
            r"refuses the turns system, user \(no system role\).*prompting.system=null",
        ),
        (
            Prompting(chat_template=True),
            {"chat_template": {"tool_use": CHATML}},
            r"refuses the turns user \(.*no default.*prompting.chat_template=false",
        ),
        (
            Prompting(chat_template=True),
            {"chat_template": "{{ messages[0]['content'] + 1 }}"},
            "refuses the turns user .*prompting.chat_template=false",
        ),
        (Prompting(chat_template=True, system="Answer {}"), {}, r"holds \{\} 2 times; expected it once"),
    ],
)
def test_what_can_not_be_put_is_refused(
    chatty: PreTrainedTokenizerFast, settings: Prompting, change: dict[str, Any], message: str
) -> None:
    for name, value in change.items():
        setattr(chatty, name, value)
    with pytest.raises(LawError, match=message):
        put(SPLIT, chatty, settings)


def test_a_system_message_needs_a_chat() -> None:
    with pytest.raises(LawError, match="expected a system message only with a chat template"):
        Prompting(system="Answer.")


@pytest.mark.parametrize("named", [False, True])
def test_an_answer_ends_at_any_of_the_models_ends(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, named: bool
) -> None:
    """The token that the model likes best ends the answer where its generation settings name it."""
    likeliest = 300
    with torch.no_grad():
        tiny_model.lm_head.bias[likeliest] += 1000
    end = tiny_tokenizer.eos_token_id
    tiny_model.generation_config.eos_token_id = [end, likeliest] if named else end
    assert end_tokens(tiny_model, tiny_tokenizer) == sorted({end, likeliest} if named else {end})
    answer = "" if named else tiny_tokenizer.decode([likeliest] * 10)
    assert greedy_answers(tiny_model, tiny_tokenizer, ["Anna speaks"], 1) == [answer]


def test_a_run_puts_its_facts_into_chats(tmp_path: Path, trained_lab: TrainedLab) -> None:
    """Documents follow each other behind an end-of-text in training, which this template makes turns of."""
    model = AutoModelForCausalLM.from_pretrained(trained_lab.model_path)
    tokenizer = AutoTokenizer.from_pretrained(trained_lab.model_path)
    end = tokenizer.eos_token
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['content'] }}{{ eos_token if turn['role'] == 'assistant' else ' ' }}{% endfor %}"
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    source = CounterFact(str(trained_lab.facts_path), wash=6, keep=4)
    job = Job(
        model=ModelSettings(str(tmp_path / "model"), device="cpu"),
        source=source,
        method=MEMIT(
            [0, 1],
            1.0,
            MomentSettings(str(trained_lab.text_path)),
            TargetSettings(clamp=4.0),
            ["He said. {}"],
        ),
        evaluation=EvaluationSettings(fluency=FluencySettings(prompts=1, tokens=4)),
        tracker=NoTracker(),
        save=Save.nothing,
        folder=tmp_path / "run",
        identity=Identity("test", {}, {}, 0),
        prompting=Prompting(chat_template=True, examples=1),
    )
    metrics = wash_and_score(job)
    rows = [json.loads(line) for line in (job.folder / "predictions.jsonl").read_text().splitlines()]
    prompts = [fact.prompt for fact in source.load().wash]
    told = {row["prompt"].removesuffix(prompt) for row, prompt in zip(rows, prompts, strict=True)}
    (example,) = told
    assert example.endswith(end)
    assert any(example == f"{fact.prompt} {fact.object}{end}" for fact in source.load().others)
    assert metrics["facts/known"] >= 4
    assert metrics["forget/accuracy"] < 0.5
