"""What a run is about to do, and about how long it will ask and score: told before the facts are asked.

The work is counted in forward passes and tokens, from a sample of each kind of text. How long a pass and a token take
is measured on the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from math import ceil
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.attacks.attacking import Attacker, Attacks
from law.attacks.protocol import Cost
from law.base.processes import world
from law.base.progress import duration
from law.decoders.greedy_decoding import NEW_TOKENS, recalls
from law.decoders.prompts import positions, token_ids
from law.evaluation.fluency import generation_prompts
from law.evaluation.knowledge import probe_sets, unrefusing, weighed
from law.evaluation.known_facts import kinds_of
from law.evaluation.reasoning import CPU_BATCH, EXAMPLES_SEED, request_text
from law.evaluation.scores import Examination, Scorer
from law.facts.fact import Fact, FactSplit, Question, joined
from law.facts.record_files import text_lines
from law.methods.none import Unwashed
from law.methods.protocol import Method

SAMPLE, ITEMS = 500, 10
"""So many texts of a kind, and items of a task, are read; the others are taken to be like them."""

HARNESS_BATCH = 64
"""The largest batch that the harness takes on an accelerator."""

ROWS, LENGTH = 512, 16
"""The longer of the two passes that are timed has at most so many rows, of so many tokens."""

REPEATS, SHARE = 10, 1500
"""It is timed so often, and reads at most one in so many of the run's tokens: less than 1 % of them all together."""


@dataclass(frozen=True)
class Work:
    """Forward passes, the tokens read in all of them, and the seconds spent besides."""

    passes: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.passes + other.passes, self.tokens + other.tokens, self.seconds + other.seconds)


@dataclass(frozen=True)
class Speed:
    """The seconds that a forward pass takes, and those that each of its tokens adds."""

    per_pass: float
    per_token: float

    def seconds(self, work: Work) -> float:
        return work.passes * self.per_pass + work.tokens * self.per_token + work.seconds


