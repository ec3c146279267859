"""The cost model of K, on published figures and on any."""

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from detector.nspec import (
    TIE,
    Acceptance,
    LevelCost,
    break_even_acceptance_length,
    conditional_acceptances,
    estimate_acceptance_length,
    estimate_step_seconds,
    expected_acceptance_length,
    level_rate,
    pay_back_cycles,
    recommend,
    restart_gain_tokens,
    seconds_for,
)

DFLASH_ACCEPTED = (31017, 24015, 17833, 12846, 8925, 5986, 3868, 2495, 1579, 1036, 698, 462, 319, 198, 130, 78)
DFLASH_STEPS = 40352
"""Accepted drafts by position and steps: qwen3-4b with DFlash K=16 on GSM8K, vLLM pull request 43081."""

PUBLISHED_SWEEPS = {
    "Gemma-4-12B MTP, 3090 (club-3090)": (
        50.0,
        [(2, 96.7, 2.62), (3, 115.5, 3.33), (4, 117.0, 3.67), (5, 122.5, 4.06)],
    ),
    "Qwen3.6-35B-A3B MTP, 3060 (llama.cpp 22673)": (
        22.92,
        [(1, 27.58, 1.8835), (2, 29.39, 2.63), (3, 27.78, 3.1381), (4, 26.09, 3.5684)],
    ),
    "EAGLE (SGLang 21599)": (460.7, [(1, 620.6, 2.00), (3, 954.8, 3.88), (7, 999.0, 6.25)]),
    "GLM-4.7 MTP (SGLang 23336)": (447.2, [(1, 594.7, 1.85), (3, 767.8, 3.04), (7, 732.3, 4.52)]),
}
"""tok/s without speculation, then (K, tok/s, A)."""

H200 = [(0, 4.28e-3), (2, 7.25e-3), (8, 6.4e-3), (12, 6.51e-3), (15, 6.58e-3)]
"""Median step seconds by K of one stream on an H200 (vLLM 0.20.2, DFlash)."""

CYCLE = (221, 214, 218, 222, 230, 103, 59, 62, 62, 212)
"""tok/s of ten answers of 2000 tokens, as published; 136 tok/s without speculation on the same machine."""


def levels(points):
    return [LevelCost(num_speculative_tokens=depth, step_seconds=seconds) for depth, seconds in points]


def chain(conditional, positions=15, verify_steps=1000.0):
    return Acceptance(conditional=(conditional,) * positions, verify_steps=verify_steps)


# ---- A(K) ------------------------------------------------------------------------------------------------------------


def test_published_counts_by_position_give_the_published_acceptance_length():
    shares = [accepted / DFLASH_STEPS for accepted in DFLASH_ACCEPTED]
    conditional = conditional_acceptances(shares)
    assert conditional[:2] == pytest.approx((0.7687, 0.7743), abs=1e-4)
    assert expected_acceptance_length(conditional, 16) == pytest.approx(3.7628, abs=1e-4)
    assert [round(expected_acceptance_length(conditional, depth), 2) for depth in (4, 8, 12)] == [3.12, 3.65, 3.74]


@given(share=st.floats(0, 0.99), depth=st.integers(0, 20))
def test_equal_acceptances_give_the_closed_form(share, depth):
    closed = (1 - share ** (depth + 1)) / (1 - share)
    assert expected_acceptance_length((share,) * depth, depth) == pytest.approx(closed)


def test_beyond_the_measured_positions_the_last_one_is_repeated_and_the_lower_bound_counts_on_none():
    estimate = estimate_acceptance_length(chain(0.5, positions=2, verify_steps=1e9), 4)
    assert estimate.expected == pytest.approx(1 + 0.5 + 0.25 + 0.125 + 0.0625)
    assert estimate.low == pytest.approx(1.75, abs=1e-3)
    assert estimate.high == pytest.approx(estimate.expected, abs=1e-3)


