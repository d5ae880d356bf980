"""Every number that a run reports: its key in ``metrics.json``, its unit, and which direction is better.

Metrics are named only here. ``docs/metrics.md`` is the output of :func:`as_markdown`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

Unit = Literal["fraction", "seconds", "count", "nats", "bits", "perplexity"]
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Metric:
    """One number of ``metrics.json``.

    ``{task}`` in a key stands for the name of a task of the lm-evaluation-harness, ``{type}`` and ``{k}`` for what the
    attack names so. A fraction lies between 0 and 1; tables show it in percent. A scored metric also comes with the suffixes that :func:`describe`
    knows.
    """

    key: str
    title: str
    unit: Unit
    better: Better
    meaning: str

    @property
    def scored(self) -> bool:
        """Whether it is measured on both models, with a standard error."""
        return self.unit not in ("count", "seconds") and self.better != "neither"


METRICS: tuple[Metric, ...] = (
    Metric("facts/known", "known", "count", "neither", "facts to wash that the unwashed model recalls; only these are washed and scored"),
    Metric("facts/washed", "washed", "count", "neither", "facts that the method was given"),
    Metric("facts/kept", "kept", "count", "neither", "facts not washed that the unwashed model recalls; the `retain/` metrics are measured on these"),
    Metric("facts/kept_same_subject", "kept, same subject", "count", "neither", "kept facts whose subject also has a washed fact"),
    Metric("facts/known_subject", "known, of the subject", "count", "neither", "facts to wash that are recalled and that the model says of this subject, hardly of others: their object is not in the prompt, and at most one of ten prompts with other subjects is answered by it"),
    Metric("facts/known_in_prompt", "known, in the prompt", "count", "neither", "facts to wash that are recalled and whose object stands in the prompt"),
    Metric("facts/known_usual_answer", "known, usual answer", "count", "neither", "facts to wash that are recalled and whose object is the answer to at least two of ten prompts with other subjects"),
    Metric("facts/known_undecided", "known, undecided", "count", "neither", "facts to wash that are recalled, for which the data set has fewer than five other subjects with another object"),
    Metric("forget/accuracy", "forget acc.", "fraction", "lower", "washed facts that the model recalls in the washed phrasing: the object occurs in 10 greedy tokens, case ignored; anywhere in them, or as a whole word with `evaluation.recall=whole_word` (1 before washing, since only such facts are washed)"),
    Metric("forget/unrefused_accuracy", "unrefused acc.", "fraction", "lower", "as `forget/accuracy`, where an answer may not begin with a token that refuses: end-of-text, the space before it where that is a token of its own, or the end of a turn. A fact that comes back was silenced and not removed"),
    Metric("forget/qa_f1", "forget F1", "fraction", "lower", "mean token F1 (SQuAD) between those 10 tokens and the object"),
    Metric("forget/exact_match", "forget EM", "fraction", "lower", "exact match (SQuAD): the 10 tokens, without articles, punctuation and case, are the object and nothing else; an answer that continues after the object does not match"),
    Metric("forget/log_prob", "forget log p", "nats", "lower", "mean log-probability of the object's tokens after the prompt (teacher forcing): the mean over a fact's tokens, then over facts"),
    Metric("forget/paraphrase_accuracy", "paraphrase acc.", "fraction", "lower", "as `forget/accuracy`, for prompts in other phrasings, which the method never reads; only prompts that the unwashed model answers (1 before washing)"),
    Metric("forget/paraphrase_qa_f1", "paraphrase F1", "fraction", "lower", "as `forget/qa_f1`, for the prompts of `forget/paraphrase_accuracy`"),
    Metric("forget/paraphrase_exact_match", "paraphrase EM", "fraction", "lower", "as `forget/exact_match`, for the prompts of `forget/paraphrase_accuracy`"),
    Metric("forget/paraphrase_log_prob", "paraphrase log p", "nats", "lower", "as `forget/log_prob`, for the prompts of `forget/paraphrase_accuracy`"),
    Metric("retain/accuracy", "retain acc.", "fraction", "higher", "kept facts that the model recalls in their first phrasing (1 before washing, since only such facts count as kept)"),
    Metric("retain/log_prob", "retain log p", "nats", "higher", "as `forget/log_prob`, for kept facts"),
    Metric("retain/same_subject_accuracy", "same-subject acc.", "fraction", "higher", "as `retain/accuracy`, for kept facts whose subject also has a washed fact"),
    Metric("retain/same_relation_accuracy", "same-relation acc.", "fraction", "higher", "as `retain/accuracy`, for kept facts of other subjects whose relation also has a washed fact"),
    Metric("retain/neighbour_accuracy", "neighbour acc.", "fraction", "higher", "neighbourhood prompts of the washed facts (same relation and object, other subject) that the model answers; only prompts that the unwashed model answers (1 before washing), each counted once, and none that asks for a washed fact"),
    Metric("forget/of_subject_accuracy", "forget acc., of the subject", "fraction", "lower", "as `forget/accuracy`, of the washed facts that `facts/known_subject` describes"),
    Metric("retain/of_subject_accuracy", "retain acc., of the subject", "fraction", "higher", "as `retain/accuracy`, of the kept facts that `facts/known_subject` describes"),
    Metric("fluency/entropy", "entropy", "bits", "higher", "variety of sampled text: (2/3 H₂ + 4/3 H₃) / 2 with Hₙ the entropy of a text's n-grams of words (ROME), mean over texts"),
    Metric("fluency/repetition", "repetition", "fraction", "lower", "share of a sampled text's 4-grams of words that repeat an earlier one, mean over texts with a 4-gram"),
    Metric("fluency/perplexity", "perplexity", "perplexity", "lower", "exp of the mean negative log-probability of a token of the held-out text"),
    Metric("reasoning/{task}/acc", "{task}", "fraction", "higher", "accuracy on a harness task; a name that ends in `_mirror` says that the rows were local"),
    Metric("reasoning/{task}/acc_norm", "{task} (norm)", "fraction", "higher", "accuracy where each continuation's log-likelihood is divided by its length, for tasks that have it"),
    Metric("reasoning/{task}/chance", "{task} (chance)", "fraction", "neither", "accuracy of a random guess: 1 / number of choices, mean over items; for multiple choice with one right choice, otherwise left out"),
    Metric("reasoning/mean", "reasoning", "fraction", "higher", "mean of `acc` over the tasks on which the unwashed model is above chance; s.e. √(Σ s.e.²) / tasks"),
    Metric("reasoning/kept", "reasoning kept", "fraction", "higher", "reasoning that is kept, corrected for chance: mean over the tasks of `reasoning/mean` of (acc − c) / (acc before − c) with chance level c, which is 0 where it is not known (1 before washing; above 1 where the washed model is better, below 0 where it is worse than a guess); its s.e. takes the accuracy before washing as given"),
    Metric("attack/any/recalled", "any attack", "fraction", "lower", "washed facts that the model answers in at least one of the attacks `refusal`, `phrasing` and `prefix`, of those that were made"),
    Metric("attack/refusal/recalled", "refusal banned", "fraction", "lower", "washed facts recalled when an answer may not begin with a token that refuses, as `forget/unrefused_accuracy`"),
    Metric("attack/refusal/best", "best of relation", "fraction", "lower", "washed facts whose object is the likeliest of the objects of its relation (at most 12, mean log-probability of a token)"),
    Metric("attack/refusal/reciprocal_rank", "reciprocal rank", "fraction", "lower", "1 / rank of the object among those objects, mean over facts"),
    Metric("attack/phrasing/recalled", "worst phrasing", "fraction", "lower", "washed facts recalled in the washed phrasing or in any paraphrase"),
    Metric("attack/phrasing/share", "share of phrasings", "fraction", "lower", "share of a fact's phrasings that recall it, mean over facts"),
    Metric("attack/phrasing/phrasing_{k}", "phrasing {k}", "fraction", "lower", "washed facts recalled in their phrasing k: 0 is the washed one, and the paraphrases follow"),
    Metric("attack/prefix/recalled", "worst prefix", "fraction", "lower", "washed facts recalled with at least one of the six types of text around the prompt"),
    Metric("attack/prefix/{type}", "prefix: {type}", "fraction", "lower", "washed facts recalled with one type of text: `ignore` (an instruction to ignore having forgotten), `role`, `hint` (the relation in words), `affirm` (an affirmative opening of the answer), `few_shot` (facts of the same relation in front), `in_context` (facts of other relations in front)"),
    Metric("attack/choice/right", "multiple choice", "fraction", "lower", "washed facts whose object is likelier than three others of its relation; guessing gives 1/4"),
    Metric("attack/choice/reversed", "reversed", "fraction", "lower", "washed facts whose subject the model answers when asked by the object, where each object of the relation has one subject; of the facts that the unwashed model answers so"),
    Metric("attack/leak/at_{k}", "leak@{k}", "fraction", "lower", "probability that at least one of k samples holds the object, mean over facts"),
    Metric("attack/memory/exact", "exact memorisation", "fraction", "lower", "share of the object's tokens that are the likeliest in their place (teacher forcing), mean over facts"),
    Metric("attack/memory/extraction", "extraction strength", "fraction", "lower", "1 − k/T with the fewest tokens k of T that must be given so that the others are the likeliest, mean over facts"),
    Metric("attack/memory/probability", "probability", "fraction", "lower", "geometric mean of the probabilities of the object's tokens, mean over facts"),
    Metric("attack/memory/truth_ratio", "truth ratio", "fraction", "lower", "1 / (1 + R), with R the mean probability of other objects of the relation divided by the object's (TOFU); 1/2 if the object is no likelier than they are"),
    Metric("attack/lens/subject", "lens at the subject", "fraction", "lower", "washed facts whose object's first token is among the ten likeliest that the logit lens reads at the subject's last token, after any block"),
    Metric("attack/lens/prompt", "lens at the prompt", "fraction", "lower", "the same at the prompt's last token"),
    Metric("attack/lens/difference", "lens of differences", "fraction", "lower", "the same of what a block adds, at the prompt's last token"),
    Metric("attack/lens/reciprocal_rank", "lens reciprocal rank", "fraction", "lower", "1 / best rank of that token over the blocks at the prompt's last token, mean over facts"),
    Metric("attack/probe/prompt", "probe", "fraction", "lower", "washed facts whose object a linear probe of a block's output at the prompt's last token tells; it is trained on the kept facts of the relation, and the block that tells most counts"),
    Metric("attack/probe/subject", "probe at the subject", "fraction", "lower", "the same at the subject's last token"),
    Metric("attack/probe/shuffled", "probe, shuffled", "fraction", "lower", "as `attack/probe/prompt`, trained on the same facts with their objects in a random order: what a probe gets by chance"),
    Metric("attack/quantisation/int8", "int8", "fraction", "lower", "washed facts recalled when the weights of the linear layers are rounded to 255 steps for each output"),
    Metric("attack/quantisation/nf4", "nf4", "fraction", "lower", "washed facts recalled when these weights are rounded to NF4, in blocks of 64"),
    Metric("attack/quantisation/unrounded", "unrounded", "fraction", "lower", "washed facts recalled when no weight is rounded"),
    Metric("attack/quantisation/{type}_recovered", "{type}: recovered", "fraction", "lower", "share of the forgotten facts that rounding brings back: (accuracy rounded − accuracy washed) / (accuracy unwashed − accuracy washed); negative where rounding loses facts"),
    Metric("attack/quantisation/{type}_moved", "{type}: moved", "fraction", "neither", "‖Q(W+Δ) − Q(W)‖ / ‖Δ‖ over all layers that washing changed by Δ, with Q the rounding to `int8` or `nf4`; 0 if no weight reaches another level, and above 1 if Δ is smaller than a step, since a weight moves by whole steps. `rounding.jsonl` has it by layer"),
    Metric("attack/quantisation/{type}_survives", "{type}: survives", "fraction", "neither", "⟨Q(W+Δ) − Q(W), Δ⟩ / ‖Δ‖²: the share of the update that is left along its own direction"),
    Metric("attack/relearning/recalled", "relearning", "fraction", "lower", "washed facts recalled by the model that was tuned on the washed facts of other subjects, at the learning rate that recovers most"),
    Metric("attack/relearning/kept", "relearning, kept facts", "fraction", "lower", "washed facts recalled by the model that was tuned on as many kept facts, at the learning rate that recovers most; no washed fact is taught"),
    Metric("attack/relearning/text", "relearning, text", "fraction", "lower", "washed facts recalled by the model that was tuned on as many documents of general text (`evaluation.fluency.text`), at the learning rate that recovers most; no fact is taught"),
    Metric("attack/relearning/epoch_{k}", "relearning, epoch {k}", "fraction", "lower", "the same after k epochs"),
    Metric("time/wash_s", "wash time", "seconds", "lower", "wall time of the method alone; for statistics and target values from a cache, the time that computing them took"),
    Metric("time/cached_s", "from a cache", "seconds", "neither", "the part of `time/wash_s` that a cache spared: 0 when the cache was empty"),
)  # fmt: skip


def describe(key: str) -> Metric:
    """The metric behind a key of ``metrics.json``, with ``{task}`` filled in and suffixes in its title.

    Raises:
        KeyError: the key is not documented here.
    """
    base, counted = _cut(key, "_n")
    base, error = (base, False) if counted else _cut(base, "_stderr")
    base, before = (base, False) if counted else _cut(base, "_before")
    base, control = _cut(base, "_control") if base.startswith("attack/") else (base, False)
    for metric in METRICS:
        found = re.fullmatch(pattern(metric.key), base)
        if found and (base == key or metric.scored):
            title = metric.title.format(**found.groupdict())
            title += " control" * control + " before" * before + " s.e." * error + " n" * counted
            unit: Unit = "count" if counted else metric.unit
            better: Better = metric.better if base == key else "neither"
            return replace(metric, key=key, title=title, unit=unit, better=better)
    raise KeyError(f"metric {key!r} is not documented in law/evaluation/metrics.py; add it to METRICS")


def pattern(key: str) -> str:
    """The regular expression of the keys that a key with names in braces stands for; ``{k}`` is a number."""
    return re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", key.replace("{k}", r"(?P<k>\d+)"))


def _cut(key: str, suffix: str) -> tuple[str, bool]:
    return key.removesuffix(suffix), key.endswith(suffix)


def as_markdown() -> str:
    """The page ``docs/metrics.md``."""
    rows = "".join(f"| `{m.key}` | {m.unit} | {m.better} | {m.meaning} |\n" for m in METRICS)
    return f"{_HEAD}| key | unit | better | meaning |\n| --- | --- | --- | --- |\n{rows}{_TAIL}"


_HEAD = """# Metrics

