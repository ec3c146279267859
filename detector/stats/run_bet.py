"""Bets on where a healthy run ends, that nobody can win on average while collapses come without a cycle.

"Without a cycle" means: on at least one clock, the run's length has a density that never rises. Such a law is a
mixture of uniform laws on (0, m], so a payoff that, averaged from 0 to m, never exceeds 1 has expectation at most 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detector.stats.clocks import Clock
from detector.stats.run_law import LONGEST, TABLE, RunLaw
from detector.stats.run_parts import Array

_PER_LENGTH: Array = 1 / TABLE[1:]
_PER_WIDTH: Array = 1 / np.diff(TABLE)
_POINTS = np.arange(len(TABLE))
_ROUNDING = 1e-9


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
    minded = np.maximum.accumulate(wanted, axis=1) > 1
    accounts = np.where(minded, 0.0, 1 - wanted) @ widths.T
    first = (wanted.shape[1] - minded.sum(axis=1)).tolist()
    cells = widths.T.tolist()
    each = zip(wanted.tolist(), accounts.tolist(), first, strict=True)
    return [max(_last_payoff(planned, kept, cells, begin), 1e-12) for planned, kept, begin in each]


def _last_payoff(planned: list[float], accounts: list[float], cells: list[list[float]], first: int) -> float:
    """What is paid in the last of these cells (their widths on each clock), with so much on the accounts before the
    first that is minded."""
    payoff = planned[-1]
    for payoff, widths in zip(planned[first:], cells[first:], strict=True):
        if payoff > 1:
            for account, width in zip(accounts, widths, strict=True):
                if (payoff - 1) * width > account:
                    payoff = 1 + account / width
        gain = 1 - payoff
        accounts = [account + width * gain for account, width in zip(accounts, widths, strict=True)]
        if gain < 0:
            # The largest payoff that an account allows may overdraw it by a rounding error.
            accounts = [max(0.0, account) for account in accounts]
    return payoff


def _plans(laws: Sequence[RunLaw], ends: Array) -> Array:
    """For each cell that ends here (a row for each law), what its bet would pay, with no other clock to mind, if the
    run ended in it: law / projection, the growth-optimal e-value (Gruenwald, de Heide, Koolen 2024, arXiv 1906.07801).
    """
    lengths = ends / np.array([[law.points.values[-1] / LONGEST] for law in laws])
    beyond = 1 - LONGEST / np.maximum(lengths, LONGEST) if lengths[:, -1].max() > LONGEST else None
    np.minimum(lengths, LONGEST, out=lengths)
    at = TABLE.searchsorted(lengths) - 1
    np.maximum(at, 0, out=at)
    share = (lengths - TABLE.take(at)) * _PER_WIDTH.take(at)
    at += len(TABLE) * np.arange(len(laws))[:, None]
    both = np.array([[law.cumulative for law in laws], _projections(laws)])
    flat = both.reshape(2, -1)
    below = flat.take(at, axis=1)
    below += (flat.take(at + 1, axis=1) - below) * share
    if beyond is not None:  # of the table, both go on alike, and the bet pays 1
        below += (1 - both[:, :, -1:]) * beyond
    likely, chance = np.maximum(_rises(below), 1e-12)
    return np.asarray(likely / chance)


def _projections(laws: Sequence[RunLaw]) -> list[Array]:
    """Projection (Kullback-Leibler) of each law on the non-increasing densities: the least concave majorant of its
    distribution function (Grenander 1956). It is kept with the law."""
    fresh = [law for law in laws if law.projected is None]
    if fresh:
        for law, projected in zip(fresh, _majorants(np.array([law.cumulative for law in fresh])), strict=True):
            law.projected = projected
    return [law.projected for law in laws if law.projected is not None]


def _majorants(cumulative: Array) -> Array:
    """``concave_majorant`` of distribution functions (rows) on the common table.

    It begins with the steepest line from 0. Most laws are concave from where that line touches them.
    """
    slopes = cumulative[:, 1:] * _PER_LENGTH
    touch = slopes.argmax(axis=1)[:, None] + 1
    found = np.where(touch >= _POINTS, slopes.max(axis=1)[:, None] * TABLE, cumulative)
    densities = (found[:, 1:] - found[:, :-1]) * _PER_WIDTH
    for row in np.flatnonzero((densities[:, 1:] > densities[:, :-1] * (1 + _ROUNDING) + _ROUNDING).any(axis=1)):
        begin = touch[row, 0]
        found[row, begin:] = concave_majorant(TABLE[begin:], cumulative[row, begin:])
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
    """Differences along the last axis, from 0."""
    rises = values.copy()
    rises[..., 1:] -= values[..., :-1]
    return rises
