"""Laws of runs that are kept up to date are those that would be worked out from the beginning, one by one."""

import math
import random
from statistics import median

import msgspec
import pytest

from detector.stats import run_law
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
        return 0.5 * math.erfc((centre - math.log(x)) / (math.sqrt(2) * spread)) if x > 0 else 0.0

    parts = []
    for spread in run_law.SPREADS:
        count = int(2 * run_law.REACH / (0.75 * spread) + 1e-9) + 1
        for step in range(count):
            centre, evidence = -run_law.REACH + 0.75 * spread * step, 0.0
            for age, (low, high) in enumerate(reversed(cells)):
                cell = bump(high, centre, spread) - bump(low, centre, spread)
                mixed = 0.95 * cell + 0.05 * (broad(high) - broad(low))
                evidence += run_law.FORGETTING**age * math.log(mixed)
            parts.append((0.88 / 4 / count * math.exp(evidence), bump(at, centre, spread)))
    memoryless = total = wide = 0.0
    for number, (low, high) in enumerate(cells):
        weight = run_law.FORGETTING ** (len(cells) - 1 - number)
        cell = ((1 + total) / (1 + total + low)) ** (1 + number) - ((1 + total) / (1 + total + high)) ** (1 + number)
        memoryless += weight * math.log(cell)
        wide += weight * math.log(broad(high) - broad(low))
        total += (low + high) / 2
    parts.append((0.1 * math.exp(memoryless), 1 - ((1 + total) / (1 + total + at)) ** (1 + len(cells))))
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


def test_a_law_is_what_its_formulas_say():
    history = RunLaws(RunHistory())
    for run in runs([2, 9, 40, 3, 100, 7, 1] * 4):
        history.add(run)
    intervals = history.history.intervals[Clock.TOKENS]
    law = learn_law(intervals)
    for length in law.points.values[40:300:20]:  # in between it is linear
        assert law.below(length) == pytest.approx(plainly(intervals, length), abs=1e-6)
    assert law.below_all(law.points.array).tolist() == pytest.approx([law.below(x) for x in law.points.values])
