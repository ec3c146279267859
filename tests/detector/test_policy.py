"""The routing policy: the table is whole, and it does what a scripted story asks for."""

import itertools
import math

import msgspec
import pytest

from detector.observation import Ending, Observation, RequestFacts
from detector.policy import (
    BackendView,
    Event,
    Level,
    Mode,
    Notice,
    Pace,
    PolicyConfig,
    PolicyState,
    Restart,
    RouteTo,
    SendCanary,
    Signal,
    State,
    decide,
    serving,
    signal_of,
)
from detector.policy.transitions import TRANSITIONS, rows, transition_diagram
from detector.verdict import Cause, Forecast, Phase, Verdict

ACT = PolicyConfig(
    mode=Mode.ACT,
    primary="dflash",
    fallbacks=("plain",),
    dwell_seconds=2.0,
    canary_tokens=128,
    canary_interval_seconds=2.0,
    jitter_share=0.0,
)
TWO = msgspec.structs.replace(ACT, fallbacks=("plain", "cloud"))


LADDER = (
    Level(name="k8", num_speculative_tokens=8),
    Level(name="k4", num_speculative_tokens=4),
    Level(name="off", num_speculative_tokens=0, tokens_per_second=136.0),
)
ALONE = msgspec.structs.replace(ACT, fallbacks=(), ladder=LADDER, restart_seconds=180.0)


def run(script, config=ACT, state=None):
    """Feed (now, event or Signal) pairs; return the last state and every action with its time."""
    state = state or PolicyState()
    log = []
    for now, what in script:
        signal = what if isinstance(what, Signal) else Signal(event=what)
        state, actions = decide(state, signal, now, config)
        log += [(now, action) for action in actions]
    return state, log


def effects(log):
    return [(now, action) for now, action in log if not isinstance(action, Notice)]


def answer(event, rate, tokens=2000, **known):
    return Signal(event=event, decode_tokens_per_second=rate, completion_tokens=tokens, **known)


def at_risk(probability, rate=220.0):
    return answer(Event.PRIMARY_AT_RISK, rate, forecast=Forecast(next_request_probability=probability))


# ---- the table -------------------------------------------------------------------------------------------------------


def test_every_state_is_reached_from_the_start_and_left_again():
    reached = {State.PRIMARY}
    for _ in State:
        reached |= {row.target for row in TRANSITIONS if row.source in reached}
    assert reached == set(State)
    assert {row.source for row in TRANSITIONS if row.target is not row.source} == set(State)


def test_a_row_without_a_guard_comes_last_for_its_event():
    for state, event in itertools.product(State, Event):
        guards = [row.guard for row in rows(state, event)]
        assert None not in guards[:-1]
        assert len(set(guards)) == len(guards)


@pytest.mark.parametrize(("state", "event"), [pair for pair in itertools.product(State, Event) if not rows(*pair)])
def test_an_event_without_a_row_never_changes_the_state(state, event):
    fallback = None if state is State.PRIMARY else "plain"
    before = PolicyState(state=state, fallback=fallback, wake_at=1.0, canary_sent_at=0.5)
    after, actions = decide(before, Signal(event=event), 100.0, ACT)
    assert (after.state, after.fallback) == (state, fallback)
    assert effects([(100.0, action) for action in actions]) == []


def test_the_diagram_shows_each_transition_with_its_guard():
    diagram = transition_diagram()
    assert diagram.startswith("stateDiagram-v2\n    [*] --> PRIMARY\n")
    assert "    PRIMARY --> FALLBACK: primary_degraded [fallback costs less]\n" in diagram
    assert "    PROBING --> FALLBACK: canary_degraded\n" in diagram
    assert diagram.count("-->") == len(TRANSITIONS) + 1


# ---- away and back ---------------------------------------------------------------------------------------------------


def test_collapse_canary_and_return():
    state, log = run(
        [
            (10.0, Event.PRIMARY_DEGRADED),
            (11.0, Event.DWELL_ELAPSED),  # early: ignored
            (12.0, Event.DWELL_ELAPSED),
            (13.0, Event.CANARY_HEALTHY),
        ]
    )
    assert effects(log) == [
        (10.0, RouteTo("plain", Event.PRIMARY_DEGRADED)),
        (12.0, SendCanary("dflash", 128)),
        (13.0, RouteTo("dflash", Event.CANARY_HEALTHY)),
    ]
    assert state.state is State.PRIMARY
    assert serving(state, ACT) == "dflash"
    assert state.wake_at is None


