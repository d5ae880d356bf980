"""The rows on which z* of several facts is optimised, with a shift δ in place (docs/explanation/method.md).

Attention is causal, so δ changes nothing before the subject's last token. All blocks read the tokens before it once.
The tokens from it on run once up to block L, and then, with each δ, through the blocks above L.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from law.decoders.kv_cache import Past, can_read_on, read
from law.decoders.prompts import SubjectPrompt, pad_right
from law.decoders.structure import Decoder

UNUSED = -100
"""In the place of a token: in front of a target that is shorter than others of its batch. PyTorch's losses ignore it."""


@dataclass(frozen=True)
class Batch:
    """The rows of several facts, ``per_fact`` each, from the subject's last token on.

    Where a model can't read on, rows begin with their first token and ``past`` is ``None``.
    """

    decoder: Decoder
    layer: int
    per_fact: int
    past: Past | None
    ids: Tensor  # (rows, t)
    mask: Tensor  # (rows, p + t)
    hidden: Tensor  # (rows, t, d_model): the output of block L
    at: Tensor  # (rows): the place of the subject's last token
    ends: Tensor  # (rows): the place behind the last token

    @classmethod
    @torch.no_grad()
    def read(
        cls,
        decoder: Decoder,
        tokenizer: PreTrainedTokenizerBase,
        asked: Sequence[Sequence[SubjectPrompt]],
        layer: int,
    ) -> Batch:
        """Run what does not depend on δ."""
        device, padding = decoder.device, tokenizer.pad_token_id
        rows = [row for fact in asked for row in fact]
        begins = [row.position if can_read_on(decoder.model) else 0 for row in rows]
        ids, mask = pad_right([r.ids[b:] for r, b in zip(rows, begins, strict=True)], padding, device)
        at = torch.tensor([r.position - b for r, b in zip(rows, begins, strict=True)], device=device)
        ends, past = mask.sum(1), None
        if any(begins):
            # padded on the left: the same as on the right, of rows turned round
            before = [r.ids[:b][::-1] for r, b in zip(rows, begins, strict=True)]
            ids_before, mask_before = (x.flip(1) for x in pad_right(before, padding, device))
            positions = mask_before.sum(1, keepdim=True) + torch.arange(ids.shape[1], device=device)
            past = Past(read(decoder.model, ids_before, mask_before), positions)
            mask = torch.cat([mask_before, mask], dim=1)
        hidden = decoder.hidden_states(ids, mask, layer, past)
        return cls(decoder, layer, len(asked[0]), past, ids, mask, hidden, at, ends)

    @property
    def start(self) -> Tensor:
        """h_L^0 (n, d_model): at the subject's last token of each bare prompt, in float32."""
        bare = torch.arange(0, len(self.ids), self.per_fact, device=self.ids.device)
        return self.hidden[bare, self.at[bare]].float()

    def projected(self) -> Tensor:
        """m_L (n, d_model): the output of block L's down-projection where :attr:`start` is its own, in float32."""
        bare = torch.arange(0, len(self.ids), self.per_fact, device=self.ids.device)
        with torch.no_grad(), self.decoder.capture_keys([self.layer]) as captured:
            self.decoder.hidden_states(self.ids, self.mask, self.layer, self.past)
            k = captured[self.layer][bare, self.at[bare]]  # (n, d_ff)
            projection = self.decoder.down_projection(self.layer)  # may lie on another device
            return projection(k.to(projection.weight.device)).float().to(self.hidden.device)

    def predictions(self, delta: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the model says with δ (n, d_model) in place.

        Args:
            delta: δ of each fact.
            target: the target's tokens of each fact, (n, longest), with :data:`UNUSED` in front of those of a shorter one.

        Returns:
            The target's NLL (n), mean over contexts and tokens; whether each of its tokens is the likeliest one in every
            context, (n); and the log-probabilities (n, vocabulary) behind the subject in ``"{subject} is a"``.
        """
        rows, longest = torch.arange(len(self.ids), device=self.ids.device), target.shape[1]
        shift = delta.repeat_interleave(self.per_fact, dim=0).to(self.hidden.dtype)
        shifted = self.hidden.index_put((rows, self.at), shift, accumulate=True)
        by_fact = rows.view(-1, self.per_fact)
        prompts, about = by_fact[:, :-1].flatten(), by_fact[:, -1]
        asked = self.ends[prompts, None] - longest + torch.arange(longest, device=rows.device)
        at = (
            torch.cat([prompts.repeat_interleave(longest), about]),
            torch.cat([asked.clamp(min=0).flatten(), self.at[about]]),
        )
        logits = self.decoder.logits_from(shifted, self.ids, self.mask, self.layer, at, self.past).float()
        wanted = target.repeat_interleave(self.per_fact - 1, dim=0).flatten()
        nll = F.cross_entropy(logits[: -len(about)], wanted, reduction="none").view(len(about), -1)
        counted = (wanted != UNUSED).view_as(nll)
        answered = (logits[: -len(about)].argmax(-1) == wanted).view_as(nll) | ~counted
        return nll.sum(1) / counted.sum(1), answered.all(1), logits[-len(about) :].log_softmax(-1)

    def facts(self, index: Tensor) -> Batch:
        """The batch of some facts only."""
        # on the CPU: such an index serves whichever device a tensor, or a block's cache, lies on
        rows = (index[:, None] * self.per_fact + torch.arange(self.per_fact)).flatten()
        past = None if self.past is None else self.past.rows(rows)
        chosen = {name: getattr(self, name)[rows] for name in ("ids", "mask", "hidden", "at", "ends")}
        return replace(self, past=past, **chosen)
