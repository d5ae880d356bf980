r"""RMU, representation misdirection (Li et al. 2024, arXiv 2403.03218: WMDP).

At layer l, the hidden states h of the facts' text are driven to one random vector. The hidden states of general text
are held at those of the unwashed model:

.. math::
    \min_W\;
    \frac{1}{T d}\sum_{t \in x} \lVert h_W(t) - c\,u \rVert^2
    + \alpha\,\frac{1}{T' d}\sum_{t \in y} \lVert h_W(t) - h_0(t) \rVert^2

with u a unit vector whose entries are drawn evenly from [0, 1), x the facts' text and y general
text. Only the down-projections W of a few layers up to l are tuned. The paper writes :math:`\lVert\cdot\rVert^2`. Its
code uses the mean over the d = d_model entries, and so does this one. α is the same in both. The scale of the gradient
differs, but Adam does not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Layers, NonNegative
from law.base.errors import LawError
from law.base.report import Report
from law.decoders.structure import Decoder
from law.facts.fact import Fact
from law.tuning.loop import Term, Tuning, tune
from law.tuning.retain import RetainSet
from law.tuning.training_rows import Batch, fact_rows, tokens


@dataclass(kw_only=True)
class RMU(Tuning):
    """Misdirect a layer's hidden states on the facts, hold them on general text.

    Args:
        layers: the layers whose down-projections are tuned, in rising order; h is the output of the last one, l
            (the paper: l - 2 to l).
        steering: c, the length of the vector that the hidden states are driven to.
        retain: what is held, general text or other facts, and its weight α.
    """

    layers: Layers
    steering: NonNegative
    retain: RetainSet

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora.rank:
            raise LawError(
                f"method.lora.rank is {self.lora.rank}; expected 0, since RMU tunes down-projections and no adapters."
            )

    def check(self, model: PreTrainedModel) -> None:
        """Refuse what fine-tuning refuses, layers that the model does not have, and a missing retain text."""
        super().check(model)
        Decoder(model).check_layers(self.layers)
        self.retain.check()

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Tune the down-projections of ``layers``."""
        self.check(model)
        decoder, layer = Decoder(model), self.layers[-1]
        weights = [decoder.down_projection(i).weight for i in self.layers]
        original = [weight.detach().clone() for weight in weights]
        u = torch.rand(decoder.d_model, generator=torch.Generator().manual_seed(self.seed))
        wanted = self.steering * (u / u.norm()).to(decoder.device)  # c u, (d_model)

        def forget(batch: Batch) -> Tensor:
            return loss(decoder.hidden_states(batch.ids, batch.mask, layer), wanted, batch.mask)

        def keep(batch: Batch) -> Tensor:
            with torch.no_grad(), _unwashed(model, weights, original):
                before = decoder.hidden_states(batch.ids, batch.mask, layer)
            return loss(decoder.hidden_states(batch.ids, batch.mask, layer), before, batch.mask)

        rows = fact_rows(tokenizer, facts)
        terms = [Term("forget", rows, self.batch_size, forget, units=tokens)]
        terms += self.retain.terms_of(keep, model, tokenizer, facts, others, units=tokens)
        tune(model, terms, self, report, parameters=weights, copies=original)


def loss(hidden: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Mean squared distance of each token, (units), from hidden states (b, t, d_model), mask (b, t).

    ``wanted`` is one vector (d_model) for all tokens, or one each (b, t, d_model).
    """
    return (hidden.float() - wanted.float()).square().mean(-1)[mask.bool()]


@contextmanager
def _unwashed(model: PreTrainedModel, weights: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the weights hold ``values`` and there is no dropout, so that the model computes h₀."""
    tuned = [weight.data for weight in weights]
    model.eval()
    for weight, value in zip(weights, values, strict=True):
        weight.data = value
    try:
        yield
    finally:
        for weight, value in zip(weights, tuned, strict=True):
            weight.data = value
        model.train()
