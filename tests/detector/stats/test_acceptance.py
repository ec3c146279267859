"""The learned law of healthy acceptance."""

import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.stats.acceptance import OVERDISPERSIONS, WANDER_STEPS, WANDERS, Acceptance, AcceptanceLaw
from detector.stats.sample import chain_acceptance

DEPTH = 8


def answer(accepted, tokens=500.0, depth=DEPTH):
    return Acceptance(chain_acceptance(accepted, depth), depth, tokens, depth)


def learned(*accepted, times=40, tokens=500.0):
    law = AcceptanceLaw()
    for _ in range(times):
        for each in accepted:
            law.learn(answer(each, tokens))
    return law


def evidence(law, accepted, tokens=500.0):
    return law.nats(answer(accepted, tokens)).collapsed


def _accepted(rng, steps, deviation):
    """Accepted tokens of steps whose acceptance jumps every 20 steps."""
    total = 0
    for number in range(steps):
        if number % 20 == 0:
            p = 1 / (1 + math.exp(-1.1 - rng.gauss(0, deviation)))
        taken = 0
        while taken < DEPTH and rng.random() < p:
            taken += 1
        total += taken
    return total


def test_a_dead_drafter_is_evidence_and_usual_content_is_none():
    law = learned(3.5)
    assert evidence(law, 0.1) > 7
    assert evidence(law, 3.5) < -5


@pytest.mark.parametrize("prose", [2.0, 2.2])
def test_content_never_seen_is_no_evidence(prose):
    """Prose after nothing but code, however long: any mean above the lowest healthy content is."""
    assert evidence(learned(5.0, times=300), prose, tokens=2000.0) < 0


def test_a_mild_collapse_shows_once_the_content_is_known():
    """A 4.5 -> 2.0: below all content seen, though not dead."""
    assert evidence(learned(3.5, times=100), 1.0, tokens=2000.0) > 5
    assert evidence(learned(3.5, times=2), 1.0, tokens=2000.0) < 5


def test_a_low_drafter_is_judged_by_its_own_level():
    low = learned(0.39, times=60)
    assert evidence(low, 0.39) < 0
    assert evidence(low, 0.02, tokens=1000.0) > 5


def test_content_that_was_seen_often_is_no_evidence_though_it_is_low():
    law = learned(3.5, 1.2, times=100)
    assert evidence(law, 1.2) < 1


def test_short_answers_say_little():
    law = learned(3.5)
    assert evidence(law, 0.0, tokens=16.0) < 2
    assert [evidence(law, 0.1, tokens) for tokens in (16.0, 64.0, 256.0, 1024.0)] == sorted(
        evidence(law, 0.1, tokens) for tokens in (16.0, 64.0, 256.0, 1024.0)
    )


def test_noise_within_answers_is_learned():
    """The more the steps of an answer are alike, the less an odd answer says."""

    def law_of(deviation):
        law, rng = AcceptanceLaw(), random.Random(3)
        for _ in range(300):
            steps = rng.choice((10, 20, 40, 80, 160, 320))
            taken = _accepted(rng, steps, deviation)
            law.learn(answer(taken / steps, float(taken + steps)))
        return law

    calm, wild = law_of(0.0), law_of(1.5)
    best = [OVERDISPERSIONS[np.frombuffer(law.scores).argmax()] for law in (calm, wild)]
    assert best[0] < best[1]
    assert evidence(calm, 0.6, 100.0) > evidence(wild, 0.6, 100.0)


def test_answers_of_an_unseen_collapse_hardly_move_the_law():
    law = learned(3.5, times=100)
    for _ in range(30):
        law.learn(answer(0.3))
    assert evidence(law, 0.3) > 5


def test_collapses_seen_sharpen_the_evidence():
    law = learned(3.5)
    before = evidence(law, 0.4, 150.0)
    for _ in range(10):
        law.learn_collapsed(answer(0.4))
    assert evidence(law, 0.4, 150.0) > before


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("positions", [None, 1, 15])
def test_the_ends_of_the_range_are_fine(share, positions):
    law = AcceptanceLaw()
    for _ in range(5):
        law.learn(Acceptance(share, positions, 100.0))
    ratios = law.nats(Acceptance(share, positions, 100.0))
    assert all(math.isfinite(ratio) for ratio in ratios)
    assert max(ratios.collapsed, ratios.first) < 2


@settings(max_examples=30, deadline=None)
@given(
    content=st.lists(st.floats(1.8, 7.0), min_size=1, max_size=3),
    tokens=st.sampled_from([60.0, 300.0, 1500.0]),
    seed=st.integers(0, 1000),
)
def test_the_mean_e_value_of_learned_content_is_at_most_one(content, tokens, seed):
    """Answers of independent steps: the assumption is met, so the promise must hold, up to the noise of the mean."""
    rng, law = random.Random(seed), AcceptanceLaw()

    def one():
        p = chain_acceptance(rng.choice(content), DEPTH)
        steps = total = 0
        while total < tokens:
            taken = 0
            while taken < DEPTH and rng.random() < p:
                taken += 1
            total, steps = total + taken + 1, steps + 1
        return answer(total / steps - 1, float(total))

    for _ in range(40):
        law.learn(one())
    ratios = [law.nats(one()) for _ in range(60)]
    assert sum(math.e**one.collapsed for one in ratios) / 60 < 1
    assert sum(math.e**one.first for one in ratios) / 60 < 1


