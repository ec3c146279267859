"""One bet on where a healthy run ends, that nobody can win on average while collapses come without a cycle.

"Without a cycle" means: on at least one clock, the run's length has a density that never rises. Such a law is a
mixture of uniform laws on (0, m], so a payoff that, averaged from 0 to m, never exceeds 1 has expectation at most 1.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from detector.stats.clocks import Clock
from detector.stats.run_law import Array, RunLaw

MAX_GRID = 512
REACH = 8.0
"""The bet is planned up to so many times the median length; beyond it pays 1."""


class Bet(NamedTuple):
    """A law of the run's length on one clock, and its projection on the laws without a cycle."""

    clock: Clock
    law: RunLaw
    step: float
    """Width of the projection's grid, in units of the clock."""
    projected: list[float]
    """Distribution function of the projection at the multiples of ``step``, from 0."""

    def payoffs(self, ends: list[float]) -> list[float]:
        """For each cell that ends here, what the bet would pay, with no other clock to mind, if the run ended in it."""
        found, below, expected_below = [], 0.0, 0.0
        for end in ends:
            likely, expected = self.law.below(end), self._projected_below(end)
            found.append(max(likely - below, 1e-12) / max(expected - expected_below, 1e-12))
            below, expected_below = likely, expected
        return found

    def _projected_below(self, length: float) -> float:
        last = (len(self.projected) - 1) * self.step
        if length >= last:
            return self.projected[-1] + self.law.below(length) - self.law.below(last)
        at = int(length / self.step)
        left, right = self.projected[at], self.projected[min(at + 1, len(self.projected) - 1)]
        return left + (right - left) * (length / self.step - at)


def bet_on(law: RunLaw, clock: Clock, unit: float) -> Bet:
    """The bet of this law; ``unit`` is the usual advance of one answer, at which the law is looked at.

    The projection (Kullback-Leibler, on non-increasing densities) is the slope of the least concave majorant of the
    distribution function: Grenander 1956. Law / projection is the growth-optimal e-value (Gruenwald, de Heide, Koolen
    2024, arXiv 1906.07801).
    """
    middle = float(law.lengths[law.cumulative.searchsorted(0.5, side="right") - 1]) or unit
    points = min(MAX_GRID, max(8, math.ceil(REACH * middle / unit)))
    step = unit * max(1, math.ceil(REACH * middle / unit / points))
    return Bet(clock, law, step, concave_majorant(law.below_all(step * np.arange(points + 1))).tolist())


def concave_majorant(values: Array) -> Array:
    """Least concave majorant of equally spaced values, by pooling adjacent violators."""
    totals: list[float] = []
    counts: list[int] = []
    for rise in np.diff(values).tolist():
        total, count = rise, 1
        while totals and totals[-1] * count <= total * counts[-1]:
            total, count = total + totals.pop(), count + counts.pop()
        totals.append(total)
        counts.append(count)
    slopes = np.repeat(np.array(totals) / counts, counts)
    return np.asarray(values[0] + np.concatenate([[0.0], np.cumsum(slopes)]), dtype=np.float64)


def spend(bet: Bet, ends: dict[Clock, list[float]]) -> float:
    """Payoff of the bet on a run whose cells end at these points of each clock: an e-value.

    Every clock keeps an account: a cell pays its width in, and what the bet would pay there, times the width, is
    taken out. No account may be overdrawn, so the payoff averages at most 1 over (0, m] on every clock. It depends on
    the cells up to that one only, not on what would have come after.
    """
    payoffs = bet.payoffs(ends[bet.clock])
    payoff, accounts = 1.0, [0.0] * len(ends)
    for payoff, widths in zip(payoffs, _widths(ends), strict=True):
        for account, width in zip(accounts, widths, strict=True):
            if width > 0 and payoff * width > width + account:
                payoff = 1 + account / width
        accounts = [
            max(0.0, account + width * (1 - payoff)) for account, width in zip(accounts, widths, strict=True)
        ]
    return max(payoff, 1e-12)


def _widths(ends: dict[Clock, list[float]]) -> list[tuple[float, ...]]:
    """Of each cell, on every clock."""
    by_clock = [[end - begin for begin, end in pairwise([0.0, *points])] for points in ends.values()]
    return list(zip(*by_clock, strict=True))
