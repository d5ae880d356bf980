"""Which layers to edit in a model that nobody has published settings for, and with which λ.

*Layers.* Above the layer where the subject's last token stops moving the answer, an edit comes too late.
Two facts of one relation are run, and block l's output at the subject's last token is taken from the
one and put into the other (interchange intervention: the causal tracing of ROME with another subject
in place of noise). The answer is *lost* when its own object is no longer the likeliest, and *follows*
when the other's is.

*λ.* A small λ puts z* where it should be and spoils general text, a large one spares the text and puts
nothing anywhere. What a λ places of the residual r in the first edited layer is
:math:`1 - \\lVert r - \\Delta^T K \\rVert^2 / \\lVert r \\rVert^2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from law.base.checks import Checked, Count, Share
from law.base.errors import LawError
from law.decoders.greedy_decoding import recalled_facts
from law.editing.causal_tracing import Reach
from law.editing.second_moments import MomentSettings
from law.editing.target_values import TargetSettings
from law.facts.fact import Fact
from law.methods.memit import MEMIT, layer_system, prepare

LAMBDAS = tuple(float(f"{10 ** (i / 2):.2g}") for i in range(2, 13))
"""10, 32, 100, ... 1,000,000."""


@dataclass
class LocateSettings(Checked):
    """How settings are proposed.

    Args:
        moments: the text that C is taken of.
        targets: how z* is optimised.
        width: the most layers to edit.
        still_moves: L is the last layer that loses at least this share of what the best layer loses.
        places: the proposed λ is the largest that places this share of what a vanishing λ places.
        batch_size: prompts a forward pass.
        cache: as in :class:`~law.methods.memit.MEMIT`.
    """

    moments: MomentSettings
    targets: TargetSettings = field(default_factory=TargetSettings)
    width: Count = 5
    still_moves: Share = 0.5
    places: Share = 0.8
    batch_size: Count = 64
    cache: str | None = None


@dataclass(frozen=True)
class Proposal:
    """What a preset wants: the layers R and λ, with what each λ tried places of the residual."""

    layers: list[int]
    lam: float
    placed: dict[float, float]


def propose(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    reaches: Sequence[Reach],
    settings: LocateSettings,
) -> Proposal:
    """R ends at the last layer that still moves the answer; λ by powers of √10, for these facts.

    λ weighs general text against the facts, so that it grows with their number.
    """
    lost = [reach.lost for reach in reaches]
    if not any(lost):
        raise LawError(
            "An exchange of the subject's last token moved no answer in any layer; expected facts that hang "
            "on it. Take other facts, or set the layers by hand."
        )
    last = max(i for i, share in enumerate(lost) if share >= settings.still_moves * max(lost))
    layers = list(range(max(0, last + 1 - settings.width), last + 1))
    memit = MEMIT(
        layers, 1.0, settings.moments, settings.targets, batch_size=settings.batch_size, cache=settings.cache
    )
    problem = prepare(memit, model, tokenizer, facts, lambda _: None)
    system = layer_system(memit, problem, 0)
    placed = {lam: system.placed(system.solve(lam)) for lam in LAMBDAS}
    enough = settings.places * max(placed.values())
    return Proposal(layers, max(lam for lam, share in placed.items() if share >= enough), placed)


def known_facts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], batch_size: int
) -> list[Fact]:
    """The facts that the model recalls.

    Raises:
        LawError: it recalls none.
    """
    known = recalled_facts(model, tokenizer, facts, batch_size)
    if not known:
        raise LawError(
            f"The model recalls none of the {len(facts)} facts; expected facts that it knows. Check model.path "
            "and dataset.path."
        )
    return known
