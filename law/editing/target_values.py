r"""Target values z*: what block L should output at the subject's last token (docs/explanation/method.md).

For each fact, an optimisation finds a shift :math:`\delta` of :math:`h_L` that makes the model answer with
end-of-text in every context. A second term keeps what the model says about the subject elsewhere:

.. math::
    \min_\delta\; \frac1{|c|}\sum_c \mathrm{NLL}_c(\delta)
      + \kappa\,\mathrm{KL}(p_\delta \,\|\, p_0)
      + \omega\,\frac{\lVert\delta\rVert}{\lVert h_L^0\rVert^2},
    \qquad \lVert\delta\rVert \le \rho\,\lVert h_L^0\rVert,
    \qquad z^* = h_L^0 + \delta

Facts are independent, so many are optimised at once, and those that are done leave the batch. The facts of a batch have
similar numbers of tokens from the subject's last one on, because δ changes nothing before it
(:mod:`law.editing.target_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from law.base.cache import Cache, model_hash, tokenizer_hash
from law.base.checks import Checked, Count, NonNegative, Positive
from law.base.errors import shortened
from law.base.item_cache import TensorItems
from law.base.processes import add_up, mine
from law.base.progress import progress
from law.base.settings import SAME_RESULTS, counting
from law.decoders.batching import Batches
from law.decoders.prompts import SubjectPrompt, check_length, end_of_text_target, subject_prompt
from law.decoders.restoring import frozen
from law.decoders.structure import Decoder
from law.editing.keys import place
from law.editing.target_rows import UNUSED, Batch
from law.facts.fact import Fact

VERSION = 2
"""Of the code that computes z*, part of its key in the cache: raise it with every change to the numbers."""

KL_TEMPLATE = "{} is a"


@dataclass
class TargetSettings(Checked):
    """How z* is optimised.

    Args:
        steps: evaluations of the loss; the last one takes no step (20 on GPT-2 XL, 25 on GPT-J).
        learning_rate: the learning rate of Adam.
        kl_factor: κ, the weight of the divergence on ``"{subject} is a"``.
        weight_decay: ω, the weight of ‖δ‖ / ‖h‖².
        clamp: ρ, the largest ‖δ‖ as a share of ‖h‖.
        stop_below: a fact whose loss is below this takes no further step.
        batch_size: facts optimised at once; ``null`` measures it.
        shard: facts in a file of the cache. After a run was killed, at most this many facts are computed again.
    """

    steps: Count = 20
    learning_rate: Positive = 0.5
    kl_factor: NonNegative = 0.0625
    weight_decay: NonNegative = 0.5
    clamp: Positive = 0.75
    stop_below: NonNegative = 0.05
    batch_size: Count | None = field(default=None, metadata=SAME_RESULTS)
    shard: Count = field(default=256, metadata=SAME_RESULTS)

    def reached(self, loss: Tensor, likeliest: Tensor) -> Tensor:
        """Which facts take no further step, (n), by their loss (n) and the number of evaluations so far, (n), at which
        every token of the target was the likeliest one in every context.
        """
        return loss < self.stop_below

    def answer(self, tokenizer: PreTrainedTokenizerBase, fact: Fact) -> list[int]:
        """The tokens that z* makes the model answer a fact with."""
        return end_of_text_target(tokenizer)

    def start(self, batch: Batch) -> Tensor:
        """What δ is added to and measured by, (n, d_model)."""
        return batch.start

    def item(self, fact: Fact) -> str:
        """What the cache keeps z* of a fact by."""
        return f"{fact.template}\0{fact.subject}\0{fact.lead}"


@dataclass
class EarlyTargets(TargetSettings):
    """How z* is optimised when it may stop soon after end-of-text is the answer (ENCORE).

    Args:
        likeliest: c, the evaluations with every token of the target the likeliest one in every context, after which a
            fact takes no further step.
    """

    likeliest: Count = 4

    def reached(self, loss: Tensor, likeliest: Tensor) -> Tensor:
        """As for all z*, or once the target has been the answer often enough."""
        return super().reached(loss, likeliest) | (likeliest >= self.likeliest)


@dataclass(frozen=True)
class Trace:
    """The loss of each fact at each step, (steps, n): total, and its three parts."""

    loss: Tensor
    nll: Tensor
    kl: Tensor
    decay: Tensor


@dataclass(frozen=True)
class Targets:
    """z* of many facts, and the traces of their losses: read from files where a cache keeps them.

    Args:
        files: each gives ``z`` (facts, d_model) and ``trace`` (facts, 4, steps) of its facts, in float32 on the CPU.
        places: the file and the row of each fact, (n, 2).
        chunk: facts whose traces are read at once.
    """

    files: Sequence[Callable[[], dict[str, Tensor]]]
    places: Tensor
    chunk: int = 1024

    def of(self, facts: Sequence[int]) -> Tensor:
        """z* (d_model, b) of b facts, by their indices."""
        return self._rows("z", torch.tensor(facts)).T

    def traces(self) -> Iterator[Trace]:
        """The traces of all facts in their order, a chunk at a time."""
        for facts in torch.arange(len(self.places)).split(self.chunk):
            yield Trace(*self._rows("trace", facts).permute(1, 2, 0))

    def _rows(self, name: str, facts: Tensor) -> Tensor:
        """The rows of some facts, (b, ...); each file is read once."""
        files, rows = self.places[facts].T
        found: Tensor | None = None
        for number in files.unique().tolist():
            here = files == number
            values = self.files[number]()[name][rows[here]]
            if found is None:
                found = values.new_empty(len(facts), *values.shape[1:])
            found[here] = values
        assert found is not None  # there is at least one fact
        return found


def target_values(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    layer: int,
    settings: TargetSettings,
    cache: Cache | None = None,
) -> Targets:
    """z* of every fact.

    With a ``cache``, each fact's z* is kept by itself, whatever facts it was computed with, and ``settings.shard``
    facts are kept as soon as they are done.
    """
    cache = cache or Cache(None)
    key = {
        "version": VERSION,
        "contexts": list(contexts),
        "layer": layer,
        "settings": counting(settings),
        "parts": asdict(decoder.parts),
    }
    if cache.folder is not None:
        key |= {"model": model_hash(decoder.model), "tokenizer": tokenizer_hash(tokenizer)}
    decoder.model.eval()
    items, places = TensorItems(cache, "targets", key), torch.empty(len(facts), 2, dtype=torch.long)
    batches = Batches(settings.batch_size, first=4, largest=256)  # measured once, for all shards
    with frozen(decoder.model), progress("z*", len(facts), "facts") as bar:
        computed = 0

        def compute(shard: Sequence[Fact], missing: Sequence[int]) -> dict[str, Tensor]:
            nonlocal computed
            answers = [settings.answer(tokenizer, shard[i]) for i in missing]
            asked = [
                _ask(decoder, tokenizer, shard[i], contexts, answer)
                for i, answer in zip(missing, answers, strict=True)
            ]
            order = mine(sorted(range(len(asked)), key=lambda i: _lengths(asked[i])))
            z, losses = torch.zeros(len(asked), decoder.d_model), torch.zeros(4, settings.steps, len(asked))
            for batch, result in batches.run(
                order,
                [1] * len(order),
                lambda batch: _optimise(
                    *(decoder, tokenizer, [asked[i] for i in batch], [answers[i] for i in batch]),
                    *(layer, settings),
                ),
            ):
                z[batch], losses[:, :, batch] = (tensor.cpu() for tensor in result)
                bar.update(len(batch))
                computed += len(batch)
            add_up(z, losses)  # each process has filled in its own facts
            return {"z": z, "trace": losses.permute(2, 0, 1)}

        for first in range(0, len(facts), settings.shard):
            shard = facts[first : first + settings.shard]
            found = items.get([settings.item(fact) for fact in shard], partial(compute, shard))
            bar.update(len(shard) - computed)  # kept before, or computed by other processes
            computed = 0
            places[first : first + len(shard)] = torch.tensor(found)
    return Targets(items.files, places, settings.shard)


def _ask(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    fact: Fact,
    contexts: Sequence[str],
    answer: list[int],
) -> list[SubjectPrompt]:
    """A fact's rows: its prompt bare and in every context, each with the answer's tokens but the last behind it,
    and then ``"{subject} is a"`` up to where it is read.
    """
    prompts = [subject_prompt(tokenizer, t, fact.subject) for t in place(fact.template, contexts, fact.lead)]
    about = subject_prompt(tokenizer, KL_TEMPLATE, fact.subject)
    rows = [replace(p, ids=p.ids + answer[:-1]) for p in prompts]
    rows.append(replace(about, ids=about.ids[: about.position + 1]))
    for row in rows:
        check_length(decoder.model, len(row.ids), f"A prompt of the fact {shortened(fact.prompt)!r}")
    return rows


def _lengths(rows: Sequence[SubjectPrompt]) -> tuple[int, int]:
    """The most tokens from the subject's last on, and the most before it: what a batch pads to."""
    return max(len(row.ids) - row.position for row in rows), max(row.position for row in rows)