def test_several_canaries_may_be_asked_for():
    config = msgspec.structs.replace(ACT, canaries_to_return=2)
    script = [(0.0, Event.PRIMARY_DEGRADED), (2.0, Event.DWELL_ELAPSED), (3.0, Event.CANARY_HEALTHY)]
    state, log = run([*script, (5.0, Event.DWELL_ELAPSED)], config)
    assert state.state is State.PROBING
    assert [type(action) for _, action in effects(log)] == [RouteTo, SendCanary, SendCanary]
    state, _ = run([(6.0, Event.CANARY_HEALTHY)], config, state)
    assert state.state is State.PRIMARY


def test_stragglers_decide_nothing():
    switched, _ = run([(10.0, Event.PRIMARY_DEGRADED)])
    old_healthy = Signal(event=Event.PRIMARY_HEALTHY, answer_started=9.0)
    assert run([(11.0, old_healthy)], state=switched) == (switched, [])
    back, _ = run([(12.0, Event.DWELL_ELAPSED), (13.0, Event.CANARY_HEALTHY)], state=switched)
    old_degraded = Signal(event=Event.PRIMARY_DEGRADED, answer_started=9.0)
    assert run([(20.0, old_degraded)], state=back) == (back, [])
    new_degraded = Signal(event=Event.PRIMARY_DEGRADED, answer_started=14.0)
    assert run([(20.0, new_degraded)], state=back)[0].state is State.FALLBACK


def test_without_a_fallback_the_primary_serves_and_it_is_said_once():
    config = msgspec.structs.replace(ACT, fallbacks=())
    degraded = Signal(event=Event.PRIMARY_DEGRADED, cause=Cause.ACCEPTANCE_COLLAPSE)
    state, log = run([(0.0, degraded), (5.0, degraded)], config)
    assert serving(state, config) == "dflash"
    assert [action for _, action in log] == [
        Notice("primary degraded (acceptance_collapse): dflash keeps serving", level="warning")
    ]


def test_an_unreachable_fallback_is_left_at_once_and_taken_again_after_the_dwell():
    state, log = run(
        [
            (0.0, Event.PRIMARY_DEGRADED),
            (0.1, Event.FALLBACK_UNREACHABLE),
            (0.2, Event.FALLBACK_REACHABLE),  # held: the route changed 0.1 s ago
            (0.3, Event.PRIMARY_DEGRADED),
            (2.2, Event.PRIMARY_DEGRADED),
        ]
    )
    assert [(now, action.backend) for now, action in effects(log)] == [(0.0, "plain"), (0.1, "dflash"), (2.2, "plain")]
    assert state.state is State.FALLBACK


def test_what_was_seen_of_the_fallback_ages():
    bad_fallback = [(0.0, Event.FALLBACK_UNREACHABLE)]
    assert run([*bad_fallback, (100.0, Event.PRIMARY_DEGRADED)])[0].state is State.PRIMARY
    assert run([*bad_fallback, (121.0, Event.PRIMARY_DEGRADED)])[0].state is State.FALLBACK


def test_a_restart_seen_from_outside_starts_the_wait_again_and_voids_the_canary_that_is_out():
    state, _ = run(
        [(0.0, Event.PRIMARY_DEGRADED), (2.0, Event.DWELL_ELAPSED), (3.0, Event.PRIMARY_RESTARTED)],
    )
    assert (state.state, state.wake_at) == (State.FALLBACK, 5.0)
    state, log = run([(5.0, Event.DWELL_ELAPSED)], state=state)
    assert effects(log) == []  # the old canary is still out
    assert state.wake_at == 7.0
    state, log = run([(6.0, Event.CANARY_HEALTHY), (7.0, Event.DWELL_ELAPSED)], state=state)
    assert effects(log) == [(7.0, SendCanary("dflash", 128))]


