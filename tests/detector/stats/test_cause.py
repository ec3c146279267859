"""The table of diagnosis: a hit and a near miss for every row, and what holds for all findings."""

import json
import math
from pathlib import Path
from statistics import median
from typing import get_type_hints

import msgspec
import pytest
from cause_cases import DEAD, HEALTHY, LATE, MAY_BE_UNKNOWN, NEAR_MISSES, OFF, ROWS, SLOW, findings
from hypothesis import given
from hypothesis import strategies as st

from detector.stats.cause import LOWEST_BREAK_EVEN, Findings, Remedy, diagnose
from detector.stats.cause_table import TABLE
from detector.stats.findings import NUMBERS, Numbers, known
from detector.verdict import Cause


@pytest.mark.parametrize(("name", "hit", "miss", "instead"), ROWS, ids=[row[0] for row in ROWS])
def test_each_row_has_a_hit_and_a_near_miss(name, hit, miss, instead):
    assert diagnose(findings(hit)).signature == name
    assert diagnose(findings(hit, miss)).signature == instead


@pytest.mark.parametrize(("name", "miss", "instead"), NEAR_MISSES)
def test_each_condition_is_needed(name, miss, instead):
    hit = next(row[1] for row in ROWS if row[0] == name)
    assert diagnose(findings(hit, miss)).signature == instead


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_what_a_row_may_not_know(row):
    numbers = Numbers(findings(next(hit for name, hit, *_ in ROWS if name == row.name)))
    for number in {condition.number for condition in row.when}:
        others = {name: numbers.get(name) for name in NUMBERS if name != number}
        hits = all(condition.holds(others.get(condition.number)) for condition in row.when)
        assert hits == (number in MAY_BE_UNKNOWN.get(row.name, ())), number


def test_every_row_is_tested_and_can_be_reached():
    assert [row[0] for row in ROWS] == [row.name for row in TABLE]


def test_the_last_row_always_hits():
    assert TABLE[-1].when == ()


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_less_speculation_is_allowed_only_where_acceptance_moved(row):
    less = {Remedy.LOWER_NUM_SPECULATIVE_TOKENS, Remedy.SPECULATION_OFF}
    if less & set(row.remedies):
        assert row.cause is Cause.ACCEPTANCE_COLLAPSE
        assert any(condition.number == "acceptance_log_ratio" and condition.at_most < 0 for condition in row.when)


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_conditions_name_numbers_that_exist(row):
    named = {condition.number for condition in row.when}
    everything = Numbers(findings(DEAD, {"content_differs": True, "other_answers_degraded": True}))
    assert all(everything.get(name) is not None for name in named)


# ---- the cases of the field -----------------------------------------------------------------------------------------


def test_the_published_collapse_allows_speculation_off_and_says_which_factor_moved():
    diagnosis = diagnose(findings(DEAD, {"break_even_acceptance_length": 2.2}))
    assert diagnosis.cause is Cause.ACCEPTANCE_COLLAPSE
    assert diagnosis.remedies[:3] == (
        Remedy.ROUTE_AWAY,
        Remedy.SPECULATION_OFF,
        Remedy.LOWER_NUM_SPECULATIVE_TOKENS,
    )
    evidence = diagnosis.evidence
    assert evidence["acceptance_log_ratio"] == pytest.approx(evidence["rate_log_ratio"], abs=0.01)
    assert evidence["step_log_ratio"] == 0
    assert evidence["break_even_acceptance_length"] == 2.2
    assert evidence["first_position_acceptance"] == pytest.approx(0.17, abs=0.02)


def test_steps_of_three_times_the_length_are_blamed_on_steps_and_never_lower_k():
    diagnosis = diagnose(findings(SLOW, {"break_even_acceptance_length": 9.0}))
    assert diagnosis.cause is Cause.STEP_INFLATION
    assert diagnosis.remedies == (Remedy.ROUTE_AWAY, Remedy.RESTART, Remedy.WAIT)


def test_a_dead_drafter_above_its_break_even_keeps_its_speculation():
    """A drafter this cheap still pays: T(K)/T(0) of 1.1 with 1.2 tokens a step."""
    diagnosis = diagnose(findings(DEAD, {"break_even_acceptance_length": 1.1}))
    assert diagnosis.cause is Cause.ACCEPTANCE_COLLAPSE
    assert diagnosis.remedies == (Remedy.ROUTE_AWAY, Remedy.RESTART, Remedy.WAIT)


def test_without_a_break_even_the_lowest_published_one_decides():
    a_little = {"acceptance_length": 1.05, "position_acceptance": (0.05,), "decode_tokens_per_second": 52.5}
    assert Remedy.SPECULATION_OFF in diagnose(findings(DEAD, a_little)).remedies
    assert Remedy.SPECULATION_OFF not in diagnose(findings(DEAD, {"acceptance_length": LOWEST_BREAK_EVEN})).remedies


