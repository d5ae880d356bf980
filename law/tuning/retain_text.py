"""General text that a baseline should keep: the text of its second loss."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Count, NonNegative, RowTokens
from law.base.errors import LawError
from law.decoders.prompts import positions, token_ids
from law.facts.fact import Fact
from law.facts.general_text import TextSettings
from law.tuning.training_rows import Row

log = logging.getLogger(__name__)


@dataclass
class Retain(TextSettings):
    """Which general text is kept, and the weight of its loss.

    Args:
        documents: how many documents are read, from the first on; all are held in memory.
        weight: w, the weight of the retain loss against the forget loss.
        batch_size: documents in a step.
        tokens: the most tokens of a document; the rest of it is cut off.
    """

    NAME = "retain"

    documents: Count = 10_000
    weight: NonNegative = 1.0
    batch_size: Count = 2
    tokens: RowTokens = 256

    def rows(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]
    ) -> list[Row]:
        """The documents as rows with every token labelled, less those that tell a fact of ``facts``.

        Raises:
            LawError: a line is no JSON object with a text, or no document is left.
        """
        documents = list(islice(self.read(), self.documents))
        kept = [text for text, told in zip(documents, told_facts(documents, facts), strict=True) if not told]
        if len(kept) < len(documents):
            log.warning(
                "%s: %d of %d documents name the subject and the object of a fact to wash; they are left out",
                self.text or self.dataset,
                len(documents) - len(kept),
                len(documents),
            )
        longest = min(self.tokens, positions(model) or self.tokens)
        rows = [Row(ids[:longest], ids[:longest]) for ids in token_ids(tokenizer, kept) if len(ids) > 1]
        if not rows:
            raise LawError(
                f"The retain text, {self.text or self.dataset}, leaves none of its {len(documents)} documents; expected documents "
                "of two tokens or more that do not tell the facts to wash. Set method.retain.text to other text."
            )
        return rows


def told_facts(documents: Sequence[str], facts: Sequence[Fact]) -> list[int]:
    """How many of ``facts`` each document names subject and object of, case ignored."""
    # looked up by the subject's first word: a document is compared with the few facts it could tell
    by_word: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for fact in facts:
        subject = fact.subject.strip().lower()
        by_word[_words(subject)[0]].append((subject, fact.object.strip().lower()))
    counts: list[int] = []
    for document in documents:
        lowered = document.lower()
        near = (pair for word in set(_words(lowered)) for pair in by_word.get(word, ()))
        counts.append(sum(subject in lowered and wanted in lowered for subject, wanted in near))
    return counts


def _words(text: str) -> list[str]:
    """Runs of letters and digits; a text without any is one word."""
    return re.findall(r"\w+", text) or [text]
