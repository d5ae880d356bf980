r"""The uncertainty of a score, and of a difference between two methods, from a paired bootstrap.

A draw gives each subject, each item of a reasoning task and each seed a weight, the same for all methods. All facts about a subject
share its weight, in every seed, and a fact counts with the product of the two weights (Owen and Eckles, *Bootstrapping data arrays of arbitrary order*, Annals
of Applied Statistics 2012). Of n subjects, items or seeds, n − 1 are drawn with replacement: the variance of a mean over n of n would be
too small by the factor (n − 1) / n (Rao and Wu, JASA 1988), which is a third for three seeds.

The first row of all samples is the data as they are, with all weights 1.
"""

from __future__ import annotations

import numpy as np

from law.reporting.frontier import Array

DRAWS = 2000
LEVEL = 0.05
"""Two methods are told apart if the corrected p-value of their difference is below. An interval covers the rest."""


def draw_weights(items: int, generator: np.random.Generator, draws: int = DRAWS) -> Array:
    """The weight of each item in the data and in each draw, (1 + draws, items)."""
    if items == 1:
        return np.ones((1 + draws, 1))
    drawn = generator.multinomial(items - 1, np.full(items, 1 / items), draws)
    return np.vstack([np.ones(items), drawn])


def interval(samples: Array) -> tuple[float, float]:
    """The percentile interval over the draws, without those in which the score is not known."""
    low, high = np.nanquantile(samples[1:], (LEVEL / 2, 1 - LEVEL / 2))
    return float(low), float(high)


def p_value(differences: Array) -> float:
    """Two-sided, of no difference: twice the share of draws on the rarer side of zero, at most 1.

    The data count as a draw on each side (Davison and Hinkley 1997), so that no p-value is 0.
    """
    drawn = differences[1:][np.isfinite(differences[1:])]
    rarer = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return float(min(1.0, 2 * (1 + rarer) / (1 + len(drawn))))


def holm(p_values: list[float]) -> list[float]:
    """Holm's corrected p-values (Scandinavian Journal of Statistics 1979), in the same order.

    Of m sorted p-values the i-th is multiplied by m + 1 − i. None is below the one before it, or above 1.
    """
    corrected, so_far = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[at]))
        corrected[at] = so_far
    return corrected
