"""Laws of runs that are kept up to date are those that would be worked out from the beginning, one by one."""

import math
import random
from statistics import median

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.stats import run_history, run_law, run_parts
from detector.stats.clocks import Advance, Clock, ClockReading
from detector.stats.run_history import RunHistory, RunLaws
from detector.stats.run_law import learn_law
from detector.stats.runs import RunRecorder


def runs(lengths):
    """Runs of so many answers of different lengths, some of which do not tell their steps."""
    rng, recorder, number = random.Random(5), RunRecorder(), 0
    recorder.turn(0)
    for length in lengths:
        for _ in range(length):
            tokens = rng.lognormvariate(6, 0.5)
            steps = None if rng.random() < 0.02 else tokens / 4
            clocks = ClockReading(requests=1.0, tokens=tokens, steps=steps, kv_blocks=tokens / 16, seconds=tokens / 200)
            recorder.add(number, Advance(clocks=clocks))
            number += 1
        run = recorder.turn(number - 1)
        if run is not None:
            yield run


def plainly(intervals, length):
    """The distribution function by the formulas of the module's head, a part at a time."""
    window = intervals[-run_law.WINDOW :]
    middle = median((low + high) / 2 for low, high in window)
    scale = math.exp(round(4 * math.log(middle)) / 4)
    cells = [(low / scale, high / scale) for low, high in window]
    at = length / scale

    def broad(x):
        return x / (1 + x)

    def bump(x, centre, spread):
        score = (math.log(x) - centre) * math.pi / math.sqrt(3) / spread if x > 0 else -math.inf
        return 1 / (1 + math.exp(-score)) if score > -700 else 0.0

    parts = []
    for spread in run_parts.SPREADS:
        count = int(2 * run_parts.REACH / spread + 1e-9) + 1
        for step in range(count):
            centre, evidence = -run_parts.REACH + spread * step, 0.0
            for age, (low, high) in enumerate(reversed(cells)):
                cell = bump(high, centre, spread) - bump(low, centre, spread)
                mixed = 0.95 * cell + 0.05 * (broad(high) - broad(low))
                evidence += run_law.FORGETTING**age * math.log(mixed)
            parts.append((0.88 / 4 / count * math.exp(evidence), bump(at, centre, spread)))
    aged = [(run_law.FORGETTING**age, low, high) for age, (low, high) in enumerate(reversed(cells))]
    for middle in run_parts.EXPONENTIAL_MEDIANS:
        evidence = sum(weight * math.log(0.5 ** (low / middle) - 0.5 ** (high / middle)) for weight, low, high in aged)
        parts.append((0.1 / 5 * math.exp(evidence), 1 - 0.5 ** (at / middle)))
    wide = sum(weight * math.log(broad(high) - broad(low)) for weight, low, high in aged)
    parts.append((0.02 * math.exp(wide), broad(at)))
    return sum(weight * below for weight, below in parts) / sum(weight for weight, _ in parts)


@pytest.mark.parametrize("lengths", [[6] * 30, [2, 9, 40, 3, 100, 7, 1] * 9], ids=["cyclic", "any"])
def test_laws_are_the_same_whether_kept_up_or_made_from_a_stored_history(lengths):
    kept = RunLaws(RunHistory())
    for run in runs(lengths):
        kept.add(run)
        fresh = RunLaws(msgspec.msgpack.decode(msgspec.msgpack.encode(kept.history), type=RunHistory)).current
        assert kept.current.keys() == fresh.keys() >= {Clock.REQUESTS, Clock.TOKENS}
        for clock, law in kept.current.items():
            assert law.cumulative.tolist() == fresh[clock].cumulative.tolist()


def test_a_typical_length_that_hovers_between_two_roundings_stays_as_it_was():
    kept, scales = RunLaws(RunHistory()), set()
    for run in runs([20, 27] * 30):
        kept.add(run)
        scales.add(kept.history.scales[Clock.REQUESTS])
    assert len(scales) <= 2
    for run in runs([60] * 30):
        kept.add(run)
    assert kept.history.scales[Clock.REQUESTS] == pytest.approx(60, rel=0.3)


def test_the_first_runs_are_learned_from_one_by_one_and_later_ones_together():
    kept, changes = RunLaws(RunHistory()), []
    for number, run in enumerate(runs([4, 9, 7] * 9), start=1):
        before = kept.current.get(Clock.REQUESTS)
        kept.add(run)
        if kept.current[Clock.REQUESTS] is not before:
            changes.append(number)
    each, step = run_history.LEARNED_ONE_BY_ONE, run_history.LEARNED_TOGETHER
    assert changes == [*range(1, each + 1), *range(each + step, kept.history.count + 1, step)]


@given(st.floats(0, 1e4), st.floats(0, 1e4))
def test_one_look_at_two_lengths_is_two_looks(one, other):
    law = learn_law([(4.0, 5.0), (5.0, 6.0), (6.0, 7.0)])
    length, later = sorted((one, other))
    assert law.below_both(length, later) == (law.below(length), law.below(later))


def test_a_law_is_what_its_formulas_say():
    history = RunLaws(RunHistory())
    for run in runs([2, 9, 40, 3, 100, 7, 1] * 4):
        history.add(run)
    intervals = history.history.intervals[Clock.TOKENS]
    law = learn_law(intervals)
    for length in law.points.values[20:190:10]:  # in between it is linear
        assert law.below(length) == pytest.approx(plainly(intervals, length), abs=1e-6)
