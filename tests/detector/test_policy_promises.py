"""The policy's promises, from any state, under any sequence of verdicts, connection failures and outcomes."""

from __future__ import annotations

import math

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from detector.policy import (
    Event,
    Level,
    Mode,
    Notice,
    PolicyConfig,
    PolicyState,
    Restart,
    RouteTo,
    SendCanary,
    Signal,
    State,
    decide,
    serving,
)
from detector.policy.canaries import budget_tokens
from detector.policy.cost import options
from detector.policy.explanation import explain
from detector.verdict import Cause, Forecast

PRIMARY, FALLBACKS = "dflash", ("plain", "cloud")
LADDER = (
    Level(name="k8", num_speculative_tokens=8, tokens_per_second=220.0),
    Level(name="k4", num_speculative_tokens=4, tokens_per_second=180.0),
    Level(name="off", num_speculative_tokens=0, tokens_per_second=136.0),
)
REMEDIES = ("restart", "lower_num_speculative_tokens", "speculation_off", "wait")
CANARY_RESULTS = (Event.CANARY_HEALTHY, Event.CANARY_DEGRADED, Event.CANARY_FAILED)
OUTCOMES = (Event.RESTART_SUCCEEDED, Event.RESTART_FAILED)
ANY_TIME = tuple(event for event in Event if event not in (*CANARY_RESULTS, *OUTCOMES))

rates = st.one_of(st.none(), st.floats(0.5, 500.0))
tokens = st.one_of(st.none(), st.integers(1, 20_000))
forecasts = st.one_of(
    st.none(),
    st.builds(Forecast, next_request_probability=st.one_of(st.none(), st.just(math.nan), st.floats(-0.5, 1.5))),
)
gaps = st.one_of(st.floats(0.0, 3.0), st.floats(0.0, 2000.0))


