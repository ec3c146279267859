"""The last runs of one phase on every clock, and how well each clock predicted them."""

from __future__ import annotations

import math

import msgspec

from detector.stats.clocks import Clock
from detector.stats.run_law import WINDOW, RunLaw, RunWindow, keep_up, learn_laws
from detector.stats.run_parts import Interval
from detector.stats.runs import Run

SCORE_FORGETTING = 0.97
"""Weight of a run's score relative to the run after it."""
LEARNED_ONE_BY_ONE = 12
LEARNED_TOGETHER = 8
"""Laws are learned anew after each of the first runs, then after every eighth: one more run changes them little."""


class RunHistory(msgspec.Struct, kw_only=True):
    """What is remembered of past runs; bounded.

    All clocks predict the same thing, namely in which answer the run ends, so their log probabilities compare.
    """

    intervals: dict[Clock, list[Interval]] = {}
    """The last runs, the oldest first; as many as laws are learned from and as may wait for that."""
    waiting: dict[Clock, int] = {}
    """How many of them, the last ones, the laws in force do not know."""
    scales: dict[Clock, float] = {}
    """Typical lengths that the laws in force are tabulated in."""
    scores: dict[Clock, float] = {}
    """Sum of the log probabilities that a clock gave to the cells in which the runs ended."""
    count: int = 0

    def add(self, ends: dict[Clock, list[float]], laws: dict[Clock, RunLaw]) -> None:
        """Take a run in whose cells end here; ``laws`` were in force before it (``RunLaws`` sees to that)."""
        self.count += 1
        self._score(ends, laws)
        for clock, at in ends.items():
            if at[-1] <= 0:
                continue
            window = self.intervals.setdefault(clock, [])
            window.append((at[-2] if len(at) > 1 else 0.0, at[-1]))
            del window[: -WINDOW - LEARNED_TOGETHER]
            self.waiting[clock] = self.waiting.get(clock, 0) + 1

    def learned(self, clock: Clock) -> list[Interval]:
        """The runs that the law in force was learned from."""
        window = self.intervals.get(clock, [])
        return window[: len(window) - self.waiting.get(clock, 0)][-WINDOW:]

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


class RunLaws:
    """The predictive law of the next run on each clock, by past runs alone; worked out when it is asked for."""

    def __init__(self, history: RunHistory) -> None:
        self.history = history
        """To be stored; laws made from it are those that were in force."""
        self._windows: dict[Clock, RunWindow] = {}
        self._keep_up({clock: WINDOW for clock in history.intervals if history.learned(clock)})
        self._current: dict[Clock, RunLaw] | None = None

    @property
    def current(self) -> dict[Clock, RunLaw]:
        """The laws in force, of the clocks that know any run."""
        if self._current is None:
            self._current = dict(zip(self._windows, learn_laws(list(self._windows.values())), strict=True))
        return self._current

    def add(self, run: Run) -> None:
        """Take a run in."""
        self.add_ends(run.all_ends())

    def add_ends(self, ends: dict[Clock, list[float]]) -> None:
        """``add``, where the ends of the run's cells are known."""
        self.history.add(ends, self.current)
        more = self.history.count - LEARNED_ONE_BY_ONE
        if more <= 0 or more % LEARNED_TOGETHER == 0:
            self.learn()

    def learn(self) -> None:
        """Learn from the runs that wait for it."""
        waiting, self.history.waiting = self.history.waiting, {}
        self._keep_up(waiting)
        self._current = None

    def _keep_up(self, new: dict[Clock, int]) -> None:
        scales = self.history.scales
        windows = [self._windows.setdefault(clock, RunWindow(scales.get(clock, 0.0))) for clock in new]
        keep_up(windows, [self.history.learned(clock) for clock in new], list(new.values()))
        scales.update(zip(new, [window.scale for window in windows], strict=True))