def test_a_collapse_that_makes_requests_wait_is_a_collapse():
    full = {"requests_waiting": 5.0, "kv_cache_usage": 0.99, "in_flight": 12, "preemptions": 1.0}
    assert diagnose(findings(DEAD, LATE, full)).cause is Cause.ACCEPTANCE_COLLAPSE


def test_a_dead_drafter_beside_a_busy_neighbour_is_still_dead():
    assert diagnose(findings(DEAD, {"sibling_busy": True, "step_log_ratio": 0.7})).signature == "dead_drafter"


def test_rates_alone_allow_routing_away_and_nothing_else():
    only_rate = Findings(rate_log_ratio=math.log(60 / 221), decode_tokens_per_second=60.0)
    diagnosis = diagnose(only_rate)
    assert (diagnosis.cause, diagnosis.remedies) == (Cause.UNKNOWN, (Remedy.ROUTE_AWAY, Remedy.WAIT))


def test_the_acceptance_length_bounds_the_first_position_where_only_it_is_known():
    """The H200 capture: A 1.08 at K=8 without counts by position. A - 1 is at least p_0."""
    collapsed = {**DEAD, "acceptance_length": 1.08, "position_acceptance": None, "draft_steps": None}
    diagnosis = diagnose(findings(collapsed, {"decode_tokens_per_second": 54.0}))
    assert diagnosis.signature == "dead_drafter"
    assert diagnose(findings(collapsed, {"acceptance_length": 1.6, "decode_tokens_per_second": 80.0})).cause is (
        Cause.UNKNOWN
    )


def test_an_upper_bound_can_show_a_collapse_and_never_slow_steps():
    merged = {"acceptance_is_upper_bound": True, "position_acceptance": None}
    assert diagnose(findings(DEAD, merged)).signature == "dead_drafter"
    assert diagnose(findings(SLOW, merged)).signature == "slow_for_a_reason_that_is_not_known"


def test_sixteen_tokens_decide_nothing():
    short = {"verify_steps": 14.0, "draft_steps": 14.0, "completion_tokens": 16, "position_acceptance": (0.14,)}
    assert diagnose(findings(DEAD, short)).cause is Cause.UNKNOWN


def test_a_ratio_that_is_too_uncertain_decides_nothing():
    assert diagnose(findings(SLOW, {"step_log_error": 0.2})).signature == "slow_steps"
    assert diagnose(findings(SLOW, {"step_log_error": 0.7})).cause is Cause.UNKNOWN


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"draft_steps": None}, Cause.SPECULATION_OFF),
        ({"draft_steps": None, "num_speculative_tokens": 0}, Cause.SPECULATION_OFF),
        ({"draft_steps": None, "step_log_ratio": 0.0, "step_seconds": 0.02}, Cause.ACCEPTANCE_COLLAPSE),
        ({"draft_steps": None, "step_log_ratio": 0.0, "sibling_busy": True}, Cause.UNKNOWN),
        ({"draft_steps": None, "step_log_ratio": None}, Cause.UNKNOWN),
        ({"draft_steps": None, "acceptance_log_ratio": 0.0}, Cause.UNKNOWN),
    ],
)
def test_speculation_off_and_a_dead_drafter_are_told_apart_by_drafts_or_by_the_step_time(changes, cause):
    assert diagnose(findings(OFF, {"decode_tokens_per_second": None}, changes)).cause is cause


def test_a_poor_drafter_is_judged_by_its_own_first_position():
    """Healthy p_0 of 0.28 (A 1.39), as on one published machine: 0.2 is content or nothing, 0.02 is dead."""
    poor = {"expected_first_position_acceptance": 0.28, "verify_steps": 1700.0, "decode_tokens_per_second": None}
    wobble = {"acceptance_length": 1.05, "acceptance_log_ratio": -0.35, "position_acceptance": (0.2, 0.0)}
    dead = {"acceptance_length": 1.02, "acceptance_log_ratio": -0.31, "position_acceptance": (0.02, 0.0)}
    assert diagnose(findings(poor, wobble)).cause is Cause.UNKNOWN
    assert diagnose(findings(poor, dead)).signature == "dead_drafter"


