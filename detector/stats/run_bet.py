"""Bets on where a healthy run ends, that nobody can win on average while collapses come without a cycle.

"Without a cycle" means: on at least one clock, the run's length has a density that never rises. Such a law is a
mixture of uniform laws on (0, m], so a payoff that, averaged from 0 to m, never exceeds 1 has expectation at most 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detector.stats.clocks import Clock
from detector.stats.run_law import LONGEST, TABLE, RunLaw
from detector.stats.run_parts import Array

_PER_LENGTH: Array = 1 / TABLE[1:]
_PER_WIDTH: Array = 1 / np.diff(TABLE)
_POINTS = np.arange(len(TABLE))
_ROUNDING = 1e-9
_NO_WIDTH = 1e-30


def spend(bets: Sequence[tuple[Clock, RunLaw]], ends: dict[Clock, list[float]]) -> list[float]:
    """Payoff of each bet, a law of the run's length on one clock (of the common table), on a run whose cells end at
    these points of each clock: e-values.

    Every bet keeps an account on every clock: a cell pays its width in, and what the bet would pay there, times the
    width, is taken out. No account may be overdrawn, so the payoff averages at most 1 over (0, m] on every clock. It
    depends on the cells up to that one only, not on what would have come after.
    """
    if not bets:
        return []
    points = np.array(list(ends.values()))
    rows = [list(ends).index(clock) for clock, _ in bets]
    wanted, widths = _plans([law for _, law in bets], points[rows]), _rises(points)
    # Up to the first cell that would pay more than 1 there is nothing to mind.
    generous = (wanted > 1).any(axis=0)
    first = int(generous.argmax()) if generous.any() else wanted.shape[1] - 1
    accounts = (1 - wanted[:, :first]) @ widths[:, :first].T
    for planned, width in zip(wanted.T[first:], widths.T[first:], strict=True):
        allowed = 1 + (accounts / np.maximum(width, _NO_WIDTH)).min(axis=1)
        payoffs = np.minimum(planned, allowed)
        # The largest payoff that an account allows may overdraw it by a rounding error.
        accounts = np.maximum(0.0, accounts + np.outer(1 - payoffs, width))
    found: list[float] = np.maximum(payoffs, 1e-12).tolist()
    return found


def _plans(laws: Sequence[RunLaw], ends: Array) -> Array:
    """For each cell that ends here (a row for each law), what its bet would pay, with no other clock to mind, if the
    run ended in it: law / projection, the growth-optimal e-value (Gruenwald, de Heide, Koolen 2024, arXiv 1906.07801).
    """
    cumulative = np.array([law.cumulative for law in laws])
    lengths = ends / np.array([[law.points.values[-1] / LONGEST] for law in laws])
    at = np.minimum(TABLE.searchsorted(lengths, side="right"), len(TABLE) - 1)
    share = np.minimum(1.0, (lengths - TABLE[at - 1]) * _PER_WIDTH[at - 1])
    at += len(TABLE) * np.arange(len(laws))[:, None]
    # Beyond the table both go on alike, and the bet pays 1.
    tail = (1 - cumulative[:, -1:]) * (1 - LONGEST / np.maximum(lengths, LONGEST))
    likely = _rises(_between(cumulative, at, share) + tail)
    chance = _rises(_between(_projections(cumulative), at, share) + tail)
    return np.asarray(np.maximum(likely, 1e-12) / np.maximum(chance, 1e-12))


def _between(table: Array, at: NDArray[np.intp], share: Array) -> Array:
    """Values of a table so far on the way from the point before these to the point itself."""
    low = table.take(at - 1)
    return np.asarray(low + (table.take(at) - low) * share)


def _projections(cumulative: Array) -> Array:
    """Projection (Kullback-Leibler) of each law (a row) on the non-increasing densities: the least concave majorant of
    its distribution function (Grenander 1956).

    It begins with the steepest line from 0. Most laws are concave from where that line touches them.
    """
    slopes = cumulative[:, 1:] * _PER_LENGTH
    steepest = slopes.max(axis=1)[:, None]
    found = np.where(slopes.argmax(axis=1)[:, None] + 1 >= _POINTS, steepest * TABLE, cumulative)
    densities = (found[:, 1:] - found[:, :-1]) * _PER_WIDTH
    for row in np.flatnonzero((densities[:, 1:] > densities[:, :-1] * (1 + _ROUNDING) + _ROUNDING).any(axis=1)):
        found[row] = concave_majorant(TABLE, cumulative[row])
    return np.asarray(found)


def concave_majorant(points: Array, values: Array) -> Array:
    """Least concave majorant of values at ascending points, by pooling adjacent violators."""
    rises: list[float] = []
    widths: list[float] = []
    counts: list[int] = []
    for rise, width in zip(np.diff(values).tolist(), np.diff(points).tolist(), strict=True):
        count = 1
        while rises and rises[-1] * width <= rise * widths[-1]:
            rise, width, count = rise + rises.pop(), width + widths.pop(), count + counts.pop()
        rises.append(rise)
        widths.append(width)
        counts.append(count)
    slopes = np.repeat(np.array(rises) / np.array(widths), counts)
    return np.asarray(values[0] + np.concatenate([[0.0], np.cumsum(slopes * np.diff(points))]), dtype=np.float64)


def _rises(values: Array) -> Array:
    """Differences along the rows, from 0."""
    rises = values.copy()
    rises[:, 1:] -= values[:, :-1]
    return rises