The keys of `metrics.json`, as `law/evaluation/metrics.py` documents them. A fraction lies between 0 and 1
(tables show percent; `reasoning/kept`, `attack/quantisation/{type}_moved` and `attack/quantisation/{type}_recovered` can lie outside). `{task}` stands for the name of a
harness task, `{type}` for a type of text or of rounding, and `{k}` for a number of samples or epochs, or the place of a phrasing.

A key without a suffix is the washed model's value. Every key except counts, times, chance levels and `_recovered` also comes with these suffixes.
A metric over no item is left out. So is a value that is not finite, and the log warns of it.

| suffix | meaning |
| --- | --- |
| `_before` | the value of the unwashed model |
| `_stderr`, `_before_stderr` | the standard error, in the same unit; left out if all items are in one cluster |
| `_control`, `_control_stderr`, `_control_n` | of `attack/` metrics: the washed model's value on facts that nobody knew ([Attacks](attacks.md#the-control)), its standard error and number of facts |
| `_n` | the number of items in the mean: prompts, texts, tokens of the held-out text, or items of a task |

"""

_TAIL = r"""
## Standard errors

Items that share something are not independent, so they count as one cluster:

| items | one cluster holds |
| --- | --- |
| washed facts, kept facts, paraphrases, sampled texts | everything about one subject |
| neighbourhood prompts | the neighbours of one washed fact; a neighbour that several washed facts list joins their clusters into one |
| tokens of the held-out text | one document |
| items of a reasoning task | one item |

