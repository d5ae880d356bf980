"""Attacks on a washed model, beside the same attacks on the unwashed one and on facts that nobody knew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.attacks.choice import Choice
from law.attacks.control import control_facts
from law.attacks.leak import Leak
from law.attacks.lens import Lens
from law.attacks.memory import Memory
from law.attacks.phrasing import Phrasing
from law.attacks.prefix import Prefix
from law.attacks.probe import Probe
from law.attacks.protocol import Attack, Cost, Record, Target, relation_of
from law.attacks.quantisation import (
    Quantisation,
    copied_weights,
    recovered_share,
    survival,
    survival_metrics,
)
from law.attacks.refusal import Refusal
from law.attacks.relearning import Relearning
from law.base.cache import Cache, content_hash, tokenizer_hash
from law.base.checks import Accepted, Checked, Count
from law.base.files import FileHashes
from law.base.progress import tracked
from law.decoders.greedy_decoding import folded
from law.decoders.prompts import refusing_tokens
from law.evaluation.estimates import Estimate, clustered_mean, entries
from law.evaluation.scores import EvaluationSettings
from law.facts.fact import Fact

VERSION = 4
"""Of the code of all attacks: raise it with every change to their numbers."""

ANSWERED = ("refusal", "phrasing", "prefix")
"""Attacks whose score ``recalled`` says that the model gave the answer: ``attack/any`` counts a fact that one of them
gets."""

REVERSED = "attack/choice/reversed"
"""Models answer few reversed questions, so that this score is of those which the unwashed model answered."""

NAMES = (
    "refusal",
    "phrasing",
    "prefix",
    "choice",
    "leak",
    "memory",
    "lens",
    "probe",
    "quantisation",
    "relearning",
)
"""The attacks that there are, in the order in which they are made."""

Names = Annotated[
    list[str],
    Accepted(f"a list of attacks, which are {', '.join(NAMES)}", lambda values: {*values} <= {*NAMES}),
]


@dataclass
class Attacks(Checked):
    """Which attacks are made on the washed model, and the settings of each.

    Args:
        made: the names of the attacks that are made.
        refusal: the tokens that refuse are banned.
        phrasing: the worst of several phrasings.
        prefix: text around the prompt.
        choice: multiple choice, and the reversed question.
        leak: samples.
        memory: how likely the object's tokens are.
        lens: what every block's output tells of the object.
        probe: what a classifier of a block's output tells of it.
        quantisation: the weights rounded.
        relearning: some of the facts taught again.
        facts: of the washed facts, the first so many are attacked; ``null``: all.
    """

    made: Names = field(default_factory=list)
    facts: Count | None = None
    refusal: Refusal = field(default_factory=Refusal)
    phrasing: Phrasing = field(default_factory=Phrasing)
    prefix: Prefix = field(default_factory=Prefix)
    choice: Choice = field(default_factory=Choice)
    leak: Leak = field(default_factory=Leak)
    memory: Memory = field(default_factory=Memory)
    lens: Lens = field(default_factory=Lens)
    probe: Probe = field(default_factory=Probe)
    quantisation: Quantisation = field(default_factory=Quantisation)
    relearning: Relearning = field(default_factory=Relearning)

    def chosen(self) -> dict[str, Attack]:
        """The attacks to make, by name."""
        return {name: getattr(self, name) for name in NAMES if name in self.made}


Records = Mapping[str, Record]
"""What each attack found, by its name."""


class Attacker:
    """Makes the same attacks on several models.

    Args:
        attacks: which ones.
        settings: how many prompts are read at once, when an answer recalls an object, the held-out text, which an attack may
            tune the model on, and the cache.
        washed: the facts that the method is given.
        kept: facts that are neither washed nor held back, which an attack may show.
        pool: all facts of the data set: their subjects are those of the control, their objects the rivals.
    """

    def __init__(
        self,
        attacks: Attacks,
        settings: EvaluationSettings,
        washed: Sequence[Fact],
        kept: Sequence[Fact],
        pool: Sequence[Fact],
    ) -> None:
        self.chosen = attacks.chosen()
        self._settings, self._washed, self._shown = settings, washed[: attacks.facts], kept
        folder = Path(settings.cache) if settings.cache else None
        self._cache, self._hashes = Cache(folder), FileHashes(folder)
        # the washed facts that are not attacked are no subjects for it either
        self._control = control_facts(washed, pool)[: attacks.facts] if self.chosen else []
        relations = {relation_of(fact) for fact in washed}
        named: dict[str, dict[str, str]] = {relation: {} for relation in relations}
        for fact in (*washed, *pool) if self.chosen else ():
            if relation_of(fact) in relations:
                named[relation_of(fact)].setdefault(folded(fact.object), fact.object)
        self._objects = {relation: [*objects.values()] for relation, objects in named.items()}

    def on_washed_facts(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, hash: str
    ) -> Records:
        """What the attacks get of the washed facts; ``hash`` is that of the model."""
        return self._on(model, tokenizer, hash, self._washed)

    def on_control(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, hash: str) -> Records:
        """What the attacks get of facts that nobody knew."""
        return self._on(model, tokenizer, hash, self._control)

    def copied(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The weights before washing, which :meth:`rounded_update` compares with; none if nothing is rounded."""
        return copied_weights(model) if "quantisation" in self.chosen else {}

    def rounded_update(self, unwashed: Mapping[str, Tensor], model: PreTrainedModel) -> list[dict[str, Any]]:
        """A line of ``rounding.jsonl`` for each layer that washing changed: how much of its update is left by rounding."""
        return survival(unwashed, model) if unwashed else []

    def costs(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[Cost, Cost]:
        """About what the attacks take for the washed facts, and for the control."""
        targets = (self._target(model, tokenizer, facts) for facts in (self._washed, self._control))
        washed, control = (
            sum((attack.cost(target) for attack in self.chosen.values()), Cost()) for target in targets
        )
        return washed, control

    def _target(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]
    ) -> Target:
        settings = self._settings
        return Target(
            model,
            tokenizer,
            facts,
            self._shown,
            self._objects,
            settings.batch_size,
            settings.recall,
            settings.fluency.text,
        )

    def _on(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, hash: str, facts: Sequence[Fact]
    ) -> Records:
        target = self._target(model, tokenizer, facts)
        asked = content_hash([[asdict(fact) for fact in part] for part in (facts, self._shown)])
        key = {
            "version": VERSION,
            "model": hash,
            "tokenizer": tokenizer_hash(tokenizer),
            "refusing": refusing_tokens(model, tokenizer),
            "facts": asked,
            "objects": self._objects,
            "recall": self._settings.recall.value,
            "text": self._settings.fluency.content(self._hashes),
        }
        found: dict[str, Record] = {}
        for name, attack in tracked([*self.chosen.items()], "attacks", "attacks"):
            settings = {"settings": vars(attack)}
            found[name] = self._cache.json(f"attack_{name}", key | settings, partial(attack.attack, target))
        if names := [name for name in ANSWERED if name in found]:
            hits = zip(*(found[name]["recalled"] for name in names), strict=True)
            found["any"] = {"recalled": [max(hit) for hit in hits]}
        return found

    def metrics(
        self, before: Records, after: Records, control: Records, rounding: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, float]:
        """The ``attack/`` metrics of :mod:`law.evaluation.metrics`.

        Args:
            before: of the unwashed model and the washed facts.
            after: of the washed model and the washed facts.
            control: of the washed model and the control.
            rounding: the lines of :meth:`rounded_update`.
        """
        found = survival_metrics(rounding)
        if "quantisation" in after:
            found |= recovered_share(before["quantisation"], after["quantisation"])
        for attack, record in after.items():
            for score, values in record.items():
                key, unwashed = f"attack/{attack}/{score}", before[attack][score]
                if key == REVERSED:
                    unwashed, values = (
                        [value if old else None for value, old in zip(record, unwashed, strict=True)]
                        for record in (unwashed, values)
                    )
                found |= entries(key, _mean(unwashed, self._washed), _mean(values, self._washed))
                # facts of the control may all have fewer phrasings
                guessed = control[attack].get(score, [None] * len(self._control))
                found |= entries(f"{key}_control", None, _mean(guessed, self._control))
        return found

    def lines(self, before: Records, after: Records) -> Iterator[dict[str, Any]]:
        """A line of ``attacks.jsonl`` for each washed fact: every score before and after washing."""
        for i, fact in enumerate(self._washed):
            line: dict[str, Any] = {"id": fact.id, "prompt": fact.prompt, "object": fact.object}
            for name, records in (("before", before), ("after", after)):
                line[name] = {
                    f"{attack}/{score}": values[i]
                    for attack, record in records.items()
                    for score, values in record.items()
                }
            yield line


def _mean(values: Sequence[float | None], facts: Sequence[Fact]) -> Estimate | None:
    """The mean over the facts that a score says something about; facts of one subject are one cluster."""
    pairs = [(value, fact.subject) for value, fact in zip(values, facts, strict=True) if value is not None]
    return clustered_mean([value for value, _ in pairs], [subject for _, subject in pairs])
