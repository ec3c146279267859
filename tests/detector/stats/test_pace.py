"""The acceptance that a rate tells."""

import math

import pytest

from detector.stats import pace
from detector.stats.timing import STEP, Timed, TimeLaw


def settled(seconds=0.02, answers=60):
    law = TimeLaw()
    for number in range(answers):
        law.learn(timed(math.log(seconds) + 0.002 * (number % 3 - 1)), STEP)
    return law


def timed(log_seconds, in_flight=1):
    return Timed(log_seconds, in_flight, 1000.0, 400.0, 400.0)


@pytest.mark.parametrize("length", [1.4, 3.0, 4.5])
def test_a_rate_over_known_steps_is_the_acceptance_length(length):
    told = pace.by_step_time(settled().compare(timed(math.log(0.02 / length))), 400.0, 8)
    from_share = sum(told.share**position for position in range(9))
    assert from_share == pytest.approx(length, rel=0.01)
    assert (told.positions, told.depth) == (8, 8)
    assert told.tokens < 400  # the step time is not known exactly


def test_slow_steps_look_like_a_dead_drafter():
    told = pace.by_step_time(settled().compare(timed(math.log(0.06 / 4.5))), 400.0, 8)
    assert told.share < 0.4


def test_a_step_time_that_is_hardly_known_tells_nothing():
    """Sixteen requests in flight, where all answers so far ran alone: the slope is a guess."""
    assert pace.by_step_time(settled().compare(timed(math.log(0.02 / 4.5), in_flight=16)), 400.0, 8) is None


def test_the_usual_rate_has_the_usual_length():
    law = settled(1 / 200)
    usual, half = (pace.by_rate(law.compare(timed(math.log(factor / 200))), 400.0) for factor in (1.0, 2.0))
    assert 1 / (1 - usual.share) == pytest.approx(pace.USUAL_LENGTH, rel=0.01)
    assert 1 / (1 - half.share) == pytest.approx(pace.USUAL_LENGTH / 2, rel=0.01)
    assert usual.depth is None
