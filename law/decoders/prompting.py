"""How facts are put to a model: as they are, behind examples, or as turns of a chat.

Templates and prompts are rewritten as text, once, before anything reads them. Keys, target values, decoding,
likelihoods and training rows then work on them as on any other prompt.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import islice

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from law.base.checks import Checked, Natural
from law.base.errors import LawError
from law.decoders.greedy_decoding import folded
from law.facts.fact import Fact, FactSplit, Question, joined, trimmed
from law.facts.subject import places

PLACE = "{}"

FIXED_DATE = (
    "{%- macro strftime_now(format) -%}26 July 2024{%- endmacro %}{%- set date_string = '26 Jul 2024' %}\n"
)
"""Put before a chat template, it takes the place of the function that tells today's date, and of the date that Llama 3
asks for. The line break is not rendered."""


@dataclass
class Prompting(Checked):
    """How facts are put to the model.

    Args:
        chat_template: make each prompt a user's turn in the tokenizer's chat template, which the model answers.
        system: the system message before it; needs ``chat_template``. ``null``: the template's own, if it has one.
        examples: how many other facts stand before each prompt with their objects, the same ones before all
            prompts. They are drawn from the facts that are neither washed nor kept. In a chat they are earlier
            turns, otherwise lines.
    """

    chat_template: bool = False
    system: str | None = None
    examples: Natural = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.system is not None and not self.chat_template:
            raise LawError(
                "prompting.system is set, but prompts are no chat messages; expected a system message only with a chat "
                "template. Set prompting.chat_template=true, or prompting.system=null."
            )


@dataclass(frozen=True)
class Frame:
    """The text before and behind every prompt."""

    before: str = ""
    behind: str = ""

    def around(self, prompt: str) -> str:
        """The whole prompt."""
        return f"{self.before}{prompt}{self.behind}"


def put(
    split: FactSplit, tokenizer: PreTrainedTokenizerBase, settings: Prompting
) -> tuple[FactSplit, PreTrainedTokenizerBase]:
    """The facts as they are put to the model, and the tokenizer that reads them.

    In a chat, the tokenizer is a copy whose end-of-text is the token that ends the assistant's turn. Free text about a
    subject (``generation_prompts``, or the subject where a fact has none) is asked for without examples.

    Raises:
        LawError: too few facts are left for examples, or the tokenizer has no chat template, or one that fails or
            refuses the turns.
    """
    if settings == Prompting():
        return split, tokenizer
    examples = _examples(split, settings.examples)
    frame = free = Frame("".join(f"{joined(e.prompt, e.object)[0]}\n" for e in examples))
    gap = None
    if settings.chat_template:
        frame, free = (_chat(tokenizer, settings, shown) for shown in (examples, []))
        tokenizer, gap = _answering(tokenizer, frame.behind)

    def framed(fact: Fact) -> Fact:
        generation = fact.generation_prompts
        if settings.chat_template:
            generation = tuple(map(free.around, generation or (fact.subject,)))
        return replace(
            fact,
            template=frame.around(fact.template),
            lead=len(frame.before),
            gap=gap,
            tail=len(trimmed(frame.behind)),
            paraphrases=tuple(map(frame.around, fact.paraphrases)),
            neighbours=tuple(Question(frame.around(q.prompt), q.object, gap) for q in fact.neighbours),
            generation_prompts=generation,
        )

    shown = {id(example) for example in examples}
    parts = (split.wash, split.keep, split.others, split.unscored)
    return FactSplit(*([framed(f) for f in part if id(f) not in shown] for part in parts)), tokenizer


def _examples(split: FactSplit, count: int) -> list[Fact]:
    """The first ``count`` of the other facts (which the data set's seed has put in their order) that tell nothing of
    a washed or kept fact or of a neighbour.
    """
    if count == 0:
        return []
    subjects = {folded(fact.subject) for fact in (*split.wash, *split.keep)}
    neighbours = {question for fact in split.wash for question in fact.neighbours}

    def silent(fact: Fact) -> bool:
        text = joined(fact.prompt, fact.object)[0]
        asked = any(fact.object == q.object and fact.subject in q.prompt for q in neighbours)
        return not (PLACE in text or asked or any(places(subject, folded(text)) for subject in subjects))

    found = [*islice(filter(silent, split.others), count)]
    if len(found) < count:
        raise LawError(
            f"prompting.examples is {count}, but only {len(found)} of the {len(split.others)} facts that are neither "
            "washed nor kept can be examples: an example names no subject of a washed or kept fact, and answers none of "
            "their neighbours. Lower dataset.keep or dataset.wash (null takes all facts), or prompting.examples."
        )
    return found


def _chat(tokenizer: PreTrainedTokenizerBase, settings: Prompting, examples: list[Fact]) -> Frame:
    """The text of a chat before and behind the user's last turn; behind it, the assistant's turn is opened."""
    turns = [] if settings.system is None else [("system", settings.system)]
    for example in examples:
        turns += [("user", example.prompt), ("assistant", example.object)]
    before, behind = _rendered(tokenizer, [*turns, ("user", PLACE)], opened=True)
    begin = tokenizer.bos_token
    if begin and before.startswith(begin) and tokenizer("is")["input_ids"][0] == tokenizer.bos_token_id:
        before = before.removeprefix(begin)  # the tokenizer puts it before every text by itself
    return Frame(before, behind)


def _answering(tokenizer: PreTrainedTokenizerBase, opening: str) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer with the token that ends an assistant's turn as its end-of-text, if the template writes one,
    and the space or nothing that it writes between the assistant's opening and the answer (:func:`~law.facts.fact.joined`).
    """
    before, behind = _rendered(tokenizer, [("user", "Hello"), ("assistant", PLACE)], opened=False)
    # an opening may end in empty thoughts, which a whole turn lacks
    written = opening if opening[-1:].isspace() else before
    gap = written[len(trimmed(written)) :]
    ids = tokenizer(behind.lstrip(), add_special_tokens=False)["input_ids"]
    if not ids or ids[0] not in tokenizer.added_tokens_decoder or ids[0] == tokenizer.eos_token_id:
        return tokenizer, gap
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ids[0])
    return tokenizer, gap


def undated_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template with a fixed date: with today's, prompts would change from day to day."""
    return f"{FIXED_DATE}{tokenizer.get_chat_template()}"


def _rendered(
    tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]], opened: bool
) -> tuple[str, str]:
    """What the chat template writes before and behind :data:`PLACE`, the content of the last turn."""
    if tokenizer.chat_template is None:
        raise LawError(
            "prompting.chat_template is true, but the model's tokenizer has no chat template; expected the tokenizer of "
            "a chat model. Set prompting.chat_template=false, or model.path to a chat model."
        )
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        text = str(
            tokenizer.apply_chat_template(
                messages,
                chat_template=undated_template(tokenizer),
                tokenize=False,
                add_generation_prompt=opened,
                enable_thinking=False,  # ten tokens leave no room for it
            )
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise LawError(
            f"The tokenizer's chat template refuses the turns {', '.join(role for role, _ in turns)} ({error}); expected "
            "one that takes them. Set prompting.system=null or prompting.examples=0, or prompting.chat_template=false."
        ) from error
    if text.count(PLACE) != 1:
        raise LawError(
            f"The chat of a prompt holds {PLACE} {text.count(PLACE)} times; expected it once, in the prompt's place. "
            "Take it out of prompting.system and of the tokenizer's chat template."
        )
    before, _, behind = text.partition(PLACE)
    return before, behind