def test_an_answer_in_which_a_collapse_begins_is_evidence_as_the_first_one():
    """A 4.5 and then 1.3, half of the tokens each: 2.0 in all, which is neither."""
    law = learned(3.5, times=100)
    mixed = 1 / (0.5 / 4.5 + 0.5 / 1.3) - 1
    ratios = law.nats(answer(mixed))
    assert ratios.first > ratios.collapsed + 0.4
    whole = law.nats(answer(0.3))
    assert whole.collapsed - 2 < whole.first < whole.collapsed
    assert law.nats(answer(3.5)).first < 0


def test_what_else_an_answer_says_counts_for_its_beginning_too():
    law = learned(3.5, times=100)
    plain, more, less = (law.nats(answer(1.5, 100.0), ratio) for ratio in (1.0, 3.0, 0.3))
    assert less.first < plain.first < more.first
    assert less.collapsed < plain.collapsed < more.collapsed


def test_freaks_bound_the_evidence_of_one_answer():
    ratios = learned(3.5, times=100).nats(answer(0.1, 5000.0), freak=0.01)
    assert max(ratios) <= math.log(100)


def test_several_answers_at_once_teach_what_they_teach_one_by_one():
    at_once, one_by_one = learned(3.5, 2.2, times=100), learned(3.5, 2.2, times=100)
    batch = [answer(accepted, tokens) for accepted in (2.0, 3.0, 4.0, 5.0) for tokens in (80.0, 900.0)]
    at_once.learn(*batch)
    for each in batch:
        one_by_one.learn(each)
    assert at_once.answers == one_by_one.answers
    for accepted in (0.3, 1.2, 2.5, 4.5):
        assert evidence(at_once, accepted) == pytest.approx(evidence(one_by_one, accepted), abs=0.1)
    assert at_once.quantile(0.1) == pytest.approx(one_by_one.quantile(0.1), abs=0.005)


def test_several_collapsed_answers_at_once_teach_what_they_teach_one_by_one():
    at_once, one_by_one = learned(3.5, times=100), learned(3.5, times=100)
    for law in (at_once, one_by_one):
        for _ in range(40):
            law.learn_collapsed(answer(0.2))
    batch = [answer(accepted, tokens) for accepted in (0.1, 0.4) for tokens in (80.0, 900.0)]
    at_once.learn_collapsed(*batch)
    for each in batch:
        one_by_one.learn_collapsed(each)
    assert at_once.collapsed_answers == one_by_one.collapsed_answers == 44
    for accepted in (0.1, 0.4, 1.2, 2.5):
        assert evidence(at_once, accepted) == pytest.approx(evidence(one_by_one, accepted), abs=0.1)


def test_the_law_survives_a_snapshot():
    law = learned(3.5, 2.2)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(law), type=AcceptanceLaw)
    for each in (law, again):
        each.learn(answer(3.0))
    assert msgspec.msgpack.encode(law) == msgspec.msgpack.encode(again)


def test_the_first_position_says_no_more_than_all_positions_do():
    """The same answers, told by p_0 alone: an answer took as many steps, and so is no stronger evidence."""
    by_first, by_all = AcceptanceLaw(), AcceptanceLaw()
    rng = random.Random(3)
    for _ in range(100):
        share = chain_acceptance(rng.choice([4.2, 3.2, 2.2]), 8)
        by_first.learn(Acceptance(share, 1, 400.0, 8))
        by_all.learn(Acceptance(share, 8, 400.0, 8))
    dead = chain_acceptance(0.3, 8)
    first, every = by_first.nats(Acceptance(dead, 1, 100.0, 8)), by_all.nats(Acceptance(dead, 8, 100.0, 8))
    assert first.collapsed < every.collapsed + 0.5


def wander_odds(wanders):
    """Log odds of wander against noise of every answer, after answers of 40 to 4000 tokens of one or the other."""
    rng, law = random.Random(4), AcceptanceLaw()
    p = chain_acceptance(3.2, DEPTH)
    variance = sum((2 * j - 1) * p**j for j in range(1, DEPTH + 1)) - 3.2**2
    for _ in range(400):
        tokens = 40 * 100 ** rng.random()
        steps = tokens / 4.2
        correlated = WANDER_STEPS / steps
        share = 1 - correlated * (1 - math.exp(-1 / correlated)) if wanders else 0.2
        accepted = rng.gauss(3.2, math.sqrt((1 + 27 * share) * variance / steps))
        law.learn(answer(min(7.5, max(0.2, accepted)), tokens))
    shares = np.exp(np.frombuffer(law.scores))
    return math.log(shares[np.array(WANDERS)].sum() / shares[~np.array(WANDERS)].sum())


def test_wander_inside_answers_is_told_from_noise_of_every_answer():
    assert wander_odds(True) > wander_odds(False) + 10
