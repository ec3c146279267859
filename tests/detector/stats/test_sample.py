"""What is judged of an answer."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.observation import Ending, Observation, Quality, RequestFacts
from detector.stats.sample import chain_acceptance, sample_of


def observation(**changes):
    fields = {
        "request_id": "r",
        "backend": "vllm",
        "facts": RequestFacts(route="chat"),
        "started_unix": 0.0,
        "started": 1.0,
        "ended": 4.0,
        "decode_seconds": 2.0,
        "completion_tokens": 400,
        "verify_steps": 100,
        "acceptance_length": 4.0,
        "step_seconds": 0.02,
        "decode_tokens_per_second": 200.0,
        "num_speculative_tokens": 8,
    }
    return Observation(**(fields | changes))


@given(p=st.floats(0.0, 0.99), depth=st.integers(1, 16))
def test_chain_acceptance_inverts_the_chain(p, depth):
    accepted = sum(p**position for position in range(1, depth + 1))
    assert chain_acceptance(accepted, depth) == pytest.approx(p, abs=1e-6)


@given(accepted=st.floats(0.0, 70.0, exclude_max=True), depth=st.integers(1, 64))
def test_chain_acceptance_is_a_share(accepted, depth):
    assert 0.0 <= chain_acceptance(accepted, depth) <= 1.0


@pytest.mark.parametrize(
    ("accepted", "depth", "expected"),
    [(0.0, 8, 0.0), (-0.01, None, 0.0), (1.5, None, 0.6), (8.0, 8, 1.0), (9.0, 8, 1.0)],
)
def test_chain_acceptance_at_its_ends(accepted, depth, expected):
    assert chain_acceptance(accepted, depth) == expected


def test_the_first_position_is_preferred_to_the_acceptance_length():
    sample = sample_of(observation(position_acceptance=(0.3, 0.1)))
    assert (sample.conditional_acceptance, sample.chain_length) == (0.3, 1)
    sample = sample_of(observation(position_acceptance=(math.nan,)))
    assert (sample.conditional_acceptance, sample.chain_length) == (pytest.approx(0.775, abs=0.01), 8)


def test_the_longest_gap_does_not_count_as_slow_steps():
    sample = sample_of(observation(longest_gap_seconds=1.0))
    assert sample.step_seconds == pytest.approx(1.0 / 99)  # of 100 steps, one is in the gap
    assert sample.decode_tokens_per_second == pytest.approx(400.0)
    assert sample.decode_seconds == 2.0


def test_an_answer_that_is_nearly_all_gap_has_no_times():
    sample = sample_of(observation(longest_gap_seconds=1.9))
    assert (sample.step_seconds, sample.decode_tokens_per_second) == (None, None)
    assert sample.acceptance_length == 4.0


def test_merged_steps_have_no_time():
    sample = sample_of(observation(acceptance_quality=Quality.UPPER_BOUND))
    assert sample.upper_bound
    assert sample.step_seconds is None
    assert sample.decode_tokens_per_second == 200.0


def test_without_speculation_each_step_is_a_token():
    sample = sample_of(
        observation(num_speculative_tokens=0, acceptance_length=None, step_seconds=None, verify_steps=None)
    )
    assert (sample.acceptance_length, sample.step_seconds, sample.verify_steps) == (1.0, 0.005, 400.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"ending": Ending.ENGINE_ABORT},
        {"ending": Ending.CLIENT_GONE, "completion_tokens": 3},
        {"status": 503},
        {"acceptance_length": None, "step_seconds": None, "decode_tokens_per_second": math.nan},
    ],
)
def test_what_says_nothing_is_not_judged(changes):
    assert sample_of(observation(**changes)) is None
