"""Bets on where a healthy run ends, that nobody can win on average while collapses come without a cycle.

"Without a cycle" means: on at least one clock, the run's length has a density that never rises. Such a law is a
mixture of uniform laws on (0, m], so a payoff that, averaged from 0 to m, never exceeds 1 has expectation at most 1.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from operator import mul

import numpy as np

from detector.stats.clocks import Clock
from detector.stats.run_law import TABLE, RunLaw
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
    project([law for _, law in bets])
    widths = [[end - begin for begin, end in pairwise([0.0, *points])] for points in ends.values()]
    cells = list(zip(*widths, strict=True))
    return [max(_last_payoff(_plan(law, ends[clock]), widths, cells), 1e-12) for clock, law in bets]


def _plan(law: RunLaw, ends: list[float]) -> list[float]:
    """For each cell that ends here, what the bet would pay, with no other clock to mind, if the run ended in it:
    law / projection, the growth-optimal e-value (Gruenwald, de Heide, Koolen 2024, arXiv 1906.07801).
    """
    lengths, cumulative, projected = law.points.values, law.values, law.projected
    last, payoffs = len(lengths) - 1, []
    below = expected = 0.0
    for end in ends:
        if end < lengths[-1]:
            at = min(bisect_right(lengths, end), last)
            share = (end - lengths[at - 1]) / (lengths[at] - lengths[at - 1])
            now = cumulative[at - 1] + share * (cumulative[at] - cumulative[at - 1])
            then = projected[at - 1] + share * (projected[at] - projected[at - 1])
        else:  # beyond the table both go on alike, and the bet pays 1
            now = law.below(end)
            then = projected[-1] - cumulative[-1] + now
        gained, due = now - below, then - expected
        payoffs.append((gained if gained > 1e-12 else 1e-12) / (due if due > 1e-12 else 1e-12))
        below, expected = now, then
    return payoffs


def _last_payoff(planned: list[float], widths: list[list[float]], cells: list[tuple[float, ...]]) -> float:
    """What is paid in the last cell, where the bet is to pay this in each cell. Widths of the cells, clock by clock and
    cell by cell."""
    if planned[-1] <= 1:
        return planned[-1]
    # Up to the first cell that would pay more than 1 there is nothing to mind.
    first = next(at for at, payoff in enumerate(planned) if payoff > 1)
    gains = [1 - payoff for payoff in planned[:first]]
    accounts = [sum(map(mul, gains, clock)) for clock in widths]
    for payoff, cell in zip(planned[first:-1], cells[first:-1], strict=True):
        gain = 1 - _allowed(payoff, accounts, cell)
        accounts = [account + width * gain for account, width in zip(accounts, cell, strict=True)]
        if min(accounts) < 0:  # the largest payoff that an account allows may overdraw it by a rounding error
            accounts = [max(0.0, account) for account in accounts]
    return _allowed(planned[-1], accounts, cells[-1])


def _allowed(payoff: float, accounts: list[float], cell: tuple[float, ...]) -> float:
    """As much of it as all accounts can pay."""
    if payoff > 1:
        more = payoff - 1
        for account, width in zip(accounts, cell, strict=True):
            if more * width > account:
                more = account / width
        payoff = 1 + more
    return payoff


def project(laws: Sequence[RunLaw]) -> None:
    """Projection (Kullback-Leibler) of each law on the non-increasing densities: the least concave majorant of its
    distribution function (Grenander 1956). It is kept with the law."""
    fresh = [law for law in laws if not law.projected]
    if fresh:
        majorants = _majorants(np.array([law.cumulative for law in fresh])).tolist()
        for law, projected in zip(fresh, majorants, strict=True):
            law.projected = projected


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
