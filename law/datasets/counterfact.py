"""CounterFact (Meng et al., NeurIPS 2022) and every file of its record shape, the lab's included."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from law.errors import LawError
from law.facts import Fact, FactSplit


@dataclass
class CounterFact:
    """A JSON list of CounterFact records, and which of them to wash and to keep.

    Args:
        path: the file.
        wash: how many facts to wash, drawn by ``seed``.
        keep: how many of the others score what is retained; ``null`` takes all.
        seed: of the draw. Which facts are washed changes with it.
    """

    path: str
    wash: int
    keep: int | None = None
    seed: int = 0

    def load(self) -> FactSplit:
        """Read the file and split it.

        Raises:
            LawError: no such file, a malformed record, or fewer facts than asked for.
        """
        facts = read_counterfact(Path(self.path))
        wanted = self.wash + (self.keep or 0)
        if wanted > len(facts) or self.wash < 1:
            raise LawError(
                f"{self.path} holds {len(facts)} facts; the configuration asks for {self.wash} to wash and "
                f"{self.keep or 0} to keep. Set dataset.wash (at least 1) and dataset.keep so that their sum "
                f"is at most {len(facts)}."
            )
        order = random.Random(self.seed).sample(facts, len(facts))
        end = len(order) if self.keep is None else wanted
        return FactSplit(wash=order[: self.wash], keep=order[self.wash : end])


def read_counterfact(path: Path) -> list[Fact]:
    """All facts of a file, in its order.

    Raises:
        LawError: names the file and the line of the first record that is malformed.
    """
    if not path.is_file():
        raise LawError(
            f"The facts file {path} does not exist; expected a JSON list of CounterFact records. Set "
            "dataset.path to such a file."
        )
    facts = []
    for line, record in _records(path):
        try:
            facts.append(_fact(record))
        except (KeyError, TypeError, AttributeError, LawError) as error:
            problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise LawError(
                f"{path}, line {line}: the record is malformed: {problem}. Expected CounterFact's shape: "
                "case_id, requested_rewrite with prompt, subject, relation_id and target_true.str, and "
                "paraphrase_prompts. Mend or remove that record."
            ) from error
    return facts


def _fact(record: Any) -> Fact:
    rewrite = record["requested_rewrite"]
    paraphrases = record["paraphrase_prompts"]
    if not isinstance(paraphrases, list):
        raise TypeError("its paraphrase_prompts is not a list of prompts")
    for text in (rewrite["subject"], rewrite["prompt"], rewrite["target_true"]["str"], *paraphrases):
        if not isinstance(text, str):
            raise TypeError(f"{text!r} stands where a text should")
    return Fact(
        id=str(record["case_id"]),
        subject=rewrite["subject"],
        template=rewrite["prompt"],
        object=rewrite["target_true"]["str"],
        relation=rewrite["relation_id"],
        paraphrases=tuple(paraphrases),
    )


def to_record(fact: Fact) -> dict[str, Any]:
    """The record that :func:`read_counterfact` reads back as ``fact``."""
    return {
        "case_id": fact.id,
        "requested_rewrite": {
            "prompt": fact.template,
            "relation_id": fact.relation,
            "target_true": {"str": fact.object},
            "subject": fact.subject,
        },
        "paraphrase_prompts": list(fact.paraphrases),
    }


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON list with the line that each begins on."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise LawError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Expected a JSON list of "
            "CounterFact records; save it as UTF-8."
        ) from error
    decoder = json.JSONDecoder()
    line = 1
    counted = 0  # characters whose line ends are already in ``line``
    at = _skip(text, 0)
    try:
        if not text.startswith("[", at):
            raise json.JSONDecodeError("expected a list, which begins with [", text, at)
        at = _skip(text, at + 1)
        while not text.startswith("]", at):
            line += text.count("\n", counted, at)
            counted = at
            record, at = decoder.raw_decode(text, at)
            yield line, record
            at = _skip(text, at)
            if text.startswith(",", at):
                at = _skip(text, at + 1)
            elif not text.startswith("]", at):
                raise json.JSONDecodeError("expected a comma or ]", text, at)
        at = _skip(text, at + 1)
        if at != len(text):
            raise json.JSONDecodeError("expected nothing after the list", text, at)
    except json.JSONDecodeError as error:
        raise LawError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}). Expected a JSON list of CounterFact "
            "records; mend the file or fetch it again."
        ) from error


def _skip(text: str, at: int) -> int:
    """The next place that is not white space."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
