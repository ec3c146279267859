"""Answers in which a collapse begins, on the grid of acceptances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.stats.acceptance_grid import ACCEPTANCES, COLLAPSED_TOKEN_SHARES, GRID, accepted_per_step, begun, logit


def at(index):
    weights = np.zeros(len(GRID))
    weights[index] = 1.0
    return weights


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_accepted_per_step_sums_over_the_positions(share):
    assert accepted_per_step(share, 3) == pytest.approx(share + share**2 + share**3)
    assert accepted_per_step(share, None) == pytest.approx(share / (1 - share))


def test_logits_of_impossible_shares_stay_finite():
    assert logit(0.0) == logit(0.02) < logit(0.5) < logit(0.98) == logit(1.0)
    assert logit(0.5) == 0


POINTS = st.integers(0, len(GRID) - 1)


@given(before=POINTS, after=POINTS, depth=st.sampled_from([1, 3, 8, 15, None]))
def test_a_beginning_lies_between_before_and_after(before, after, depth):
    weights = begun(at(before), at(after), depth)
    assert weights.sum() == pytest.approx(1)
    seen = np.flatnonzero(weights)
    assert min(before, after) <= seen[0]
    assert seen[-1] <= max(before, after)


def test_a_beginning_has_the_steps_of_both_parts():
    """Half of the tokens at A = 4.5 and half at A = 1.4 take 0.111 + 0.357 steps a token."""
    before = min(range(len(GRID)), key=lambda index: abs(1 + accepted_per_step(ACCEPTANCES[index], 8) - 4.5))
    after = min(range(len(GRID)), key=lambda index: abs(1 + accepted_per_step(ACCEPTANCES[index], 8) - 1.4))
    weights = begun(at(before), at(after), 8)
    lengths = [1 + accepted_per_step(share, 8) for share in ACCEPTANCES]
    high, low = lengths[before], lengths[after]
    expected = [1 / ((1 - share) / high + share / low) for share in COLLAPSED_TOKEN_SHARES]
    mean = sum(weight * length for weight, length in zip(weights.tolist(), lengths, strict=True))
    assert mean == pytest.approx(sum(expected) / len(expected), rel=0.05)


def test_nothing_changes_where_nothing_changed():
    assert begun(at(20), at(20), 8)[20] == pytest.approx(1)
