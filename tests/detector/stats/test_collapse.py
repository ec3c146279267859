"""Evidence of one answer and of one step."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.stats.acceptance import FREAK
from detector.stats.baseline import Baseline
from detector.stats.collapse import EDetector, Evidence, Factor, is_low, weigh, weigh_recovery
from detector.stats.sample import Sample, chain_acceptance
from detector.stats.timing import STEP
from detector.verdict import Cause


def sample(accepted=3.5, *, steps=200.0, each_step=0.02, depth=8, **changes):
    fields = {
        "started": 0.0,
        "in_flight": 1,
        "acceptance_length": 1 + accepted,
        "conditional_acceptance": chain_acceptance(accepted, depth),
        "chain_length": depth,
        "num_speculative_tokens": depth,
        "verify_steps": steps,
        "step_seconds": each_step,
        "decode_tokens_per_second": (1 + accepted) / each_step,
        "tokens": steps * (1 + accepted),
    }
    return Sample(**(fields | changes))


def baseline(accepted=3.5, depth=8, answers=20):
    learned = Baseline()
    for _ in range(answers):
        learned.learn(sample(accepted, depth=depth))
    return learned


def test_without_a_reference_there_is_no_evidence():
    assert weigh(sample(0.0), Baseline()) is None


@pytest.mark.parametrize("accepted", [1.5, 2.2, 5.0, 8.0])
def test_healthy_content_speaks_against_a_collapse(accepted):
    assert weigh(sample(accepted), baseline()).loudest.nats < 0


@pytest.mark.parametrize("depth", [1, 2, 4, 15])
def test_the_floor_fits_each_depth(depth):
    """A drafter at 0.8 of each position is healthy and one at 0.1 is dead, however many positions there are."""
    healthy = sum(0.8**position for position in range(1, depth + 1))
    dead = sum(0.1**position for position in range(1, depth + 1))
    assert weigh(sample(healthy, depth=depth), baseline(healthy, depth)).loudest.nats < -1
    evidence = weigh(sample(dead, depth=depth, steps=500.0), baseline(healthy, depth))
    assert evidence.loudest.nats > 3
    assert evidence.loudest.cause is Cause.ACCEPTANCE_COLLAPSE


def test_longer_answers_weigh_more_and_none_too_much():
    weights = [weigh(sample(0.08, steps=steps), baseline()).loudest.nats for steps in (5.0, 50.0, 500.0, 5000.0)]
    assert weights == sorted(weights)
    assert weights[0] < 1
    assert math.log(1000) < weights[2] <= weights[3] <= math.log(1 / FREAK)


def test_an_upper_bound_counts_only_where_it_is_low():
    only_acceptance = {"upper_bound": True, "step_seconds": None, "decode_tokens_per_second": None}
    assert weigh(sample(0.05, **only_acceptance), baseline()).loudest.nats > 3
    assert weigh(sample(3.5, **only_acceptance), baseline()) is None


def test_slow_steps_of_one_answer_are_an_alarm_only_after_collapses_of_the_step_time():
    evidence = weigh(sample(each_step=0.2), baseline())
    assert evidence.loudest.nats <= math.log(1 / STEP.freak)
    assert evidence.loudest.cause is Cause.STEP_INFLATION
    assert EDetector().update(evidence) < math.log(1000)
    assert EDetector(acceptance_share=1 / 12).update(evidence) > math.log(1000)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.2, 1.3])
def test_steps_somewhat_slower_are_no_evidence(factor):
    assert weigh(sample(each_step=0.02 * factor), baseline()).loudest.nats <= 0


def test_the_rate_decides_only_where_nothing_else_is_known():
    unknown = {"acceptance_length": None, "conditional_acceptance": None, "step_seconds": None}
    evidence = weigh(sample(decode_tokens_per_second=60.0, **unknown), baseline())
    assert evidence.loudest.nats > 5.3
    assert evidence.loudest.cause is Cause.UNKNOWN
    assert weigh(sample(decode_tokens_per_second=0.65 * 225, **unknown), baseline()).loudest.nats <= 0
    assert weigh(sample(decode_tokens_per_second=60.0), baseline()).loudest.nats < 0


@given(drops=st.lists(st.floats(0.02, 2.0), min_size=2, max_size=2, unique=True))
def test_a_deeper_drop_of_the_rate_is_no_weaker_evidence(drops):
    unknown = {"acceptance_length": None, "conditional_acceptance": None, "step_seconds": None}
    deep, shallow = (
        weigh(sample(decode_tokens_per_second=225.0 * share, **unknown), baseline()).loudest.nats
        for share in sorted(drops)
    )
    assert deep >= shallow - 0.2


def bet(acceptance, step=None):
    """Evidence of given e-values."""
    nats = [None if e_value is None else math.log(e_value) for e_value in (acceptance, step)]
    return Evidence(*(None if one is None else Factor(one, one, Cause.UNKNOWN) for one in nats))


def test_one_freak_in_each_factor_is_no_collapse():
    apart, together = EDetector(), EDetector()
    apart.update(bet(60.0, 0.1))
    together.update(bet(60.0, 0.1))
    assert apart.update(bet(0.1, 60.0)) < math.log(60) < together.update(bet(60.0, 0.1)) - math.log(20)


def test_a_rate_speaks_for_both_factors():
    unknown = {"acceptance_length": None, "conditional_acceptance": None, "step_seconds": None}
    evidence = weigh(sample(decode_tokens_per_second=60.0, **unknown), baseline())
    assert evidence.acceptance.nats == evidence.step.nats > 0
    assert weigh(sample(0.08, step_seconds=None), baseline()).step is None


def test_the_e_detector_sums_over_all_onsets():
    detector, e_values = EDetector(), [0.5, 3.0, 2.0, 0.1]
    for e_value in e_values:
        detector.update(bet(e_value))
    assert detector.acceptance == pytest.approx(sum(math.prod(e_values[onset:]) for onset in range(4)))


def test_the_first_answer_of_a_collapse_has_an_e_value_of_its_own():
    detector = EDetector()
    for e_value, first in ((2.0, 5.0), (3.0, 0.5)):
        nats = math.log(e_value)
        detector.update(Evidence(Factor(nats, math.log(first), Cause.ACCEPTANCE_COLLAPSE), None))
    assert detector.acceptance == pytest.approx(5.0 * 3.0 + 0.5)


def rate_alone(rate, **changes):
    unknown = {"acceptance_length": None, "conditional_acceptance": None, "step_seconds": None, "verify_steps": None}
    return sample(decode_tokens_per_second=rate, tokens=400.0, **unknown, **changes)


def test_a_rate_is_judged_as_acceptance_where_the_steps_are_known():
    """Prose at 60 % of the usual rate is content that was seen; a third of the rate is a collapse."""
    reference = Baseline()
    for number in range(60):
        reference.learn(sample((3.5, 2.0)[number % 2]))
    prose, dead = (weigh(rate_alone(rate, stall_removed=True), reference) for rate in (150.0, 65.0))
    assert prose.loudest.nats < 0
    assert dead.loudest.nats > 5
    assert dead.loudest.cause is Cause.UNKNOWN
    assert dead.acceptance.nats == dead.step.nats


def test_a_stall_may_explain_a_rate_if_the_longest_gap_is_unknown():
    reference = baseline(answers=60)
    told, untold = (weigh(rate_alone(65.0, stall_removed=removed), reference).loudest.nats for removed in (True, False))
    assert untold < told - 0.5


def test_content_is_learned_from_rates_alone():
    """Half of the traffic at half of the rate: with 40 answers it is known, and the slow half is no collapse."""
    reference = Baseline()
    for number in range(120):
        reference.learn(rate_alone((220.0, 130.0)[number % 2]))
    assert weigh(rate_alone(130.0, stall_removed=True), reference).loudest.nats < 0
    assert weigh(rate_alone(55.0, stall_removed=True), reference).loudest.nats > 5


def test_slow_steps_are_over_when_steps_are_fast_though_the_content_is_poor():
    reference = baseline(answers=60)
    poor = sample(1.2)
    assert weigh_recovery(weigh(poor, reference), Cause.STEP_INFLATION).cause is Cause.STEP_INFLATION
    assert weigh_recovery(weigh(poor, reference), Cause.STEP_INFLATION).nats < -2
    assert weigh_recovery(weigh(poor, reference), Cause.UNKNOWN).nats > -2
    assert weigh_recovery(weigh(sample(each_step=0.07), reference), Cause.STEP_INFLATION).nats > 2


def test_the_e_detector_alarms_no_more_often_than_it_is_set_to():
    """e-values of a fair bet: the mean number of answers to an alarm at 50 is at least 50."""
    rng, waits = random.Random(7), []
    for _ in range(400):
        detector, wait = EDetector(), 1
        while True:
            e_value = 1.9 if rng.random() < 0.5 else 0.1
            if detector.update(bet(e_value, e_value)) >= math.log(50):
                break
            wait += 1
        waits.append(wait)
    assert sum(waits) / len(waits) >= 50


def test_the_e_detector_stays_finite():
    detector = EDetector()
    for _ in range(1000):
        assert math.isfinite(detector.update(bet(3000.0)))
    for _ in range(1000):
        assert math.isfinite(detector.update(bet(0.002)))


def test_is_low_by_any_factor():
    reference = baseline()
    assert not is_low(sample(), reference)
    assert is_low(sample(1.0), reference)
    assert is_low(sample(each_step=0.04), reference)
    rate = {"acceptance_length": None, "step_seconds": None}
    assert is_low(sample(decode_tokens_per_second=100.0, **rate), reference)
    assert not is_low(sample(decode_tokens_per_second=200.0, **rate), reference)
    assert not is_low(sample(decode_tokens_per_second=None, **rate), reference)


def test_steps_that_are_a_little_slower_add_to_the_evidence_of_a_collapse():
    known = baseline()
    usual, slower = weigh(sample(1.0), known), weigh(sample(1.0, each_step=0.0228), known)
    assert slower.acceptance.nats > usual.acceptance.nats + 1
    assert slower.loudest.cause is Cause.ACCEPTANCE_COLLAPSE
    # Without a step time, acceptance speaks for itself.
    assert usual.acceptance.nats < weigh(sample(1.0, step_seconds=None), known).acceptance.nats < slower.acceptance.nats


def test_slower_steps_of_usual_acceptance_are_no_collapse_of_it():
    assert weigh(sample(3.5, each_step=0.0228), baseline()).acceptance.nats < -1
