"""The cycle certificate."""

import itertools
import math

import msgspec
import numpy as np
import pytest
from scipy.special import stdtrit

from detector.stats.clocks import Clock, ClockReading
from detector.stats.cycle import CycleConfig, CycleState, CycleTest, CycleVerdict
from detector.stats.cycle_period import T_QUANTILES, period_of
from detector.stats.runs import Run
from tests.bench.detect.cycle_traffic import CYCLES, NULLS, Traffic, geometric, pick, runs


def run_of(answers, tokens=2000.0, seconds=9.0):
    cell = ClockReading(requests=1.0, tokens=tokens, steps=None, kv_blocks=None, seconds=seconds)
    return Run([cell] * answers, cell.times(answers))


def after(healthy_lengths, config=None, degraded=4):
    test = CycleTest(config)
    for length in healthy_lengths:
        test.update(run_of(degraded), degraded=True)
        test.update(run_of(length), degraded=False)
    return test.verdict


def watched(name, seed, cycles):
    test = CycleTest()
    for run, degraded in runs((CYCLES | NULLS)[name], np.random.default_rng(seed)):
        test.update(run, degraded=degraded)
        if not degraded:
            yield test.verdict
        if test.verdict.runs >= cycles:
            return


def test_nothing_is_claimed_of_nothing():
    assert CycleTest().verdict == CycleVerdict()


def test_the_published_ten_values_make_no_claim():
    # 221 214 218 222 230 | 103 | 59 62 62 | 212: one run, and its beginning was not seen.
    assert after([6]).verdict == "undetermined"


def test_a_regular_cycle_is_certified_with_its_period():
    verdict = after([6, 6, 5, 6, 7, 6, 6, 5])
    assert verdict.verdict == "cyclic"
    assert verdict.e_value >= 20
    assert verdict.p_value <= 1 / verdict.e_value * 1.0001
    assert verdict.runs == 8
    period = verdict.periods[Clock.REQUESTS]
    assert period.low < 9.875 < period.high
    assert period.estimate == pytest.approx(9.875)


def test_with_answers_of_one_length_no_clock_is_named():
    verdict = after([6] * 30)
    assert (verdict.verdict, verdict.clock, verdict.period) == ("cyclic", None, None)
    assert set(verdict.periods) == {Clock.REQUESTS, Clock.TOKENS, Clock.SECONDS}


def test_a_lone_known_clock_is_not_named():
    test = CycleTest()
    for _ in range(12):
        test.update(run_of(6, tokens=None, seconds=None), degraded=False)
    assert test.verdict.verdict == "cyclic"
    assert test.verdict.clock is None


@pytest.mark.parametrize(
    ("name", "clock"),
    [("published, mixed lengths", Clock.REQUESTS), ("seconds, mixed lengths, +-10 %", Clock.SECONDS)],
)
def test_the_clock_is_named_where_lengths_differ(name, clock):
    verdicts = [list(watched(name, seed, 25))[-1] for seed in range(6)]
    named = [verdict for verdict in verdicts if verdict.clock is not None]
    assert [verdict.clock for verdict in named] == [clock] * len(named)
    assert len(named) >= 4
    assert all(verdict.period.low < verdict.period.estimate < verdict.period.high for verdict in named)


def test_most_published_cycles_are_certified_in_four():
    first = [
        next((v.runs for v in watched("published jitter {5:.2, 6:.6, 7:.2}", seed, 8) if v.verdict == "cyclic"), 9)
        for seed in range(40)
    ]
    assert np.median(first) <= 4
    assert max(first) <= 8


@pytest.mark.parametrize("name", ["geometric, mean 6", "chance per token, client works in batches", "clustered"])
def test_collapses_by_chance_are_hardly_ever_certified(name):
    ever = [any(verdict.verdict == "cyclic" for verdict in watched(name, seed, 25)) for seed in range(12)]
    assert sum(ever) <= 1


def test_collapses_by_chance_are_called_so_in_the_end():
    assert list(watched("geometric, mean 6", 1, 30))[-1].verdict == "not_cyclic"


def test_collapses_of_fixed_length_are_no_cycle():
    traffic = Traffic(geometric(6), degraded=pick({4: 1.0}))
    test = CycleTest()
    for run, degraded in itertools.islice(runs(traffic, np.random.default_rng(3)), 60):
        test.update(run, degraded=degraded)
    assert test.verdict.e_value < 1


def test_a_cycle_that_ended_is_given_up():
    rng = np.random.default_rng(0)
    lengths = [6] * 30
    assert after(lengths).verdict == "cyclic"
    verdict = after(lengths + rng.geometric(1 / 6, 60).tolist())
    assert verdict.verdict != "cyclic"
    assert verdict.p_value <= 0.05


def test_a_run_of_zero_width_on_a_clock_is_survived():
    test = CycleTest()
    for _ in range(5):
        test.update(run_of(3, tokens=0.0, seconds=0.0), degraded=False)
    assert test.verdict.e_value > 0


def test_a_launch_ends_the_period_under_way_only():
    test = CycleTest()
    test.update(run_of(4), degraded=True)
    test.restart()
    test.update(run_of(6), degraded=False)
    assert test.state.periods == []
    assert test.verdict.runs == 1


def test_storage_resumes_identically_and_stays_small():
    sizes = []
    straight, stored = CycleTest(), CycleTest()
    stream = runs(CYCLES["published, mixed lengths"], np.random.default_rng(5))
    for run, degraded in itertools.islice(stream, 160):
        straight.update(run, degraded=degraded)
        stored.update(run, degraded=degraded)
        snapshot = msgspec.msgpack.encode(stored.state)
        stored = CycleTest(state=msgspec.msgpack.decode(snapshot, type=CycleState))
        assert stored.verdict == straight.verdict
        sizes.append(len(snapshot))
    assert sizes[-1] < 1.05 * sizes[80] < 10_000


@pytest.mark.parametrize("bad", [{"certificate_e_value": 1.0}, {"clock_odds": 0.0}, {"certificate_e_value": math.nan}])
def test_bad_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        CycleConfig(**bad)


def test_a_missed_onset_does_not_move_the_period():
    gaps = [ClockReading(requests=float(length)) for length in (10, 9, 11, 20, 10, 10)]
    assert period_of(gaps, Clock.REQUESTS).estimate == 10


def test_one_gap_is_no_period():
    assert period_of([ClockReading(requests=10.0)], Clock.REQUESTS) is None
    assert period_of([ClockReading(requests=10.0)] * 3, Clock.TOKENS) is None


def test_the_quantiles_are_students():
    assert pytest.approx([stdtrit(freedom + 1, 0.975) for freedom in range(31)], abs=6e-4) == list(T_QUANTILES)
