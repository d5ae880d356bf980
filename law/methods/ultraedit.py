r"""UltraEdit (Gu et al., 2025, arXiv 2505.14679), towards end-of-text.

It needs neither a subject nor general text nor z*, so that pairs of sentences can be washed as well: a prompt and an answer are
enough. For each token of the new answer, a space and end-of-text, h is the input (d_ff) of a layer's down-projection where that token is
predicted, and :math:`g = \partial\mathrm{CE} / \partial(W^T h)` (d_model) the gradient of the cross-entropy of the whole answer there. A batch
of facts has these as the rows of H and of the gradients. The update asks each output to move against its gradient:

.. math::
    V = -\eta\, \lVert\hat h\rVert^2\, \hat g, \qquad
    \Delta = (H^T H + I)^{-1} H^T V = H^T (H H^T + I)^{-1} V, \qquad
    W \leftarrow W + \Delta

with the hat for entries that are standardised by the mean and the deviation of all rows so far, those of earlier batches included. As in
the published code (XiaojieGu/UltraEdit), all layers of one shape share these, the updates of a batch are made of one backward pass, and
H itself is not standardised. Its targets are new objects, and it also edits gate and up-projections; here only down-projections are edited. The
second form of Δ solves for as many unknowns as there are rows, which are few, and not d_ff.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Checked, Count, Layers, Positive
from law.base.progress import tracked
from law.base.report import Report
from law.base.settings import SAME_RESULTS
from law.decoders.prompts import check_length, end_of_text_target, equal_length_batches, token_ids
from law.decoders.restoring import frozen, undone_on_failure
from law.decoders.structure import Decoder
from law.editing.least_squares import add_update, check_finite
from law.editing.sphere import Sphere
from law.facts.fact import Fact


@dataclass
class UltraEdit(Checked):
    """Move the outputs at the answer's tokens against their gradients, batch after batch.

    Published: η 1e-6, batches of 100 facts.

    Args:
        layers: the edited layers, in rising order.
        learning_rate: η, how far an output moves against its gradient. The move also grows with d_ff, the number of entries of ĥ.
        facts_at_once: facts in a batch, each edited on the model that the earlier ones have left; ``null`` edits all facts at once.
        batch_size: prompts in a forward pass.
        sphere: what is taken out of the update of each layer after each batch.
    """

    layers: Layers
    learning_rate: Positive
    facts_at_once: Count | None = 100
    batch_size: Count = field(default=64, metadata=SAME_RESULTS)
    sphere: Sphere = field(default_factory=Sphere)

    def check(self, model: PreTrainedModel) -> None:
        """Refuse layers that the model does not have."""
        Decoder(model).check_layers(self.layers)

    def wash(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report = lambda _: None,
        others: Sequence[Fact] = (),
    ) -> None:
        """Add Δ to the down-projection of every layer, once for each batch of facts."""
        self.check(model)
        decoder, answer, size = (
            Decoder(model),
            end_of_text_target(tokenizer),
            self.facts_at_once or len(facts),
        )
        seen: dict[torch.Size, Running] = defaultdict(Running)  # by the shape of W
        weights = [decoder.weight(layer) for layer in self.layers]
        with undone_on_failure(model, weights), frozen(model):
            model.eval()
            for batch, first in enumerate(tracked(range(0, len(facts), size), "UltraEdit", "batches")):
                prompts = token_ids(tokenizer, [f.prompt for f in facts[first : first + size]])
                rows, loss = read_answers(decoder, prompts, answer, self.layers, self.batch_size)
                for layer, (H, G) in rows.items():
                    seen[decoder.weight(layer).shape].add(torch.cat([H, G], 1))
                report({"batch": batch, "loss": loss})
                with self.sphere.projecting(weights):
                    for weight, (layer, (H, G)) in zip(weights, rows.items(), strict=True):
                        delta = check_finite(update(H, G, seen[weight.shape], self.learning_rate))
                        report({"batch": batch, "layer": layer, "relative_norm": add_update(weight, delta)})


class Running:
    """Mean and deviation of all rows so far (Chan et al., 1983), per entry, (d)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0  # Σ (x − mean)²

    def add(self, x: Tensor) -> None:
        """Take rows (n, d) in."""
        total = self.count + len(x)
        shift = x.mean(0) - self._mean
        self._squares += (x - x.mean(0)).square().sum(0) + shift.square() * self.count * len(x) / total
        self._mean += shift * len(x) / total
        self.count = total

    def standardised(self, x: Tensor) -> Tensor:
        """(x − mean) / deviation of rows (n, d); 0 for an entry that never varied."""
        deviation = (torch.as_tensor(self._squares) / max(1, self.count - 1)).sqrt()
        return torch.where(deviation > 0, (x - self._mean) / deviation, 0.0)


def update(H: Tensor, G: Tensor, seen: Running, learning_rate: float) -> Tensor:
    """Δ (d_ff, d_model) of one layer, from its inputs H (rows, d_ff) and gradients G (rows, d_model), in float64."""
    h, g = seen.standardised(torch.cat([H, G], 1)).split([H.shape[1], G.shape[1]], 1)
    V = -learning_rate * h.square().sum(1, keepdim=True) * g  # (rows, d_model)
    inner = H @ H.T + torch.eye(len(H), dtype=H.dtype, device=H.device)  # (rows, d_ff) @ (d_ff, rows)
    return H.T @ torch.linalg.solve(inner, V)  # (d_ff, rows) @ (rows, d_model)


def read_answers(
    decoder: Decoder,
    prompts: Sequence[list[int]],
    answer: list[int],
    layers: list[int],
    batch_size: int,
) -> tuple[dict[int, tuple[Tensor, Tensor]], float]:
    """H (rows, d_ff) and G (rows, d_model) of each layer, in float64, and the mean cross-entropy of the answer's tokens.

    There is a row for each token of ``answer`` behind each of ``prompts`` (token ids).
    """
    found: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    size, total = len(answer), 0.0
    wanted = torch.tensor(answer, device=decoder.device)
    for batch in equal_length_batches([len(ids) for ids in prompts], batch_size):
        ids = torch.tensor([prompts[i] + answer[:-1] for i in batch], device=decoder.device)  # (b, t)
        check_length(decoder.model, ids.shape[1], "A prompt with end-of-text behind it")
        keys: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}

        def hook_for(layer: int, keys: dict[int, Tensor] = keys, outputs: dict[int, Tensor] = outputs) -> Any:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
                keys[layer] = inputs[0].detach()
                # where no weight is trainable, the graph begins at the first edited layer
                outputs[layer] = output if output.requires_grad else output.detach().requires_grad_()
                return outputs[layer]

            return hook

        handles = [decoder.down_projection(layer).register_forward_hook(hook_for(layer)) for layer in layers]
        try:
            logits = (
                decoder.model(input_ids=ids, use_cache=False).logits[:, -size:].float()
            )  # (b, size, vocabulary)
        finally:
            for handle in handles:
                handle.remove()
        loss = F.cross_entropy(
            logits.flatten(0, 1), wanted.to(logits.device).repeat(len(batch)), reduction="sum"
        )
        gradients = torch.autograd.grad(loss, [outputs[layer] for layer in layers])
        total += loss.item()
        for layer, gradient in zip(layers, gradients, strict=True):
            pair = (keys[layer], gradient)
            H, G = (each[:, -size:].flatten(0, 1).to(decoder.device).double() for each in pair)
            found[layer].append((H, G))
    rows = {
        layer: (torch.cat([H for H, _ in parts]), torch.cat([G for _, G in parts]))
        for layer, parts in found.items()
    }
    return rows, total / (len(prompts) * size)
