r"""Which blocks carry a subject to the answer: two causal readings of every block.

*Interchange.* Two facts with one template are run. The output of block l at the subject's last token is taken from
one run and put into the other. The effect is how much the log-probability of the own object falls. The answer is
*lost* when the own object is no longer the likeliest token, and it *follows* when the other fact's object is.

*Noise* (Meng et al., NeurIPS 2022, section 2: causal tracing). The embeddings of the subject's tokens are disturbed
by Gaussian noise of :math:`3\sigma`, with :math:`\sigma` the standard deviation of the embeddings' entries. One state
of the clean run is put back at the subject's last token: the output of block l, or the outputs of the MLPs or of the
attentions of a window of blocks around l. The effect is how much the log-probability of the object rises.

An object is recognised by the first token that reaches beyond its prompt. Effects are in nats, as means over facts with standard errors.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from law.base.progress import tracked
from law.decoders.prompts import (
    SubjectPrompt,
    answered_prompts,
    equal_length_batches,
    pad_right,
    subject_prompt,
)
from law.decoders.structure import Decoder
from law.facts.fact import Fact

Restored = Literal["block", "mlp", "attention"]


@dataclass(frozen=True)
class Effect:
    """One layer's mean effect over facts, in nats, and its standard error (0 of a single fact)."""

    mean: float
    stderr: float


@dataclass(frozen=True)
class Interchange:
    """What the exchange of subjects does, layer by layer.

    Args:
        pairs: facts that were given another subject's state; only pairs whose answer was right at the start count.
        effects: the fall of the own object's log-probability.
        lost: share of pairs whose answer is lost.
        followed: share of pairs whose answer follows.
    """

    pairs: int
    effects: list[Effect]
    lost: list[float]
    followed: list[float]


@torch.inference_mode()
def interchange(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], batch_size: int
) -> Interchange:
    """Exchange subjects between facts of one template, at every layer; with no pair at all, no layer has an effect."""
    first_token = [row.ids[row.after] for row in answered_prompts(tokenizer, facts)]
    pairs = _pairs(facts, first_token)
    prompts = [subject_prompt(tokenizer, fact.template, fact.subject) for fact in facts]
    count = len(decoder.blocks)
    falls: list[list[float]] = [[] for _ in range(count)]
    lost, followed = [0] * count, [0] * count
    for first in tracked(range(0, len(pairs), batch_size), "interchange", "batches"):
        batch = pairs[first : first + batch_size]
        rows = torch.arange(len(batch), device=decoder.device)
        (ids, mask), (other_ids, other_mask) = (
            pad_right([prompts[pair[side]].ids for pair in batch], tokenizer.pad_token_id, decoder.device)
            for side in (0, 1)
        )
        at, other_at = (
            torch.tensor([prompts[pair[side]].position for pair in batch], device=decoder.device)
            for side in (0, 1)
        )
        own, wanted = (
            torch.tensor([first_token[pair[side]] for pair in batch], device=decoder.device)
            for side in (0, 1)
        )
        ends = (rows, mask.sum(1) - 1)
        before = decoder.model(input_ids=ids, attention_mask=mask).logits[ends].float().log_softmax(-1)
        right = before.argmax(-1) == own  # (b)
        for layer in range(count):
            hidden = decoder.hidden_states(ids, mask, layer)
            other = decoder.hidden_states(other_ids, other_mask, layer)
            hidden[rows, at] = other[rows, other_at]
            after = decoder.logits_from(hidden, ids, mask, layer, at=ends).float().log_softmax(-1)
            falls[layer] += (before[rows, own] - after[rows, own])[right].tolist()
            lost[layer] += int((after.argmax(-1) != own)[right].sum())
            followed[layer] += int((after.argmax(-1) == wanted)[right].sum())
    known = len(falls[0])
    shares = [[number / max(1, known) for number in numbers] for numbers in (lost, followed)]
    return Interchange(known, [_effect(fall) for fall in falls], *shares)