def test_without_a_number_of_steps_there_is_no_interval_and_without_acceptance_nothing():
    assert estimate_acceptance_length(chain(0.5, verify_steps=None), 4).low is None
    assert estimate_acceptance_length(Acceptance(conditional=()), 4) is None
    assert estimate_acceptance_length(Acceptance(conditional=()), 0).expected == 1.0


@pytest.mark.parametrize(
    ("shares", "conditional"),
    [
        ((), ()),
        ((0.0, 0.0), (0.0,)),
        ((0.8, 0.4, math.nan, 0.1), (0.8, 0.5)),
        ((0.5, 0.6), (0.5, 1.0)),
        ((math.inf, 0.5), ()),
    ],
)
def test_positions_that_say_nothing_end_the_chain(shares, conditional):
    assert conditional_acceptances(shares) == pytest.approx(conditional)


# ---- T(K) ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweep", PUBLISHED_SWEEPS)
def test_step_times_between_measured_levels_of_published_sweeps(sweep):
    """Each middle level is left out in turn and lies within the interval that is given for it."""
    _, points = PUBLISHED_SWEEPS[sweep]
    for left_out in points[1:-1]:
        rest = levels((depth, length / rate) for depth, rate, length in points if depth != left_out[0])
        estimate = estimate_step_seconds(rest, left_out[0])
        assert estimate.low < left_out[2] / left_out[1] < estimate.high


def test_the_rate_of_a_level_left_out_is_predicted_within_two_percent():
    _, points = PUBLISHED_SWEEPS["Gemma-4-12B MTP, 3090 (club-3090)"]
    ends = levels((depth, length / rate) for depth, rate, length in (points[0], points[-1]))
    for depth, rate, length in points[1:-1]:
        assert length / estimate_step_seconds(ends, depth).expected == pytest.approx(rate, rel=0.02)


def test_the_line_is_neither_prolonged_nor_drawn_through_speculation_off():
    known = levels([(0, 4e-3), (4, 6e-3), (8, 8e-3)])
    assert estimate_step_seconds(known, 6).expected == pytest.approx(7e-3)
    assert estimate_step_seconds(known, 2) is None
    assert estimate_step_seconds(known, 9) is None
    assert estimate_step_seconds(known[1:], 0) is None
    assert estimate_step_seconds([], 4) is None


def test_break_even_of_the_published_machine():
    """T(8) = 16.4 ms against 136 tok/s without speculation: speculation pays from 2.2 tokens a step."""
    known = levels([(0, 1 / 136), (8, 16.4e-3)])
    assert break_even_acceptance_length(known, 8) == pytest.approx(2.23, abs=0.01)
    assert break_even_acceptance_length(known[1:], 8) is None
    assert break_even_acceptance_length(known, 4) is None


def test_no_published_break_even_is_below_the_one_that_is_assumed():
    from detector.stats.cause import LOWEST_BREAK_EVEN

    even = [length / rate * plain for plain, points in PUBLISHED_SWEEPS.values() for _, rate, length in points]
    assert min(even) == pytest.approx(1.355, abs=1e-3)
    assert min(even) > LOWEST_BREAK_EVEN


# ---- the recommendation ----------------------------------------------------------------------------------------------


def test_a_healthy_drafter_on_the_h200_runs_deep_and_a_dead_one_is_switched_off():
    ladder = [0, 2, 8, 12, 15]
    healthy = recommend(ladder, levels(H200), chain(0.85))
    assert healthy.num_speculative_tokens == 15
    assert not healthy.is_clear, "K=12 is within the interval"
    dead = recommend(ladder, levels(H200), chain(0.08))
    assert dead.num_speculative_tokens == 0
    assert dead.is_clear
    assert dead.tokens_per_second.expected == pytest.approx(234, abs=1)
    eight = next(rate for rate in dead.rates if rate.num_speculative_tokens == 8)
    assert eight.tokens_per_second.low < 170 < eight.tokens_per_second.high