A method edits a subject's representation, so facts about one subject are kept or lost together. The edit of one fact
likewise reaches all its neighbours. Joined clusters are the connected components of the graph that links washed facts to
their neighbours. No two components share a washed fact. With $S_g$ the sum and $N_g$ the number of the items of
cluster $g$, out of $G$ clusters, the mean is $\bar x = \sum S_g / \sum N_g$, and its cluster-robust standard error is

$$\mathrm{s.e.} = \frac{1}{\sum_g N_g} \sqrt{\frac{G}{G-1} \sum_g (S_g - N_g \bar x)^2}.$$

If every cluster has one item, this is the sample standard deviation divided by $\sqrt n$; for a proportion, $\sqrt{p(1-p)/(n-1)}$.
The standard error says how much a score would change with other facts, not with another seed or another training run. With fewer than
about 30 clusters it is itself uncertain and tends to be too small.
The standard error of reasoning accuracy is the harness's, which is the same formula with one item in each cluster. The standard error of perplexity is the
perplexity times the standard error of the mean negative log-probability (delta method).

## Fluency

A washed fact gives one prompt: its first generation prompt, or its subject if it has none. The first
`evaluation.fluency.prompts` different prompts are continued by `evaluation.fluency.tokens` tokens, drawn among the five likeliest. The
generator is seeded with `evaluation.fluency.seed`, and each prompt has its own random numbers, so that no text depends on the batch. Special tokens,
such as end-of-text, are never drawn, so that all texts have the same number of tokens. Scores are of the new text without its prompt (ROME's
entropy includes the prompt), over words and punctuation marks, so that models with different tokenizers can be compared. A prompt after which the
unwashed model writes no word is left out for both models. If the washed model writes no word after one of the others, that text has entropy 0.
`generations.jsonl` holds all texts.

