r"""Whether a model still writes: variety and repetition of sampled text, and perplexity on held-out text.

Variety is the n-gram entropy of ROME (Meng et al., NeurIPS 2022): with :math:`H_n` the entropy in
bits of a text's n-grams,

.. math::
    \tfrac{1}{2} \left(\tfrac{2}{3} H_2 + \tfrac{4}{3} H_3\right).

Repetition is 1 less the share of distinct n-grams among all (seq-rep-4, Welleck et al., ICLR 2020).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Checked, Count, Natural, Seed
from law.base.errors import LawError
from law.decoders.prompts import check_length, equal_length_batches, token_ids
from law.evaluation.estimates import Estimate, mean, ratio
from law.evaluation.likelihood import text_log_probs
from law.facts.fact import Fact
from law.facts.record_files import text_lines

TOP_K = 5
ENTROPY_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
REPEATED = 4


@dataclass
class FluencySettings(Checked):
    """What is generated, and which text is read.

    Args:
        prompts: how many prompts are continued, one of each of the first washed facts; 0 generates nothing.
        tokens: how many tokens follow each.
        seed: of the sampling.
        text: UTF-8 text, one document a line, that neither training nor the method has read;
            ``null`` leaves perplexity out.
        documents: how many of its lines are read, from the first on.
        batch_size: rows a forward pass.
    """

    prompts: Natural = 100
    tokens: Count = 100
    seed: Seed = 0
    text: str | None = None
    documents: Count = 1000
    batch_size: Count = 8

    def check(self) -> None:
        """Refuse a text that does not exist, before anything is computed.

        Raises:
            LawError: with how to name one.
        """
        if self.text is not None and not Path(self.text).is_file():
            raise LawError(
                f"The held-out text {self.text} does not exist; expected a UTF-8 file with one document a line. "
                "Set evaluation.fluency.text to such a file, or to null to leave perplexity out."
            )


def generation_prompts(facts: Sequence[Fact], count: int) -> list[str]:
    """The first ``count`` different prompts: of each fact its first generation prompt, or its subject."""
    prompts = [fact.generation_prompts[0] if fact.generation_prompts else fact.subject for fact in facts]
    return list(dict.fromkeys(prompts))[:count]


@torch.inference_mode()
def sample_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: FluencySettings,
) -> list[str]:
    """``settings.tokens`` tokens after each prompt, drawn among the five likeliest, without the prompt.

    End-of-text is never drawn, as in ROME: texts of one length are compared, whatever ends early.
    Each prompt has draws of its own, so that no text depends on the batch.

    Raises:
        LawError: a prompt and its continuation are longer than the model's context.
    """
    rows = token_ids(tokenizer, prompts)
    for prompt, row in zip(prompts, rows, strict=True):
        check_length(
            model, len(row) + settings.tokens, f"{prompt!r} with evaluation.fluency.tokens={settings.tokens}"
        )
    draws = torch.rand(len(rows), settings.tokens, generator=torch.Generator().manual_seed(settings.seed))
    texts = [""] * len(rows)
    model.eval()
    with tqdm(total=len(rows), desc="generation", leave=False, disable=None) as progress:
        for batch in equal_length_batches([len(row) for row in rows], settings.batch_size):
            ids = torch.tensor([rows[i] for i in batch], device=model.device)  # (b, t)
            past, drawn = None, []
            for step in range(settings.tokens):
                output = model(input_ids=ids, past_key_values=past, use_cache=True)
                past = output.past_key_values
                logits = output.logits[:, -1].float()  # (b, vocabulary)
                logits[:, tokenizer.eos_token_id] = -torch.inf
                values, tokens = logits.topk(TOP_K)  # (b, k)
                below = values.softmax(-1).cumsum(-1) < draws[batch, step, None].to(values.device)
                ids = tokens.gather(1, below.sum(-1, keepdim=True).clamp(max=TOP_K - 1))  # (b, 1)
                drawn.append(ids)
            for i, row in zip(batch, torch.cat(drawn, 1).tolist(), strict=True):
                texts[i] = str(tokenizer.decode(row, skip_special_tokens=True))
            progress.update(len(batch))
    return texts


def entropy(text: str) -> float:
    """The weighted entropy of a text's bigrams and trigrams, in bits; 0 of a text without any."""
    weighted = []
    for n, weight in ENTROPY_WEIGHTS.items():
        counts = _ngrams(text, n)
        weighted.append(
            -weight * sum(c / counts.total() * math.log2(c / counts.total()) for c in counts.values())
        )
    return sum(weighted) / len(weighted)


def repetition(text: str) -> float:
    """The share of a text's 4-grams that repeat an earlier one; 0 of a text without any."""
    counts = _ngrams(text, REPEATED)
    return 1 - len(counts) / counts.total() if counts else 0.0


def _ngrams(text: str, n: int) -> Counter[tuple[str, ...]]:
    """The n-grams of words and punctuation marks, which no model's tokenizer decides."""
    words = re.findall(r"\w+|[^\w\s]", text)
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def text_scores(texts: Sequence[str]) -> dict[str, Estimate]:
    """``entropy`` and ``repetition``, each a mean over texts; nothing of no text."""
    found = {"entropy": mean([*map(entropy, texts)]), "repetition": mean([*map(repetition, texts)])}
    return {key: estimate for key, estimate in found.items() if estimate is not None}


def perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: FluencySettings
) -> Estimate:
    """Perplexity a token of the held-out text; its standard error is exp's slope times that of the mean.

    Raises:
        LawError: the text does not exist or holds no document.
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
