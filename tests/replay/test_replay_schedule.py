"""When a replay sends what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay_samples import exchange

from replay.schedule import client_pauses, plan, recorded_concurrency, remaining

THREE = [exchange(0, 100.0, seconds=1.0), exchange(1, 100.5, seconds=4.0), exchange(2, 106.0, seconds=1.0)]


def test_open_keeps_the_recorded_times() -> None:
    assert [send.due for send in plan(THREE, "open", time_scale=1.0)] == [0.0, 0.5, 6.0]


def test_time_scale_is_recorded_seconds_per_second() -> None:
    assert [send.due for send in plan(THREE, "open", time_scale=2.0)] == [0.0, 0.25, 3.0]


def test_closed_has_no_times() -> None:
    sends = plan(THREE, "closed", time_scale=1.0)
    assert [(send.index, send.due, send.after) for send in sends] == [(0, None, None), (1, None, None), (2, None, None)]


def test_dependent_turns_wait_for_the_turn_before_and_the_recorded_pause() -> None:
    first, second, third = plan(THREE, "dependent", time_scale=2.0, predecessors=[None, None, 0])
    assert (first.due, second.due) == (0.0, 0.25)
    assert (third.due, third.after) == (None, 0)
    assert third.think_seconds == pytest.approx((106.0 - 101.0) / 2)


def test_a_turn_whose_predecessor_has_no_end_keeps_its_time() -> None:
    exchanges = [exchange(0, 0.0, seconds=None), exchange(1, 3.0)]
    assert plan(exchanges, "dependent", time_scale=1.0, predecessors=[None, 0])[1].due == 3.0


def test_what_is_left_of_a_run_begins_at_once() -> None:
    left = remaining(plan(THREE, "open", time_scale=1.0), {0})
    assert [(send.index, send.due) for send in left] == [(1, 0.0), (2, 5.5)]


def test_a_turn_whose_predecessor_is_done_keeps_its_pause() -> None:
    (second, third) = remaining(plan(THREE, "dependent", time_scale=1.0, predecessors=[None, None, 0]), {0})
    assert (second.due, third.due, third.after) == (0.0, 5.0, None)


def test_concurrency_is_the_most_that_ran_at_once() -> None:
    assert recorded_concurrency(THREE) == 2
    assert recorded_concurrency([]) == 1
    back_to_back = [exchange(0, 0.0, seconds=1.0), exchange(1, 1.0, seconds=1.0)]
    assert recorded_concurrency(back_to_back) == 1


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20).map(sorted), st.sets(st.integers(0, 19)))
def test_every_request_is_sent_once_and_never_before_time(times: list[float], done: set[int]) -> None:
    exchanges = [exchange(index, at) for index, at in enumerate(times)]
    left = remaining(plan(exchanges, "open", time_scale=1.0), done)
    assert [send.index for send in left] == [index for index in range(len(times)) if index not in done]
    assert all(send.due is not None and send.due >= 0 for send in left)


def test_clients_pause_as_they_did() -> None:
    """Two clients: the second request came while the first ran, the third 1.5 s after the later of the two ends."""
    assert client_pauses(THREE) == [0.0, 0.0, 1.5]
    sends = plan(THREE, "closed", time_scale=2.0, pauses=True)
    assert [(send.due, send.think_seconds) for send in sends] == [(None, 0.0), (None, 0.0), (None, 0.75)]


def test_a_client_whose_answer_has_no_end_is_free_at_once() -> None:
    assert client_pauses([exchange(0, 0.0, seconds=None), exchange(1, 3.0)]) == [0.0, 3.0]
