r"""A score with its standard error: every number that is reported goes through here.

Items of one fact (its paraphrases) or of one document (its tokens) are not independent, so items
come in clusters. With :math:`S_g` the sum and :math:`N_g` the number of the items of cluster
:math:`g`, of :math:`G` clusters,

.. math::
    \bar x = \frac{\sum_g S_g}{\sum_g N_g}, \qquad
    \mathrm{s.e.} = \frac{1}{\sum_g N_g} \sqrt{\frac{G}{G-1} \sum_g (S_g - N_g \bar x)^2}.

With one item a cluster this is the sample standard deviation over the root of n, and for a
proportion :math:`\sqrt{p(1-p)/(n-1)}`, as in the lm-evaluation-harness.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error in the same unit (``None`` of a single cluster), and how many items."""

    value: float
    stderr: float | None
    n: int


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate | None:
    """The mean over all values; ``clusters`` names the cluster of each. ``None`` of no value."""
    sums: dict[Hashable, tuple[float, int]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        total, size = sums.get(cluster, (0.0, 0))
        sums[cluster] = (total + value, size + 1)
    return ratio([*sums.values()])


def mean(values: Sequence[float]) -> Estimate | None:
    """The mean over independent values; ``None`` of no value."""
    return ratio([(value, 1) for value in values])


def ratio(clusters: Sequence[tuple[float, int]]) -> Estimate | None:
    """The mean over the items of clusters given as (sum, number of items); ``None`` of no item."""
    n = sum(size for _, size in clusters)
    if n == 0:
        return None
    value = math.fsum(total for total, _ in clusters) / n
    count = len(clusters)
    if count == 1:
        return Estimate(value, None, n)
    squares = math.fsum((total - size * value) ** 2 for total, size in clusters)
    return Estimate(value, math.sqrt(count / (count - 1) * squares) / n, n)


def entries(key: str, before: Estimate | None, after: Estimate | None) -> dict[str, float]:
    """The scores of the unwashed and the washed model under ``key`` with the suffixes of :mod:`law.evaluation.metrics`.

    A score over no item is left out, and so is the standard error of a single cluster.
    """
    found: dict[str, float] = {}
    for name, estimate in ((f"{key}_before", before), (key, after)):
        if estimate is not None:
            found[name] = estimate.value
            if estimate.stderr is not None:
                found[f"{name}_stderr"] = estimate.stderr
    if after is not None:
        found[f"{key}_n"] = after.n
    return found
