"""The learned law of times."""

import math
import random

import pytest

from detector.stats.timing import RATE, STEP, Timed, TimeLaw, normal_cumulative, t4_cumulative, t4_density


def timed(seconds=0.02, *, in_flight=1, context=500.0, tokens=1000.0, units=220.0):
    return Timed(math.log(seconds), in_flight, context, tokens, units)


def learned(*answers, alternative=STEP):
    law = TimeLaw()
    for each in answers:
        law.learn(each, alternative)
    return law


def noisy(count, seed, deviation, **changes):
    rng = random.Random(seed)
    return [timed(0.02 * math.exp(rng.gauss(0, deviation)), **changes) for _ in range(count)]


def test_slopes_of_load_and_context_are_learned():
    rng, law = random.Random(1), TimeLaw()
    for _ in range(300):
        load, context = rng.randint(1, 16), rng.uniform(0, 60_000)
        law.learn(timed(0.02 * load**0.2 * (1 + context / 20_000) ** 0.4, in_flight=load, context=context), STEP)
    assert math.exp(law.predict(8, 30_000)) == pytest.approx(0.02 * 8**0.2 * 2.5**0.4, rel=0.03)


def test_a_load_never_seen_is_allowed_to_be_slower():
    law = learned(*noisy(50, 1, 0.02))
    assert law.nats(timed(0.04, in_flight=16), STEP) < 1
    assert law.nats(timed(0.04), STEP) > 3


def test_noise_of_short_answers_is_learned():
    rng, law = random.Random(2), TimeLaw()
    for _ in range(400):
        tokens = rng.choice((30.0, 2000.0))
        deviation = 0.3 if tokens == 30.0 else 0.03
        law.learn(timed(0.02 * math.exp(rng.gauss(0, deviation)), tokens=tokens, units=tokens / 4.5), STEP)
    short = law.nats(timed(0.036, tokens=30.0, units=7.0), STEP)
    long = law.nats(timed(0.036, tokens=2000.0), STEP)
    assert short < 1.5 < 4 < long


def test_evidence_grows_with_the_slowdown_and_one_answer_is_bounded():
    law = learned(*noisy(60, 3, 0.03))
    nats = [law.nats(timed(0.02 * factor), STEP) for factor in (0.3, 1.0, 1.2, 1.5, 2.0, 3.0, 8.0)]
    assert nats == sorted(nats)
    assert nats[0] <= nats[1] < -3
    assert nats[-1] <= math.log(1 / STEP.freak)


def test_a_stall_of_seconds_weighs_less_in_a_short_answer():
    """Three times as long: two seconds more of an answer of one second, forty of one of twenty."""
    law = learned(*noisy(60, 4, 0.03))
    short, long = timed(0.06, units=50.0), timed(0.06, units=1000.0)
    assert law.nats(short, STEP) < law.nats(long, STEP) - 1


def test_stalls_are_learned():
    law = learned(*noisy(60, 5, 0.03))
    before = law.nats(timed(0.06), STEP)
    for number in range(400):
        law.learn(timed(0.06) if number % 20 == 0 else timed(), STEP)
    assert law.stalls / law.stall_chances > 0.01
    assert law.nats(timed(0.06), STEP) < before - 1


def test_neighbours_that_interrupt_are_learned_as_such():
    """With eight in flight every other answer is interrupted for a while, alone none is."""
    rng, law = random.Random(8), TimeLaw()
    for _ in range(400):
        load = rng.choice((1, 8))
        interrupted = load == 8 and rng.random() < 0.5
        law.learn(timed(0.034 if interrupted else 0.02, in_flight=load, tokens=90.0, units=20.0), STEP)
    alone, busy = (law.nats(timed(0.04, in_flight=load, tokens=90.0, units=20.0), STEP) for load in (1, 8))
    assert busy < alone - 1


def test_content_may_slow_a_rate_but_not_a_step():
    law = learned(*noisy(60, 6, 0.03))
    slower = timed(0.02 * math.exp(0.45))
    assert law.nats(slower, RATE) < 0 < law.nats(slower, STEP)


def test_an_unseen_collapse_hardly_moves_the_law():
    law = learned(*noisy(60, 7, 0.05))
    for _ in range(20):
        law.learn(timed(0.07), STEP)
    assert math.exp(law.predict(1, 500.0)) == pytest.approx(0.02, rel=0.15)


def test_densities_integrate_to_their_distributions():
    points = [-8 + index * 0.01 for index in range(1201)]
    integral = sum(t4_density(x) * 0.01 for x in points)
    assert integral == pytest.approx(t4_cumulative(4.0) - t4_cumulative(-8.0), abs=1e-3)
    assert normal_cumulative(0.0) == 0.5
    assert normal_cumulative(1.96) == pytest.approx(0.975, abs=1e-3)


def test_first_answers_of_other_content_do_not_make_load_look_fast():
    """Prose alone, then code beside it: a line through three answers must not promise that load speeds steps up."""
    law = TimeLaw()
    for in_flight, rate in [(1, 90.0), (1, 110.0), (3, 220.0), (3, 240.0), (2, 200.0)]:
        law.learn(Timed(-math.log(rate), in_flight, 500.0, 400.0, 400.0), RATE)
    assert law.mean[1] >= 0.0
    assert law.nats(Timed(-math.log(110.0), 10, 500.0, 400.0, 400.0), RATE) <= 0.0


def collapsed(count, drag, law):
    rng = random.Random(9)
    for _ in range(count):
        law.learn_drag(timed(0.02 * math.exp(drag + rng.gauss(0, 0.02))))
    return law


def drag_ratio(law, one):
    return law.drag_ratio(law.compare(one))


def test_the_step_times_of_healthy_answers_are_no_evidence_of_a_collapse():
    """On healthy noise the ratio has a mean of at most 1, before and after collapses were seen."""
    rng = random.Random(4)
    for law in (learned(*noisy(300, 1, 0.06)), collapsed(40, 0.13, learned(*noisy(300, 1, 0.06)))):
        ratios = [drag_ratio(law, timed(0.02 * math.exp(rng.gauss(0, 0.06)))) for _ in range(4000)]
        assert sum(ratios) / len(ratios) <= 1.0


def test_what_slow_steps_add_is_bounded():
    law = learned(*noisy(100, 1, 0.02))
    for factor in (1e-6, 0.5, 1.0, 1.1, 1.3, 2.0, 1e6):
        assert 0.49 <= drag_ratio(law, timed(0.02 * factor)) <= 26


def test_how_collapses_slow_the_steps_is_learned():
    fresh = learned(*noisy(100, 1, 0.02))
    none = collapsed(60, 0.0, learned(*noisy(100, 1, 0.02)))
    some = collapsed(60, 0.13, learned(*noisy(100, 1, 0.02)))
    assert drag_ratio(fresh, timed()) < 0.7 < 0.85 < drag_ratio(none, timed()) <= 1
    slow = timed(0.02 * math.exp(0.13))
    assert 1 < drag_ratio(none, slow) < drag_ratio(fresh, slow) < drag_ratio(some, slow)
