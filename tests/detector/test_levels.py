"""What is measured at one K, and which K is advised from it."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.advice import advise, assumed_step_seconds
from detector.levels import Answer, PositionSource, equal_acceptance, measure_level, pooled_acceptance
from detector.nspec import LevelCost, expected_acceptance_length
from detector.observation import Ending, Observation, RequestFacts, Source, Step


def observation(**fields) -> Observation:
    plain = {
        "request_id": "r",
        "backend": "b",
        "facts": RequestFacts(route="chat"),
        "started_unix": 0.0,
        "started": 0.0,
        "ended": 10.0,
    }
    return Observation(**{**plain, **fields})


def answer(depth: int, *, length: float, step_seconds: float, steps: int = 100, **fields) -> Answer:
    """An answer whose tok/s is A / T exactly."""
    return Answer(
        observation(
            num_speculative_tokens=depth,
            acceptance_length=length,
            step_seconds=step_seconds,
            verify_steps=steps,
            decode_seconds=steps * step_seconds,
            decode_tokens_per_second=length / step_seconds,
            **fields,
        )
    )


def level(depth: int, conditional: float, step_seconds: float):
    """A level whose drafter accepts every position alike, with a little spread between its answers."""
    length = expected_acceptance_length((conditional,) * depth, depth)
    positions = tuple(conditional ** (i + 1) for i in range(depth)) or None
    its = [
        answer(depth, length=length, step_seconds=step_seconds * factor, position_acceptance=positions, steps=1000)
        for factor in (0.99, 1.0, 1.01)
    ]
    measured = measure_level(its, depth)
    assert measured is not None
    return measured


# ---- one level -------------------------------------------------------------------------------------------------------


def test_rates_are_tokens_by_time_and_not_means():
    its = [answer(4, length=3.0, step_seconds=0.01, steps=n) for n in (100, 100)]
    its.append(answer(4, length=1.0, step_seconds=0.01, steps=400))
    found = measure_level(its, 4)
    assert found.tokens_per_second.expected == pytest.approx(1000 / 6.0)
    assert found.acceptance_length.expected == pytest.approx(1000 / 600)
    assert found.step_seconds.expected == pytest.approx(0.01)
    assert found.tokens_per_second.low < found.tokens_per_second.expected < found.tokens_per_second.high


@given(st.lists(st.tuples(st.floats(1, 9), st.floats(1e-4, 1), st.integers(1, 5000)), min_size=3, max_size=12))
def test_rate_is_acceptance_length_over_step_time(answers):
    found = measure_level([answer(8, length=a, step_seconds=t, steps=n) for a, t, n in answers], 8)
    assert found.tokens_per_second.expected == pytest.approx(
        found.acceptance_length.expected / found.step_seconds.expected
    )


def test_the_interval_holds_the_truth_as_often_as_it_says():
    source = random.Random(3)
    held = 0
    for _ in range(400):
        its = [
            answer(8, length=5.0, step_seconds=0.01 * math.exp(source.gauss(0, 0.1)), steps=source.randint(80, 120))
            for _ in range(12)
        ]
        estimate = measure_level(its, 8).step_seconds
        held += estimate.low < 0.01 * math.exp(0.1**2 / 2) < estimate.high
    assert 0.9 < held / 400 < 0.98


def test_only_the_most_usual_load_counts_and_no_failed_slow_read_or_canary_answer():
    usual = [answer(4, length=3.0, step_seconds=0.01, in_flight=2) for _ in range(3)]
    others = [
        answer(4, length=3.0, step_seconds=0.05, in_flight=1),
        answer(4, length=3.0, step_seconds=0.05, in_flight=2, ending=Ending.ENGINE_ERROR),
        answer(4, length=3.0, step_seconds=0.05, in_flight=2, client_paced=True),
        answer(4, length=3.0, step_seconds=0.05, in_flight=2, canary=True),
    ]
    found = measure_level([*others, *usual], 4)
    assert (found.in_flight, found.answers) == (2, 3)
    assert found.step_seconds.expected == pytest.approx(0.01)


def test_two_answers_are_too_few():
    assert measure_level([answer(4, length=3.0, step_seconds=0.01)] * 2, 4) is None
    assert measure_level([], 4) is None


def test_an_answer_that_came_in_one_piece_counts_by_the_engines_clock():
    one_piece = Answer(
        observation(
            num_speculative_tokens=4,
            acceptance_length=3.0,
            decode_tokens_per_second=300.0,
            rate_source=Source.ENGINE,
            completion_tokens=301,
            decode_seconds=0.0,
        )
    )
    found = measure_level([answer(4, length=3.0, step_seconds=0.01)] * 2 + [one_piece], 4)
    assert found.answers == 3
    assert found.tokens_per_second.expected == pytest.approx(300.0)
    assert found.step_seconds.expected == pytest.approx(0.01)


def test_rates_alone_give_a_rate_alone():
    its = [Answer(observation(decode_tokens_per_second=rate)) for rate in (100.0, 200.0, 200.0)]
    found = measure_level(its, 8)
    assert found.tokens_per_second.expected == pytest.approx(500 / 3)
    assert found.step_seconds is found.positions is found.cost is None


# ---- acceptance by position ------------------------------------------------------------------------------------------


def test_the_engines_own_count_is_preferred():
    found = measure_level([answer(2, length=2.0, step_seconds=0.01, position_acceptance=(0.6, 0.4))] * 3, 2)
    assert found.positions.source is PositionSource.ENGINE
    assert found.positions.accepted == pytest.approx((180.0, 120.0))


def test_events_tell_positions_without_the_first_and_the_last():
    events = [1, 3, 3, 1, 2, 2]
    one = answer(2, length=2.0, step_seconds=0.01, steps=5)
    steps = [Step(0.01 * i, count) for i, count in enumerate(events)]
    found = measure_level([Answer(one.observation, steps)] * 3, 2)
    assert found.positions.source is PositionSource.EVENTS
    assert (found.positions.steps, found.positions.accepted) == (12.0, (9.0, 6.0))


def test_events_that_hold_several_steps_tell_nothing():
    one = answer(2, length=2.0, step_seconds=0.01)
    steps = [Step(0.01 * i, count) for i, count in enumerate([1, 3, 5, 2])]
    found = measure_level([Answer(one.observation, steps)] * 3, 2)
    assert found.positions.source is PositionSource.EQUAL


@given(st.floats(0, 1), st.integers(1, 16))
def test_equal_acceptance_is_the_inverse_of_the_chain(share, depth):
    length = expected_acceptance_length((share,) * depth, depth)
    assert expected_acceptance_length((equal_acceptance(length, depth),) * depth, depth) == pytest.approx(length)


def test_pooled_positions_come_from_the_levels_that_draft_them():
    acceptance = pooled_acceptance([level(0, 0.0, 0.005), level(2, 0.8, 0.007), level(4, 0.8, 0.008)])
    assert acceptance.conditional == pytest.approx((0.8,) * 4)
    assert acceptance.verify_steps == pytest.approx(3000)


def test_a_dead_drafter_ends_the_chain():
    dead = measure_level([answer(3, length=1.0, step_seconds=0.01, position_acceptance=(0.0, 0.0, 0.0))] * 3, 3)
    assert pooled_acceptance([dead]).conditional == (0.0,)


# ---- advice ----------------------------------------------------------------------------------------------------------


def test_one_level_cannot_tell_and_names_what_is_worth_measuring():
    found = advise([level(4, 0.9, 0.01)], ladder=(0, 4, 8))
    assert found.num_speculative_tokens is None
    assert "K=4 alone" in found.reason
    assert found.worth_measuring == 8
    assert [(one.num_speculative_tokens, one.basis) for one in found.levels] == [(4, "measured"), (8, "assumed")]
    assert found.levels[1].extrapolated_positions == 4


def test_an_autoregressive_drafter_makes_more_drafts_dear():
    one = [level(4, 0.7, 0.01)]
    assert advise(one, ladder=(8,), method="dflash").worth_measuring == 8
    assert advise(one, ladder=(8,), method="mtp").worth_measuring is None


def test_a_drafter_that_costs_more_than_it_gives_is_switched_off():
    found = advise([level(0, 0.0, 0.005), level(8, 0.2, 0.012)], ladder=(0, 8))
    assert found.num_speculative_tokens == 0
    assert found.is_clear
    by_depth = {one.num_speculative_tokens: one for one in found.levels}
    assert by_depth[0].break_even_acceptance_length is None
    assert by_depth[8].break_even_acceptance_length == pytest.approx(2.4, rel=0.01)
    assert by_depth[8].acceptance_length.expected < 2.4


def test_between_two_measured_levels_a_step_time_is_interpolated():
    found = advise([level(2, 0.8, 0.008), level(8, 0.8, 0.012)], ladder=(4,))
    bases = {one.num_speculative_tokens: one.basis for one in found.levels}
    assert bases == {2: "measured", 4: "interpolated", 8: "measured"}


def test_rates_alone_are_compared_as_they_are():
    def rates(depth, *values):
        return measure_level([Answer(observation(decode_tokens_per_second=rate)) for rate in values], depth)

    found = advise([rates(0, 135, 136, 137), rates(8, 220, 221, 222)])
    assert (found.num_speculative_tokens, found.is_clear) == (8, True)
    assert advise([rates(8, 220, 221, 222)]).num_speculative_tokens is None


def test_levels_that_disagree_on_acceptance_are_named():
    odd = level(8, 0.3, 0.01)
    found = advise([odd, level(4, 0.9, 0.009)])
    assert any(note.startswith("K=8: measured") for note in found.notes)


def test_different_loads_are_named():
    busy = msgspec.structs.replace(level(8, 0.8, 0.01), in_flight=4)
    assert any("1, 4 requests in flight" in note for note in advise([busy, level(4, 0.8, 0.009)]).notes)


@given(
    depth=st.integers(1, 20),
    other=st.integers(1, 20),
    seconds=st.floats(1e-4, 1),
    method=st.sampled_from(["dflash", "mtp"]),
)
def test_an_assumed_step_time_is_inside_its_range_and_grows_with_k(depth, other, seconds, method):
    cost = [LevelCost(num_speculative_tokens=depth, step_seconds=seconds, step_log_error=0.02)]
    found = assumed_step_seconds(cost, other, method)
    assert found.low < found.expected < found.high
    more = assumed_step_seconds(cost, other + 1, method)
    assert more.expected > found.expected


def test_without_a_drafting_level_no_step_time_is_assumed():
    assert assumed_step_seconds([LevelCost(num_speculative_tokens=0, step_seconds=0.01)], 4, "dflash") is None
    assert assumed_step_seconds([LevelCost(num_speculative_tokens=4, step_seconds=0.01)], 0, "dflash") is None
