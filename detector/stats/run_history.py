"""The last runs of one phase on every clock, and how well each clock predicted them."""

from __future__ import annotations

import math

import msgspec

from detector.stats.clocks import Clock
from detector.stats.run_law import WINDOW, Interval, RunLaw, learn_laws
from detector.stats.runs import Run

SCORE_FORGETTING = 0.97
"""Weight of a run's score relative to the run after it."""


class RunHistory(msgspec.Struct, kw_only=True):
    """What is remembered of past runs; bounded.

    All clocks predict the same thing, namely in which answer the run ends, so their log probabilities compare.
    """

    intervals: dict[Clock, list[Interval]] = {}
    units: dict[Clock, float] = {}
    """Running mean of a cell's advance on each clock."""
    scores: dict[Clock, float] = {}
    """Sum of the log probabilities that a clock gave to the cells in which the runs ended."""
    count: int = 0

    def laws(self) -> dict[Clock, RunLaw]:
        """The predictive law of the next run on each clock, by past runs alone."""
        return dict(zip(self.intervals, learn_laws(list(self.intervals.values())), strict=True))

    def add(self, run: Run, laws: dict[Clock, RunLaw]) -> None:
        """Take a run in. ``laws`` are those that were in force before it."""
        self.count += 1
        ends = {clock: run.ends(clock) for clock in Clock}
        self._score({clock: at for clock, at in ends.items() if at is not None}, laws)
        for clock, at in ends.items():
            if at is None or at[-1] <= 0:
                continue
            interval = (at[-2] if len(at) > 1 else 0.0, at[-1])
            window = self.intervals.setdefault(clock, [])
            window.append(interval)
            del window[:-WINDOW]
            unit = at[-1] / len(at)
            self.units[clock] = self.units.get(clock, unit) + (unit - self.units.get(clock, unit)) / len(window)

    def _score(self, ends: dict[Clock, list[float]], laws: dict[Clock, RunLaw]) -> None:
        found = {
            clock: math.log(law.between(at[-2] if len(at) > 1 else 0.0, at[-1]))
            for clock, law in laws.items()
            if (at := ends.get(clock)) is not None
        }
        # A clock that does not know this run neither gains nor loses on the request clock, which always knows.
        missing = found.get(Clock.REQUESTS, 0.0)
        for clock in laws:
            self.scores[clock] = SCORE_FORGETTING * self.scores.get(clock, 0.0) + found.get(clock, missing)
