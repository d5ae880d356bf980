r"""Whether a model still writes: variety and repetition of sampled text, and perplexity of held-out text.

Variety is the n-gram entropy of ROME (Meng et al., NeurIPS 2022). With :math:`H_n` the entropy of a
text's n-grams, in bits, it is

.. math::
    \tfrac{1}{2} \left(\tfrac{2}{3} H_2 + \tfrac{4}{3} H_3\right).

Repetition is 1 minus the number of distinct 4-grams divided by the number of all 4-grams (seq-rep-4,
Welleck et al., ICLR 2020).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Checked, Count, Natural, Seed
from law.base.errors import LawError, shortened
from law.base.files import FileHashes
from law.base.progress import progress
from law.base.settings import FILES, SAME_RESULTS
from law.decoders.prompts import check_length, equal_length_batches, token_ids
from law.evaluation.estimates import Estimate, clustered_mean, entries, ratio
from law.evaluation.likelihood import text_log_probs
from law.facts.fact import Fact, trimmed
from law.facts.record_files import text_lines

VERSION = 1
"""Of the code that samples texts and computes perplexity: raise it with every change to either."""

TOP_K = 5
ENTROPY_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
REPEATED = 4


@dataclass
class FluencySettings(Checked):
    """The text that is generated, and the text whose perplexity is measured.

    Args:
        prompts: how many prompts are continued, one for each of the first washed facts; 0 generates no text.
        tokens: how many tokens are generated after each prompt.
        seed: the seed of the sampling.
        text: a UTF-8 file with one document a line, which neither training nor the method has read;
            ``null`` leaves perplexity out.
        documents: how many of its documents are read, from the first on; blank lines are no documents.
        batch_size: rows in a forward pass.
    """

    prompts: Natural = 100
    tokens: Count = 100
    seed: Seed = 0
    text: str | None = field(default=None, metadata=FILES)
    documents: Count = 1000
    batch_size: Count = field(default=8, metadata=SAME_RESULTS)

    def content(self, hashes: FileHashes) -> Any:
        """The text's hash, if there is to be one; ``None`` where it does not exist."""
        if self.text is None:
            return []
        return [hashes.of(Path(self.text))] if Path(self.text).is_file() else None

    def check(self) -> None:
        """Refuse a text that does not exist, before anything is computed.

        Raises:
            LawError: names the setting.
        """
        if self.text is not None and not Path(self.text).is_file():
            raise LawError(
                f"The held-out text {self.text} does not exist; expected a UTF-8 file with one document a line. "
                "Set evaluation.fluency.text to such a file, or to null to leave perplexity out."
            )


def generation_prompts(facts: Sequence[Fact], count: int) -> dict[str, str]:
    """The first ``count`` different prompts, each with its subject.

    A fact gives its first generation prompt, or its subject if it has none.
    """
    subjects = {
        trimmed(fact.generation_prompts[0] if fact.generation_prompts else fact.subject): fact.subject
        for fact in facts
    }
    return dict(islice(subjects.items(), count))