# ---- expected cost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("primary_rate", "fallback_rate", "expected"),
    [(60.0, 40.0, State.PRIMARY), (60.0, 80.0, State.FALLBACK), (60.0, 61.0, State.PRIMARY)],
)
def test_of_two_degraded_backends_the_clearly_faster_serves(primary_rate, fallback_rate, expected):
    seen = {"dflash": BackendView(collapsed=Pace(primary_rate, 1.0)), "plain": BackendView(
        degraded=True, as_of=0.0, collapsed=Pace(fallback_rate, 1.0))}  # fmt: skip
    state, _ = run([(1.0, Event.PRIMARY_DEGRADED)], state=PolicyState(backends=seen))
    assert state.state is expected


def test_an_untried_fallback_is_better_than_a_collapsed_primary_and_worse_than_a_slightly_slow_one():
    learned = [(float(number), answer(Event.PRIMARY_HEALTHY, 220.0)) for number in range(5)]
    assert run([*learned, (9.0, answer(Event.PRIMARY_DEGRADED, 60.0))])[0].state is State.FALLBACK
    seen = {"dflash": BackendView(healthy=Pace(220.0, 1.0), collapsed=Pace(180.0, 1.0))}
    state, _ = run([(9.0, answer(Event.PRIMARY_DEGRADED, 180.0))], state=PolicyState(backends=seen))
    assert state.state is State.PRIMARY


def test_the_answer_in_which_a_collapse_began_is_no_measure_of_the_collapsed_rate():
    state, _ = run([(0.0, answer(Event.PRIMARY_HEALTHY, 220.0)), (1.0, answer(Event.PRIMARY_DEGRADED, 160.0))])
    assert state.state is State.FALLBACK
    assert state.view("dflash").collapsed.tokens_per_second is None
    state, _ = run([(3.0, Event.DWELL_ELAPSED), (4.0, answer(Event.CANARY_DEGRADED, 60.0, 128))], state=state)
    assert state.view("dflash").collapsed.tokens_per_second == pytest.approx(60.0)


def test_the_traffic_stays_on_a_fallback_that_is_faster_than_the_healthy_primary():
    state, log = run(
        [
            (0.0, answer(Event.PRIMARY_HEALTHY, 100.0)),
            (1.0, answer(Event.PRIMARY_DEGRADED, 30.0)),
            (2.0, answer(Event.FALLBACK_HEALTHY, 140.0)),
            (3.0, Event.DWELL_ELAPSED),
            (4.0, answer(Event.CANARY_HEALTHY, 100.0, 128)),
        ]
    )
    assert state.state is State.FALLBACK
    assert [type(action) for _, action in effects(log)] == [RouteTo, SendCanary]
    assert state.wake_at is not None


LEARNED = PolicyState(
    backends={
        "dflash": BackendView(healthy=Pace(220.0, 1.0), collapsed=Pace(60.0, 1.0)),
        "plain": BackendView(healthy=Pace(130.0, 1.0)),
    },
    answer_tokens=2000.0,
)


@pytest.mark.parametrize(
    ("probability", "expected"), [(0.2, State.PRIMARY), (0.5, State.PRIMARY), (0.8, State.FALLBACK)]
)
def test_the_traffic_leaves_before_a_forecast_collapse_where_that_is_worth_it(probability, expected):
    state, log = run([(0.0, at_risk(probability))], state=LEARNED)
    assert state.state is expected
    if expected is State.FALLBACK:
        assert effects(log) == [(0.0, RouteTo("plain", Event.PRIMARY_AT_RISK))]
        assert log[-1][1].text == "primary at risk (p = 0.80): route new requests to plain"


def test_a_forecast_is_no_reason_to_take_a_fallback_that_is_slower_than_the_collapse():
    slow = {**LEARNED.backends, "plain": BackendView(healthy=Pace(50.0, 1.0))}
    state, _ = run([(0.0, at_risk(1.0))], state=msgspec.structs.replace(LEARNED, backends=slow))
    assert state.state is State.PRIMARY


def test_healthy_canaries_do_not_bring_the_traffic_back_while_the_collapse_is_still_ahead():
    away, _ = run([(0.0, at_risk(0.9)), (2.0, Event.DWELL_ELAPSED)], state=LEARNED)
    ahead = answer(Event.CANARY_HEALTHY, 220.0, 128, forecast=Forecast(next_request_probability=0.9))
    stayed, _ = run([(3.0, ahead)], state=away)
    assert (stayed.state, stayed.wake_at) == (State.FALLBACK, 5.0)
    over = answer(Event.CANARY_HEALTHY, 220.0, 128, forecast=Forecast(next_request_probability=0.0))
    assert run([(3.0, over)], state=away)[0].state is State.PRIMARY


