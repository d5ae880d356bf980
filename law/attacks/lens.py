r"""The logit lens: does a block still hold the object that the model no longer says? (nostalgebraist 2020.)

The output of block l at a token passes the final norm and the output head, as if no block followed. With
:math:`r_l` the rank of the object's first token among all tokens, the attack reports the best rank over the layers,

.. math:: r = \min_l r_l,

at the prompt's last token and at the subject's, and the same of what a block adds, :math:`h_l - h_{l-1}`. This is what
REVS (Ashuach et al. 2024) calls the logit-lens and the delta attack, there with k candidates a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from law.attacks.protocol import Cost, Record, Target
from law.base.checks import Checked, Count
from law.base.progress import progress
from law.decoders.other_paths import hidden_in
from law.decoders.prompts import answered_prompts, equal_length_batches, subject_prompt
from law.decoders.structure import Decoder


@dataclass
class Lens(Checked):
    """Read the object off every block's output.

    Args:
        top: a fact is found where the object's first token is among so many.
    """

    top: Count = 10

    def cost(self, target: Target) -> Cost:
        """What :meth:`attack` takes."""
        return Cost(read=len(target.facts))

    @torch.inference_mode()
    def attack(self, target: Target) -> Record:
        """Scores ``subject``, ``prompt`` and ``difference``, and ``reciprocal_rank`` at the prompt's last token."""
        target.model.eval()
        decoder = Decoder(target.model)
        prompts = [subject_prompt(target.tokenizer, fact.template, fact.subject) for fact in target.facts]
        wanted = [row.ids[row.object] for row in answered_prompts(target.tokenizer, target.facts)]
        best = torch.empty(3, len(prompts))
        with progress("logit lens", len(prompts), "facts") as bar:
            for batch in equal_length_batches([len(prompt.ids) for prompt in prompts], target.batch_size):
                ids = torch.tensor([prompts[i].ids for i in batch], device=decoder.device)  # (b, t)
                at = torch.tensor([prompts[i].position for i in batch], device=decoder.device)
                objects = torch.tensor([wanted[i] for i in batch], device=decoder.device)
                best[:, batch] = best_ranks(decoder, ids, at, objects).float().cpu()
                bar.update(len(batch))
        subject, prompt, difference = (best <= self.top).float().tolist()
        reciprocal = (1 / best[1]).tolist()
        return {
            "subject": subject,
            "prompt": prompt,
            "difference": difference,
            "reciprocal_rank": reciprocal,
        }


def best_ranks(decoder: Decoder, ids: Tensor, subject: Tensor, objects: Tensor) -> Tensor:
    """The best ranks over the layers, (3, b): at the subject's last token, at the prompt's, and of the differences there.

    Args:
        ids: prompts of one length, (b, t).
        subject: the place of each subject's last token, (b).
        objects: the token that is looked for, (b).
    """
    with outputs(decoder) as hidden:
        decoder.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    rows = torch.arange(len(ids), device=ids.device)
    last = torch.full_like(rows, ids.shape[1] - 1)
    both = torch.cat([rows, rows]), torch.cat([subject, last])

    def ranks(state: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
        """The rank of each place's object, (1 or 2, b), with the state (b, t, d_model) as the last block's output."""
        logits = decoder.logits_from(state, ids, None, len(decoder.blocks) - 1, at)  # (m, vocabulary)
        own = logits.gather(1, objects.repeat(len(logits) // len(objects))[:, None])  # (m, 1)
        return 1 + (logits > own).sum(1).view(-1, len(objects))

    states = torch.stack([ranks(state, both) for state in hidden]).amin(0)  # (2, b)
    added = [ranks(state - before, (rows, last)) for before, state in pairwise(hidden)]
    return torch.cat([states, torch.stack(added).amin(0) if added else states[1:]])


@contextmanager
def outputs(decoder: Decoder) -> Iterator[list[Tensor]]:
    """The output of every block, (b, t, d_model), of the forward pass inside."""
    hidden: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden.append(hidden_in(output).to(decoder.device))

    handles = [block.register_forward_hook(keep) for block in decoder.blocks]
    try:
        yield hidden
    finally:
        for handle in handles:
            handle.remove()