The held-out text is read document by document; blank lines are no documents. The first token of a document is given and the
others are predicted, with every tokenizer: a beginning-of-text token that the tokenizer adds is read first and is not
predicted. A document is cut to the model's longest context. Perplexity is per token, so it compares a model with itself before washing, and
not models with different tokenizers.

## Reasoning

A model that guesses cannot lose reasoning. So a task counts for `reasoning/mean` only if the accuracy of the unwashed model exceeds the
chance level $c$ by two standard errors of guessing, $2\sqrt{c(1-c)/n}$ with $n$ items. The mean is over the same tasks before
and after washing. The log and `tasks_at_chance` in `manifest.json` name the other tasks; if no task is above chance,
there is no mean. Where no chance level is known, $c$ is 0: such a task counts unless the unwashed model solves none of its items.

A guess already scores $c$, so that half of an accuracy can be no reasoning at all. `reasoning/kept` corrects for it: the mean over the same tasks of
$(a - c) / (a_0 - c)$, with $a_0$ the accuracy before washing. The balance takes this share.

`evaluation.reasoning.few_shot=5` puts five solved examples before each item. They are drawn as the harness draws them: from the split that a
task names for it, else from its training, validation or scored rows, with a fixed seed, so that both models read the same examples. If
examples come from the scored rows, an item is never its own example. `evaluation.reasoning.chat_template=true` turns prompts into messages of the
tokenizer's chat template, each example as a question and an answer. A template that writes today's date gets a fixed one, so that scores do not depend on the day.
`evaluation.reasoning.system` is the system message. If a prompt is longer than the model's context, the harness cuts its beginning; the log says how often.

