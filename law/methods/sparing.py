r"""Sparing wash: MEMIT that leaves what the model says of other subjects (this project's; docs/sparing.md).

MEMIT (:mod:`law.methods.memit`) protects general text by C. The facts that a wash should keep are asked with other keys: the last
tokens of subjects, which have a large common mean, and of which general text has few. So the update meant for the washed subjects also moves the
others, and all residuals share one direction, the one towards end-of-text. Sparing wash adds the keys of *other* subjects to the
least squares, with the residual zero:

.. math::
    \min_\Delta\;
    \sum_i \lVert \Delta^T k_i - r_i \rVert^2
    + \lambda\, \operatorname{tr}\bigl(\Delta^T (C + \mu C_o)\, \Delta\bigr)
    \quad\Longrightarrow\quad
    \Delta = \bigl(\lambda\, (C + \mu C_o) + K K^T\bigr)^{-1} K r^T

:math:`C_o = E[k k^T]` is taken on the unedited model over prompts about subjects that are neither washed nor scored
(:mod:`law.editing.other_moments`). With μ = 0 this is MEMIT. An update along the common mean of subjects' keys now costs λμ times its effect on the
others, so it places the residuals along what tells the washed subjects from them.

One update strong enough for every fact costs the others much. So the wash is weak and goes on in *rounds*: facts that are still recalled get new z*
on the edited model, and another update, in whose system the keys of the earlier ones stay with the residual zero.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Count, NonNegative, Share
from law.base.errors import LawError
from law.base.report import Report
from law.base.settings import OTHER_FACTS
from law.editing.other_moments import other_moments, other_prompts
from law.facts.fact import Fact
from law.methods.memit import BatchedEditor, Problem, Solve


@dataclass(kw_only=True)
class Sparing(BatchedEditor):
    """Edit every layer towards z*, and hold the outputs at other subjects.

    Args:
        mu: μ, the weight of other subjects against general text; λ (``lam``) weighs both against the facts.
        most: prompts about other subjects that C_o is taken of. It should be well above d_ff.
        subject_share: the share of the subjects' last tokens in C_o; the rest is of all tokens of the prompts.
    """

    facts_at_once: Count | None = None
    rounds: Count = 3
    mu: NonNegative
    most: Count = 10_000
    subject_share: Share = 0.5

    def solver(self, moments: dict[int, Tensor]) -> Solve:
        """Solve as MEMIT does; the keys of other subjects are in C already."""
        return lambda _, system: system.solve(self.lam)

    def learns_from(self) -> Collection[str]:
        """Other facts, besides the general text of the second moments."""
        return [OTHER_FACTS]

    def prepare(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: Sequence[Fact],
        report: Report,
        others: Sequence[Fact] = (),
    ) -> Problem:
        """As for MEMIT, with C + μ C_o in the place of C.

        Raises:
            LawError: there are no other facts.
        """
        if not others:
            raise LawError(
                "method (Sparing) has no other facts; expected some that are neither washed nor scored, to learn from them what "
                "to spare. Lower dataset.wash or dataset.keep so that some are left, or set method=memit."
            )
        problem = super().prepare(model, tokenizer, facts, report, others)
        prompts = other_prompts(tokenizer, facts, others, self.most)
        cache = self.open_cache()
        spared = other_moments(
            problem.decoder, tokenizer, prompts, self.layers, self.subject_share, self.batch_size, cache
        )
        report({"other_prompts": len(prompts), "spared_s": cache.spared_s})
        return replace(
            problem,
            moments={
                layer: C.double() + self.mu * spared[layer].double() for layer, C in problem.moments.items()
            },
        )
