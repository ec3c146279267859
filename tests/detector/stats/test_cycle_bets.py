"""The law of run lengths, and bets that no law without a cycle loses to on average."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.stats.clocks import Clock
from detector.stats.run_bet import concave_majorant, spend
from detector.stats.run_law import HEALTHY_SIGNATURE, learn_law, prior_law, scaled_points

widths = st.lists(st.floats(0.01, 100), min_size=1, max_size=40)
runs = st.lists(st.tuples(st.floats(0, 1e5), st.floats(0.01, 1e3)).map(lambda one: (one[0], sum(one))), min_size=1)


@given(runs)
def test_a_law_is_a_distribution_function(seen):
    law = learn_law(seen)
    assert (np.diff(law.cumulative) >= 0).all()
    assert law.cumulative[0] == 0
    assert law.below(0) == 0
    assert 0.5 < law.below(1e12) <= 1
    assert law.between(3, 3) > 0


def test_a_law_expects_what_it_saw():
    law = learn_law([(5, 6)] * 8)
    assert law.between(5, 6) > 0.7
    assert learn_law([(5.0, 6.0), (0.0, 1.0), (30.0, 31.0), (2.0, 3.0)] * 4).between(5, 6) < 0.2


def test_the_law_forgets():
    assert learn_law([(5, 6)] * 20 + [(11, 12)] * 12).between(11, 12) > 0.4


def test_the_published_cycle_is_expected_before_anything_was_seen():
    law = prior_law(300.0, HEALTHY_SIGNATURE)
    assert law.between(5, 6) == pytest.approx(0.3 * 0.6, abs=0.02)
    assert learn_law([(40, 41)] * 3, HEALTHY_SIGNATURE).between(5, 6) < 0.01


@given(st.lists(st.tuples(st.floats(0.01, 9), st.floats(0, 1)), min_size=2, max_size=60))
def test_the_majorant_is_concave_and_least(rises):
    widths, ups = np.array(rises).T
    points, values = (np.concatenate([[0.0], np.cumsum(one)]) for one in (widths, ups))
    majorant = concave_majorant(points, values)
    slopes = np.diff(majorant) / widths
    assert (majorant >= values - 1e-9).all()
    assert (np.diff(slopes) <= 1e-9 * (1 + slopes[:-1])).all()
    assert majorant[-1] == pytest.approx(values[-1])
    # Where its slope changes it touches the values: a smaller majorant would not be concave.
    bends = np.flatnonzero(np.diff(slopes) < -1e-6 * (1 + slopes[:-1])) + 1
    assert np.allclose(majorant[bends], values[bends])


@given(runs, st.dictionaries(st.sampled_from(list(Clock)), widths, min_size=1), st.sampled_from(list(Clock)))
def test_no_uniform_law_on_any_clock_makes_the_bet_worth_more_than_its_stake(seen, advances, clock):
    """Every law whose density never rises is a mixture of uniform ones, so this is the whole null hypothesis."""
    cells = min(len(widths) for widths in advances.values())
    ends = {name: np.cumsum(widths[:cells]).tolist() for name, widths in advances.items()}
    if clock not in ends:
        return
    bet = [(clock, learn_law(seen))]
    payoffs = [spend(bet, {name: points[: at + 1] for name, points in ends.items()})[0] for at in range(cells)]
    for points in ends.values():
        weights = np.diff([0.0, *points])
        means = np.cumsum(weights * payoffs) / np.cumsum(weights)
        assert (means <= 1 + 1e-6).all()
        assert min(payoffs) > 0


def test_the_bet_on_the_published_cycle_pays_nearly_what_the_law_itself_would():
    bet = [(Clock.REQUESTS, prior_law(6.0, HEALTHY_SIGNATURE, 0.97, scaled_points(6.0)))]
    (six,) = spend(bet, {Clock.REQUESTS: [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]})
    assert 4.0 < six <= 0.6 / (0.8 / 6)
