"""The step rule on simulated content and on the recorded engine; docs/results/detection-stream.md has the long runs."""

import json
from pathlib import Path
from statistics import mean, median

import numpy as np
import pytest

from detector.stats.stream import StreamRule, stream_model
from tests.bench.detect.stream_content import Content, conditional
from tests.bench.detect.stream_runs import Null, delay, run_null, traffic

PROSE = Content()
MODEL = stream_model(conditional(2.2, 8), 8)
CAPTURES = Path(__file__).parents[2] / "data" / "watch" / "h200_answers.jsonl"


def alarms_on(null, steps, seed):
    rule = StreamRule()
    return len(
        run_null(rule, stream_model(null.floor, null.content.depth), traffic(null, steps, np.random.default_rng(seed)))
    )


@pytest.mark.parametrize(
    "null",
    [
        Null("prose", PROSE),
        Null("three streams of short answers", PROSE, streams=3, median_tokens=100.0),
        Null("classes that switch", Content(switch_steps=300.0), 2.2),
        Null("a short draft", Content(1.5, depth=3)),
    ],
    ids=lambda null: null.name,
)
def test_healthy_content_keeps_the_budget(null):
    """One alarm is allowed in so many steps; five would be a chance of 1 in 270."""
    assert alarms_on(null, 200_000, 5) < 5


@pytest.mark.parametrize(
    ("before", "after", "limit"), [(2.2, 0.4, 165), (2.2, 0.05, 45), (3.5, 0.4, 120), (3.5, 0.05, 30)]
)
def test_a_collapse_is_seen_in_the_stream(before, after, limit):
    rng = np.random.default_rng(4)
    delays = [delay(StreamRule(), MODEL, Content(before), after, 1, rng) for _ in range(80)]
    assert None not in delays
    assert mean(delays) <= limit


def test_content_that_wanders_further_than_the_model_raises_its_own_alarm():
    null, rule = Null("wide", Content(deviation=0.9)), StreamRule()
    alarms = run_null(rule, MODEL, traffic(null, 600_000, np.random.default_rng(6)))
    assert sum(at > 200_000 for at in alarms) < 7
    assert rule.alarm_nats > 10.5


def capture(name):
    answers = [json.loads(line) for line in CAPTURES.read_text().splitlines()]
    for answer in (one for one in answers if one["capture"] == name):
        yield (
            answer["index"],
            answer["num_speculative_tokens"],
            [int(digit, 36) for digit in answer["tokens_per_event"]],
        )


def alarms_in(name, floor):
    rule, first = StreamRule(), {}
    for index, depth, events in capture(name):
        model = stream_model(floor, depth)
        hits = [step for step, tokens in enumerate(events) if rule.update(model, str(index), tokens)]
        rule.end(model, str(index))
        if hits:
            first[index] = hits[0]
    return first


@pytest.mark.parametrize("name", ["k0", "k2", "k12", "k15"])
@pytest.mark.parametrize("floor", [0.6, 0.7])
def test_h200_healthy_captures_never_alarm(name, floor):
    assert alarms_in(name, floor) == {}


def test_h200_collapses_are_seen_inside_their_first_dead_answer():
    """Of ten answers, 5 is the transition, 6 to 8 are dead, the others healthy; a dead answer has 470 steps."""
    alarms = alarms_in("k8_cycle_by_request", 0.6)
    assert {index % 10 for index in alarms} == {6, 7, 8}
    first = [alarms[index] for index in (6, 16, 26, 36)]
    assert median(first) <= 90
    assert max(first) <= 120
