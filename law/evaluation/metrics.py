"""Every number a run reports: its key in ``metrics.json``, its unit and which way is better.

This is the one place where metrics are named. ``docs/metrics.md`` is :func:`as_markdown`, written down.
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

    ``{task}`` in a key stands for the name of an lm-evaluation-harness task. A fraction lies between 0
    and 1; tables show it in percent. A scored metric, one that is neither a count nor a time, also comes
    with the suffixes that :func:`describe` knows.
    """

    key: str
    title: str
    unit: Unit
    better: Better
    meaning: str

    @property
    def scored(self) -> bool:
        """Whether it is measured of both models and has a standard error."""
        return self.unit not in ("count", "seconds")


METRICS: tuple[Metric, ...] = (
    Metric("facts/known", "known", "count", "neither", "facts to wash that the unwashed model recalls; only these are washed and scored"),
    Metric("facts/washed", "washed", "count", "neither", "facts handed to the method"),
    Metric("facts/kept", "kept", "count", "neither", "facts not washed that the unwashed model recalls; these score what is retained"),
    Metric("facts/kept_same_subject", "kept, same subject", "count", "neither", "kept facts whose subject also has a washed fact"),
    Metric("forget/accuracy", "forget acc.", "fraction", "lower", "washed facts recalled in the washed phrasing: the object occurs in 10 greedy tokens, case ignored (1 by construction before)"),
    Metric("forget/qa_f1", "forget F1", "fraction", "lower", "mean token F1 (SQuAD) between those 10 tokens and the object"),
    Metric("forget/exact_match", "forget EM", "fraction", "lower", "exact match (SQuAD): the 10 tokens, less articles, punctuation and case, are the object and nothing else; an answer that goes on does not match"),
    Metric("forget/log_prob", "forget log p", "nats", "lower", "mean log-probability of the object's tokens after the prompt, teacher forced; the mean over tokens, then over facts"),
    Metric("forget/paraphrase_accuracy", "paraphrase acc.", "fraction", "lower", "as `forget/accuracy`, in the phrasings used only for scoring, mean over all such prompts"),
    Metric("forget/paraphrase_qa_f1", "paraphrase F1", "fraction", "lower", "as `forget/qa_f1`, in those phrasings"),
    Metric("forget/paraphrase_exact_match", "paraphrase EM", "fraction", "lower", "as `forget/exact_match`, in those phrasings"),
    Metric("forget/paraphrase_log_prob", "paraphrase log p", "nats", "lower", "as `forget/log_prob`, in those phrasings"),
    Metric("retain/accuracy", "retain acc.", "fraction", "higher", "kept facts recalled in their first phrasing (1 by construction before)"),
    Metric("retain/log_prob", "retain log p", "nats", "higher", "as `forget/log_prob`, of kept facts"),
    Metric("retain/same_subject_accuracy", "same-subject acc.", "fraction", "higher", "as `retain/accuracy`, of kept facts whose subject also has a washed fact"),
    Metric("retain/same_relation_accuracy", "same-relation acc.", "fraction", "higher", "as `retain/accuracy`, of kept facts of other subjects whose relation also has a washed fact"),
    Metric("retain/neighbour_accuracy", "neighbour acc.", "fraction", "higher", "neighbourhood prompts of the washed facts (same relation and object, other subject) still answered, among those that the unwashed model answers (1 by construction before); each counts once, and none that asks for a washed fact"),
    Metric("fluency/entropy", "entropy", "bits", "higher", "variety of sampled text: (2/3 H₂ + 4/3 H₃) / 2 with Hₙ the entropy of a text's n-grams of words (ROME), mean over texts"),
    Metric("fluency/repetition", "repetition", "fraction", "lower", "share of a sampled text's 4-grams of words that occurred in it before, mean over texts"),
    Metric("fluency/perplexity", "perplexity", "perplexity", "lower", "exp of the mean negative log-probability of a token of the held-out text; s.e. by the delta method, with documents as clusters"),
    Metric("reasoning/{task}/acc", "{task}", "fraction", "higher", "accuracy on a harness task; `_mirror` at the end of its name says that the rows were local"),
    Metric("reasoning/{task}/acc_norm", "{task} (norm)", "fraction", "higher", "accuracy with likelihoods divided by a continuation's length, where the task has it"),
    Metric("reasoning/mean", "reasoning", "fraction", "higher", "mean of `acc` over the tasks; s.e. √(Σ s.e.²) / tasks"),
    Metric("time/wash_s", "wash time", "seconds", "lower", "wall time of the method alone; of statistics and target values taken from a cache, the time that they once took"),
)  # fmt: skip