@torch.inference_mode()
def noise_tracing(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    restored: Restored,
    window: int,
    samples: int,
    seed: int,
    batch_size: int,
) -> list[Effect]:
    """The effect of putting clean states back, layer by layer.

    Args:
        decoder: the model.
        tokenizer: its tokenizer.
        facts: facts that the model knows.
        restored: which state is put back.
        window: how many blocks around the layer are put back, for ``mlp`` and ``attention``; a block's output is
            put back alone, since it holds all that came before.
        samples: draws of the noise for each fact.
        seed: of the noise.
        batch_size: prompts a forward pass.
    """
    embedding = decoder.model.get_input_embeddings()
    sigma = 3 * next(embedding.parameters()).float().std().item()
    generator = torch.Generator().manual_seed(seed)
    prompts = [subject_prompt(tokenizer, fact.template, fact.subject) for fact in facts]
    objects = [row.ids[row.after] for row in answered_prompts(tokenizer, facts)]
    modules = _restorable(decoder, restored)
    count = len(modules)
    rises: list[list[float]] = [[] for _ in range(count)]
    batches = list(equal_length_batches([len(p.ids) for p in prompts], max(1, batch_size // samples)))
    for batch in tracked(batches, f"noise, {restored}", "batches"):
        chosen = [prompts[i] for i in batch]
        ids = torch.tensor([p.ids for p in chosen], device=decoder.device)  # (b, t)
        at = torch.tensor([p.position for p in chosen], device=decoder.device)
        clean = _states(decoder, modules, ids, at)  # (layers) of (b, d_model)
        noise = _noise(chosen, samples, decoder.d_model, sigma, generator).to(decoder.device)
        rows, at = ids.repeat_interleave(samples, 0), at.repeat_interleave(samples)
        own = torch.tensor([objects[i] for i in batch], device=decoder.device).repeat_interleave(samples)

        disturbed = _log_p(decoder, rows, own, noise, [])
        for layer in range(count):
            half = 0 if restored == "block" else window // 2
            around = range(max(0, layer - half), min(count, layer + half + 1))
            put = [(modules[i], _put(at, clean[i].repeat_interleave(samples, 0))) for i in around]
            rise = _log_p(decoder, rows, own, noise, put) - disturbed  # (b · samples)
            rises[layer] += rise.view(-1, samples).mean(1).tolist()
    return [_effect(rise) for rise in rises]


def _log_p(
    decoder: Decoder,
    rows: Tensor,
    own: Tensor,
    noise: Tensor,
    put: Sequence[tuple[nn.Module, Callable[[Tensor], Tensor]]],
) -> Tensor:
    """log p of the objects ``own`` after ``rows`` (b, t) with noise on the embeddings and states put back, (b)."""
    with ExitStack() as stack:
        stack.enter_context(_output_of(decoder.model.get_input_embeddings(), lambda out: out + noise.to(out)))
        for module, change in put:
            stack.enter_context(_output_of(module, change))
        logits = decoder.model(input_ids=rows, use_cache=False).logits[:, -1].float()
    return logits.log_softmax(-1).gather(-1, own[:, None]).squeeze(1)


def _restorable(decoder: Decoder, restored: Restored) -> list[nn.Module]:
    """The module of every block whose output is put back; the MLP is recognised by its down-projection."""
    if restored == "block":
        return list(decoder.blocks)
    if restored == "mlp":
        return [decoder.down_projection(layer) for layer in range(len(decoder.blocks))]
    return decoder.attentions


def _states(decoder: Decoder, modules: Sequence[nn.Module], ids: Tensor, at: Tensor) -> list[Tensor]:
    """The output of each module at positions ``at`` of the clean rows ``ids`` (b, t): (b, d_model) each."""
    found: list[Tensor] = []
    rows = torch.arange(len(ids), device=ids.device)

    def keep(output: Tensor) -> Tensor:
        found.append(output[rows, at])
        return output

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(_output_of(module, keep))
        decoder.model(input_ids=ids, use_cache=False)
    return found


def _noise(
    prompts: Sequence[SubjectPrompt], samples: int, d_model: int, sigma: float, generator: torch.Generator
) -> Tensor:
    """Noise on the subjects' tokens, zero elsewhere: (prompts · samples, t, d_model)."""
    noise = torch.zeros(len(prompts), samples, len(prompts[0].ids), d_model)
    for i, prompt in enumerate(prompts):
        length = prompt.position + 1 - prompt.start
        drawn = torch.randn(samples, length, d_model, generator=generator)
        noise[i, :, prompt.start : prompt.position + 1] = sigma * drawn
    return noise.flatten(0, 1)


def _put(at: Tensor, state: Tensor) -> Callable[[Tensor], Tensor]:
    """Replaces an output (b, t, d_model) at positions ``at`` (b) by ``state`` (b, d_model)."""
    rows = torch.arange(len(at), device=at.device)
    return lambda output: output.index_put((rows, at), state.to(output))


@contextmanager
def _output_of(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the module's output passes through ``change``; of a tuple, its first element does."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return change(output)
        return (change(output[0]), *output[1:])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _effect(values: Sequence[float]) -> Effect:
    """Mean and standard error of the mean; no value has no effect."""
    if not values:
        return Effect(0.0, 0.0)
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Effect(mean, 0.0)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Effect(mean, math.sqrt(variance / len(values)))


def _pairs(facts: Sequence[Fact], first_token: Sequence[int]) -> list[tuple[int, int]]:
    """Each fact with the next one of its template whose object begins otherwise."""
    by_template: dict[str, list[int]] = defaultdict(list)
    for index, fact in enumerate(facts):
        by_template[fact.template].append(index)
    pairs = []
    for group in by_template.values():
        for place, index in enumerate(group):
            others = group[place + 1 :] + group[:place]
            other = next((o for o in others if first_token[o] != first_token[index]), None)
            if other is not None:
                pairs.append((index, other))
    return pairs