def stays(rates, hit_rate, seconds_apart=40.0):
    """What stays on the primary were like: after the healthy answers each time one that a collapse hit."""
    state, now = LEARNED, 0.0
    for rate in [*rates, hit_rate] * 5:
        now += seconds_apart
        event = Event.PRIMARY_DEGRADED if rate == hit_rate else Event.PRIMARY_HEALTHY
        state, _ = run([(now, answer(event, rate))], ALONE, state)
    return now, msgspec.structs.replace(state, state=State.PROBING, fallback="plain", canary_sent_at=now, returns=2)


@pytest.mark.parametrize(("rates", "expected"), [([220.0] * 6, State.PRIMARY), ([220.0], State.FALLBACK)])
def test_without_a_forecast_the_primary_is_worth_what_clients_got_from_it(rates, expected):
    """Six fast answers for each that takes 103 are worth 188 tok/s; one for each that takes 70 is not worth 130."""
    hit = 103.0 if expected is State.PRIMARY else 70.0
    now, state = stays(rates, hit)
    moved, _ = run([(now + 5.0, answer(Event.CANARY_HEALTHY, 220.0, 64))], state=state)
    assert moved.state is expected


def test_experience_fades_while_the_primary_is_not_asked():
    now, state = stays([220.0], 70.0)
    later = now + 3600.0
    state = msgspec.structs.replace(state, canary_sent_at=later)
    moved, _ = run([(later + 1.0, answer(Event.CANARY_HEALTHY, 220.0, 64))], state=state)
    assert moved.state is State.PRIMARY


def test_a_forecast_is_better_than_experience():
    now, state = stays([220.0], 70.0)
    safe = answer(Event.CANARY_HEALTHY, 220.0, 64, forecast=Forecast(next_request_probability=0.0))
    assert run([(now + 5.0, safe)], state=state)[0].state is State.PRIMARY


def test_the_answer_that_a_collapse_hit_counts_as_experience_though_it_decides_nothing():
    away, _ = run([(0.0, Event.PRIMARY_DEGRADED)], state=LEARNED)
    hit = answer(Event.PRIMARY_DEGRADED, 103.0, answer_started=-5.0)
    after, log = run([(14.0, hit)], state=away)
    assert log == []
    assert after.experienced.tokens_per_second == pytest.approx(103.0)
    assert after.delivered.tokens_per_second == pytest.approx(103.0)


@pytest.mark.parametrize(("backend", "experienced"), [("dflash", 150.0), ("plain", None)])
def test_an_answer_that_says_nothing_certain_counts_for_what_was_delivered(backend, experienced):
    state, log = run([(0.0, answer(Event.ANSWERED, 150.0, backend=backend))])
    assert log == []
    assert state.delivered.tokens_per_second == pytest.approx(150.0)
    assert state.experienced.tokens_per_second == (None if experienced is None else pytest.approx(experienced))
    assert state.backends == {}


@pytest.mark.parametrize("probability", [None, math.nan, -1.0])
def test_a_forecast_that_says_nothing_changes_nothing(probability):
    assert run([(0.0, at_risk(probability))], state=LEARNED)[0].state is State.PRIMARY


# ---- several fallbacks -----------------------------------------------------------------------------------------------


def test_the_next_fallback_serves_where_the_first_is_bad():
    bad = Signal(event=Event.FALLBACK_DEGRADED, backend="plain")
    state, log = run([(0.0, bad), (1.0, Event.PRIMARY_DEGRADED)], TWO)
    assert effects(log) == [(1.0, RouteTo("cloud", Event.PRIMARY_DEGRADED))]
    gone = Signal(event=Event.FALLBACK_UNREACHABLE, backend="cloud")
    _, log = run([(1.5, gone)], TWO, state)  # at once: it cannot be reached
    assert effects(log) == [(1.5, RouteTo("dflash", Event.FALLBACK_UNREACHABLE))]  # all are bad: the least bad one
    recovered, _ = run([(1.2, Signal(event=Event.FALLBACK_HEALTHY, backend="plain"))], TWO, state)
    _, log = run([(1.5, gone)], TWO, recovered)
    assert effects(log) == [(1.5, RouteTo("plain", Event.FALLBACK_UNREACHABLE))]


