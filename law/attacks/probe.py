r"""A linear probe: can the object be read off a hidden state, although the model does not say it? (Alain and Bengio 2016.)

For each relation and block l, a linear classifier learns the objects of *kept* facts from the block's outputs
:math:`h_l \in \mathbb R^{d_{model}}` at one token, and is asked for the objects of washed facts. It is ridge regression on the
standardised states with a target of 1 for the object and −1 for every other one; the object with the largest output is its answer.
The block that tells most over all relations counts.

With as many weights as a state has numbers, a probe fits any labels. Therefore the same probe is trained on the kept facts' objects in
a random order (a control task, Hewitt and Liang 2019): what it gets of the washed facts is chance, with the choice of the block.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from law.attacks.lens import outputs
from law.attacks.protocol import Cost, Record, Target, relation_of
from law.base.checks import Checked, Count, Seed
from law.base.progress import tracked
from law.decoders.greedy_decoding import folded
from law.decoders.prompts import equal_length_batches, subject_prompt
from law.decoders.structure import Decoder
from law.facts.fact import Fact


@dataclass
class Probe(Checked):
    """Train a classifier on kept facts, and ask it for washed ones.

    Args:
        examples: kept facts of a relation that a probe needs; relations with fewer are left out.
        seed: of the order of the shuffled objects.
    """

    examples: Count = 20
    seed: Seed = 0

    def cost(self, target: Target) -> Cost:
        """What :meth:`attack` takes."""
        return Cost(read=len(target.facts) + len(target.shown))

    def attack(self, target: Target) -> Record:
        """Scores ``subject`` and ``prompt``, by the last token of which the states are read, and ``shuffled``, of the prompt's.

        A fact whose object is that of no kept fact is left out.
        """
        blocks, count = len(Decoder(target.model).blocks), len(target.facts)
        hits: dict[str, list[list[float | None]]] = {
            score: [[None] * count for _ in range(blocks)] for score in ("subject", "prompt", "shuffled")
        }
        relations = dict.fromkeys(map(relation_of, target.facts))
        for relation in tracked([*relations], "probes", "relations"):
            shown = [fact for fact in target.shown if relation_of(fact) == relation]
            objects = [folded(fact.object) for fact in shown]
            asked = {
                i: folded(fact.object)
                for i, fact in enumerate(target.facts)
                if relation_of(fact) == relation and folded(fact.object) in objects
            }
            if len(shown) < self.examples or len({*objects}) < 2 or not asked:
                continue
            subject, prompt = last_states(target, [*shown, *(target.facts[i] for i in asked)]).numpy()
            mixed = random.Random(f"{self.seed} {relation}").sample(objects, len(objects))
            kinds = (("subject", subject, objects), ("prompt", prompt, objects), ("shuffled", prompt, mixed))
            for score, states, labels in kinds:
                for state, values in zip(states, hits[score], strict=True):  # (facts, d_model) of a block
                    probe = make_pipeline(StandardScaler(), RidgeClassifier())
                    answers = probe.fit(state[: len(shown)], labels).predict(state[len(shown) :])
                    for (i, wanted), answer in zip(asked.items(), answers, strict=True):
                        values[i] = float(answer == wanted)
        return {
            score: max(found, key=lambda values: sum(filter(None, values))) for score, found in hits.items()
        }


@torch.inference_mode()
def last_states(target: Target, facts: Sequence[Fact]) -> Tensor:
    """Every block's output, (2, blocks, facts, d_model) in the CPU's memory: at the subject's last token, and at the prompt's."""
    target.model.eval()
    decoder = Decoder(target.model)
    prompts = [subject_prompt(target.tokenizer, fact.template, fact.subject) for fact in facts]
    found = torch.empty(2, len(decoder.blocks), len(facts), decoder.d_model)
    for batch in equal_length_batches([len(prompt.ids) for prompt in prompts], target.batch_size):
        ids = torch.tensor([prompts[i].ids for i in batch], device=decoder.device)  # (b, t)
        at = torch.tensor(
            [[prompts[i].position, ids.shape[1] - 1] for i in batch], device=decoder.device
        )  # (b, 2)
        with outputs(decoder) as hidden:
            decoder.model(input_ids=ids, use_cache=False, logits_to_keep=1)
        rows = torch.arange(len(batch), device=decoder.device)[:, None]
        states = torch.stack([state[rows, at] for state in hidden])  # (blocks, b, 2, d_model)
        found[:, :, batch] = states.permute(2, 0, 1, 3).float().cpu()
    return found
