"""One bet on where a healthy run ends, that nobody can win on average while collapses come without a cycle.

"Without a cycle" means: on at least one clock, the run's length has a density that never rises. Such a law is a
mixture of uniform laws on (0, m], so a payoff that, averaged from 0 to m, never exceeds 1 has expectation at most 1.
"""

from __future__ import annotations

import math
from bisect import bisect_right

import msgspec
import numpy as np

from detector.stats.clocks import Clock
from detector.stats.run_law import Array, RunLaw

MAX_GRID = 512
REACH = 8.0
"""The bet is planned up to so many times the median length; beyond it pays 1."""


class Bet(msgspec.Struct, frozen=True):
    """A law of the run's length on one clock, and its projection on the laws without a cycle."""

    clock: Clock
    law: RunLaw
    step: float
    """Width of the projection's grid, in units of the clock."""
    projected: list[float]
    """Distribution function of the projection at the multiples of ``step``, from 0."""

    def payoff(self, low: float, high: float) -> float:
        """What the bet would pay, with no other clock to mind, if the run ends in (low, high]."""
        expected = self._projected_below(high) - self._projected_below(low)
        return self.law.between(low, high) / max(expected, 1e-12)

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
    middle = law.lengths[bisect_right(law.cumulative, 0.5) - 1] or unit
    points = min(MAX_GRID, max(8, math.ceil(REACH * middle / unit)))
    step = unit * max(1, math.ceil(REACH * middle / unit / points))
    cumulative = np.array([law.below(step * at) for at in range(points + 1)])
    return Bet(clock, law, step, concave_majorant(cumulative).tolist())


def concave_majorant(values: Array) -> Array:
    """Least concave majorant of equally spaced values, by pooling adjacent violators."""
    blocks: list[tuple[float, int]] = []
    for rise in np.diff(values).tolist():
        total, count = rise, 1
        while blocks and blocks[-1][0] * count <= total * blocks[-1][1]:
            before = blocks.pop()
            total, count = total + before[0], count + before[1]
        blocks.append((total, count))
    slopes = np.repeat([total / count for total, count in blocks], [count for _, count in blocks])
    return np.asarray(values[0] + np.concatenate([[0.0], np.cumsum(slopes)]), dtype=np.float64)


def spend(bet: Bet, ends: dict[Clock, list[float]]) -> float:
    """Payoff of the bet on a run whose cells end at these points of each clock: an e-value.

    Every clock keeps an account: a cell pays its width in, and what the bet would pay there, times the width, is
    taken out. No account may be overdrawn, so the payoff averages at most 1 over (0, m] on every clock. It depends on
    the cells up to that one only, not on what would have come after.
    """
    accounts = dict.fromkeys(ends, 0.0)
    begin = dict.fromkeys(ends, 0.0)
    payoff = 1.0
    for at in range(len(ends[bet.clock])):
        payoff = bet.payoff(begin[bet.clock], ends[bet.clock][at])
        widths = {clock: points[at] - begin[clock] for clock, points in ends.items()}
        for clock, width in widths.items():
            if width > 0:
                payoff = min(payoff, 1 + accounts[clock] / width)
        for clock, width in widths.items():
            accounts[clock] = max(0.0, accounts[clock] + width * (1 - payoff))
            begin[clock] = ends[clock][at]
    return max(payoff, 1e-12)