def test_the_first_fallback_is_preferred_where_they_are_alike():
    seen = {"plain": BackendView(healthy=Pace(130.0, 1.0)), "cloud": BackendView(healthy=Pace(133.0, 1.0))}
    state, _ = run([(0.0, Event.PRIMARY_DEGRADED)], TWO, PolicyState(backends=seen))
    assert state.fallback == "plain"
    faster = seen | {"cloud": BackendView(healthy=Pace(200.0, 1.0))}
    state, _ = run([(0.0, Event.PRIMARY_DEGRADED)], TWO, PolicyState(backends=faster))
    assert state.fallback == "cloud"


def test_a_canary_that_is_out_survives_a_change_of_fallback():
    state, _ = run([(0.0, Event.PRIMARY_DEGRADED), (2.0, Event.DWELL_ELAPSED)], TWO)
    state, log = run([(3.0, Signal(event=Event.FALLBACK_UNREACHABLE, backend="plain"))], TWO, state)
    assert (state.state, state.fallback) == (State.PROBING, "cloud")
    assert effects(log) == [(3.0, RouteTo("cloud", Event.FALLBACK_UNREACHABLE))]


def test_an_event_of_a_backend_that_nobody_configured_is_ignored():
    state, log = run([(0.0, Signal(event=Event.FALLBACK_DEGRADED, backend="stranger"))])
    assert (state, log) == (PolicyState(), [])


# ---- canaries --------------------------------------------------------------------------------------------------------


def failed_canaries(count, config, state=None):
    """Leave the primary, then let that many canaries fail; (state, sizes, waits before each)."""
    if state is None:
        state, _ = run([(0.0, Event.PRIMARY_DEGRADED)], config)
    sizes, waits, now = [], [], 0.0
    for _ in range(count):
        waits.append(state.wake_at - now)
        now = state.wake_at
        state, log = run([(now, Event.DWELL_ELAPSED), (now, Event.CANARY_DEGRADED)], config, state)
        sizes += [action.max_tokens for _, action in effects(log)]
    return state, sizes, waits


def test_canaries_grow_after_the_first_ones_and_the_wait_with_them():
    config = msgspec.structs.replace(
        ACT, canaries_before_growth=3, canary_backoff=2.0, canary_burst_tokens=1e6, canary_max_interval_seconds=9.0
    )
    _, sizes, waits = failed_canaries(8, config)
    assert sizes == [128, 128, 128, 256, 512, 1024, 1024, 1024]
    assert waits == [2.0, 2.0, 2.0, 2.0, 4.0, 8.0, 9.0, 9.0]


def test_without_traffic_the_budget_ends_and_only_small_canaries_go_out_at_the_longest_wait():
    config = msgspec.structs.replace(ACT, canaries_before_growth=1, canary_burst_tokens=1000.0)
    state, sizes, waits = failed_canaries(6, config)
    assert sizes == [128, 256, 512, 128, 128, 128]
    assert waits[-2:] == [60.0, 60.0]
    assert state.canary_budget_tokens == 0.0
    earned, _ = run([(500.0, answer(Event.FALLBACK_HEALTHY, 130.0, 1000))], config, state)
    assert earned.canary_budget_tokens == 600.0


def test_a_long_canary_makes_the_next_one_wait_for_its_share():
    config = msgspec.structs.replace(ACT, canary_max_share=0.25)
    state, _ = run([(0.0, Event.PRIMARY_DEGRADED), (2.0, Event.DWELL_ELAPSED), (32.0, Event.CANARY_DEGRADED)], config)
    assert state.wake_at == 32.0 + 30.0 * 3


def test_jitter_only_lengthens_the_wait():
    config = msgspec.structs.replace(ACT, jitter_share=0.5)
    waits = [
        decide(PolicyState(), Signal(event=Event.PRIMARY_DEGRADED), 0.0, config, jitter)[0].wake_at
        for jitter in (0.0, 1.0)
    ]
    assert waits == [2.0, 3.0]


