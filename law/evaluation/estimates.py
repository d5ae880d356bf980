r"""A score and its standard error.

Items that share a subject, a washed fact or a document are not independent: they form a cluster.
The clusters are independent. With :math:`S_g` the sum and :math:`N_g` the number of the items of
cluster :math:`g`, out of :math:`G` clusters,

.. math::
    \bar x = \frac{\sum_g S_g}{\sum_g N_g}, \qquad
    \mathrm{s.e.} = \frac{1}{\sum_g N_g} \sqrt{\frac{G}{G-1} \sum_g (S_g - N_g \bar x)^2}.

This is the cluster-robust standard error of a mean (Liang and Zeger, Biometrika 1986). If every
cluster has one item, it is the sample standard deviation divided by the root of n. For a proportion
that is :math:`\sqrt{p(1-p)/(n-1)}`, as in the lm-evaluation-harness.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error in the same unit, and the number of items behind it.

    The standard error is ``None`` if all items are in one cluster. ``items`` has the value of each item, where they are told.
    """

    value: float
    stderr: float | None
    n: int
    items: Sequence[float] = field(default=(), compare=False, repr=False)


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate | None:
    """The mean over all values; ``clusters`` names the cluster of each. ``None`` if there is no value."""
    sums: dict[Hashable, tuple[float, int]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        total, size = sums.get(cluster, (0.0, 0))
        sums[cluster] = (total + value, size + 1)
    return ratio([*sums.values()])


def mean(values: Sequence[float]) -> Estimate | None:
    """The mean over independent values; ``None`` if there is no value."""
    return ratio([(value, 1) for value in values])


def ratio(clusters: Sequence[tuple[float, int]]) -> Estimate | None:
    """The mean over all items, from each cluster's (sum, number of items); ``None`` if there is no item."""
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

    A score over no item is left out. So is the standard error if there is only one cluster.
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
