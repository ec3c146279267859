"""The step rule: what it takes as evidence, and what it does not."""

import math

import numpy as np
import pytest

from detector.stats.stream import (
    BLOCK_STEPS,
    COLLAPSE_NATS,
    EPOCH_STEPS,
    KEPT_PEAKS,
    MAX_STREAMS,
    MODEL_ALARM_NATS,
    HealthyPeaks,
    StreamRule,
    stream_model,
)

MODEL = stream_model(0.7, 8)


def feed(rule, tokens, stream="s", model=MODEL):
    """Events of one stream; the numbers of those that alarmed, the first event being 0."""
    return [number for number, one in enumerate(tokens) if rule.update(model, stream, one)]


def test_a_dead_drafter_alarms_within_forty_steps_of_a_fresh_stream():
    rule = StreamRule()
    alarms = feed(rule, [1] * 400)
    assert alarms[0] <= 40
    assert len(alarms) >= 4
    assert (rule.onset_stream, rule.onset_step > 1) == ("s", True)


def test_the_onset_is_where_the_evidence_left_zero():
    rule = StreamRule()
    feed(rule, [1, *[5] * 200])
    assert rule.nats == 0.0
    tokens = iter([1] * 400)
    while not rule.update(MODEL, "s", next(tokens)):
        pass
    assert rule.onset_stream == "s"
    assert rule.onset_step == pytest.approx(201, abs=BLOCK_STEPS)
    assert rule.nats == 0.0


def test_no_evidence_before_a_whole_block_of_steps_has_followed():
    """The first event is the prefill's token and the last step may be cut short: 8 steps need 10 events."""
    rule = StreamRule()
    feed(rule, [1] * (BLOCK_STEPS + 1))
    assert rule.nats == 0.0
    feed(rule, [1])
    assert rule.nats > 0.0


def test_the_cut_last_step_of_an_answer_is_never_weighed():
    whole, cut = StreamRule(), StreamRule()
    feed(whole, [1, *[3] * 20, 4])
    feed(cut, [1, *[3] * 20, 1])
    whole.end(MODEL, "s")
    cut.end(MODEL, "s")
    assert whole == cut
    assert whole.streams == {}


def test_short_answers_are_weighed_when_they_end():
    rule = StreamRule()
    for number in range(20):
        feed(rule, [1] * 6, stream=str(number))
        if rule.end(MODEL, str(number)):
            break
    assert 2 < number < 15


@pytest.mark.parametrize("unknown", [None, 10, 500])
def test_events_of_unknown_steps_are_no_evidence(unknown):
    rule = StreamRule()
    assert feed(rule, [1, *[unknown] * 5000]) == []
    assert rule.nats == rule.run_steps == 0


def test_single_tokens_count_even_where_other_events_were_merged():
    """An event of one token is one step, whatever else was merged."""
    rule = StreamRule()
    assert feed(rule, [1, 10, *[1] * 100]) != []


def test_events_without_tokens_change_nothing():
    rule, same = StreamRule(), StreamRule()
    feed(rule, [1, 0, 2, 0, 0, 1, 1, 3])
    feed(same, [1, 2, 1, 1, 3])
    assert rule == same


@pytest.mark.parametrize(("floor", "depth"), [(0.7, 0), (0.19, 8), (0.0, 8), (1.1, 8), (math.nan, 8)])
def test_a_drafter_with_nothing_to_lose_is_not_judged(floor, depth):
    assert stream_model(floor, depth) is None


def test_without_a_model_steps_are_only_numbered():
    rule = StreamRule()
    assert feed(rule, [1] * 500, model=None) == []
    assert rule.streams["s"].steps == 499
    assert rule.nats == 0.0
    assert not rule.end(None, "s")


@pytest.mark.parametrize("depth", [1, 3, 8, 15, None])
@pytest.mark.parametrize("floor", [0.2, 0.6, 0.8, 1.0])
def test_every_depth_and_floor_is_judged(floor, depth):
    rule, model = StreamRule(), stream_model(floor, depth)
    assert feed(rule, [1, *[(depth or 4) + 1] * 500], model=model) == []
    alarms = feed(rule, [1] * 2000, model=model)
    assert alarms != []
    assert math.isfinite(rule.nats)


def test_with_k_unknown_only_the_first_draft_counts():
    one, many = StreamRule(), StreamRule()
    model = stream_model(0.7, None)
    feed(one, [1, *[2, 1] * 50], model=model)
    feed(many, [1, *[900, 1] * 50], model=model)
    assert one == many


