"""The worst phrasing: a fact is recalled if any of its phrasings recalls it.

A mean over phrasings hides that one of them still works. The worst case over paraphrases is what JensUn (Singh et al.
2025) reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from law.attacks.protocol import Cost, Record, Target
from law.base.checks import Checked
from law.decoders.greedy_decoding import recalled
from law.facts.fact import Fact, Question


@dataclass
class Phrasing(Checked):
    """Ask for each fact in the washed phrasing and in all its paraphrases."""

    def cost(self, target: Target) -> Cost:
        """What :meth:`attack` takes."""
        return Cost(answered=sum(1 + len(fact.paraphrases) for fact in target.facts))

    def attack(self, target: Target) -> Record:
        """Scores ``recalled``, for any phrasing, ``share`` of the phrasings, and ``phrasing_k``, for phrasing k of a fact.

        Phrasing 0 is the washed one, and the paraphrases follow.
        """
        found = hits(target, [[fact.prompt, *fact.paraphrases] for fact in target.facts])
        most = max(map(len, found), default=0)
        return {
            "recalled": [float(any(each)) for each in found],
            "share": [fmean(each) for each in found],
            **{
                f"phrasing_{k}": [float(each[k]) if k < len(each) else None for each in found]
                for k in range(most)
            },
        }


def hits(target: Target, prompts: list[list[str]]) -> list[list[bool]]:
    """Whether each of a fact's ``prompts`` recalls its object, for each fact."""

    def asked(fact: Fact, texts: list[str]) -> list[Question]:
        return [Question(text, fact.object, fact.gap) for text in texts]

    questions = [asked(fact, texts) for fact, texts in zip(target.facts, prompts, strict=True)]
    flat = [question for each in questions for question in each]
    found = iter(recalled(target.model, target.tokenizer, flat, target.batch_size, target.recall))
    return [[next(found) for _ in each] for each in questions]