@torch.inference_mode()
def measured(model: PreTrainedModel, rows: int, clock: Callable[[], float] = perf_counter) -> Speed:
    """The speed of ``model``, from a pass over one token and a pass over ``rows`` rows of ``LENGTH`` tokens.

    The first pass is slower and does not count. The mean of the others includes what other programs take of the cores.
    Nothing is drawn at random, and nothing is kept.
    """

    def timed(rows: int, length: int) -> float:
        ids = torch.zeros(rows, length, dtype=torch.long, device=model.device)
        taken = []
        for _ in range(1 + REPEATS):
            began = clock()
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            taken.append(clock() - began)
        return fmean(taken[1:])

    try:
        short, long = timed(1, 1), timed(rows, LENGTH)
    except torch.OutOfMemoryError:
        if rows == 1:
            raise
        return measured(model, rows // 2, clock)
    per_token = max(0.0, long - short) / (rows * LENGTH - 1)
    return Speed(max(0.0, short - per_token), per_token)


class Counting:
    """The work of asking and scoring a model. ``items`` counts those of each reasoning task."""

    def __init__(self, scorer: Scorer, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._settings, self._tasks = scorer.settings, scorer.tasks
        self._model, self._tokenizer = model, tokenizer
        self._documents = {name: task.eval_docs for name, task in scorer.tasks.items()}
        limit = scorer.settings.reasoning.limit
        self.items = {name: min(len(found), limit or len(found)) for name, found in self._documents.items()}

    def answers(self, prompts: Sequence[str]) -> Work:
        sample, share = _sample(prompts)
        shapes = [(len(row),) for row in token_ids(self._tokenizer, sample)]
        return _batched(shapes, share * world(), self._settings.batch_size, NEW_TOKENS)

    def log_probs(self, questions: Sequence[Question]) -> Work:
        sample, share = _sample(questions)
        rows = token_ids(self._tokenizer, [joined(q.prompt, q.object, q.gap)[0] for q in sample])
        prompts = token_ids(self._tokenizer, [q.prompt for q in sample])
        shapes = [(len(row), len(prompt)) for row, prompt in zip(rows, prompts, strict=True)]
        return _batched(shapes, share, self._settings.batch_size)

    def texts(self, washed: Sequence[Fact]) -> Work:
        settings = self._settings.fluency
        rows = token_ids(self._tokenizer, [*generation_prompts(washed, settings.prompts)])
        return _batched([(len(row),) for row in rows], 1, settings.batch_size, settings.tokens)

    def perplexity(self) -> Work:
        settings = self._settings.fluency
        if settings.text is None:
            return Work()
        rows = token_ids(self._tokenizer, [*islice(text_lines(Path(settings.text)), settings.documents)])
        return _batched([(self._fitting(row),) for row in rows], 1, settings.batch_size)

    def attacks(self, cost: Cost, facts: Sequence[Fact]) -> Work:
        """What attacks on these facts take. A step of tuning is taken for three passes over its tokens."""
        read = islice(cycle([fact.question for fact in facts]), cost.read)
        answered = islice(cycle([fact.prompt for fact in facts]), cost.answered)
        return self.log_probs([*read]) + self.answers([*answered]) + Work(3 * cost.steps, 3 * cost.tuned)

    def reasoning(self, clock: Callable[[], float] = perf_counter) -> Work:
        """The harness makes the requests of all items, and reads those that differ in the last token once."""
        default = CPU_BATCH if self._model.device.type == "cpu" else HARNESS_BATCH
        size = self._settings.reasoning.batch_size or default
        total = Work()
        for name, task in self._tasks.items():
            task.set_fewshot_seed(EXAMPLES_SEED)
            chosen = range(0, self.items[name], max(1, self.items[name] // ITEMS))
            began = clock()
            texts = [text for i in chosen for text in _requests(task, self._documents[name][i])]
            seconds = clock() - began
            read = {tuple(row[:-1]) for row in token_ids(self._tokenizer, texts)}
            share = len(chosen) / self.items[name]
            tokens = sum(map(self._fitting, read))
            total += Work(len(read) / size / share, tokens / share, seconds / share)
        return total

    def _fitting(self, row: Sequence[int]) -> int:
        """How many tokens of a row the model reads."""
        return min(len(row), positions(self._model) or len(row))


def _requests(task: Any, document: Any) -> list[str]:
    """The prompts with their continuations that the harness makes of an item, without a chat template."""
    context = task.fewshot_context(
        document, num_fewshot=task.config.num_fewshot or 0, gen_prefix=task.doc_to_prefix(document)
    )
    found = task.construct_requests(doc=document, ctx=context, metadata=(task.config.task, 0, 1))
    return [request_text(request) for request in (found if isinstance(found, list) else [found])]


def _sample(items: Sequence[Any]) -> tuple[Sequence[Any], float]:
    """Some of the items, and which share of them."""
    sample = items[:: max(1, len(items) // SAMPLE)]
    return sample, len(sample) / max(1, len(items))


def _batched(shapes: Iterable[tuple[int, ...]], share: float, size: int, steps: int = 1) -> Work:
    """Batches of rows of one shape, which begins with their length; each step after the first reads a token more."""
    passes = tokens = 0.0
    for shape, count in Counter(shapes).items():
        passes += ceil(count / share / size) * steps
        tokens += count / share * (shape[0] + steps - 1)
    return Work(passes, tokens)


def forecast(
    method: Method,
    attacks: Attacks,
    split: FactSplit,
    scorer: Scorer,
    examined: Examination,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    """A paragraph on what the run will do. What the cache holds takes no time; attacks are counted as if it held none."""
    counting = Counting(scorer, model, tokenizer)
    kept, rule = examined.kept_answers(), scorer.settings.recall
    facts = [*split.wash, *split.keep]
    asked = {fact.prompt for fact in facts}

    def possible(facts: Sequence[Fact]) -> list[Fact]:
        """Those that may be known: no kept answer tells that they are not."""
        return [f for f in facts if f.prompt not in kept or recalls(kept[f.prompt], f.object, rule)]

    washed, spared = possible(split.wash), possible(split.keep)
    others: set[str] = set()  # prompts with other subjects

    def note(prompts: Sequence[str]) -> Mapping[str, str]:
        others.update(prompts)
        return dict.fromkeys(prompts, "")

    sets = probe_sets(washed, spared, kinds_of([*washed, *spared], [*facts, *split.others], note, rule))
    probes = {probe.question.prompt for found in sets.values() for probe in found}
    questions, banned = [*weighed(sets)], [*unrefusing(sets)]
    whole = {
        "texts": counting.texts(washed),
        "perplexity": counting.perplexity(),
        "reasoning": counting.reasoning(),
    }

    asking = counting.answers([*asked - kept.keys()]) + counting.answers([*others - asked - kept.keys()])
    before = counting.answers([*probes - asked - others - kept.keys()])
    before += counting.answers(examined.not_asked_unrefused(banned))
    before += counting.log_probs(examined.not_weighed(questions))
    before = sum((whole[name] for name in whole.keys() - examined.holds(washed)), before)
    asked_after = counting.answers([*probes]) + counting.answers(banned)
    after = sum(whole.values(), asked_after + counting.log_probs(questions))
    attacker = Attacker(attacks, scorer.settings, washed, spared, [*facts, *split.others])
    attack, guess = (counting.attacks(cost, washed) for cost in attacker.costs(model, tokenizer))
    unwashed = isinstance(method, Unwashed)
    stages = (
        asking,
        before,
        Work() if unwashed else after,
        attack + guess + (Work() if unwashed else attack),
    )

    tokens = sum(stages, Work()).tokens
    speed = measured(model, max(1, min(ROWS, int(tokens / SHARE / LENGTH))))
    asking_s, before_s, after_s, attacks_s = map(speed.seconds, stages)
    attacked = f" The attacks take {_told(attacks_s)}." if attacker.chosen else ""
    tasks = ", ".join(f"{name} ({count:,} items)" for name, count in counting.items.items())
    return (
        f"{type(method).__name__}: {len(facts):,} facts are asked; at most {len(washed):,} are washed and "
        f"{len(spared):,} kept. Reasoning tasks: {tasks or 'none'}. Asking takes {_told(asking_s)}, scoring before "
        f"washing {_told(before_s, 'at most ')}, and scoring after it {_told(after_s, 'at most ')}.{attacked} What the cache "
        "holds takes no time; the method tells its own."
    )


def _told(seconds: float, bound: str = "") -> str:
    return f"{bound}about {duration(seconds)}" if seconds else "no time"
