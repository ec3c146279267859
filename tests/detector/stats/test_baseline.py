"""The healthy reference."""

import math

import pytest

from detector.stats.baseline import EARLY, WINDOW, Baseline, load_class
from detector.stats.sample import Sample, chain_acceptance


def sample(accepted=3.5, *, step_seconds=0.02, in_flight=1, **changes):
    fields = {
        "started": 0.0,
        "in_flight": in_flight,
        "acceptance_length": 1 + accepted,
        "conditional_acceptance": chain_acceptance(accepted, 8),
        "chain_length": 8,
        "step_seconds": step_seconds,
        "decode_tokens_per_second": (1 + accepted) / step_seconds,
    }
    return Sample(**(fields | changes))


def learned(*samples):
    baseline = Baseline()
    for each in samples:
        baseline.learn(each)
    return baseline


@pytest.mark.parametrize(("in_flight", "expected"), [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (100, 7)])
def test_load_classes_double(in_flight, expected):
    assert load_class(in_flight) == expected


def test_three_answers_make_a_reference():
    assert learned(sample(), sample()).step_level(1) is None
    level = learned(*[sample()] * 3).step_level(1)
    assert math.exp(level.median) == pytest.approx(0.02)


def test_the_reference_is_a_median_and_bounded():
    baseline = learned(*[sample()] * 30, *[sample(step_seconds=9.0)] * 10)
    assert math.exp(baseline.step_level(1).median) == pytest.approx(0.02)
    for _ in range(200):
        baseline.learn(sample(1.0))
    assert len(baseline.acceptance_lengths) == WINDOW
    assert baseline.acceptance_length() == pytest.approx(2.0)


def test_a_narrow_reference_of_few_answers_is_widened():
    few, many = learned(*[sample()] * 3), learned(*[sample()] * 50)
    assert few.rate_level(1).spread > 2 * many.rate_level(1).spread > 0.08


def test_a_load_never_seen_is_expected_as_slow_as_a_shared_engine():
    baseline = learned(*[sample(in_flight=2)] * 3)
    assert math.exp(baseline.step_level(8).median) == pytest.approx(0.08)
    assert math.exp(baseline.rate_level(8).median) == pytest.approx(4.5 / 0.08)
    assert math.exp(baseline.step_level(1).median) == pytest.approx(0.02)


def test_the_usual_load_is_where_most_was_measured():
    assert Baseline().usual_load() == 1
    assert learned(*[sample()] * 3, *[sample(in_flight=5)] * 4).usual_load() == 4


def test_an_upper_bound_is_not_learned_as_acceptance():
    baseline = learned(*[sample(upper_bound=True)] * 5)
    assert baseline.acceptance() is None
    assert baseline.rate_level(1) is not None


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (sample(0.08), sample()),
        (sample(step_seconds=0.07), sample()),
        (
            sample(
                acceptance_length=None, conditional_acceptance=None, step_seconds=0.02, decode_tokens_per_second=50.0
            ),
            sample(
                acceptance_length=None, conditional_acceptance=None, step_seconds=0.02, decode_tokens_per_second=220.0
            ),
        ),
    ],
)
def test_a_start_in_a_collapse_is_told_by_its_two_groups(low, high):
    baseline = Baseline()
    for each in (low, low, low):
        assert not baseline.start(each)
        baseline.learn(each)
    assert [baseline.start(high) for _ in range(3)] == [False, False, True]  # fewer are no reference
    assert math.exp(max(baseline.log_rates[1])) == pytest.approx(high.decode_tokens_per_second)
    assert len(baseline.log_rates[1]) == 3


def test_contents_that_differ_are_not_taken_for_a_collapse():
    baseline = Baseline()
    assert not any(baseline.start(sample(accepted)) for accepted in [5.0, 1.8] * 15)


def test_after_the_first_answers_the_start_is_settled():
    baseline = Baseline()
    for _ in range(EARLY):
        baseline.start(sample())
    assert (baseline.settled, baseline.early) == (True, [])
    assert not any(baseline.start(sample(0.05)) for _ in range(5))
