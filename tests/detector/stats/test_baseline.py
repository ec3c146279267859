"""The healthy reference."""

import msgspec
import pytest

from detector.stats.baseline import BATCH, BATCH_SHARE, COLLAPSED_BATCH, EARLY, USUAL_RATES, WINDOW, Baseline
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


def test_three_answers_make_a_reference():
    two, three = learned(*[sample()] * 2), learned(*[sample()] * 3)
    assert (two.expected_step_seconds(1), two.expected_rate(1), two.medians.acceptance_length) == (None, None, None)
    assert three.expected_step_seconds(1) == pytest.approx(0.02, rel=1e-3)
    assert three.expected_rate(1) == pytest.approx(225.0, rel=1e-3)


def test_the_reference_is_a_median_and_bounded():
    baseline = learned(*[sample()] * 30)
    for _ in range(200):
        baseline.learn(sample(1.0))
    assert len(baseline.acceptance_lengths) == WINDOW
    assert baseline.medians.acceptance_length == pytest.approx(2.0)
    sizes = []
    for _ in range(200):
        baseline.learn(sample(1.0))
        sizes.append(len(msgspec.msgpack.encode(msgspec.structs.replace(baseline, waiting=[]))))
        assert len(baseline.waiting) < BATCH
    assert sizes[-1] == pytest.approx(sizes[0], abs=200)


def test_usual_load_and_context_are_medians():
    assert Baseline().medians.in_flight == 1
    medians = learned(*[sample()] * 3, *[sample(in_flight=5, context_tokens=900.0)] * 4).medians
    assert (medians.in_flight, medians.context_tokens) == (5, 900.0)


def test_a_new_reference_forgets_the_old_one():
    baseline = learned(*[sample()] * 50)
    baseline.rebuild([sample(0.08, step_seconds=0.05)] * 10)
    assert baseline.medians.acceptance_length == pytest.approx(1.08)
    assert baseline.expected_step_seconds(1) == pytest.approx(0.05, rel=1e-3)


def test_an_upper_bound_is_not_learned_as_acceptance():
    baseline = learned(*[sample(upper_bound=True)] * 5)
    assert baseline.medians.conditional_acceptance is None
    assert baseline.expected_rate(1) is not None


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
    assert baseline.expected_rate(1) == pytest.approx(high.decode_tokens_per_second, rel=1e-3)
    assert len(baseline.loads) == 3


def test_contents_that_differ_are_not_taken_for_a_collapse():
    baseline = Baseline()
    assert not any(baseline.start(sample(accepted)) for accepted in [5.0, 1.8] * 15)


def test_after_the_first_answers_the_start_is_settled():
    baseline = Baseline()
    for _ in range(EARLY):
        baseline.start(sample())
    assert (baseline.settled, baseline.early) == (True, [])
    assert not any(baseline.start(sample(0.05)) for _ in range(5))


@pytest.mark.parametrize(
    ("contents", "middle"),
    [
        ([3.5], 0.70),  # whatever was seen, prose may come
        ([4.2, 4.2, 3.2, 3.2, 2.2], 0.70),  # a fifth of prose
        ([1.5], 0.60),
        ([0.39], 0.28),
    ],
)
def test_the_step_floor_is_hardly_below_the_middle_of_the_worst_content(contents, middle):
    learned = Baseline()
    for _ in range(60):
        for accepted in contents:
            learned.learn(sample(accepted))
    assert middle - 0.08 < learned.step_floor <= middle


def test_the_step_floor_reads_all_positions_where_the_first_is_known_too():
    """A drafter may be right at the first position far more often than at the others."""
    both, all_positions = Baseline(), Baseline()
    for _ in range(60):
        known = {"num_speculative_tokens": 8}
        both.learn(sample(1.5, conditional_acceptance=0.9, chain_length=1, **known))
        all_positions.learn(sample(1.5, **known))
    assert both.step_floor == all_positions.step_floor


def test_without_acceptance_there_is_no_step_floor():
    assert Baseline().step_floor is None


KNOWN = round(BATCH / BATCH_SHARE)
"""Answers after which batches are whole."""


def full_batches(**changes):
    """A reference that has just learned its last batch."""
    baseline = learned(*[sample(**changes)] * KNOWN)
    while baseline.waiting:
        baseline.learn(sample(**changes))
    return baseline


def test_acceptance_is_learned_in_batches_and_step_time_at_once():
    baseline = full_batches()
    chain, steps = baseline.chain.answers, baseline.step_seconds.answers
    for _ in range(BATCH - 1):
        baseline.learn(sample(2.2))
    assert (baseline.chain.answers, baseline.step_seconds.answers) == (chain, steps + BATCH - 1)
    baseline.learn(sample(2.2))
    assert (baseline.chain.answers, baseline.waiting) == (chain + BATCH, [])


def test_collapsed_answers_are_learned_in_batches_too_and_the_first_of_them_at_once():
    baseline = full_batches()
    learned_of = []
    for _ in range(10 * COLLAPSED_BATCH + 1):
        baseline.learn_collapsed(sample(1.2))
        learned_of.append(baseline.chain.collapsed_answers)
    assert learned_of[:10] == list(range(1, 11))
    assert learned_of[-1] - learned_of[-1 - COLLAPSED_BATCH] == COLLAPSED_BATCH
    assert len(set(learned_of[-COLLAPSED_BATCH:])) <= 2
    baseline.rebuild([sample()])
    assert (baseline.chain.collapsed_answers, baseline.waiting_collapsed) == (0, [])


def test_the_first_answers_do_not_wait():
    baseline = Baseline()
    for _ in range(EARLY):
        baseline.learn(sample())
        assert baseline.waiting == []


def test_the_rate_is_learned_from_all_answers_that_it_judges_and_from_a_few_others():
    baseline = full_batches()
    before = baseline.token_seconds.answers
    for _ in range(BATCH):
        baseline.learn(sample())
    assert baseline.token_seconds.answers == before + BATCH // USUAL_RATES
    for number in range(BATCH):
        unknown = {"acceptance_length": None, "conditional_acceptance": None} if number in (3, 5) else {}
        baseline.learn(sample(**unknown))
    assert baseline.token_seconds.answers == before + 2 * (BATCH // USUAL_RATES) + 2
    assert baseline.expected_rate(1) == pytest.approx(225.0, rel=1e-2)


def test_what_waits_survives_a_snapshot():
    baseline = full_batches()
    for _ in range(BATCH // 2):
        baseline.learn(sample(2.2))
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(baseline), type=Baseline)
    for each in (baseline, again):
        for _ in range(BATCH):
            each.learn(sample(2.2))
    assert msgspec.msgpack.encode(baseline) == msgspec.msgpack.encode(again)


def test_a_new_reference_forgets_what_waits():
    baseline = full_batches()
    baseline.learn(sample())
    baseline.rebuild([sample(0.08)] * 10)
    assert (baseline.waiting, baseline.answers, baseline.chain.answers) == ([], 10, 10)
