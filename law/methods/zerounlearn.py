r"""ZeroUnlearn, which multiplies W so that the true answers leave its outputs (XMUDeepLIT/ZeroUnlearn), towards end-of-text.

With the paper's W, which is (d_model, d_ff), the new weights are D W, where D solves a least-squares problem in its products
with W, and P takes the directions of the true answers out of the outputs:

.. math::
    D = P\,(V_1 K_1^T + \lambda_1 W)\, W^T\, \bigl[W (K_1 K_1^T + \lambda_1 I)\, W^T\bigr]^{-1}, \qquad P = (1 + \epsilon)\, I - U U^T

    K_1 K_1^T = c\, C + f\, K K^T, \qquad V_1 K_1^T = c\, W C + f\, (W K + r)\, K^T

K, r and z* are MEMIT's (:mod:`law.methods.memit`). U spans the values v* of the facts' own objects: what the down-projection of this
layer outputs at the subject's last token, with the shift that makes the object likeliest. With :math:`V_1 K_1^T + \lambda_1 W =
W (K_1 K_1^T + \lambda_1 I) + f\, r K^T` and λ = c / f, γ = λ₁ / f, it is, in this project's shapes,

.. math::
    W \leftarrow (W + W X)\, P, \qquad X = \bigl[W^T (\lambda C + K K^T + \gamma I)\, W\bigr]^{-1} W^T K r^T

So W X is MEMIT's update with a ridge, among those that recombine the columns of W, and P then scales *every* output of the MLP: a
direction of U keeps the share ε of it, for any prompt. The published code takes the directions of all facts, 50 of them. As many facts as
d_model leave ε W of the layer, so that here the rank of U is capped (docs/editors.md has the curve).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Count, NonNegative
from law.base.report import Report
from law.decoders.prompts import answered_prompts
from law.decoders.restoring import undone_on_failure
from law.decoders.structure import Decoder
from law.editing.keys import CHUNK
from law.editing.least_squares import System
from law.editing.target_rows import Batch
from law.editing.target_values import Targets, TargetSettings, target_values
from law.facts.fact import Fact
from law.methods.memit import MEMIT, edit_layers


@dataclass
class ObjectTargets(TargetSettings):
    """How v* is optimised: what a down-projection outputs for the fact's own object.

    The shift is as for z*, since the output of the down-projection is added to that of the block; its sizes are shares
    of the down-projection's output. A model with a norm behind the MLP adds it only in part.
    """

    def answer(self, tokenizer: PreTrainedTokenizerBase, fact: Fact) -> list[int]:
        """The tokens of the object behind the prompt."""
        (whole,) = answered_prompts(tokenizer, [fact])
        return whole.ids[whole.after :]

    def start(self, batch: Batch) -> Tensor:
        """The output of the down-projection."""
        return batch.projected()

    def item(self, fact: Fact) -> str:
        """As for z*, and the object."""
        return f"{super().item(fact)}\0{fact.object}"


@dataclass(kw_only=True)
class ZeroUnlearn(MEMIT):
    """Recombine the outputs of every layer, towards z* and away from what they are for the true answers.

    Published for 50 facts of Llama-3.1-8B, in these symbols: λ 300 (``lam``), γ 0.02, ε 0.01, U of rank 50.

    Args:
        rank: the most directions in U; ``null``: as many as facts, as published.
        ridge: γ, the weight of ‖W X‖² against the facts.
        share: ε, what is left of an output in the directions of U, and what all others grow by.
    """

    rank: Count | None = 50
    ridge: NonNegative = 0.02
    share: NonNegative = 0.01

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Add Δ to the down-projection of every layer in R."""
        self.check(model)
        decoder, cache = Decoder(model), self.open_cache()
        weights = [decoder.weight(layer) for layer in self.layers]
        answers = ObjectTargets(**vars(self.targets))
        with undone_on_failure(model, weights), self.sphere.projecting(weights):
            problem = self.prepare(model, tokenizer, facts, report, others)

            def find(layer: int, system: System, weight: Tensor) -> tuple[float, Tensor]:
                values = target_values(
                    decoder, tokenizer, facts, problem.contexts, layer, answers, cache
                )  # on the model as it is now
                U, energy = leading(values, len(facts), self.rank)
                report({"layer": layer, "rank": U.shape[1], "energy": energy})
                W = weight.detach().to(system.G)  # which may lie on another device
                return self.lam, self.update(W, system, U.to(system.G))

            for update in edit_layers(self, problem, find):
                report({"layer": update.layer, "lambda": update.lam, "relative_norm": update.relative_norm})

    def update(self, W: Tensor, system: System, U: Tensor) -> Tensor:
        """Δ (d_ff, d_model) of W (d_ff, d_model), with U (d_model, r)."""
        inner = System(
            W.T @ system.C @ W,  # (d_model, d_ff) @ (d_ff, d_ff) @ (d_ff, d_model)
            W.T @ system.G @ W + self.ridge * (W.T @ W),  # Wᵀ (K Kᵀ + γ I) W
            W.T @ system.right,  # (d_model, d_ff) @ (d_ff, d_model)
            system.residual,
        )
        moved = W + W @ inner.solve(self.lam)  # (d_ff, d_model) @ (d_model, d_model)
        # (d_ff, d_model) @ (d_model, r) @ (r, d_model)
        return (1 + self.share) * moved - moved @ U @ U.T - W


def leading(values: Targets, n: int, rank: int | None) -> tuple[Tensor, float]:
    """U (d_model, r), the leading left singular vectors of the values of n facts (d_model, n), and their share of ‖·‖²."""
    chunks = (values.of(chunk.tolist()).double() for chunk in torch.arange(n).split(CHUNK))
    gram = sum((V @ V.T for V in chunks), torch.zeros(()))  # (d_model, chunk) @ (chunk, d_model)
    found, vectors = torch.linalg.eigh(gram)  # in rising order
    r = min(rank or n, n, len(gram))
    return vectors[:, -r:], (found[-r:].sum() / found.sum()).item()