class PolicyMachine(RuleBasedStateMachine):
    """Plays the caller: sends signals, keeps account of what was ordered, and holds the policy to its word."""

    @initialize(
        mode=st.sampled_from([Mode.ACT, Mode.ACT, Mode.OBSERVE, Mode.ADVISE]),
        fallbacks=st.sampled_from([(), FALLBACKS[:1], FALLBACKS]),
        ladder=st.sampled_from([(), LADDER]),
        canaries=st.integers(1, 3),
        restarts_max=st.integers(0, 2),
    )
    def begin(self, mode, fallbacks, ladder, canaries, restarts_max):
        self.config = PolicyConfig(
            mode=mode,
            primary=PRIMARY,
            fallbacks=fallbacks,
            ladder=ladder,
            canaries_to_return=canaries,
            restarts_max=restarts_max,
            restart_seconds=60.0,
            restart_after_seconds=30.0,
            restarts_window_seconds=5000.0,
            climb_after_seconds=600.0,
        )
        self.state = PolicyState()
        self.now = 0.0
        self.route = PRIMARY
        self.rerouted_at = None
        self.canary_out = self.restart_out = False
        self.restarts = []
        self.asked_tokens = 0
        self.client_tokens = 0

    @rule(
        gap=gaps,
        event=st.sampled_from(ANY_TIME),
        backend=st.sampled_from(FALLBACKS),
        age=st.one_of(st.none(), st.floats(0.0, 20.0)),
        rate=rates,
        tokens=tokens,
        forecast=forecasts,
        remedies=st.frozensets(st.sampled_from(REMEDIES)),
        jitter=st.floats(0.0, 1.0),
    )
    def something_happens(self, gap, event, backend, age, rate, tokens, forecast, remedies, jitter):
        self.now += gap
        signal = Signal(
            event=event,
            backend=backend,
            answer_started=None if age is None else self.now - age,
            decode_tokens_per_second=rate,
            completion_tokens=tokens,
            cause=Cause.ACCEPTANCE_COLLAPSE,
            remedies=remedies,
            forecast=forecast,
        )
        self.client_tokens += tokens or 0
        self.send(signal, jitter)

    @precondition(lambda self: self.canary_out)
    @rule(gap=gaps, event=st.sampled_from(CANARY_RESULTS), rate=rates, forecast=forecasts)
    def canary_reports(self, gap, event, rate, forecast):
        self.now += gap
        self.canary_out = False
        self.send(Signal(event=event, decode_tokens_per_second=rate, completion_tokens=64, forecast=forecast), 0.0)

    @precondition(lambda self: self.restart_out)
    @rule(gap=gaps, event=st.sampled_from(OUTCOMES))
    def restart_reports(self, gap, event):
        self.now += gap
        self.restart_out = False
        self.send(Signal(event=event, seconds=gap), 0.0)

    @precondition(lambda self: self.state.wake_at is not None)
    @rule(jitter=st.floats(0.0, 1.0))
    def the_wait_ends(self, jitter):
        self.now = max(self.now, self.state.wake_at)
        self.send(Signal(event=Event.DWELL_ELAPSED), jitter)

    def send(self, signal, jitter):
        known_before = budget_tokens(self.state, self.config)
        before = self.state
        self.state, actions = decide(self.state, signal, self.now, self.config, jitter)
        for action in actions:
            assert self.config.mode is Mode.ACT or isinstance(action, Notice)
            match action:
                case RouteTo(backend):
                    self.rerouted(before, backend)
                case SendCanary(backend, asked):
                    assert backend == PRIMARY
                    assert not self.canary_out
                    assert asked <= max(known_before, self.config.canary_tokens)
                    assert asked <= self.config.canary_max_tokens
                    self.canary_out = True
                    self.asked_tokens += asked
                case Restart(backend, level):
                    self.restarted(backend, level)

    def rerouted(self, before, backend):
        assert backend != self.route
        assert backend in (PRIMARY, *self.config.fallbacks)
        if self.rerouted_at is not None and self.now - self.rerouted_at < self.config.dwell_seconds:
            ordered = self.state.state is State.RESTARTING or before.state is State.RESTARTING
            assert ordered or not self.state.view(self.route).reachable
        self.route, self.rerouted_at = backend, self.now

    def restarted(self, backend, level):
        assert backend == PRIMARY
        assert level in {one.name for one in self.config.ladder}
        self.restarts.append(self.now)
        window = self.config.restarts_window_seconds
        assert sum(self.now - at < window for at in self.restarts) <= self.config.restarts_max
        self.restart_out = True

    @invariant()
    def routing_is_defined(self):
        assert serving(self.state, self.config) == (self.route if self.config.mode is Mode.ACT else PRIMARY)
        assert (self.state.fallback is None) == (self.state.state is State.PRIMARY or not self.config.fallbacks)

    @invariant()
    def there_is_always_a_way_on(self):
        """Whoever waits has a time to wake at, or an outcome that is owed."""
        waits = self.state.state in (State.FALLBACK, State.RESTARTING)
        assert waits == (self.state.wake_at is not None)
        if self.config.mode is Mode.ACT:
            assert (self.state.canary_sent_at is not None) == self.canary_out
            assert self.state.state is not State.PROBING or self.canary_out

    @invariant()
    def it_can_be_explained_and_written_down(self):
        explained = explain(self.state, self.now, self.config)
        assert explained.serving == serving(self.state, self.config)
        assert all(one.expected_seconds > 0 for one in explained.options)
        assert explained.restarts_left >= 0
        written = msgspec.msgpack.encode(self.state, order="deterministic")  # bytes, since NaN differs from itself
        read = msgspec.msgpack.decode(written, type=PolicyState)
        assert msgspec.msgpack.encode(read, order="deterministic") == written

    @invariant()
    def memory_is_bounded(self):
        assert len(self.state.backends) <= 1 + len(self.config.fallbacks)
        assert len(self.state.levels) <= len(self.config.ladder)
        assert len(self.state.restarts) <= max(1, self.config.restarts_max)


PolicyMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPromises = PolicyMachine.TestCase

