"""The step rule: what holds for any events in any order."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.stats.stream import COLLAPSE_NATS, StreamRule, stream_model

TOKENS = st.one_of(st.none(), st.integers(0, 30), st.sampled_from([1, 1, 1, 2, 5]))
EVENTS = st.lists(st.tuples(st.sampled_from("abc"), st.one_of(TOKENS, st.just("end"))), max_size=300)
MODELS = st.sampled_from(
    [stream_model(0.7, 8), stream_model(0.6, 3), stream_model(0.8, None), stream_model(0.25, 1), None]
)


def tell(rule, model, events):
    return [
        rule.end(model, stream) if tokens == "end" else rule.update(model, stream, tokens) for stream, tokens in events
    ]


def restored(rule):
    return msgspec.msgpack.decode(msgspec.msgpack.encode(rule), type=StreamRule)


@given(EVENTS, MODELS)
def test_evidence_stays_finite_and_never_below_zero(events, model):
    rule = StreamRule()
    for event in events:
        alarmed = tell(rule, model, [event])[0]
        assert 0.0 <= rule.nats < rule.alarm_nats
        assert 0.0 <= rule.run_nats <= COLLAPSE_NATS
        assert math.fsum(rule.levels) == pytest.approx(1.0)
        assert not alarmed or rule.nats == 0.0
        assert set(rule.streams) <= set("abc")


@given(EVENTS, MODELS, st.data())
def test_a_snapshot_goes_on_identically(events, model, data):
    cut = data.draw(st.integers(0, len(events)))
    through, before = StreamRule(), StreamRule()
    alarms = tell(through, model, events)
    first = tell(before, model, events[:cut])
    after = restored(before)
    assert first + tell(after, model, events[cut:]) == alarms
    assert after == through


@given(st.lists(TOKENS, max_size=60), st.lists(TOKENS, max_size=60), st.randoms(use_true_random=False))
def test_the_belief_of_a_stream_does_not_depend_on_other_streams(ours, others, random):
    model = stream_model(0.7, 8)
    alone, among = StreamRule(), StreamRule()
    tell(alone, model, [("a", tokens) for tokens in ours])
    order = ["a"] * len(ours) + ["b"] * len(others)
    random.shuffle(order)
    left = {"a": iter(ours), "b": iter(others)}
    tell(among, model, [(stream, next(left[stream])) for stream in order])
    assert among.streams.get("a") == alone.streams.get("a")


@given(st.lists(TOKENS, max_size=200))
def test_the_snapshot_stays_small(tokens):
    rule = StreamRule()
    tell(rule, stream_model(0.7, 8), [("a", one) for one in tokens])
    assert len(msgspec.msgpack.encode(rule)) < 1000