def h200(capture):
    """Findings of each answer of a real engine against the capture's medians; only the stream's cadence is known."""
    path = Path(__file__).parents[2] / "data" / "watch" / "h200_answers.jsonl"
    answers = []
    for record in map(json.loads, path.read_text().splitlines()):
        if record["capture"] == capture:
            tokens = [int(digit, 36) for digit in record["tokens_per_event"]][1:]
            answers.append((record, sum(tokens) / len(tokens), record["decode_seconds"] / len(tokens), len(tokens)))
    usual_length, usual_step = (median(answer[number] for answer in answers) for number in (1, 2))
    for record, length, step, steps in answers:
        yield Findings(
            acceptance_log_ratio=math.log(length / usual_length),
            step_log_ratio=math.log(step / usual_step),
            rate_log_ratio=math.log(length / usual_length * usual_step / step),
            acceptance_length=length,
            step_seconds=step,
            decode_tokens_per_second=length / step,
            verify_steps=steps,
            completion_tokens=512,
            num_speculative_tokens=record["num_speculative_tokens"],
        )


def test_the_cycle_of_a_real_engine():
    """Four cycles of 5 fast answers, 1 of transition, 3 collapsed, 1 recovering, on an H200."""
    causes = [diagnose(answer).signature for answer in h200("k8_cycle_by_request")]
    assert [index for index, cause in enumerate(causes) if cause == "dead_drafter"] == [
        cycle + index for cycle in (0, 10, 20, 30) for index in (6, 7, 8)
    ]
    # Half of the drafts accepted is neither a dead drafter nor one that works.
    assert {causes[index] for index in (5, 15, 25, 35)} == {"slow_for_a_reason_that_is_not_known"}
    # One answer of the capture took 9.8 ms a step in place of 6.4 ms.
    assert [index for index, cause in enumerate(causes) if cause == "slow_steps"] == [9]


@pytest.mark.parametrize("capture", ["k2", "k12", "k15"])
def test_nothing_is_blamed_on_a_healthy_engine(capture):
    """Its slower answers are just that: no cause is made up for them."""
    assert {diagnose(answer).cause for answer in h200(capture)} == {Cause.UNKNOWN}


# ---- whatever is found -----------------------------------------------------------------------------------------------

_NUMBERS = st.none() | st.floats() | st.floats(-3, 3)
_KINDS = {
    float: _NUMBERS,
    bool: st.none() | st.booleans(),
    int: st.none() | st.integers(-5, 10**6),
    str: st.none() | st.sampled_from(["stop", "length", "abort", ""]),
    tuple: st.none() | st.lists(st.floats(), max_size=9).map(tuple) | st.lists(st.floats(0, 1), max_size=9).map(tuple),
}


def _values(hint):
    kind = next(option for option in getattr(hint, "__args__", (hint,)) if option is not type(None))
    return _KINDS[getattr(kind, "__origin__", kind)]


_HINTS = get_type_hints(Findings)
_SINGLE = st.sampled_from([name for name in _HINTS if name != "acceptance_is_upper_bound"])
NEAR_A_ROW = st.builds(
    lambda row, change: {**HEALTHY, **row[1], **change},
    st.sampled_from(ROWS),
    _SINGLE.flatmap(lambda name: st.fixed_dictionaries({name: _values(_HINTS[name])})),
)
ANY = NEAR_A_ROW | st.fixed_dictionaries(
    {"acceptance_is_upper_bound": st.booleans()},
    optional={name: _values(hint) for name, hint in _HINTS.items() if name != "acceptance_is_upper_bound"},
)


@given(fields=ANY)
def test_every_finding_has_one_diagnosis_and_always_the_same(fields):
    diagnosis = diagnose(Findings(**fields))
    assert diagnosis == diagnose(Findings(**fields))
    assert all(math.isfinite(number) for number in diagnosis.evidence.values())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(diagnosis), type=type(diagnosis)) == diagnosis


@given(fields=ANY)
def test_less_speculation_is_never_advised_above_the_break_even(fields):
    diagnosis = diagnose(Findings(**fields))
    if {Remedy.LOWER_NUM_SPECULATIVE_TOKENS, Remedy.SPECULATION_OFF} & set(diagnosis.remedies):
        assert diagnosis.cause is Cause.ACCEPTANCE_COLLAPSE
        measured = known(fields.get("break_even_acceptance_length")) or 0.0
        assert fields["acceptance_length"] < (measured if measured > 0 else LOWEST_BREAK_EVEN)


@given(fields=ANY, name=st.sampled_from([name for name, hint in _HINTS.items() if _values(hint) is _NUMBERS]))
def test_not_a_number_is_the_same_as_unknown(fields, name):
    assert diagnose(Findings(**{**fields, name: math.nan})) == diagnose(Findings(**{**fields, name: None}))


def test_nothing_known_is_unknown():
    diagnosis = diagnose(Findings())
    assert (diagnosis.cause, diagnosis.remedies, diagnosis.evidence) == (Cause.UNKNOWN, (), {})