### Rows from the hub or from local files

With `evaluation.reasoning.source=hub` the harness loads its own rows. With `local` the same task configurations, from the
installed harness, read rows in the folder `evaluation.reasoning.data`, and the scores are called `<task>_mirror`. With `auto` the source is the hub
if it answers within three seconds (`HF_HUB_OFFLINE=1` means no), and otherwise `local`. So a
metric's key says where its rows came from, and so does `reasoning_tasks` in `manifest.json`.

A row is one JSON object in a line: either the data set's own row, as `datasets` exports it, or a flat row, which contains the whole prompt:

| task | file | flat row |
| --- | --- | --- |
| `lambada_openai` | `lambada_openai.jsonl` | `text` |
| `hellaswag` | `hellaswag.jsonl` | `query` ("activity: context"), `choices`, `label` |
| `arc_easy` | `arc_easy.jsonl` | `query` ("Question: ..."), `choices`, `gold` |
| `piqa` | `piqa.jsonl` | `query` ("Question: ..."), `choices`, `gold` |
| `winogrande` | `winogrande.jsonl` | `context_options`, `continuation`, `gold` |
| `logiqa` | `logi_qa.jsonl` | `query` ("Context: ... Question: ... Choices: A. ..."), `gold` |
| `boolq` | `boolq.jsonl` | `query` ("Passage: ... Question: ...?"), `gold` |

With few-shot examples, each file except LAMBADA's needs a second one with rows of the training split, such as `arc_easy_train.jsonl`.

For the same record a mirror sends the same requests to the model as the harness's task and scores them alike (`tests/test_mirror.py`). The text of
flat rows can differ from the data set's: a published HellaSwag in this shape does not capitalise the
second half of a context, and its BoolQ passages lack their titles. Scores over such rows can be compared with each other, but only
approximately with scores over the hub's rows.
"""
