"""The cycle certificate: do the healthy runs of a backend come to an end more regularly than chance allows?

An e-process against "no cycle", valid under continuous watching: P(it ever reaches 1 / alpha) <= alpha. Feed it runs
that a MEMORYLESS rule decoded (alarm and recovery), never those of the learned filter in ``stats.regime``: a filter
that expects a period finds one. docs/detection-cycle.md has the model, the proof and what was measured.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

from detector.stats.clocks import Clock, ClockReading
from detector.stats.cycle_period import Period, period_of
from detector.stats.run_bet import spend
from detector.stats.run_history import RunHistory, RunLaws
from detector.stats.run_law import (
    HEALTHY_SIGNATURE,
    WINDOW,
    memoryless_log_cells,
    prior_law,
    scaled_points,
    typical_length,
)
from detector.stats.run_parts import BUMPS, part_cells, safe_log
from detector.stats.runs import Run

MAX_LOG_E = math.log(1e6)
"""The e-process is held at or below this, so that a cycle that has ended is given up after some ten odd runs."""
MIN_LOG_E = -100.0
"""Held at or above this, where it cannot matter, so that its exponential stays a number."""
PUBLISHED = "published"
"""The bet on the published cycle, 5 to 7 requests, which needs no run to learn from."""
BET_WEIGHTS = {PUBLISHED: 0.55, "requests": 0.2, "tokens": 0.1, "steps": 0.05, "kv_blocks": 0.03, "seconds": 0.07}
"""Stakes before anything was seen. Those of clocks that the first run does not know go to the others."""
CLASS_CONTAMINATION = 0.1
"""Share of runs of any length that a law may have and still count as a cycle."""
MAX_PERIODS = 32

Judgement = Literal["cyclic", "not_cyclic", "undetermined"]


class CycleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the cycle certificate.

    Raises:
        ValueError: a setting is out of its range.
    """

    certificate_e_value: float = 20.0
    """"cyclic" from this e-value on: a backend without a cycle ever gets there with probability at most 1 / this. The
    same figure refutes a cycle ("not_cyclic"); > 1."""
    clock_odds: float = 20.0
    """A clock is named when it predicted the runs so many times better than every other known clock; > 1."""

    def __post_init__(self) -> None:
        if not self.certificate_e_value > 1:
            raise ValueError("cycle: certificate_e_value must be above 1")
        if not self.clock_odds > 1:
            raise ValueError("cycle: clock_odds must be above 1")


class CycleVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the cycle after some complete healthy runs."""

    verdict: Judgement = "undetermined"
    clock: Clock | None = None
    """The clock that the period lives on; None where the data cannot tell, as when all answers have one length."""
    period: Period | None = None
    """Onset to onset on that clock; None without one. ``periods`` has it on every clock."""
    e_value: float = 1.0
    """Evidence now."""
    p_value: float = 1.0
    """min(1, 1 / the largest e-value so far)."""
    runs: int = 0
    """Complete healthy runs seen."""
    periods: dict[Clock, Period] = {}


class CycleState(msgspec.Struct, kw_only=True):
    """Everything that a CycleTest remembers; bounded."""

    history: RunHistory = msgspec.field(default_factory=RunHistory)
    stakes: dict[str, float] = {}
    """Share of each bet, fixed by what the first run knew."""
    log_e: dict[str, float] = {}
    max_log_e: float = 0.0
    last_degraded: ClockReading | None = None
    """Length of the degraded run before the healthy run that is under way."""
    periods: list[ClockReading] = []
    """Onset to onset, the last ``MAX_PERIODS``."""


class CycleTest:
    """Tests one backend for a cycle."""

    def __init__(self, config: CycleConfig | None = None, state: CycleState | None = None) -> None:
        self._config = config or CycleConfig()
        self.state = state or CycleState()
        """To be stored; a test made from it goes on where this one was."""
        self.runs = RunLaws(self.state.history)
        """The healthy runs, and the laws learned from them."""
        self._judgement: Judgement | None = None
        self._verdict: CycleVerdict | None = None
        self._clock = self._named_clock()

    @property
    def judgement(self) -> Judgement:
        """That of the verdict, known without the rest of it."""
        if self._judgement is None:
            cyclic = self._e_value() >= self._config.certificate_e_value
            self._judgement = "cyclic" if cyclic else "not_cyclic" if self._refuted() else "undetermined"
        return self._judgement

    @property
    def verdict(self) -> CycleVerdict:
        """The finding after the last run."""
        if self._verdict is None:
            self._verdict = self._judge()
        return self._verdict

    @property
    def clock(self) -> Clock | None:
        """That of the verdict, known without the rest of it."""
        return self._clock

    def update(self, run: Run, *, degraded: bool) -> None:
        """Take one complete run in. Degraded runs are no evidence; they are part of the period.

        How long a collapse lasts may be fixed (a watchdog, a clock that throttles) while its onset is pure chance.
        """
        state = self.state
        if degraded:
            state.last_degraded = run.actual
            return
        self._play(run)
        if state.last_degraded is not None:
            state.periods.append(state.last_degraded.plus(run.actual))
            del state.periods[:-MAX_PERIODS]
            state.last_degraded = None
        self._judgement, self._verdict, self._clock = None, None, self._named_clock()

    def restart(self) -> None:
        """The backend was launched anew: the period under way has no end. What was learned stays."""
        self.state.last_degraded = None

    def _play(self, run: Run) -> None:
        """Settle the bets on this run, then learn from it."""
        state = self.state
        ends = run.all_ends()
        if not state.stakes:
            shares = {name: share for name, share in BET_WEIGHTS.items() if name == PUBLISHED or Clock(name) in ends}
            state.stakes = {name: share / sum(shares.values()) for name, share in shares.items()}
            state.log_e = dict.fromkeys(shares, 0.0)
        laws = {PUBLISHED: (Clock.REQUESTS, _PUBLISHED_LAW)}
        laws |= {clock.value: (clock, law) for clock, law in self.runs.current.items()}
        placed = [name for name in state.log_e if name in laws and laws[name][0] in ends]
        for name, payoff in zip(placed, spend([laws[name] for name in placed], ends), strict=True):
            state.log_e[name] = max(MIN_LOG_E, min(MAX_LOG_E, state.log_e[name] + math.log(payoff)))
        self.runs.add_ends(ends)
        state.max_log_e = max(state.max_log_e, math.log(self._e_value()))

    def _e_value(self) -> float:
        """Mean of the e-processes by their stakes: an e-process again."""
        if not self.state.stakes:
            return 1.0
        return sum(share * math.exp(self.state.log_e[name]) for name, share in self.state.stakes.items())

    def _judge(self) -> CycleVerdict:
        clock = self._clock
        periods = _periods(self.state.periods) if self.judgement == "cyclic" else {}
        return CycleVerdict(
            verdict=self.judgement,
            clock=clock,
            period=periods.get(clock) if clock is not None else None,
            e_value=self._e_value(),
            p_value=min(1.0, math.exp(-self.state.max_log_e)),
            runs=self.state.history.count,
            periods=periods,
        )

    def _named_clock(self) -> Clock | None:
        if self._e_value() < self._config.certificate_e_value:
            return None
        ranking = sorted(self.state.history.scores.items(), key=lambda one: one[1], reverse=True)
        if len(ranking) < 2 or ranking[0][1] - ranking[1][1] < math.log(self._config.clock_odds):
            return None
        return ranking[0][0]

    def _refuted(self) -> bool:
        """On every clock, the memoryless prediction beat the best of all cyclic laws by the certificate's factor.

        Universal inference: under any one law of the class, predictive likelihood / largest likelihood of the class
        exceeds 1 / alpha with probability at most alpha, at any time; here over the runs that are remembered.
        """
        runs = self.state.history.intervals
        bar = math.log(self._config.certificate_e_value)
        return bool(runs) and all(_against_cycle(window[-WINDOW:]) >= bar for window in runs.values())


def _periods(gaps: list[ClockReading]) -> dict[Clock, Period]:
    return {clock: found for clock in Clock if (found := period_of(gaps, clock)) is not None}


def _against_cycle(intervals: list[tuple[float, float]]) -> float:
    """Log of: likelihood of the memoryless prediction / largest likelihood of a law that would count as a cycle."""
    scale = typical_length(intervals)
    cells = np.array(intervals) / scale
    cyclic = part_cells(cells, CLASS_CONTAMINATION)[:, :BUMPS]
    best = float(safe_log(cyclic).sum(axis=0).max())
    return float(memoryless_log_cells(*cells.T).sum()) - best


_PUBLISHED_LAW = prior_law(6.0, HEALTHY_SIGNATURE, 0.97, scaled_points(6.0))
