"""The five clocks of a backend."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.observation import Ending, Observation, Quality, RequestFacts
from detector.stats.clocks import Advance, BackendClocks, Clock, ClockReading


def answer(started=0.0, ended=2.0, **fields):
    known = {"prompt_tokens": 40, "completion_tokens": 120, "verify_steps": 30} | fields
    return Observation(
        request_id="r",
        backend="b",
        facts=RequestFacts(route="chat"),
        started_unix=0.0,
        started=started,
        ended=ended,
        **known,
    )


def test_an_answer_advances_all_five_clocks():
    assert BackendClocks().update(answer()) == Advance(
        clocks=ClockReading(requests=1, tokens=120, steps=30, kv_blocks=10, seconds=2)
    )


def test_cached_prompt_tokens_turn_no_block_over():
    advance = BackendClocks().update(answer(cached_tokens=32))
    assert advance.clocks.kv_blocks == 8


def test_seconds_of_all_answers_add_up_to_time():
    clocks, total = BackendClocks(), 0.0
    for started, ended in [(0, 2), (3, 5), (4, 6), (4, 5.5)]:
        advance = clocks.update(answer(started, ended))
        total += advance.clocks.seconds
    assert total == 6
    assert advance.clocks.seconds == 0


def test_idle_time_lies_between_the_last_end_and_the_next_beginning():
    clocks = BackendClocks()
    clocks.update(answer(0, 2))
    assert clocks.update(answer(5, 6)).idle_seconds == 3
    assert clocks.update(answer(5.5, 7)).idle_seconds == 0


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"verify_steps": None}, None),
        ({"verify_steps": None, "acceptance_length": 4.0}, 30),
        ({"verify_steps": None, "num_speculative_tokens": 0}, 120),
        ({"acceptance_quality": Quality.UPPER_BOUND}, None),
    ],
)
def test_steps_are_known_or_none(fields, steps):
    assert BackendClocks().update(answer(**fields)).clocks.steps == steps


def test_what_is_unknown_is_none_and_the_mean_is_of_the_rest():
    clocks = BackendClocks()
    advance = clocks.update(answer(completion_tokens=None, verify_steps=None))
    assert (advance.clocks.tokens, advance.clocks.kv_blocks) == (None, None)
    assert clocks.mean.tokens is None
    clocks.update(answer(2, 3))
    clocks.update(answer(3, 4, completion_tokens=None))
    assert (clocks.mean.requests, clocks.mean.tokens) == (1, 120)


def test_a_backend_that_was_not_reached_went_through_nothing():
    clocks = BackendClocks()
    assert clocks.update(answer(ending=Ending.CONNECT_FAILED)) is None
    assert clocks == BackendClocks()


def test_other_clocks_follow_at_their_mean_ratio():
    clocks = BackendClocks()
    assert clocks.advance_for(Clock.TOKENS, 240) is None
    clocks.update(answer())
    assert clocks.advance_for(Clock.TOKENS, 240) == ClockReading(
        requests=2, tokens=240, steps=60, kv_blocks=20, seconds=4
    )


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9), st.none() | st.integers(0, 5000))))
def test_clocks_never_run_backwards_and_survive_storage(answers):
    clocks = BackendClocks()
    for gap, length, tokens in answers:
        advance = clocks.update(answer(gap, gap + length, completion_tokens=tokens))
        clocks = msgspec.msgpack.decode(msgspec.msgpack.encode(clocks), type=BackendClocks)
        assert advance.clocks.seconds >= advance.idle_seconds >= 0
        assert all((advance.clocks.on(clock) or 0) >= 0 for clock in Clock)
        assert all((clocks.mean.on(clock) or 0) >= 0 for clock in Clock)
