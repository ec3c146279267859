"""One bet on where a healthy run ends, that nobody can win on average while collapses come without a cycle.

"Without a cycle" means: on at least one clock, the run's length has a density that never rises. Such a law is a
mixture of uniform laws on (0, m], so a payoff that, averaged from 0 to m, never exceeds 1 has expectation at most 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    projected: Array
    """Distribution function of the projection at the multiples of ``step``, from 0."""

    def payoffs(self, ends: Array) -> Array:
        """For each cell that ends here, what the bet would pay, with no other clock to mind, if the run ended in it."""
        below = self.law.below_all(ends)
        expected = np.interp(ends, self.step * np.arange(len(self.projected)), self.projected)
        last = (len(self.projected) - 1) * self.step
        if ends[-1] > last:
            expected = np.where(ends > last, self.projected[-1] + below - self.law.below(last), expected)
        likely, chance = np.diff(below, prepend=0.0), np.diff(expected, prepend=0.0)
        return np.asarray(np.maximum(likely, 1e-12) / np.maximum(chance, 1e-12))


def bet_on(law: RunLaw, clock: Clock, unit: float) -> Bet:
    """The bet of this law; ``unit`` is the usual advance of one answer, at which the law is looked at.

    The projection (Kullback-Leibler, on non-increasing densities) is the slope of the least concave majorant of the
    distribution function: Grenander 1956. Law / projection is the growth-optimal e-value (Gruenwald, de Heide, Koolen
    2024, arXiv 1906.07801).
    """
    middle = law.points.values[int(law.cumulative.searchsorted(0.5, side="right")) - 1] or unit
    points = min(MAX_GRID, max(8, math.ceil(REACH * middle / unit)))
    step = unit * max(1, math.ceil(REACH * middle / unit / points))
    return Bet(clock, law, step, concave_majorant(law.below_all(step * np.arange(points + 1.0))))


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


def spend(bets: Sequence[Bet], ends: dict[Clock, list[float]]) -> list[float]:
    """Payoff of each bet on a run whose cells end at these points of each clock: e-values.

    Every bet keeps an account on every clock: a cell pays its width in, and what the bet would pay there, times the
    width, is taken out. No account may be overdrawn, so the payoff averages at most 1 over (0, m] on every clock. It
    depends on the cells up to that one only, not on what would have come after.
    """
    by_clock = [[end - begin for begin, end in pairwise([0.0, *points])] for points in ends.values()]
    widths = list(zip(*by_clock, strict=True))
    return [max(_last_payoff(bet.payoffs(np.array(ends[bet.clock])).tolist(), widths), 1e-12) for bet in bets]


def _last_payoff(wanted: list[float], widths: list[tuple[float, ...]]) -> float:
    payoff, accounts = 1.0, [0.0] * len(widths[0])
    for payoff, cell in zip(wanted, widths, strict=True):
        if payoff > 1:
            for account, width in zip(accounts, cell, strict=True):
                if payoff * width > width + account:
                    payoff = 1 + account / width
        gain = 1 - payoff
        # The largest payoff that an account allows may overdraw it by a rounding error.
        accounts = [account + width * gain for account, width in zip(accounts, cell, strict=True)]
        if gain < 0:
            accounts = [max(0.0, account) for account in accounts]
    return payoff
