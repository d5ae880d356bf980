r"""What a baseline should keep: general text and other facts, and the loss that holds them.

The loss of a retained token, with :math:`p_\theta` the tuned model's next-token distribution there, :math:`p_0` the unwashed model's
and y the token that follows:

.. math::
    \mathrm{CE} = -\log p_\theta(y), \qquad
    \mathrm{KL} = \sum_v p_0(v) \log \frac{p_0(v)}{p_\theta(v)}, \qquad
    \mathrm{JS} = \tfrac12 \mathrm{KL}(p_\theta \,\|\, m) + \tfrac12 \mathrm{KL}(p_0 \,\|\, m),
    \quad m = \tfrac12 (p_\theta + p_0)

Cross-entropy trains the model on what it should keep. The two divergences hold it where it was: they are zero at the start, and JS
is at most log 2.
"""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Count, NonNegative, RowTokens
from law.base.errors import LawError
from law.base.report import Report
from law.base.settings import GENERAL_TEXT, OTHER_FACTS
from law.decoders.prompts import positions, token_ids
from law.facts.fact import Fact
from law.facts.general_text import TextSettings
from law.tuning.adapters import Lora
from law.tuning.loop import Term, Tuning, tune
from law.tuning.reference import Reference
from law.tuning.training_rows import (
    Batch,
    Row,
    cross_entropy,
    fact_rows,
    predicted,
    predicted_logits,
    token_logits,
)

log = logging.getLogger(__name__)


class Hold(Enum):
    """The loss that holds what is retained: ``cross_entropy``, ``kl`` or ``js``, as in :mod:`law.tuning.retain`."""

    cross_entropy = "cross_entropy"
    kl = "kl"
    js = "js"


@dataclass
class RetainSet(TextSettings):
    """What is kept: general text, other facts, or both, each with the weight of its loss.

    Args:
        documents: how many documents are read, from the first on; all are held in memory.
        weight: w, the weight of the loss on general text against the forget loss; 0 reads no text.
        fact_weight: the weight of the loss on other facts, which are neither washed nor scored; 0 uses none. They are
            those that the draw leaves (``dataset.wash``, ``dataset.keep``).
        batch_size: documents in a step, and as many facts.
        tokens: the most tokens of a document; the rest of it is cut off.
    """

    NAME = "retain"

    documents: Count = 10_000
    weight: NonNegative = 1.0
    fact_weight: NonNegative = 0.0
    batch_size: Count = 2
    tokens: RowTokens = 256

    def check(self) -> None:
        """Refuse a text that can't be read, if it is to be read."""
        if self.weight:
            super().check()

    def learns_from(self) -> Collection[str]:
        """What has a weight."""
        weights = {GENERAL_TEXT: self.weight, OTHER_FACTS: self.fact_weight}
        return [what for what, weight in weights.items() if weight]

    def terms_of(
        self,
        loss: Callable[[Batch], Tensor],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        others: Sequence[Fact],
        units: Callable[[Row], int] = predicted,
    ) -> list[Term]:
        """The terms of an objective: one for general text and one for ``others``, where its weight is not 0.

        Args:
            loss: of a batch, (units).
            model: its positions limit a document.
            tokenizer: of the model.
            facts: the facts to wash, which no document may tell.
            others: the facts that are neither washed nor scored.
            units: how many units of the loss a row has. Of a fact, the object's tokens alone are labelled.

        Raises:
            LawError: a line is no JSON object with a text, no document is left, or ``others`` is empty.
        """
        terms = []
        if self.weight:
            rows = self.text_rows(model, tokenizer, facts)
            terms.append(Term("retain", rows, self.batch_size, loss, self.weight, units))
        if self.fact_weight:
            if not others:
                raise LawError(
                    f"The method's retain.fact_weight is {self.fact_weight:g}, but there are no other facts to retain; expected "
                    "facts that are neither washed nor scored. Lower dataset.keep or dataset.wash, so that the draw "
                    "leaves some, or set retain.fact_weight=0."
                )
            rows = fact_rows(tokenizer, others, object_only=True)
            terms.append(Term("retain_facts", rows, self.batch_size, loss, self.fact_weight, units))
        return terms

    def text_rows(
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


@dataclass
class Retain(RetainSet):
    """What is kept, and the loss that holds it.

    Args:
        loss: the loss of a retained token. ``kl`` and ``js`` compare with the unwashed model: without LoRA they hold a
            copy of all weights.
    """

    loss: Hold = Hold.cross_entropy

    def terms(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        others: Sequence[Fact],
        lora: Lora,
        unwashed: Reference | None = None,
    ) -> list[Term]:
        """The terms that hold general text and ``others``, as :class:`RetainSet` makes them.

        ``unwashed`` is the unwashed model, if the method holds it anyway.
        """
        compares = self.loss is not Hold.cross_entropy
        reference = unwashed or (Reference(model, lora) if compares else None)

        def loss(batch: Batch) -> Tensor:
            logits = token_logits(model, batch)
            if reference is None or self.loss is Hold.cross_entropy:
                return cross_entropy(logits, batch.labels)
            before = reference.logits(batch)
            return (kl if self.loss is Hold.kl else jensen_shannon)(logits, before, batch.labels)

        return self.terms_of(loss, model, tokenizer, facts, others)


@dataclass(kw_only=True)
class RetainTuning(Tuning):
    """Settings of fine-tuning with a retain loss.

    Args:
        retain: what is kept, the loss that holds it, and its weight w.
    """

    retain: Retain

    def check(self, model: PreTrainedModel) -> None:
        """Refuse what fine-tuning refuses, and a retain text that does not exist."""
        super().check(model)
        self.retain.check()

    def descend(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        forget: Term,
        facts: Sequence[Fact],
        others: Sequence[Fact],
        report: Report,
        unwashed: Reference | None = None,
    ) -> None:
        """Descend the forget term of ``facts`` and the retain terms, in place.

        ``unwashed`` is the unwashed model, if the method holds it anyway.
        """
        keep = self.retain.terms(model, tokenizer, facts, others, self.lora, unwashed)
        tune(model, [forget, *keep], self, report, copies=unwashed.copies if unwashed else None)


def kl(logits: Tensor, before: Tensor, labels: Tensor) -> Tensor:
    """KL(p₀ ‖ p_θ) of each predicted token, (units), from logits and those before, (b, t, vocabulary), labels (b, t)."""
    log_p, log_p0 = (predicted_logits(one, labels).log_softmax(-1) for one in (logits, before))
    # F.kl_div(q, p) is KL(p ‖ q)
    return F.kl_div(log_p, log_p0, reduction="none", log_target=True).sum(-1)


def jensen_shannon(logits: Tensor, before: Tensor, labels: Tensor) -> Tensor:
    """JS(p_θ ‖ p₀) of each predicted token, (units), from logits and those before, (b, t, vocabulary), labels (b, t)."""
    pair = [predicted_logits(one, labels).log_softmax(-1) for one in (logits, before)]
    log_m = pair[0].logaddexp(pair[1]) - math.log(2)  # (units, vocabulary)
    halves = [F.kl_div(log_m, log_p, reduction="none", log_target=True).sum(-1) for log_p in pair]
    return 0.5 * (halves[0] + halves[1])


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