def test_a_relapse_before_one_healthy_answer_keeps_the_canaries_growing():
    collapse_and_return = [(0.0, Event.PRIMARY_DEGRADED), (2.0, Event.DWELL_ELAPSED), (3.0, Event.CANARY_HEALTHY)]
    relapsed, _ = run([*collapse_and_return, (6.0, Event.PRIMARY_DEGRADED)])
    assert relapsed.canaries == 1
    proven, _ = run([*collapse_and_return, (5.0, Event.PRIMARY_HEALTHY), (6.0, Event.PRIMARY_DEGRADED)])
    assert proven.canaries == 0


# ---- restarts --------------------------------------------------------------------------------------------------------

CURED_BY_OFF = frozenset({"speculation_off"})


def published_cycles(count, config, state=None, remedies=CURED_BY_OFF):
    """Answers of the published cycle on the primary, until the policy acts or the cycles are over."""
    now = 0.0
    state = state or PolicyState()
    for rate in (221, 214, 218, 222, 230, 103, 59, 62, 62, 212) * count:
        now += 2000 / rate
        degraded = rate < 110
        event = Event.PRIMARY_DEGRADED if degraded else Event.PRIMARY_HEALTHY
        cause = Cause.ACCEPTANCE_COLLAPSE if degraded else None
        signal = answer(event, float(rate), cause=cause, remedies=remedies if degraded else frozenset())
        state, log = run([(now, signal)], config, state)
        if effects(log):
            return now, state, effects(log)[0][1]
    return now, state, None


@pytest.mark.parametrize(("horizon_seconds", "pays"), [(900.0, False), (3600.0, True)])
def test_speculation_is_switched_off_where_that_pays_back_within_the_horizon(horizon_seconds, pays):
    """Facts: 180 s of restart pay back after 7.1 cycles of 172.5 s, which is 1222 s."""
    config = msgspec.structs.replace(ALONE, restart_horizon_seconds=horizon_seconds)
    now, state, action = published_cycles(6, config)
    assert action == (Restart("dflash", "off") if pays else None)
    assert not pays or (state.state is State.RESTARTING and now > config.restart_after_seconds)


def test_a_restart_is_never_worth_it_where_a_fallback_keeps_clients_fast():
    config = msgspec.structs.replace(ALONE, fallbacks=("plain",))
    delivered = Pace(165.0 * 600, 600.0)
    state = msgspec.structs.replace(LEARNED, delivered=delivered)
    degraded = answer(
        Event.PRIMARY_DEGRADED, 60.0, cause=Cause.ACCEPTANCE_COLLAPSE, remedies=frozenset({"speculation_off"})
    )
    _, log = run([(0.0, degraded)], config, state)
    assert effects(log) == [(0.0, RouteTo("plain", Event.PRIMARY_DEGRADED))]


@pytest.mark.parametrize("remedies", [frozenset(), frozenset({"wait", "reduce_concurrency"})])
def test_a_cause_that_a_restart_does_not_cure_gets_none(remedies):
    assert published_cycles(8, ALONE, remedies=remedies)[2] is None


def test_a_latched_collapse_is_cured_by_a_restart_at_the_same_level():
    config = msgspec.structs.replace(ALONE, ladder=LADDER[:1])
    state = PolicyState(
        backends={"dflash": BackendView(healthy=Pace(220.0, 1.0), collapsed=Pace(60.0, 1.0), degraded=True, as_of=0.0)},
        delivered=Pace(60.0 * 600, 600.0),
        healthy_seconds=7200.0,
    )
    degraded = answer(Event.PRIMARY_DEGRADED, 60.0, cause=Cause.ACCEPTANCE_COLLAPSE, remedies=frozenset({"restart"}))
    state, log = run([(1.0, degraded)], config, state)
    assert effects(log) == [(1.0, Restart("dflash", "k8"))]
    state, log = run([(91.0, Signal(event=Event.RESTART_SUCCEEDED, seconds=90.0))], config, state)
    assert (state.state, state.level, state.restart_seconds) == (State.PRIMARY, "k8", 90.0)