def _optimise(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Sequence[SubjectPrompt]],
    answers: Sequence[list[int]],
    layer: int,
    settings: TargetSettings,
) -> tuple[Tensor, Tensor]:
    """z* (n, d_model) and its trace (4, steps, n) for one batch of n facts."""
    batch = Batch.read(decoder, tokenizer, asked, layer)
    start = settings.start(batch)  # h_L^0 (n, d_model)
    sizes = start.norm(dim=1)
    deltas = [torch.zeros_like(h, requires_grad=True) for h in start]  # one each, so that each can stop
    optimizer = torch.optim.Adam(deltas, lr=settings.learning_rate)
    left = torch.arange(len(asked))  # the facts still in the batch
    longest = max(map(len, answers))
    target = torch.tensor(
        [[UNUSED] * (longest - len(answer)) + answer for answer in answers], device=decoder.device
    )
    initial: Tensor | None = None
    likeliest = torch.zeros(len(asked), dtype=torch.long)
    trace = torch.empty(4, settings.steps, len(asked), device=decoder.device)

    for step in range(settings.steps):
        delta = torch.stack([deltas[i] for i in left])  # (facts left, d_model)
        nll, answered, about = batch.predictions(delta, target)
        likeliest[left] += answered.cpu()
        initial = about.detach() if initial is None else initial
        # F.kl_div(p, q) is KL(q ‖ p): the shifted distribution against the initial one, as in ROME
        kl = settings.kl_factor * F.kl_div(initial, about, log_target=True, reduction="none").sum(1)
        size = sizes[left]
        decay = settings.weight_decay * delta.norm(dim=1) / size**2
        loss = nll + kl + decay
        # a fact that stops here keeps this loss in all steps to come
        trace[:, step:, left] = torch.stack([loss, nll, kl, decay]).detach()[:, None]
        # a NaN goes on: its update is refused
        moving = ~settings.reached(loss.detach().cpu(), likeliest[left])
        if step == settings.steps - 1 or not moving.any():
            break
        optimizer.zero_grad()
        loss.sum().backward()
        if not moving.all():
            for i in left[~moving]:
                deltas[i].grad = None  # Adam passes it over
            left, initial, size, target = left[moving], initial[moving], size[moving], target[moving]
            batch = batch.facts(moving.nonzero().flatten())
        optimizer.step()
        with torch.no_grad():
            norm = torch.stack([deltas[i] for i in left]).norm(dim=1)
            for i, scale in zip(left, (settings.clamp * size / norm).clamp(max=1.0), strict=True):
                deltas[i].mul_(scale)
    return start + torch.stack(deltas).detach(), trace
