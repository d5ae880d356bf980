r"""The frontier of a method: what it keeps as a function of what it forgets.

Each value of a method's knob gives a point :math:`(f, k)`: the share of washed facts that are forgotten, 1 − left, and the share
of other facts that are kept. The unwashed model is the point (0, 1). The upper envelope of the points is the frontier

.. math::
    K(f) = k_b + \frac{f - f_b}{f_a - f_b}\,(k_a - k_b),

where a is the point that keeps most among those with :math:`f_a \ge f`, and b the one that forgets most among those with
:math:`f_b < f` and :math:`k_b > k_a`; without such a b, :math:`K(f) = k_a`. So K falls from point to point on straight lines, and a
point that another one surpasses in both shares has no part in it. Where no point forgets f, K(f) is *not reached*.

Another score of the same models, such as reasoning, is interpolated between the same two points with the same weights: it is what
one gets with the model that keeps most.

The area under the frontier is :math:`\int_0^1 K(f)\,df`, where K counts as 0 as far as it is not reached. It is 1 for a method that
can forget everything and keep everything.

All functions take many samples at once: a row is one bootstrap draw.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid

Array = NDArray[np.float64]

ROUNDING = 1e-9
"""By how much a point may miss the wanted share and still count as reaching it."""


def along(forgotten: Array, kept: Array, wanted: float | Array, *scores: Array) -> list[Array]:
    """K at ``wanted``, and the other scores there.

    Args:
        forgotten: f of each point, the unwashed model among them, (draws, points).
        kept: k of each, likewise.
        wanted: one f, or one for each draw, (draws, 1).
        scores: other scores of the points, (draws, points).

    Returns:
        K and each of the scores, (draws); NaN where K is not reached.
    """
    wanted = np.broadcast_to(wanted, (len(forgotten), 1))
    right = forgotten >= wanted - ROUNDING
    a = _highest(_highest(right, kept), forgotten)
    k_a = _at(kept, a)
    left = ~right & (kept > k_a[:, None])
    b = _highest(_highest(left, forgotten), kept)
    some = left.any(1)
    f_a, f_b = _at(forgotten, a), _at(forgotten, b)
    span = np.where(some, f_a - f_b, 1.0)
    weight = np.where(some, np.minimum((wanted[:, 0] - f_b) / span, 1.0), 1.0)  # of a
    reached = right.any(1)
    return [
        np.where(reached, weight * _at(score, a) + (1 - weight) * _at(score, b), np.nan)
        for score in (kept, *scores)
    ]


def area(forgotten: Array, kept: Array) -> Array:
    """The area under the frontier, (draws), of points as :func:`along` takes them.

    K is straight between the points, so that the trapezoids between them add up to the area.
    """
    at = np.sort(forgotten, 1)
    heights = np.stack([along(forgotten, kept, at[:, [i]])[0] for i in range(at.shape[1])], 1)
    return np.asarray(trapezoid(heights, at, axis=1))


def _highest(among: NDArray[np.bool_], values: Array) -> NDArray[np.bool_]:
    """Those of the marked places of each row whose value is the highest of the row's marked ones."""
    shown = np.where(among, values, -np.inf)
    return among & (shown == shown.max(1, keepdims=True))


def _at(values: Array, marked: NDArray[np.bool_]) -> Array:
    """The value at the first marked place of each row."""
    return np.take_along_axis(values, marked.argmax(1)[:, None], 1)[:, 0]
