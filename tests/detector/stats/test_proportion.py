"""The interval of a share of verify steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from detector.stats.proportion import OVERDISPERSION, wilson_interval

SHARES = st.floats(0, 1)
TRIALS = st.floats(0, 1e9)


@pytest.mark.parametrize(("accepted", "steps"), [(0, 20), (2, 20), (150, 200), (7, 7)])
def test_it_is_wilsons_interval(accepted, steps):
    interval = binomtest(accepted, steps).proportion_ci(confidence_level=0.90, method="wilson")
    assert wilson_interval(accepted / steps, steps * OVERDISPERSION) == pytest.approx(
        (interval.low, interval.high), abs=1e-4
    )


@given(share=SHARES, trials=TRIALS)
def test_it_holds_the_share_and_stays_within_0_and_1(share, trials):
    low, high = wilson_interval(share, trials)
    assert 0 <= low <= share <= high <= 1


@given(share=SHARES, trials=TRIALS)
def test_more_steps_never_widen_it(share, trials):
    few, many = wilson_interval(share, trials), wilson_interval(share, 2 * trials + 1)
    assert few[0] <= many[0] + 1e-12
    assert many[1] <= few[1] + 1e-12


def test_no_steps_say_nothing():
    assert wilson_interval(0.7, 0) == pytest.approx((0, 1))


def test_what_is_not_a_share_is_taken_into_bounds():
    assert wilson_interval(1.3, 100)[1] == 1
    assert wilson_interval(-0.2, 100)[0] == 0
