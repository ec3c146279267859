"""The filter of phases and the prediction of onsets."""

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.stats.clocks import ClockReading
from detector.stats.regime import MAX_BEGINNINGS, Regime, RegimeState
from detector.stats.runs import Run
from tests.bench.detect.cycle_bench import Score, predict
from tests.bench.detect.cycle_traffic import CYCLES, NULLS, PMFS, runs

ANSWER = ClockReading(requests=1.0, tokens=2000.0, steps=444.0, kv_blocks=127.0, seconds=9.0)
CLEAR = 6.0


def learned(healthy=(6, 6, 5, 6, 7, 6), degraded=4):
    regime = Regime()
    for length in healthy:
        regime.learn(Run([ANSWER] * length, ANSWER.times(length)), degraded=False)
        regime.learn(Run([ANSWER] * degraded, ANSWER.times(degraded)), degraded=True)
    return regime


def test_without_evidence_a_backend_is_probably_healthy():
    regime = Regime()
    assert regime.degraded_probability == 0
    regime.update(0.0, ANSWER)
    assert regime.degraded_probability < 0.02


def after(regime, nats, advance=ANSWER):
    regime.update(nats, advance)
    return regime.degraded_probability


def collapsed(regime):
    for _ in range(4):
        regime.update(CLEAR, ANSWER)
    return regime


def test_evidence_moves_the_probability_and_one_answer_never_settles_it():
    regime = Regime()
    assert 0.5 < after(regime, CLEAR) < 0.9
    assert after(regime, CLEAR) > 0.99
    assert after(regime, -1e9) < 0.1
    assert regime.degraded_probability > 0


def test_a_learned_cycle_raises_the_probability_of_an_onset_when_it_is_due():
    regime = collapsed(learned())
    chances = []
    for _ in range(6):
        regime.update(-CLEAR, ANSWER)
        chances.append(regime.onset_probability(ANSWER))
    assert max(chances[:4]) < 0.2
    assert chances[4] < chances[5]
    assert chances[5] > 0.5


def test_longer_looks_ahead_see_more():
    regime = collapsed(learned())
    for _ in range(2):
        regime.update(-CLEAR, ANSWER)
    looks = [regime.degraded_within(ANSWER.times(factor)) for factor in (0.0, 0.5, 1, 3, 6, 20)]
    assert looks == sorted(looks)
    assert looks[0] < 0.02
    assert looks[-1] > 0.9


def test_a_degraded_backend_will_be_degraded_next_until_its_time_is_up():
    regime = learned()
    for _ in range(2):
        regime.update(CLEAR, ANSWER)
    assert regime.next_degraded_probability(ANSWER) > 0.9
    for _ in range(2):
        regime.update(CLEAR, ANSWER)
    assert regime.next_degraded_probability(ANSWER) < 0.5


def test_a_cycle_on_the_token_clock_is_predicted_by_tokens():
    regime = Regime()
    rng = np.random.default_rng(0)
    for run, degraded in itertools.islice(runs(CYCLES["tokens, mixed lengths, +-10 %"], rng), 60):
        regime.learn(run, degraded=degraded)
    collapsed(regime).update(-CLEAR, ANSWER)
    short = ClockReading(requests=1.0, tokens=100.0, steps=22.0, kv_blocks=10.0, seconds=0.5)
    assert regime.onset_probability(short) < 0.02
    long = ClockReading(requests=1.0, tokens=8000.0, steps=1778.0, kv_blocks=600.0, seconds=36.5)
    assert regime.onset_probability(long) > 0.7


def test_prediction_is_as_good_as_the_oracles_after_six_cycles():
    name = "published jitter {5:.2, 6:.6, 7:.2}"
    scores = {key: Score() for key in ("1", "2", "late", "oracle")}
    for seed in range(15):
        predict(CYCLES[name], PMFS[name], seed, scores, [])
    mine, oracle = ([float(x) for x in str(scores[key]).split(" / ")] for key in ("late", "oracle"))
    assert mine == pytest.approx(oracle, abs=0.05)


def test_chance_is_predicted_at_its_rate():
    scores = {key: Score() for key in ("1", "2", "late", "oracle")}
    probabilities = []
    for seed in range(10):
        predict(NULLS["geometric, mean 6"], None, seed, scores, probabilities)
    mean, share = np.mean(probabilities, axis=0)
    assert mean == pytest.approx(share, abs=0.03)
    assert max(chance for chance, _ in probabilities[-50:]) < 0.6


def test_a_launch_forgets_the_phase_and_keeps_what_was_learned():
    regime = learned()
    for _ in range(3):
        regime.update(CLEAR, ANSWER)
    regime.restart()
    assert regime.degraded_probability == 0
    assert regime.state.healthy_runs.count == 6


def test_a_filter_that_begins_in_a_known_phase_soon_says_what_one_that_saw_it_come_says():
    saw, begun = learned(), learned()
    for degraded in [False] * 8 + [True] * 2:
        saw.update(CLEAR if degraded else -CLEAR, ANSWER)
    begun.begin(degraded=True, elapsed=ANSWER)
    assert begun.degraded_probability == 1
    for degraded in [True, False, False, False]:
        for regime in (saw, begun):
            regime.update(CLEAR if degraded else -CLEAR, ANSWER)
    assert begun.onset_probability(ANSWER.times(4)) == pytest.approx(saw.onset_probability(ANSWER.times(4)), abs=0.01)
    assert begun.next_degraded_probability(ANSWER) == pytest.approx(saw.next_degraded_probability(ANSWER), abs=0.01)


advances = st.builds(
    ClockReading,
    requests=st.just(1.0),
    tokens=st.none() | st.floats(0, 1e5),
    steps=st.none() | st.floats(0, 1e5),
    kv_blocks=st.none(),
    seconds=st.floats(0, 1e6),
)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(-50, 50), advances), max_size=30))
def test_probabilities_stay_probabilities_and_storage_changes_nothing(answers):
    straight, stored = learned(), learned()
    for nats, advance in answers:
        chance = after(straight, nats, advance)
        stored = Regime(msgspec.msgpack.decode(msgspec.msgpack.encode(stored.state), type=RegimeState))
        assert after(stored, nats, advance) == chance
        assert 0 <= chance <= 1.000001
        assert 0 <= straight.onset_probability(advance) <= straight.degraded_within(advance) <= 1.000001
        assert 0 <= straight.next_degraded_probability(advance) <= 1.000001
        assert len(straight.state.beginnings) <= MAX_BEGINNINGS


def test_hours_of_traffic_take_constant_memory():
    regime, sizes = learned(), []
    for number in range(4000):
        regime.update(CLEAR if number % 10 > 5 else -CLEAR, ANSWER)
        if number % 1000 == 999:
            sizes.append(len(msgspec.msgpack.encode(regime.state)))
    assert max(sizes) < 20_000