def describe(key: str) -> Metric:
    """The metric behind a key of ``metrics.json``, with ``{task}`` filled in and suffixes in its title.

    Raises:
        KeyError: the key is not documented here.
    """
    base, counted = _cut(key, "_n")
    base, error = (base, False) if counted else _cut(base, "_stderr")
    base, before = (base, False) if counted else _cut(base, "_before")
    for metric in METRICS:
        found = re.fullmatch(metric.key.replace("{task}", "(?P<task>[^/]+)"), base)
        if found and (base == key or metric.scored):
            title = metric.title.format(**found.groupdict())
            title += " before" * before + " s.e." * error + " n" * counted
            unit: Unit = "count" if counted else metric.unit
            better: Better = metric.better if base == key else "neither"
            return replace(metric, key=key, title=title, unit=unit, better=better)
    raise KeyError(f"metric {key!r} is not documented in law/evaluation/metrics.py; add it to METRICS")


def _cut(key: str, suffix: str) -> tuple[str, bool]:
    return key.removesuffix(suffix), key.endswith(suffix)


def as_markdown() -> str:
    """The page ``docs/metrics.md``."""
    rows = "".join(f"| `{m.key}` | {m.unit} | {m.better} | {m.meaning} |\n" for m in METRICS)
    return f"{_HEAD}| key | unit | better | meaning |\n| --- | --- | --- | --- |\n{rows}{_TAIL}"


_HEAD = """# Metrics

The keys of `metrics.json`, as `law/evaluation/metrics.py` documents them. A fraction lies between 0 and 1
(tables show percent). `{task}` stands for the name of a harness task.

A key by itself is of the washed model. Every key but counts and times also comes with these suffixes; a
metric over no item is left out, and so is one that is not finite (the log warns of it).

| suffix | what |
| --- | --- |
| `_before` | the same of the unwashed model |
| `_stderr`, `_before_stderr` | its standard error, in the same unit; left out of a single item |
| `_n` | how many items the mean is over: prompts, texts, tokens of the held-out text, or items of a task |

"""

_TAIL = r"""
## Standard errors

Items come in clusters: the paraphrases and the neighbours of one washed fact, the tokens of one held-out document;
everything else is a cluster of its own. With $S_g$ the sum and $N_g$ the number of the items of
cluster $g$, of $G$ clusters, the mean is $\bar x = \sum S_g / \sum N_g$ and

$$\mathrm{s.e.} = \frac{1}{\sum_g N_g} \sqrt{\frac{G}{G-1} \sum_g (S_g - N_g \bar x)^2}.$$

With one item a cluster this is the sample standard deviation over $\sqrt n$; of a proportion, $\sqrt{p(1-p)/(n-1)}$.
It tells how much a score would change with other facts, not with another seed or another training.
The standard error of reasoning accuracy is the harness's, which is the same formula.

## Fluency

A washed fact gives one prompt: its first generation prompt, or its subject where it has none; the first
`evaluation.fluency.prompts` different ones are continued. `evaluation.fluency.tokens` tokens are drawn among the five likeliest, by a
generator seeded with `evaluation.fluency.seed`, each prompt with draws of its own, so that no text depends on the batch. End-of-text is
never drawn, so that texts of one length are compared. Scores are of the new text without its prompt (ROME's entropy includes
the prompt), over words and punctuation marks, so that models with different tokenizers compare. `generations.jsonl` holds the texts.

## Reasoning: the hub or local rows

`evaluation.reasoning.source=hub` takes the harness's tasks as they are. `local` takes the same task configurations, from the
installed harness, over rows in `evaluation.reasoning.data`, and calls them `<task>_mirror`. `auto` asks the hub
whether it is there (three seconds at most; `HF_HUB_OFFLINE=1` says no at once) and takes `local` where it is not, so a
metric's key says what it was measured on; so does `reasoning_tasks` in `manifest.json`.

A row is one JSON object a line, either as `datasets` exports the task's own data set or flat, with the prompt filled in:

| task | file | flat row |
| --- | --- | --- |
| `lambada_openai` | `lambada_openai.jsonl` | `text` |
| `hellaswag` | `hellaswag.jsonl` | `query` ("activity: context"), `choices`, `label` |
| `arc_easy` | `arc_easy.jsonl` | `query` ("Question: ..."), `choices`, `gold` |
| `piqa` | `piqa.jsonl` | `query` ("Question: ..."), `choices`, `gold` |
| `winogrande` | `winogrande.jsonl` | `context_options`, `continuation`, `gold` |
| `logiqa` | `logi_qa.jsonl` | `query` ("Context: ... Question: ... Choices: A. ..."), `gold` |
| `boolq` | `boolq.jsonl` | `query` ("Passage: ... Question: ...?"), `gold` |

For the same record a mirror makes the same requests and scores them alike (`tests/test_mirror.py`). Flat rows may
differ from the data set's in their text: a published HellaSwag in this shape does not capitalise the
second half of a context, and BoolQ's passages lack their titles. Scores over them are comparable with each other, and only nearly with the
hub's.
"""