def test_a_failed_or_unreported_restart_is_paused_longer_each_time_and_counts_for_the_budget():
    config = msgspec.structs.replace(ALONE, restarts_max=2)
    _, state, _ = published_cycles(6, config)
    began = state.restart_began
    state, log = run([(began + 1199.0, Event.DWELL_ELAPSED)], config, state)
    assert (log, state.state) == ([], State.RESTARTING)
    state, _ = run([(began + 1200.0, Event.DWELL_ELAPSED)], config, state)
    assert (state.state, state.restart_failures) == (State.PRIMARY, 1)
    assert state.restart_not_before == began + 1200.0 + 2 * 180.0
    degraded = answer(
        Event.PRIMARY_DEGRADED, 60.0, cause=Cause.ACCEPTANCE_COLLAPSE, remedies=frozenset({"speculation_off"})
    )
    assert effects(run([(began + 1300.0, degraded)], config, state)[1]) == []
    state, log = run([(began + 1600.0, degraded)], config, state)
    assert effects(log) == [(began + 1600.0, Restart("dflash", "off"))]
    state, _ = run([(began + 1700.0, Event.RESTART_FAILED)], config, state)
    assert effects(run([(began + 9000.0, degraded)], config, state)[1]) == []  # the budget is used up


def test_the_level_above_is_tried_again_after_a_healthy_hour_and_later_after_a_relapse():
    _, state, _ = published_cycles(6, ALONE)
    now = state.restart_began + 100.0
    state, _ = run([(now, Event.RESTART_SUCCEEDED)], ALONE, state)
    assert state.level == "off"
    assert effects(run([(now + 3599.0, answer(Event.PRIMARY_HEALTHY, 136.0))], ALONE, state)[1]) == []
    _, log = run([(now + 3600.0, answer(Event.PRIMARY_HEALTHY, 136.0))], ALONE, state)
    assert effects(log) == [(now + 3600.0, Restart("dflash", "k4"))]
    again = msgspec.structs.replace(state, relapses=2)
    assert effects(run([(now + 3600.0, answer(Event.PRIMARY_HEALTHY, 136.0))], ALONE, again)[1]) == []


def test_after_a_restart_with_a_fallback_a_canary_decides():
    config = msgspec.structs.replace(ALONE, fallbacks=("plain",))
    state = PolicyState(
        state=State.RESTARTING, fallback="plain", restart_began=0.0, restart_level="k4", rerouted_at=0.0
    )
    state, log = run([(100.0, Event.RESTART_SUCCEEDED)], config, state)
    assert (state.state, state.level, effects(log)) == (State.FALLBACK, "k4", [])
    state, log = run([(102.0, Event.DWELL_ELAPSED), (103.0, Event.CANARY_HEALTHY)], config, state)
    assert [action for _, action in effects(log)] == [
        SendCanary("dflash", 128),
        RouteTo("dflash", Event.CANARY_HEALTHY),
    ]


# ---- observe, advise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "level"), [(Mode.OBSERVE, "info"), (Mode.ADVISE, "warning")])
def test_observe_and_advise_only_say_what_they_would_do(mode, level):
    config = msgspec.structs.replace(ACT, mode=mode)
    state, log = run(
        [
            (0.0, Signal(event=Event.PRIMARY_DEGRADED, answer_started=-5.0, cause=Cause.ACCEPTANCE_COLLAPSE)),
            (2.0, Event.DWELL_ELAPSED),
            (3.0, Signal(event=Event.PRIMARY_HEALTHY, answer_started=1.0)),  # began before the canary would have
            (9.0, Signal(event=Event.PRIMARY_HEALTHY, answer_started=3.0)),
        ],
        config,
    )
    assert state.state is State.PRIMARY
    assert [(now, action) for now, action in log] == [
        (0.0, Notice("primary degraded (acceptance_collapse): would route new requests to plain", level)),
        (2.0, Notice("dwell elapsed: would send a canary to dflash", level)),
        (9.0, Notice("canary healthy: would route new requests to dflash", level)),
    ]
    away = msgspec.structs.replace(state, state=State.FALLBACK, fallback="plain")
    assert serving(away, config) == "dflash"


