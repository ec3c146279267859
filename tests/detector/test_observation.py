"""What an Observation works out of its own fields."""

from __future__ import annotations

import pytest

from detector.observation import Observation, RequestFacts, Source


def seconds(**fields) -> float | None:
    plain = {"request_id": "r", "backend": "b", "facts": RequestFacts(route="chat")}
    times = {"started_unix": 0.0, "started": 0.0, "ended": 1.0}
    return Observation(**plain, **times, **fields).rate_seconds


@pytest.mark.parametrize("arrivals", [0.0, 0.01, None, 7.0])
@pytest.mark.parametrize("source", [Source.ENGINE, Source.COUNTERS])
def test_a_rate_of_the_engine_goes_with_the_engines_seconds_whatever_arrived_when(arrivals, source):
    rate = {"decode_tokens_per_second": 100.0, "rate_source": source}
    assert seconds(**rate, completion_tokens=201, decode_seconds=arrivals) == 2.0


@pytest.mark.parametrize("source", [Source.CADENCE, None])
def test_a_rate_of_the_arrivals_goes_with_their_seconds(source):
    rate = {"decode_tokens_per_second": 100.0, "rate_source": source}
    assert seconds(**rate, completion_tokens=203, decode_seconds=2.0) == 2.0
    assert seconds(**rate, completion_tokens=201, decode_seconds=None) == 2.0


def test_without_a_rate_or_a_length_the_arrivals_count():
    assert seconds(decode_seconds=3.0, completion_tokens=201) == 3.0
    assert seconds(decode_seconds=3.0, decode_tokens_per_second=100.0) == 3.0
    assert seconds(decode_seconds=3.0, decode_tokens_per_second=100.0, completion_tokens=1) == 3.0


@pytest.mark.parametrize("nothing", [0.0, -1.0, None, float("nan")])
def test_no_time_is_not_known(nothing):
    assert seconds(decode_seconds=nothing, decode_tokens_per_second=nothing, completion_tokens=201) is None
