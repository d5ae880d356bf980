r"""Fine-tuning, the one loop that every gradient-based baseline shares.

A method states its objective as terms: rows of tokens, a loss for each *unit* of them (a token, or a
row), and a weight. A step descends

.. math:: \sum_i w_i\, \frac{1}{|U_i|} \sum_{u \in U_i} \ell_i(u)

by AdamW, with :math:`U_i` all units of the batch that term i draws. The divisor is that of the whole
batch, so that neither padding nor the size of a forward pass changes a step.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from law.base.checks import Checked, Count, NonNegative, Positive, Seed
from law.base.errors import LawError
from law.base.progress import tracked
from law.base.report import Report
from law.decoders.adapters import refuse_adapters
from law.decoders.restoring import undone_on_failure
from law.decoders.structure import Decoder
from law.tuning.adapters import Lora, adapters, may_be_partly_tuned
from law.tuning.training_rows import Batch, Row, pad, predicted

log = logging.getLogger(__name__)

ROOM = (
    "expected room for the weights, their gradients, AdamW's two moments and the activations of one row. Set "
    "method.lora.rank=8, method.autocast=bfloat16 or model.dtype=bfloat16, or take a larger device."
)


@dataclass
class Tuning(Checked):
    """Settings of fine-tuning, shared by the methods that do it.

    Args:
        learning_rate: the learning rate of AdamW, which stays constant.
        epochs: passes over the facts.
        batch_size: facts in a step.
        micro_batch: the most rows in a forward pass, with gradients accumulated over the batch; ``null``
            takes the batch at once. It is halved when the device's memory runs out.
        weight_decay: the weight decay of AdamW (PyTorch's default, as in the authors' code).
        autocast: the dtype of matrix products, ``bfloat16`` or ``null``; weights keep their own.
        lora: adapters that are tuned instead of the weights, if their rank is above 0.
        seed: the seed of the order of the rows, of dropout, and of what the method draws.
    """

    learning_rate: Positive
    epochs: Count = 1
    batch_size: Count = 2
    micro_batch: Count | None = None
    weight_decay: NonNegative = 0.01
    autocast: str | None = None
    lora: Lora = field(default_factory=Lora)
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.autocast not in (None, "bfloat16"):
            raise LawError(
                f"The method's autocast is {self.autocast!r}; expected bfloat16 or null (float16 loses small "
                "gradients without a scaled loss)."
            )

    def check(self, model: PreTrainedModel) -> None:
        """Refuse LoRA where no projection is found; warn of weights in half precision.

        Raises:
            LawError: names the setting and what to change.
        """
        refuse_adapters(model)
        if self.lora.rank:
            Decoder(model).attention_inputs()
        elif not any(parameter.requires_grad for parameter in model.parameters()):
            raise LawError(
                f"Every weight of {type(model).__name__} is frozen; expected weights that can be tuned. Call "
                "model.requires_grad_(True)."
            )
        elif model.dtype != torch.float32:
            log.warning(
                "%s is tuned in %s, which rounds small steps away; set model.dtype=float32, or method.lora.rank=8",
                type(model).__name__,
                model.dtype,
            )


@dataclass(frozen=True)
class Term:
    """One term of an objective.

    ``loss`` gives one value a unit of its batch, (units), and ``units`` says how many a row has.
    """

    name: str
    rows: Sequence[Row]
    batch_size: int
    loss: Callable[[Batch], Tensor]
    weight: float = 1.0
    units: Callable[[Row], int] = predicted


def tune(
    model: PreTrainedModel,
    terms: Sequence[Term],
    settings: Tuning,
    report: Report,
    parameters: Sequence[Tensor] | None = None,
    copies: Sequence[Tensor] | None = None,
) -> None:
    """Descend the terms' weighted sum, in place: ``parameters`` only, or adapters, or every weight.

    An epoch goes over the first term's rows once. Rows of the other terms are drawn beside them, as often as needed.
    The model is in training mode meanwhile, with dropout, as in the authors' fine-tuning. The draws of dropout
    depend on the seed, and, when memory runs out, on the halved forward pass.

    Args:
        model: the model that is tuned.
        terms: the objective.
        settings: of the optimisation.
        report: receives the mean loss of each term after each epoch.
        parameters: the weights to tune; ``None``: all, or adapters if the settings say so.
        copies: the values of ``parameters`` (of every weight if they are ``None``) before; a failure gives them back.
            ``None``: a failure between two steps leaves the weights partly tuned, and the error says so in a note.
            Adapters need no copies.

    Raises:
        LawError: not even a single row fits in the device's memory, or AdamW's moments do not.
    """
    torch.manual_seed(settings.seed)
    first, *others = terms
    rng = random.Random(settings.seed)
    drawn = [_endless(term, random.Random(f"{term.name} {settings.seed}")) for term in others]
    micro = settings.micro_batch or max(term.batch_size for term in terms)
    starts = range(0, len(first.rows), first.batch_size)
    restored = [] if copies is None else [*(parameters or model.parameters())]
    with (
        undone_on_failure(model, restored, copies or []),
        _trainable(model, settings.lora, parameters) as chosen,
        nullcontext() if copies is not None or settings.lora.rank else may_be_partly_tuned(),
    ):
        optimizer = torch.optim.AdamW(chosen, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        model.train()
        for epoch in range(settings.epochs):
            order = rng.sample(range(len(first.rows)), len(first.rows))
            sums = [0.0] * len(terms)
            name = f"epoch {epoch + 1}/{settings.epochs}"
            for start in tracked(starts, name, "steps"):
                draws = [order[start : start + first.batch_size], *map(next, drawn)]
                losses = None
                while losses is None:
                    optimizer.zero_grad()
                    try:
                        losses = accumulate(model, terms, draws, micro, settings.autocast)
                    except torch.OutOfMemoryError as error:
                        if micro == 1:
                            raise LawError(
                                f"The device's memory does not hold the gradient of a single row; {ROOM}"
                            ) from error
                        micro = (micro + 1) // 2
                        log.warning("out of memory; at most %d rows a forward pass from here on", micro)
                try:
                    optimizer.step()
                except torch.OutOfMemoryError as error:
                    # it may have changed some weights already, and so can't be taken again
                    raise LawError(f"The device's memory does not hold a step of AdamW; {ROOM}") from error
                sums = [total + loss for total, loss in zip(sums, losses, strict=True)]
            means = {term.name: total / len(starts) for term, total in zip(terms, sums, strict=True)}
            report({"epoch": epoch, **means})
    model.eval()


def accumulate(
    model: PreTrainedModel,
    terms: Sequence[Term],
    draws: Sequence[Sequence[int]],
    micro: int,
    autocast: str | None,
) -> list[float]:
    """Add the gradient of a step's objective, ``micro`` rows at a time; returns each term's mean loss.

    ``draws`` holds, for each term, the indices of its rows in this step.
    """
    means: list[Tensor] = []
    for term, draw in zip(terms, draws, strict=True):
        count = sum(term.units(term.rows[i]) for i in draw)
        mean = torch.zeros((), device=model.device)
        for at in range(0, len(draw), micro):
            batch = pad([term.rows[i] for i in draw[at : at + micro]], draw[at : at + micro], model.device)
            with _autocast(model, autocast):
                share = term.loss(batch).float().sum() / count
            (term.weight * share).backward()
            mean += share.detach()
        means.append(mean)
    return torch.stack(means).tolist()  # read once a step, since reading waits for the device


def _autocast(model: PreTrainedModel, dtype: str | None) -> AbstractContextManager[Any]:
    """Matrix products in ``dtype``, each weight converted where it is used.

    Autocast would otherwise keep a weight as it was converted first: RMU's original one, without gradient.
    """
    if dtype is None:
        return nullcontext()
    return torch.autocast(model.device.type, getattr(torch, dtype), cache_enabled=False)


def _endless(term: Term, rng: random.Random) -> Iterator[list[int]]:
    """Batches of a term's rows, pass after pass, each in its own order."""
    while True:
        order = rng.sample(range(len(term.rows)), len(term.rows))
        for start in range(0, len(order), term.batch_size):
            yield order[start : start + term.batch_size]


@contextmanager
def _trainable(
    model: PreTrainedModel, lora: Lora, parameters: Sequence[Tensor] | None
) -> Iterator[list[Tensor]]:
    """What is tuned inside; afterwards gradients are gone, and the same weights are trainable as before."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    chosen = parameters or [parameter for parameter, trainable in before if trainable]
    try:
        if lora.rank:
            with adapters(model, lora) as added:
                yield added
        else:
            model.requires_grad_(False)
            for parameter in chosen:
                parameter.requires_grad_(True)
            yield [*chosen]
    finally:
        for parameter, trainable in before:
            parameter.requires_grad_(trainable)
        model.zero_grad()  # gradients would hold as much memory as the weights