@torch.inference_mode()
def sample_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: FluencySettings,
) -> list[str]:
    """``settings.tokens`` tokens after each prompt, drawn among the five likeliest, without the prompt.

    Special tokens, such as end-of-text, are never drawn, so that all texts have the same number of
    tokens. Each prompt has its own random numbers, so that no text depends on the batch.

    Raises:
        LawError: a prompt and its continuation are longer than the model's context.
    """
    rows = token_ids(tokenizer, prompts)
    for prompt, row in zip(prompts, rows, strict=True):
        check_length(
            model,
            len(row) + settings.tokens,
            f"{shortened(prompt)!r} with evaluation.fluency.tokens={settings.tokens}",
        )
    draws = torch.rand(len(rows), settings.tokens, generator=torch.Generator().manual_seed(settings.seed))
    special = torch.tensor(_special_ids(tokenizer, model.config.get_text_config().vocab_size))
    special = special.to(model.device, torch.long)  # (special tokens), empty if there are none
    texts = [""] * len(rows)
    model.eval()
    with progress("generation", len(rows), "texts") as bar:
        for batch in equal_length_batches([len(row) for row in rows], settings.batch_size):
            ids = torch.tensor([rows[i] for i in batch], device=model.device)  # (b, t)
            past, drawn = None, []
            for step in range(settings.tokens):
                output = model(input_ids=ids, past_key_values=past, use_cache=True)
                past = output.past_key_values
                logits = output.logits[:, -1].float()  # (b, vocabulary)
                logits = logits.index_fill(1, special.to(logits.device), -torch.inf)
                values, tokens = logits.topk(TOP_K)  # (b, k)
                below = values.softmax(-1).cumsum(-1) < draws[batch, step, None].to(values.device)
                ids = tokens.gather(1, below.sum(-1, keepdim=True).clamp(max=TOP_K - 1))  # (b, 1)
                drawn.append(ids)
            for i, row in zip(batch, torch.cat(drawn, 1).tolist(), strict=True):
                texts[i] = str(tokenizer.decode(row, skip_special_tokens=True))
            bar.update(len(batch))
    return texts


def _special_ids(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[int]:
    """The special tokens among the first ``vocabulary`` ids; decoding leaves all of them out."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(i for i in added.union(tokenizer.all_special_ids) if i < vocabulary)


def entropy(text: str) -> float:
    """The weighted entropy of a text's bigrams and trigrams, in bits; 0 if it has none."""
    weighted = []
    for n, weight in ENTROPY_WEIGHTS.items():
        counts = _ngrams(text, n)
        weighted.append(
            -weight * sum(c / counts.total() * math.log2(c / counts.total()) for c in counts.values())
        )
    return sum(weighted) / len(weighted)


def repetition(text: str) -> float | None:
    """The share of a text's 4-grams that repeat an earlier one; ``None`` if it has none."""
    counts = _ngrams(text, REPEATED)
    return 1 - len(counts) / counts.total() if counts else None


def _ngrams(text: str, n: int) -> Counter[tuple[str, ...]]:
    """The n-grams of words and punctuation marks, which do not depend on a model's tokenizer."""
    words = re.findall(r"\w+|[^\w\s]", text)
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def text_metrics(
    subjects: Mapping[str, str], before: Mapping[str, str], after: Mapping[str, str]
) -> dict[str, float]:
    """``fluency/entropy`` and ``fluency/repetition`` of texts by their prompts; ``subjects`` are the clusters.

    A prompt after which the unwashed model writes no word is left out. After the others, a text of the
    washed model without a word has entropy 0. A text without a 4-gram has no repetition.
    """
    prompts = [prompt for prompt, text in before.items() if _ngrams(text, 1)]

    def score(measure: Callable[[str], float | None], texts: Mapping[str, str]) -> Estimate | None:
        measured = [(measure(texts[prompt]), subjects[prompt]) for prompt in prompts]
        kept = [(value, subject) for value, subject in measured if value is not None]
        return clustered_mean([value for value, _ in kept], [subject for _, subject in kept])

    metrics: dict[str, float] = {}
    for name, measure in (("entropy", entropy), ("repetition", repetition)):
        metrics |= entries(f"fluency/{name}", score(measure, before), score(measure, after))
    return metrics


def perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: FluencySettings
) -> Estimate:
    """Perplexity per token of the held-out text, with documents as clusters.

    Its standard error is that of the mean negative log-probability times the perplexity (delta method).

    Raises:
        LawError: the text does not exist, or holds no document of two tokens.
    """
    settings.check()
    documents = [*islice(text_lines(Path(str(settings.text))), settings.documents)]
    sums = text_log_probs(model, tokenizer, documents, settings.batch_size)
    surprise = ratio([(-total, tokens) for total, tokens in sums])
    assert surprise is not None  # text_log_probs gives at least one token
    try:
        value = math.exp(surprise.value)
    except OverflowError:
        value = math.inf
    return Estimate(value, None if surprise.stderr is None else value * surprise.stderr, surprise.n)
