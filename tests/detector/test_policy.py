"""The routing policy: the table is whole, and its promises hold for every sequence of signals."""

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.observation import Ending, Observation, RequestFacts
from detector.policy import (
    Notice,
    PolicyState,
    RouteTo,
    SendCanary,
    Signal,
    decide,
    serving,
    signal_of,
)
from detector.policy_config import Mode, PolicyConfig
from detector.transitions import GUARDS, IGNORED, TRANSITIONS, Event, State, transition_diagram
from detector.verdict import Cause, Phase, Verdict

ACT = PolicyConfig(
    mode=Mode.ACT, primary="dflash", fallback="plain", dwell_seconds=2.0, dwell_factor=2.0, dwell_jitter_share=0.0
)
CANARY_RESULTS = (Event.CANARY_HEALTHY, Event.CANARY_DEGRADED, Event.CANARY_FAILED)


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


def test_every_pair_is_in_the_table_or_ignored_on_purpose():
    every = set(itertools.product(State, Event))
    ignored = {(state, event) for state, events in IGNORED.items() for event in events}
    assert set(TRANSITIONS) | ignored == every
    assert not set(TRANSITIONS) & ignored
    assert set(GUARDS) <= set(TRANSITIONS)


def test_every_state_is_reached_from_the_start():
    reached = {State.PRIMARY}
    for _ in State:
        reached |= {target for (source, _), target in TRANSITIONS.items() if source in reached}
    assert reached == set(State)


@pytest.mark.parametrize(("state", "event"), [(state, event) for state in State for event in sorted(IGNORED[state])])
def test_an_ignored_pair_never_changes_the_state(state, event):
    before = PolicyState(state=state, wake_at=1.0, canary_sent_at=0.5)
    after, actions = decide(before, Signal(event=event), 100.0, ACT)
    assert after.state is state
    assert effects([(100.0, action) for action in actions]) == []


def test_the_diagram_shows_each_transition_with_its_guard():
    diagram = transition_diagram()
    assert diagram.startswith("stateDiagram-v2\n    [*] --> PRIMARY\n")
    assert "    PRIMARY --> FALLBACK: primary_degraded [fallback better]\n" in diagram
    assert "    PROBING --> PRIMARY: canary_healthy\n" in diagram
    assert diagram.count("-->") == len(TRANSITIONS) + 1


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
        (12.0, SendCanary("dflash")),
        (13.0, RouteTo("dflash", Event.CANARY_HEALTHY)),
    ]
    assert state.state is State.PRIMARY
    assert serving(state, ACT) == "dflash"
    assert state.wake_at is None


def test_the_wait_doubles_with_each_failed_canary_up_to_its_cap():
    config = msgspec.structs.replace(ACT, dwell_max_seconds=10.0)
    state, _ = run([(0.0, Event.PRIMARY_DEGRADED)], config)
    waits, now = [state.wake_at], 0.0
    for event in (Event.CANARY_DEGRADED, Event.CANARY_FAILED, Event.CANARY_DEGRADED, Event.CANARY_FAILED):
        now = state.wake_at
        state, _ = run([(now, Event.DWELL_ELAPSED), (now, event)], config, state)
        waits.append(state.wake_at - now)
    assert waits == [2.0, 4.0, 8.0, 10.0, 10.0]


def test_jitter_only_lengthens_the_wait():
    config = msgspec.structs.replace(ACT, dwell_jitter_share=0.5)
    waits = [
        decide(PolicyState(), Signal(event=Event.PRIMARY_DEGRADED), 0.0, config, jitter)[0].wake_at
        for jitter in (0.0, 1.0)
    ]
    assert waits == [2.0, 3.0]


def test_a_long_canary_makes_the_next_one_wait_for_its_share():
    config = msgspec.structs.replace(ACT, canary_max_share=0.25)
    state, _ = run(
        [(0.0, Event.PRIMARY_DEGRADED), (2.0, Event.DWELL_ELAPSED), (32.0, Event.CANARY_DEGRADED)],
        config,
    )
    assert state.wake_at == 32.0 + 30.0 * 3


def test_several_canaries_may_be_asked_for():
    config = msgspec.structs.replace(ACT, canaries_to_return=2)
    state, log = run(
        [
            (0.0, Event.PRIMARY_DEGRADED),
            (2.0, Event.DWELL_ELAPSED),
            (3.0, Event.CANARY_HEALTHY),
            (5.0, Event.DWELL_ELAPSED),
        ],
        config,
    )
    assert state.state is State.PROBING
    assert [type(action) for _, action in effects(log)] == [RouteTo, SendCanary, SendCanary]
    state, _ = run([(6.0, Event.CANARY_HEALTHY)], config, state)
    assert state.state is State.PRIMARY


def test_a_relapse_before_one_healthy_answer_keeps_the_wait_growing():
    collapse_and_return = [(0.0, Event.PRIMARY_DEGRADED), (2.0, Event.DWELL_ELAPSED), (3.0, Event.CANARY_HEALTHY)]
    relapsed, _ = run([*collapse_and_return, (6.0, Event.PRIMARY_DEGRADED)])
    assert relapsed.wake_at == 6.0 + 4.0
    proven, _ = run([*collapse_and_return, (5.0, Event.PRIMARY_HEALTHY), (6.0, Event.PRIMARY_DEGRADED)])
    assert proven.wake_at == 6.0 + 2.0


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
    config = msgspec.structs.replace(ACT, fallback=None)
    degraded = Signal(event=Event.PRIMARY_DEGRADED, cause=Cause.ACCEPTANCE_COLLAPSE)
    state, log = run([(0.0, degraded), (5.0, degraded)], config)
    assert serving(state, config) == "dflash"
    assert [action for _, action in log] == [
        Notice("primary degraded (acceptance_collapse): dflash keeps serving", level="warning")
    ]


