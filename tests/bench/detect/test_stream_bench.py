"""The measurement of the step rule measures what it says."""

import numpy as np
import pytest

from detector.stats.stream import StreamRule
from tests.bench.detect import stream_bench
from tests.bench.detect.stream_bench import NULL_HEAD, null_row, table
from tests.bench.detect.stream_content import Content, answers, collapsing, conditional, healthy
from tests.bench.detect.stream_runs import Null, model_of, old_rule_alarms, run_null, traffic


@pytest.mark.parametrize(("accepted", "depth"), [(2.2, 8), (0.39, 8), (1.5, 3), (2.2, 15)])
def test_content_has_the_mean_it_is_asked_for(accepted, depth):
    steps = healthy(Content(accepted, deviation=0.0, depth=depth), 50_000, np.random.default_rng(1))
    assert steps.mean() == pytest.approx(accepted, rel=0.03)
    assert steps.max() <= depth


def test_wander_makes_the_variance_of_long_windows_that_real_logs_show():
    """16 to 28 times that of independent steps, over windows of 450 steps of chat."""
    steps = healthy(Content(3.5), 900_000, np.random.default_rng(2))
    windows = steps.reshape(-1, 450).mean(axis=1)
    assert 14 < windows.var() * 450 / steps.var() < 32


def test_a_collapse_begins_where_it_should():
    content, rngs = Content(deviation=0.0), [np.random.default_rng(seed) for seed in range(200)]
    steps = np.mean([collapsing(content, 200, 100, 0.4, rng) for rng in rngs], axis=0)
    assert steps[:200].mean() == pytest.approx(2.2, rel=0.05)
    assert steps[200:].mean() == pytest.approx(0.4, rel=0.05)


def test_answers_are_cut_at_their_length():
    for events in answers(Content(), 2000, 60.0, np.random.default_rng(3)):
        assert 16 <= sum(events) <= 4000
        assert events[0] == 1


def test_the_old_rule_needs_85_dead_steps():
    assert old_rule_alarms(0.6, [0] * 84) == 0
    assert old_rule_alarms(0.6, [0] * 90) == 1


def test_streams_step_together_and_end():
    null = Null("", Content(), streams=3, median_tokens=100.0)
    events = list(traffic(null, 600, np.random.default_rng(4)))
    assert {name[0] for name, _ in events[:3]} == {"0", "1", "2"}
    rule = StreamRule()
    run_null(rule, model_of(null), iter(events))
    assert rule.streams == {}


def test_a_row_has_a_cell_for_each_column(monkeypatch):
    monkeypatch.setattr(stream_bench, "BUDGET", 2000)
    monkeypatch.setattr(stream_bench, "RUNS", 1)
    row = null_row(Null("prose", Content()), 14_000, 5)
    assert len(row) == len(NULL_HEAD)
    assert row[:2] == ["prose", f"{conditional(2.2, 8):.2f}"]
    assert table(NULL_HEAD, [row]).count("\n") == 2