@pytest.mark.parametrize("depth", [1, 2])
def test_both_laws_are_distributions(depth):
    """Over all blocks of 8 steps, healthy and collapsed each sum to one: the evidence is a likelihood ratio."""
    model = stream_model(0.7, depth)
    steps = [(min(taken, depth), int(taken < depth)) for taken in range(depth + 1)]
    ways = {(0, 0): 1}
    for _ in range(BLOCK_STEPS):
        longer = {}
        for (accepted, rejected), count in ways.items():
            for more, rejection in steps:
                key = (accepted + more, rejected + rejection)
                longer[key] = longer.get(key, 0) + count
        ways = longer
    nodes = sum(count * model.block(*key)[0] for key, count in ways.items())
    assert nodes == pytest.approx(np.ones(len(nodes)))
    levels = np.array([[count * math.exp(log) for log in model.block(*key)[1]] for key, count in ways.items()])
    assert levels.sum(axis=0) == pytest.approx(np.ones(levels.shape[1]))


def test_an_acceptance_in_place_of_a_rejection_never_speaks_for_a_collapse():
    def evidence(accepted):
        rule = StreamRule()
        feed(rule, [1, *[1] * 24, 1 + accepted, *[1] * 7, 1, 1])
        return rule.run_nats

    found = [evidence(accepted) for accepted in range(9)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[1]


def test_streams_that_collapse_together_alarm_together():
    rule = StreamRule()
    steps = 0
    while True not in [rule.update(MODEL, str(number), 1) for number in range(8)]:
        steps += 1
    assert steps <= BLOCK_STEPS + 1


def test_one_quiet_stream_among_healthy_ones_is_no_collapse():
    rule = StreamRule()
    for _ in range(2000):
        assert True not in [rule.update(MODEL, str(number), 1 if number == 0 else 4) for number in range(4)]


def test_the_oldest_stream_is_forgotten_when_there_are_too_many():
    rule = StreamRule()
    for number in range(MAX_STREAMS + 10):
        rule.update(MODEL, str(number), 1)
    assert len(rule.streams) == MAX_STREAMS
    assert "9" not in rule.streams
    assert "10" in rule.streams


def test_a_restart_forgets_streams_and_evidence_but_not_the_content():
    rule = StreamRule()
    rule.healthy.learn(20.0, 1000)
    feed(rule, [1] * 30)
    rule.restart()
    assert (rule.streams, rule.nats, rule.run_nats, rule.run_steps) == ({}, 0.0, 0.0, 0)
    assert rule.healthy.peaks == [20.0]


def test_a_stream_that_outlived_a_collapse_is_no_evidence_until_it_is_healthy():
    rule = StreamRule()
    feed(rule, [1] * 30, "old")
    rule.recovered()
    assert feed(rule, [1] * 400, "old") == []
    feed(rule, [4] * (BLOCK_STEPS + 1), "old")
    assert feed(rule, [1] * 400, "old") != []


def test_a_stream_that_begins_after_a_collapse_is_judged_at_once():
    rule = StreamRule()
    feed(rule, [1] * 30, "old")
    rule.recovered()
    assert feed(rule, [1] * 400, "new") == feed(StreamRule(), [1] * 400, "new")


def test_the_alarm_begins_where_the_model_puts_it():
    assert HealthyPeaks().alarm_nats() == pytest.approx(MODEL_ALARM_NATS, abs=0.3)
    assert StreamRule().alarm_nats == MODEL_ALARM_NATS


def test_the_alarm_is_where_an_exponential_tail_meets_the_budget():
    """Peaks of mean 3 nats, one in 2000 steps: one in 2e5 steps lies above 3 ln 100, to which comes a margin."""
    rng, healthy, found = np.random.default_rng(1), HealthyPeaks(), []
    for _ in range(20_000):
        healthy.learn(float(rng.exponential(3.0)), 2000)
        found.append(healthy.alarm_nats())
    assert len(healthy.older_peaks) == KEPT_PEAKS
    above_model = 3 * math.log(100) - MODEL_ALARM_NATS
    assert np.mean(found[5000:]) == pytest.approx(MODEL_ALARM_NATS + 1.22 * above_model, rel=0.1)


def test_quiet_content_never_lowers_the_alarm_below_the_models():
    healthy = HealthyPeaks()
    for _ in range(1000):
        healthy.learn(0.1, 20_000)
    assert healthy.alarm_nats() == MODEL_ALARM_NATS


def test_content_that_often_comes_far_raises_the_alarm():
    rule = StreamRule()
    for _ in range(30):
        feed(rule, [1, *[1] * 60, *[5] * 100])
    assert rule.alarm_nats > MODEL_ALARM_NATS + 1


def test_a_long_collapse_teaches_nothing():
    rule = StreamRule()
    feed(rule, [1] * 1500)
    assert rule.run_nats == COLLAPSE_NATS
    feed(rule, [5] * 400)
    assert rule.run_nats == 0.0
    assert rule.healthy.peaks == []
    assert rule.alarm_nats == MODEL_ALARM_NATS


def test_content_that_has_calmed_down_is_forgotten_after_two_epochs():
    healthy = HealthyPeaks()
    for _ in range(100):
        healthy.learn(25.0, 100)
    assert healthy.alarm_nats() >= 25
    for _ in range(40):
        healthy.learn(1.0, EPOCH_STEPS // 20)
    assert healthy.alarm_nats() == MODEL_ALARM_NATS