@pytest.mark.parametrize(
    ("primary_rate", "fallback_rate", "expected"),
    [(60.0, 40.0, State.PRIMARY), (60.0, 80.0, State.FALLBACK), (None, 80.0, State.FALLBACK)],
)
def test_of_two_degraded_backends_the_faster_serves(primary_rate, fallback_rate, expected):
    state, _ = run(
        [
            (0.0, Signal(event=Event.PRIMARY_DEGRADED, decode_tokens_per_second=primary_rate)),
            (5.0, Signal(event=Event.FALLBACK_DEGRADED, decode_tokens_per_second=fallback_rate)),
        ]
    )
    assert state.state is expected


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


def test_a_restart_starts_the_wait_again_and_voids_the_canary_that_is_out():
    state, _ = run(
        [(0.0, Event.PRIMARY_DEGRADED), (2.0, Event.DWELL_ELAPSED), (3.0, Event.PRIMARY_RESTARTED)],
    )
    assert (state.state, state.wake_at) == (State.FALLBACK, 5.0)
    state, log = run([(5.0, Event.DWELL_ELAPSED)], state=state)
    assert effects(log) == []  # the old canary is still out
    assert state.wake_at == 7.0
    state, log = run([(6.0, Event.CANARY_HEALTHY), (7.0, Event.DWELL_ELAPSED)], state=state)
    assert effects(log) == [(7.0, SendCanary("dflash"))]


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
    assert serving(msgspec.structs.replace(state, state=State.FALLBACK), config) == "dflash"


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
        ({}, Verdict(phase=Phase.COLLAPSED, degraded=True), Event.PRIMARY_DEGRADED),
        ({}, Verdict(phase=Phase.RECOVERING), None),
        ({"ending": Ending.ENGINE_ABORT}, Verdict(), None),
        ({"backend": "plain"}, Verdict(), Event.FALLBACK_HEALTHY),
        ({"backend": "plain"}, Verdict(phase=Phase.COLLAPSED, degraded=True), Event.FALLBACK_DEGRADED),
        ({"backend": "third"}, Verdict(), None),
        ({"canary": True}, Verdict(phase=Phase.RECOVERING), Event.CANARY_HEALTHY),
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
        ("fallback", "dflash"),
        ("dwell_seconds", 0.0),
        ("dwell_factor", 0.5),
        ("dwell_max_seconds", 1.0),
        ("dwell_jitter_share", 2.0),
        ("canaries_to_return", 0),
        ("canary_max_share", 0.0),
        ("verdict_valid_seconds", -1.0),
    ],
)
def test_a_setting_out_of_range_is_named(setting, value):
    with pytest.raises(ValueError, match=setting):
        msgspec.structs.replace(ACT, **{setting: value})


signals = st.lists(
    st.tuples(
        st.floats(0.0, 30.0),
        st.sampled_from(Event),
        st.one_of(st.none(), st.floats(0.0, 20.0)),
        st.one_of(st.none(), st.floats(1.0, 300.0)),
        st.floats(0.0, 1.0),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(
    signals=signals,
    mode=st.sampled_from(Mode),
    fallback=st.sampled_from([None, "plain"]),
    canaries=st.integers(1, 3),
)
def test_promises_hold_for_every_sequence(signals, mode, fallback, canaries):
    config = PolicyConfig(mode=mode, primary="dflash", fallback=fallback, canaries_to_return=canaries)
    state, now, canaries_out, route, rerouted_at = PolicyState(), 0.0, 0, "dflash", None
    for gap, event, age, rate, jitter in signals:
        now += gap
        if mode is Mode.ACT and event in CANARY_RESULTS:
            if not canaries_out:
                continue  # the caller reports each canary once
            canaries_out -= 1
        signal = Signal(event=event, answer_started=None if age is None else now - age, decode_tokens_per_second=rate)
        state, actions = decide(state, signal, now, config, jitter)
        for action in actions:
            if isinstance(action, Notice):
                continue
            assert mode is Mode.ACT
            if isinstance(action, SendCanary):
                canaries_out += 1
                assert action.backend == "dflash"
            else:
                assert action.backend not in (route, None)
                left = state.primary if route == "dflash" else state.fallback
                assert rerouted_at is None or now - rerouted_at >= config.dwell_seconds or not left.reachable
                route, rerouted_at = action.backend, now
        assert canaries_out <= 1
        assert serving(state, config) == route
        assert (state.state is State.FALLBACK) == (state.wake_at is not None)
        if mode is Mode.ACT:
            assert (state.canary_sent_at is not None) == (canaries_out == 1)


@settings(max_examples=100, deadline=None)
@given(signals=signals)
def test_a_way_back_is_always_open(signals):
    """From wherever a sequence leads, healthy canaries bring the traffic back to the primary."""
    state, now = PolicyState(), 0.0
    for gap, event, _, _, _ in signals:
        now += gap
        state, _ = decide(state, Signal(event=event), now, ACT)
    for _ in range(4):
        if state.canary_sent_at is not None:
            state, _ = decide(state, Signal(event=Event.CANARY_HEALTHY), now, ACT)
        if state.wake_at is not None:
            now = max(now, state.wake_at)
            state, _ = decide(state, Signal(event=Event.DWELL_ELAPSED), now, ACT)
    assert state.state is State.PRIMARY