histories = st.lists(
    st.tuples(
        st.floats(0.0, 200.0),
        st.sampled_from(Event),
        st.sampled_from(FALLBACKS),
        rates,
        tokens,
        forecasts,
    ),
    max_size=40,
)


def after(history, config):
    """The state that a history leads to, and its end."""
    state, now = PolicyState(), 0.0
    for gap, event, backend, rate, count, forecast in history:
        now += gap
        signal = Signal(
            event=event, backend=backend, decode_tokens_per_second=rate, completion_tokens=count, forecast=forecast
        )
        state, _ = decide(state, signal, now, config)
    return state, now


@settings(max_examples=60, deadline=None)
@given(history=histories)
def test_a_way_back_is_always_open(history):
    """From wherever a history leads, a fast healthy primary gets the traffic back."""
    config = PolicyConfig(mode=Mode.ACT, primary=PRIMARY, fallbacks=FALLBACKS, ladder=LADDER)
    state, now = after(history, config)
    for _ in range(80):
        if state.restart_began is not None:
            state, _ = decide(state, Signal(event=Event.RESTART_SUCCEEDED), now, config)
        for name in FALLBACKS:
            slow = Signal(
                event=Event.FALLBACK_HEALTHY, backend=name, decode_tokens_per_second=1.0, completion_tokens=10_000
            )
            state, _ = decide(state, slow, now, config)
        if state.canary_sent_at is not None:
            fast = Signal(event=Event.CANARY_HEALTHY, decode_tokens_per_second=500.0, completion_tokens=1024)
            state, _ = decide(state, fast, now, config)
        if state.wake_at is not None:
            now = max(now, state.wake_at)
            state, _ = decide(state, Signal(event=Event.DWELL_ELAPSED), now, config)
        if state.state is State.PRIMARY:
            return
    raise AssertionError(f"still {state.state}")


@settings(max_examples=60, deadline=None)
@given(history=histories, gone=st.sets(st.sampled_from((PRIMARY, *FALLBACKS)), min_size=1, max_size=2))
def test_a_backend_that_cannot_be_reached_does_not_serve_where_another_can(history, gone):
    """Once the failures are reported, and reported again after the dwell, traffic is where it can be served."""
    config = PolicyConfig(mode=Mode.ACT, primary=PRIMARY, fallbacks=FALLBACKS)
    state, now = after(history, config)
    here = {name for name in (PRIMARY, *FALLBACKS) if name not in gone}
    for _ in range(6):
        now += config.dwell_seconds / 2
        for name in (PRIMARY, *FALLBACKS):
            role = "PRIMARY" if name == PRIMARY else "FALLBACK"
            reached = "REACHABLE" if name in here else "UNREACHABLE"
            state, _ = decide(state, Signal(event=Event[f"{role}_{reached}"], backend=name), now, config)
        if serving(state, config) == PRIMARY and PRIMARY in gone:
            state, _ = decide(state, Signal(event=Event.PRIMARY_UNREACHABLE), now, config)
    assert serving(state, config) in here


@settings(max_examples=60, deadline=None)
@given(history=histories)
def test_where_all_are_bad_the_one_with_the_least_cost_serves(history):
    config = PolicyConfig(mode=Mode.ACT, primary=PRIMARY, fallbacks=FALLBACKS)
    state, now = after(history, config)
    bad = {PRIMARY: 30.0, "plain": 60.0, "cloud": 10.0}
    for _ in range(30):
        now += config.dwell_seconds
        for name, rate in bad.items():
            role = "PRIMARY" if name == PRIMARY else "FALLBACK"
            signal = Signal(
                event=Event[f"{role}_DEGRADED"], backend=name, decode_tokens_per_second=rate, completion_tokens=500
            )
            state, _ = decide(state, signal, now, config)
    best = min(options(state, now, config), key=lambda one: one.expected_seconds)
    assert best.backend == "plain"
    assert serving(state, config) == "plain"