def test_advice_to_restart_is_given_once_and_changes_nothing():
    config = msgspec.structs.replace(ALONE, mode=Mode.ADVISE)
    state, log, now = PolicyState(), [], 0.0
    for rate in (221, 214, 218, 222, 230, 103, 59, 62, 62, 212) * 8:
        now += 2000 / rate
        slow = rate < 110
        event = Event.PRIMARY_DEGRADED if slow else Event.PRIMARY_HEALTHY
        cause, remedies = (Cause.ACCEPTANCE_COLLAPSE, CURED_BY_OFF) if slow else (None, frozenset())
        state, said = run([(now, answer(event, float(rate), cause=cause, remedies=remedies))], config, state)
        log += said
    advice = [action for _, action in log if "restart" in action.text]
    assert [action.text for action in advice] == [
        "primary degraded (acceptance_collapse): would restart dflash at level off"
    ]
    assert effects(log) == []
    assert state.state is State.PRIMARY


# ---- signals and settings --------------------------------------------------------------------------------------------


def observation(**changes):
    fields = {
        "request_id": "r",
        "backend": "dflash",
        "facts": RequestFacts(route="chat"),
        "started_unix": 0.0,
        "started": 3.0,
        "ended": 5.0,
    }
    return Observation(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "verdict", "expected"),
    [
        ({}, Verdict(), Event.PRIMARY_HEALTHY),
        ({}, Verdict(forecast=Forecast(next_request_probability=0.4)), Event.PRIMARY_AT_RISK),
        ({}, Verdict(forecast=Forecast(next_request_probability=0.0)), Event.PRIMARY_HEALTHY),
        ({}, Verdict(forecast=Forecast()), Event.PRIMARY_HEALTHY),
        ({}, Verdict(phase=Phase.COLLAPSED, degraded=True), Event.PRIMARY_DEGRADED),
        ({}, Verdict(phase=Phase.RECOVERING), Event.ANSWERED),
        ({"backend": "plain"}, Verdict(phase=Phase.TRANSITION), Event.ANSWERED),
        ({"ending": Ending.ENGINE_ABORT}, Verdict(), None),
        ({"backend": "plain"}, Verdict(), Event.FALLBACK_HEALTHY),
        ({"backend": "plain"}, Verdict(phase=Phase.COLLAPSED, degraded=True), Event.FALLBACK_DEGRADED),
        ({"backend": "third"}, Verdict(), None),
        ({"canary": True}, Verdict(phase=Phase.RECOVERING), Event.CANARY_HEALTHY),
        ({"canary": True}, Verdict(phase=Phase.TRANSITION), Event.CANARY_DEGRADED),
        ({"canary": True}, Verdict(phase=Phase.COLLAPSED, degraded=True), Event.CANARY_DEGRADED),
        ({"canary": True, "ending": Ending.CONNECT_FAILED}, Verdict(), Event.CANARY_FAILED),
    ],
)
def test_signal_of_an_answer(changes, verdict, expected):
    signal = signal_of(observation(**changes), verdict, ACT)
    assert (signal.event if signal else None) == expected
    assert signal is None or signal.answer_started == 3.0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("fallbacks", ("dflash",)),
        ("fallbacks", ("plain", "plain")),
        ("dwell_seconds", 0.0),
        ("min_gain_share", 1.5),
        ("switch_seconds", -1.0),
        ("verdict_valid_seconds", -1.0),
        ("canary_tokens", 0),
        ("canary_max_tokens", 1),
        ("canaries_before_growth", 0),
        ("canary_interval_seconds", 0.0),
        ("canary_backoff", 0.5),
        ("canary_max_interval_seconds", 1.0),
        ("jitter_share", 2.0),
        ("canaries_to_return", 0),
        ("canary_max_share", 0.0),
        ("canary_burst_tokens", 1.0),
        ("canary_traffic_share", 2.0),
        ("ladder", (LADDER[0], LADDER[0])),
        ("restart_seconds", 0.0),
        ("restart_after_seconds", -1.0),
        ("restart_timeout_seconds", 0.0),
        ("restart_horizon_seconds", 0.0),
        ("restarts_max", -1),
        ("restarts_window_seconds", 0.0),
        ("climb_after_seconds", 0.0),
    ],
)
def test_a_setting_out_of_range_is_named(setting, value):
    with pytest.raises(ValueError, match=setting):
        msgspec.structs.replace(ACT, **{setting: value})


def test_the_state_survives_being_written_down():
    state, _ = run([(0.0, at_risk(0.9)), (2.0, Event.DWELL_ELAPSED)], state=LEARNED)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=PolicyState) == state