def test_a_collapse_on_the_published_machine_is_worth_less_than_speculation_off():
    known = levels([(0, 1 / 136), (8, 16.4e-3)])
    assert recommend([8, 0], known, Acceptance(conditional=(0.0,), verify_steps=500)).num_speculative_tokens == 0
    assert recommend([8, 0], known, chain(0.8, 8)).num_speculative_tokens == 8


def test_within_a_tie_the_smaller_k_is_taken():
    known = levels([(4, 6e-3), (8, 6e-3)])
    assert recommend([4, 8], known, chain(0.2)).num_speculative_tokens == 4
    assert recommend([4, 8], known, chain(0.8)).num_speculative_tokens == 8


@pytest.mark.parametrize(
    ("ladder", "points", "acceptance"),
    [
        ([0, 8], H200, Acceptance(conditional=())),
        ([0, 4, 8], [(8, 6.4e-3)], chain(0.8)),
        ([8], H200, chain(0.8)),
        ([], H200, chain(0.8)),
        ([0, 8], [], chain(0.8)),
    ],
)
def test_where_data_are_missing_it_cannot_tell(ladder, points, acceptance):
    recommendation = recommend(ladder, levels(points), acceptance)
    assert recommendation.num_speculative_tokens is None
    assert recommendation.tokens_per_second is None
    assert recommendation.reason.startswith("cannot tell")


def test_the_reason_names_what_is_compared_and_what_is_not_known():
    reason = recommend([0, 4, 8, 20], levels([(0, 1 / 136), (8, 16.4e-3)]), chain(0.8, 2)).reason
    assert "K=8: 264.0 tok/s" in reason
    assert "6 positions assumed" in reason
    assert "next best K=0: 136.0 tok/s" in reason
    assert reason.endswith("not known: K=4, 20")


DEPTHS = st.integers(0, 16)
CONDITIONAL = st.lists(st.floats(0, 1), max_size=8)
COSTS = st.dictionaries(DEPTHS, st.floats(1e-4, 1.0), max_size=6)


@given(ladder=st.lists(DEPTHS, max_size=6), costs=COSTS, conditional=CONDITIONAL, steps=st.none() | st.floats(0, 1e6))
def test_the_recommended_k_is_of_the_ladder_and_within_a_tie_of_the_best(ladder, costs, conditional, steps):
    acceptance = Acceptance(conditional=tuple(conditional), verify_steps=steps)
    recommendation = recommend(ladder, levels(costs.items()), acceptance)
    if recommendation.num_speculative_tokens is None:
        assert len(recommendation.rates) < 2
        return
    assert recommendation.num_speculative_tokens in ladder
    best = max(rate.tokens_per_second.expected for rate in recommendation.rates)
    assert recommendation.tokens_per_second.expected >= best * (1 - TIE)
    for rate in recommendation.rates:
        estimate = rate.tokens_per_second
        if estimate.low is not None:
            assert estimate.low * (1 - 1e-9) <= estimate.expected <= estimate.high * (1 + 1e-9)


@given(
    costs=st.dictionaries(DEPTHS, st.floats(1e-4, 1.0), min_size=2, max_size=6),
    conditional=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    position=st.integers(0, 7),
    raised=st.floats(0, 1),
)
@example(costs={4: 6e-3, 8: 6.5e-3}, conditional=[0.8, 0.5], position=1, raised=0.9)
def test_more_acceptance_never_lowers_the_recommended_k(costs, conditional, position, raised):
    assume(position < len(conditional) and raised >= conditional[position])
    better = [*conditional]
    better[position] = raised
    low, high = (
        recommend(costs, levels(costs.items()), Acceptance(conditional=tuple(shares)))
        for shares in (conditional, better)
    )
    rates = {rate.num_speculative_tokens: rate.tokens_per_second.expected for rate in high.rates}
    limit = max(rates.values()) * (1 - TIE)
    assume(all(abs(rate / limit - 1) > 1e-9 for rate in rates.values()))  # decided by rounding
    assert high.num_speculative_tokens >= low.num_speculative_tokens


