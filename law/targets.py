r"""Target values z*: what block L should output at the subject's last token (method.md, section 1).

For each fact, a shift :math:`\delta` of :math:`h_L` is found that makes the model answer with
end-of-text, in every context, while what it says of the subject elsewhere stays:

.. math::
    \min_\delta\; \frac1{|c|}\sum_c \mathrm{NLL}_c(\delta)
      + \kappa\,\mathrm{KL}(p_\delta \,\|\, p_0)
      + \omega\,\frac{\lVert\delta\rVert}{\lVert h_L^0\rVert^2},
    \qquad \lVert\delta\rVert \le \rho\,\lVert h_L^0\rVert,
    \qquad z^* = h_L^0 + \delta

Facts are independent, so many are optimised at once. The blocks up to L run once a fact; each step
runs the blocks above.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from law.architectures import Decoder
from law.facts import Fact
from law.keys import place
from law.prompts import pad_right, subject_prompt

KL_TEMPLATE = "{} is a"


@dataclass
class TargetSettings:
    """How z* is optimised.

    Args:
        steps: evaluations of the loss; the last one takes no step (20 on GPT-2 XL, 25 on GPT-J).
        learning_rate: of Adam.
        kl_factor: κ, the weight of the divergence on ``"{subject} is a"``.
        weight_decay: ω, the weight of ‖δ‖ / ‖h‖².
        clamp: ρ, the largest ‖δ‖ as a share of ‖h‖.
        stop_below: a fact whose loss is below this takes no further step.
        batch_size: facts optimised at once.
    """

    steps: int = 20
    learning_rate: float = 0.5
    kl_factor: float = 0.0625
    weight_decay: float = 0.5
    clamp: float = 0.75
    stop_below: float = 0.05
    batch_size: int = 32


@dataclass(frozen=True)
class Trace:
    """The loss of each fact at each step, (steps, n): total, and its three parts."""

    loss: Tensor
    nll: Tensor
    kl: Tensor
    decay: Tensor


def end_of_text_target(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of " <|endoftext|>": a space and end-of-text."""
    return tokenizer(f" {tokenizer.eos_token}", add_special_tokens=False)["input_ids"]


def target_values(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    layer: int,
    settings: TargetSettings,
) -> tuple[Tensor, Trace]:
    """z* of every fact, (d_model, n), and the trace of its loss."""
    decoder.model.eval()
    values: list[Tensor] = []
    traces: list[Tensor] = []
    batches = range(0, len(facts), settings.batch_size)
    with _frozen(decoder), tqdm(total=len(facts), desc="z*", leave=False, disable=None) as progress:
        for first in batches:
            batch = facts[first : first + settings.batch_size]
            value, trace = _optimise(decoder, tokenizer, batch, contexts, layer, settings)
            values.append(value)
            traces.append(trace)
            progress.update(len(batch))
    trace = torch.cat(traces, dim=2)
    return torch.cat(values).T, Trace(*trace)


def _optimise(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    layer: int,
    settings: TargetSettings,
) -> tuple[Tensor, Tensor]:
    """z* (n, d_model) and its trace (4, steps, n) for one batch of n facts."""
    target = end_of_text_target(tokenizer)
    # the target's tokens but the last are read as input: "<prompt> " asks for end-of-text next
    ending = str(tokenizer.decode(target[:-1]))
    count = len(facts)
    per_fact = 1 + len(contexts)
    prompts = [
        subject_prompt(tokenizer, template + ending, fact.subject)
        for fact in facts
        for template in place(fact.template, contexts)
    ]
    about = [subject_prompt(tokenizer, KL_TEMPLATE, fact.subject) for fact in facts]
    ids, mask = pad_right([p.ids for p in prompts + about], tokenizer.pad_token_id, decoder.device)
    rows = torch.arange(len(ids), device=decoder.device)
    at = torch.tensor([p.position for p in prompts + about], device=decoder.device)
    owner = torch.arange(count, device=decoder.device)
    owner = torch.cat([owner.repeat_interleave(per_fact), owner])  # (rows): which fact's δ

    # where the loss reads: the last len(target) tokens of each prompt, the subject in "{} is a"
    lengths = mask.sum(1)[: count * per_fact]
    asked = lengths[:, None] - len(target) + torch.arange(len(target), device=decoder.device)
    read_rows = torch.cat([rows[: count * per_fact].repeat_interleave(len(target)), rows[-count:]])
    read_at = torch.cat([asked.flatten(), at[-count:]])
    wanted = torch.tensor(target, device=decoder.device).repeat(count * per_fact)[:, None]

    with torch.no_grad():
        hidden = decoder.hidden_states(ids, mask, layer)  # (rows, t, d_model)
    start = hidden[
        rows[: count * per_fact : per_fact], at[: count * per_fact : per_fact]
    ]  # h_L^0 (n, d_model)
    start_norm = start.norm(dim=1)
    delta = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=settings.learning_rate)
    moving = torch.ones(count, dtype=torch.bool, device=decoder.device)
    initial: Tensor | None = None
    trace: list[Tensor] = []

    for step in range(settings.steps):
        shifted = hidden.index_put((rows, at), delta[owner], accumulate=True)
        logits = decoder.logits_from(shifted, ids, mask, layer, at=(read_rows, read_at))
        log_p = logits.float().log_softmax(-1)
        nll = -log_p[:-count].gather(1, wanted).view(count, -1).mean(1)  # over contexts and tokens
        if initial is None:
            initial = log_p[-count:].detach()
        # F.kl_div(p, q) is KL(q ‖ p): the shifted distribution against the initial one, as in ROME
        kl = settings.kl_factor * F.kl_div(initial, log_p[-count:], log_target=True, reduction="none").sum(1)
        decay = settings.weight_decay * delta.norm(dim=1) / start_norm**2
        loss = nll + kl + decay
        trace.append(torch.stack([loss, nll, kl, decay]).detach())
        moving &= loss.detach() >= settings.stop_below
        if step == settings.steps - 1 or not moving.any():
            break
        optimizer.zero_grad()
        loss.sum().backward()
        before = delta.detach().clone()
        optimizer.step()
        with torch.no_grad():
            norm = delta.norm(dim=1)
            scale = (settings.clamp * start_norm / norm).clamp(max=1.0)
            delta.copy_(torch.where(moving[:, None], delta * scale[:, None], before))
    trace += [trace[-1]] * (settings.steps - len(trace))
    return (start + delta).detach(), torch.stack(trace, dim=1)


@contextmanager
def _frozen(decoder: Decoder) -> Iterator[None]:
    """No gradient reaches the weights inside; what was trainable is so again afterwards."""
    trainable = [p for p in decoder.model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
