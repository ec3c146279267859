"""What lies ahead of one backend: whether its collapses come in a cycle, on which clock, and when the next one is due.

The phases come from the rules without memory (``phases``): a test for a cycle that were fed by a filter which knows the
cycle would find what it expects. The filter (``stats.regime``) only looks ahead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from detector.episodes import Boundary
from detector.observation import Observation
from detector.stats.clocks import BackendClocks, Clock
from detector.stats.cycle import CycleConfig, CycleState, CycleTest, CycleVerdict, Judgement
from detector.stats.regime import Regime, RegimeState
from detector.stats.runs import RunRecorder
from detector.verdict import Forecast, LongForecast

FORECAST_TOKENS = 1000.0
FORECAST_SECONDS = 60.0
MIN_RUNS = 2
"""Complete healthy runs before anything is forecast: until then only the prior would speak."""
MAX_PENDING = 64
"""Boundaries that wait for the answer they lie in to end; the oldest are forgotten first."""


class OutlookState(msgspec.Struct, kw_only=True):
    """Everything that an Outlook remembers; bounded."""

    clocks: BackendClocks = msgspec.field(default_factory=BackendClocks)
    runs: RunRecorder = msgspec.field(default_factory=RunRecorder)
    cycle: CycleState = msgspec.field(default_factory=CycleState)
    regime: RegimeState = msgspec.field(default_factory=RegimeState)
    pending: list[Boundary] = []
    """A collapse that was seen inside an answer, until that answer has ended."""


class Outlook:
    """Follows the runs of one backend."""

    def __init__(self, config: CycleConfig, state: OutlookState | None = None) -> None:
        self.state = state or OutlookState()
        """To be stored; an outlook made from it goes on where this one was."""
        self._cycle = CycleTest(config, self.state.cycle)
        self._regime = Regime(self.state.regime, self._cycle.runs)
        self._forecasts = self.state.cycle.history.count >= MIN_RUNS

    @property
    def cycle(self) -> CycleVerdict:
        """What is known of a cycle."""
        return self._cycle.verdict

    @property
    def cycle_judgement(self) -> Judgement:
        """The first word of it, for much less time."""
        return self._cycle.judgement

    @property
    def forecast(self) -> Forecast | None:
        """Whether the next request will be slow; None until enough collapses were seen."""
        if not self._forecasts:
            return None
        probability = self._regime.next_degraded_probability(self.state.clocks.mean)
        return Forecast(next_request_probability=probability, clock=self._cycle.clock)

    @property
    def long_forecast(self) -> LongForecast | None:
        """The same for longer: worked out when somebody asks, which is not at every answer."""
        near, clocks = self.forecast, self.state.clocks
        if near is None:
            return None
        tokens = clocks.advance_for(Clock.TOKENS, FORECAST_TOKENS)
        seconds = clocks.advance_for(Clock.SECONDS, FORECAST_SECONDS)
        return LongForecast(
            next_request_probability=near.next_request_probability,
            clock=near.clock,
            within_tokens=None if tokens is None else self._regime.degraded_within(tokens),
            tokens=None if tokens is None else FORECAST_TOKENS,
            within_seconds=None if seconds is None else self._regime.degraded_within(seconds),
            seconds=None if seconds is None else FORECAST_SECONDS,
        )

    def update(
        self,
        number: int,
        observation: Observation,
        evidence_nats: float,
        boundaries: Sequence[Boundary],
        recovered_at: float = -math.inf,
    ) -> None:
        """Take one ended answer in, and the boundaries that were seen since the last one.

        number: its number among all answers. evidence_nats: log likelihood ratio of degraded
        against healthy; 0 where the answer says nothing. recovered_at: when the last collapse ended. Of an answer that
        began before, only what came after counts for the run under way: most of it belongs to that collapse, and
        whether there is one at all depends on whether traffic left in time.
        """
        state = self.state
        advance = state.clocks.update(observation)
        if advance is not None:
            if observation.started < recovered_at:
                advance = advance.since(recovered_at, observation)
            state.runs.add(number, advance)
            if self._forecasts:
                self._regime.update(evidence_nats, advance.clocks)
        if boundaries:
            state.pending = [*state.pending, *boundaries][-MAX_PENDING:]
        while state.pending and state.pending[0].answer <= number:
            self._turn(state.pending.pop(0))

    def restart(self) -> None:
        """The backend was launched anew: what it went through is over, what was learned stays."""
        self.state.clocks, self.state.pending = BackendClocks(), []
        self.state.runs.drop()
        self._cycle.restart()
        self._regime.restart()

    def _turn(self, boundary: Boundary) -> None:
        if boundary.kind == "resumed":
            self.state.runs.drop()
            return
        run = self.state.runs.turn(boundary.answer)
        if run is None:
            return
        degraded = boundary.kind != "opened"
        self._cycle.update(run, degraded=degraded)
        self._regime.learn(run, degraded=degraded)
        if not self._forecasts and self.state.cycle.history.count >= MIN_RUNS:
            # Until now nobody asked the filter: it begins in the phase that is known.
            self._forecasts = True
            self._regime.begin(degraded=not degraded, elapsed=self.state.runs.elapsed)