@pytest.mark.parametrize(
    "fields",
    [
        {"num_speculative_tokens": -1, "step_seconds": 0.01},
        {"num_speculative_tokens": 4, "step_seconds": 0.0},
        {"num_speculative_tokens": 4, "step_seconds": math.nan},
        {"num_speculative_tokens": 4, "step_seconds": 0.01, "step_log_error": math.inf},
    ],
)
def test_a_level_cost_out_of_range_is_refused(fields):
    with pytest.raises(ValueError, match="must be"):
        LevelCost(**fields)


@pytest.mark.parametrize("fields", [{"conditional": (1.2,)}, {"conditional": (math.nan,)}, {"verify_steps": -1.0}])
def test_an_acceptance_out_of_range_is_refused(fields):
    with pytest.raises(ValueError, match="must be"):
        Acceptance(**{"conditional": (0.5,), **fields})


def test_a_rate_without_its_step_time_or_its_acceptance_is_unknown():
    assert level_rate(levels([(8, 0.01)]), Acceptance(conditional=()), 8) is None
    assert level_rate(levels([(8, 0.01)]), chain(0.5), 4) is None


# ---- does a restart pay? ---------------------------------------------------------------------------------------------


def test_the_published_cycle_is_slower_than_its_mean_rate_says():
    seconds = seconds_for(2000, CYCLE)
    assert seconds == pytest.approx(172.5, abs=0.1)
    assert 20_000 / seconds == pytest.approx(115.9, abs=0.1)


@pytest.mark.parametrize(("downtime", "cycles"), [(180.0, 7.1), (90.0, 3.5), (60.0, 2.4), (0.0, 0.0)])
def test_a_restart_to_speculation_off_pays_back_after_d_over_25_cycles(downtime, cycles):
    measured = pay_back_cycles(downtime, seconds_for(2000, CYCLE), 20_000, 136.0)
    assert measured == pytest.approx(downtime / 25.5, rel=0.005)
    assert measured == pytest.approx(cycles, abs=0.05)


def test_a_restart_to_a_slower_level_never_pays_back():
    assert pay_back_cycles(60.0, seconds_for(2000, CYCLE), 20_000, 115.0) == math.inf


@pytest.mark.parametrize("arguments", [(-1, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0), (math.nan, 1, 1, 0)])
def test_pay_back_of_impossible_numbers_is_refused(arguments):
    with pytest.raises(ValueError, match="pay-back"):
        pay_back_cycles(*arguments)


def test_tokens_gained_by_a_restart_agree_with_the_cycles_that_pay_it_back():
    cycle_seconds = seconds_for(2000, CYCLE)
    now = 20_000 / cycle_seconds
    cycles = pay_back_cycles(60.0, cycle_seconds, 20_000, 136.0)
    # The cycles are counted in tokens: with the restart they take the downtime and their tokens at the new rate.
    horizon = cycles * cycle_seconds
    assert horizon == pytest.approx(60.0 + cycles * 20_000 / 136.0)
    assert restart_gain_tokens(now, 136.0, 60.0, horizon) == pytest.approx(0, abs=1e-6)
    assert (
        restart_gain_tokens(now, 136.0, 60.0, 0.9 * horizon) < 0 < restart_gain_tokens(now, 136.0, 60.0, 1.1 * horizon)
    )


def test_a_fallback_that_serves_meanwhile_makes_a_restart_cheaper():
    alone = restart_gain_tokens(60.0, 136.0, 100.0, 300.0)
    assert alone == 136.0 * 200 - 60.0 * 300
    assert restart_gain_tokens(60.0, 136.0, 100.0, 300.0, rate_meanwhile=130.0) == alone + 13_000
    assert restart_gain_tokens(60.0, 136.0, 100.0, 50.0) == -3000
