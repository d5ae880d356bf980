"""All scores of one model, and the metrics that compare the model before washing with the model after."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.cache import Cache, model_hash, tokenizer_hash
from law.base.checks import Checked, Count
from law.base.item_cache import json_items, kept_items
from law.base.settings import SAME_RESULTS
from law.decoders import greedy_decoding
from law.decoders.greedy_decoding import Recall, greedy_answers
from law.decoders.prompts import end_tokens, refusing_tokens
from law.evaluation import fluency, likelihood, reasoning
from law.evaluation.estimates import Estimate, entries
from law.evaluation.fluency import (
    FluencySettings,
    generation_prompts,
    perplexity,
    sample_texts,
    text_metrics,
)
from law.evaluation.knowledge import Replies, knowledge_metrics, probe_sets, unrefusing, weighed
from law.evaluation.known_facts import Kind
from law.evaluation.likelihood import object_log_probs
from law.evaluation.reasoning import mean_accuracy, mean_kept, score_reasoning, tasks_at_chance
from law.evaluation.reasoning_tasks import (
    ReasoningSettings,
    chance_levels,
    check_chat_template,
    load_tasks,
    tasks_key,
)
from law.facts.fact import Fact, Question


@dataclass
class EvaluationSettings(Checked):
    """What is scored before and after washing.

    Args:
        batch_size: prompts in a forward pass when facts are asked for.
        reasoning: the harness tasks.
        fluency: the text that is generated, and the text whose perplexity is measured.
        cache: the folder that keeps the unwashed model's scores for other runs; ``null`` keeps none.
        recall: when an answer recalls an object, both for which facts are known and for every score: ``substring``,
            the paper's rule, or ``whole_word``.
    """

    batch_size: Count = field(default=128, metadata=SAME_RESULTS)
    reasoning: ReasoningSettings = field(default_factory=ReasoningSettings)
    fluency: FluencySettings = field(default_factory=FluencySettings)
    cache: str | None = field(default=None, metadata=SAME_RESULTS)
    recall: Recall = Recall.substring


@dataclass(frozen=True)
class Scores:
    """The scores of one model.

    Args:
        replies: to the questions about facts.
        texts: the continuation of each generation prompt.
        perplexity: of the held-out text; ``None`` if there is none.
        reasoning: keyed like the metrics of :mod:`law.evaluation.metrics`, without ``reasoning/``.
    """

    replies: Replies
    texts: Mapping[str, str]
    perplexity: Estimate | None
    reasoning: Mapping[str, Estimate]


class Scorer:
    """Scores models by the same questions, tasks and texts. It loads the tasks' rows once.

    ``chance`` is the accuracy of a random guess on each task for which it is known.

    Raises:
        LawError: a task is unknown, or its rows or the held-out text are missing.
    """

    def __init__(self, settings: EvaluationSettings) -> None:
        if settings.fluency.text is not None:
            settings.fluency.check()
        self.settings = settings
        self.tasks = load_tasks(settings.reasoning) if settings.reasoning.tasks else {}
        self.chance = chance_levels(self.tasks, settings.reasoning.limit)

    def on(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cached: bool) -> Examination:
        """The examination of a model with its present weights; ``cached`` keeps its scores for other runs.

        Raises:
            LawError: the tokenizer cannot build the prompts of the reasoning tasks.
        """
        check_chat_template(tokenizer, self.settings.reasoning)
        folder = self.settings.cache if cached else None
        return Examination(self, model, tokenizer, Cache(Path(folder) if folder else None))


class Examination:
    """What one model answers. It asks each question once.

    The model's weights must not change meanwhile; ``hash`` is their hash.
    """

    def __init__(
        self, scorer: Scorer, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache
    ) -> None:
        self.hash = model_hash(model)
        self._settings, self._tasks = scorer.settings, scorer.tasks
        self._model, self._tokenizer, self._cache = model, tokenizer, cache
        self._key = {"model": self.hash, "tokenizer": tokenizer_hash(tokenizer)}
        self._refusing = refusing_tokens(model, tokenizer)
        self._answers: dict[str, str] = {}

    def answers(self, prompts: Sequence[str]) -> Mapping[str, str]:
        """The greedy answers to these prompts and to all that were asked before, by prompt."""
        new = sorted(set(prompts) - self._answers.keys())
        self._answers |= zip(new, self._ask(new, []), strict=True)
        return self._answers

    def unrefused(self, prompts: Collection[str]) -> Mapping[str, str]:
        """The greedy answers to these prompts that begin with no token that refuses, by prompt."""
        asked = sorted(prompts)
        return dict(zip(asked, self._ask(asked, self._refusing), strict=True))

    def _ask(self, prompts: Sequence[str], banned: Sequence[int]) -> list[str]:
        return json_items(
            self._cache,
            "answers",
            self._answers_key(banned),
            prompts,
            lambda asked: greedy_answers(
                self._model, self._tokenizer, asked, self._settings.batch_size, banned=banned
            ),
        )

    def scores(self, washed: Sequence[Fact], kept: Sequence[Fact], kinds: Mapping[Fact, Kind]) -> Scores:
        """All scores, for facts to wash and facts to keep that the unwashed model knows, with their kinds."""
        sets = probe_sets(washed, kept, kinds)
        answers = self.answers([probe.question.prompt for probes in sets.values() for probe in probes])
        questions = sorted(weighed(sets), key=astuple)
        by_text = {_text(question): question for question in questions}
        log_probs = json_items(
            self._cache,
            "log_probs",
            self._log_probs_key(),
            [*by_text],
            lambda texts: object_log_probs(
                self._model, self._tokenizer, [by_text[text] for text in texts], self._settings.batch_size
            ),
        )
        replies = Replies(
            answers,
            dict(zip(questions, log_probs, strict=True)),
            self.unrefused(unrefusing(sets)),
            self._settings.recall,
        )
        return Scores(replies, self._texts(washed), self._perplexity(), self._reasoning())

    def _texts(self, washed: Sequence[Fact]) -> dict[str, str]:
        settings = self._settings.fluency
        prompts = [*generation_prompts(washed, settings.prompts)]
        texts = self._cache.json(
            "texts",
            self._texts_key(prompts),
            lambda: sample_texts(self._model, self._tokenizer, prompts, settings),
        )
        return dict(zip(prompts, texts, strict=True))

    def _perplexity(self) -> Estimate | None:
        settings = self._settings.fluency
        if settings.text is None:
            return None
        found = self._cache.json(
            "perplexity",
            self._perplexity_key(),
            lambda: astuple(perplexity(self._model, self._tokenizer, settings)),
        )
        return Estimate(*found)

    def _reasoning(self) -> dict[str, Estimate]:
        settings = self._settings.reasoning

        def compute() -> dict[str, Any]:
            scores = score_reasoning(self._model, self._tokenizer, self._tasks, settings)
            return {key: asdict(score) for key, score in scores.items()}

        found = self._cache.json("reasoning", self._reasoning_key(), compute)
        return {key: Estimate(**score) for key, score in found.items()}

    # --- what the cache holds ---------------------------------------------------------------------

    def kept_answers(self) -> Mapping[str, str]:
        """All answers that the cache holds, by prompt."""
        return kept_items(self._cache, "answers", self._answers_key([]))

    def not_asked_unrefused(self, prompts: Collection[str]) -> list[str]:
        """Those of the prompts whose answer without the tokens that refuse the cache does not hold."""
        kept = kept_items(self._cache, "answers", self._answers_key(self._refusing))
        return [prompt for prompt in prompts if prompt not in kept]

    def not_weighed(self, questions: Iterable[Question]) -> list[Question]:
        """Those of the questions whose log-probabilities the cache does not hold."""
        kept = kept_items(self._cache, "log_probs", self._log_probs_key())
        return [question for question in questions if _text(question) not in kept]

    def holds(self, washed: Sequence[Fact]) -> set[str]:
        """Which of ``texts``, ``perplexity`` and ``reasoning`` the cache holds, where these facts are washed."""
        prompts = [*generation_prompts(washed, self._settings.fluency.prompts)]
        keys = {
            "texts": self._texts_key(prompts),
            "perplexity": self._perplexity_key(),
            "reasoning": self._reasoning_key(),
        }
        return {name for name, key in keys.items() if self._cache.holds_json(name, key)}

    def _answers_key(self, banned: Sequence[int]) -> dict[str, Any]:
        ends = end_tokens(self._model, self._tokenizer)
        key = self._key | {"version": greedy_decoding.VERSION, "ends": ends}
        return key | {"banned": banned} if banned else key

    def _log_probs_key(self) -> dict[str, Any]:
        return self._key | {"version": likelihood.VERSION}

    def _texts_key(self, prompts: Sequence[str]) -> dict[str, Any]:
        settings = self._settings.fluency
        drawn = {"prompts": prompts, "tokens": settings.tokens, "seed": settings.seed}
        return self._key | {"version": fluency.VERSION, **drawn}

    def _perplexity_key(self) -> dict[str, Any]:
        settings = self._settings.fluency
        text = {"text": settings.content(self._cache.hashes), "documents": settings.documents}
        return self._key | {"version": [fluency.VERSION, likelihood.VERSION], **text}

    def _reasoning_key(self) -> dict[str, Any]:
        settings, hashes = self._settings.reasoning, self._cache.hashes
        tasks = tasks_key(self._tasks, self._tokenizer, settings, hashes)
        return self._key | {"version": reasoning.VERSION, **tasks}


def _text(question: Question) -> str:
    """A question as the cache names it."""
    return json.dumps(astuple(question))


def compare(
    washed: Sequence[Fact],
    kept: Sequence[Fact],
    kinds: Mapping[Fact, Kind],
    before: Scores,
    after: Scores,
    chance: Mapping[str, float],
) -> dict[str, float]:
    """The metrics of :mod:`law.evaluation.metrics`, except the counts and times that only a run knows."""
    metrics = knowledge_metrics(washed, kept, kinds, before.replies, after.replies)
    subjects = generation_prompts(washed, len(before.texts))
    metrics |= text_metrics(subjects, before.texts, after.texts)
    metrics |= entries("fluency/perplexity", before.perplexity, after.perplexity)
    for key in after.reasoning:
        metrics |= entries(f"reasoning/{key}", before.reasoning[key], after.reasoning[key])
    metrics |= {f"reasoning/{task}/chance": level for task, level in chance.items()}
    guessed = tasks_at_chance(before.reasoning, chance)
    means = (mean_accuracy(scores.reasoning, guessed) for scores in (before, after))
    metrics |= entries("reasoning/mean", *means)
    share = mean_kept(before.reasoning, after.reasoning, chance, guessed)
    whole = Estimate(1.0, 0.0, share.n) if share else None
    return metrics | entries("reasoning/kept", whole, share)
