"""Answers cut into runs."""

import msgspec
import pytest

from detector.stats.clocks import Advance, Clock, ClockReading
from detector.stats.run_history import LEARNED_TOGETHER, RunHistory, RunLaws
from detector.stats.runs import MAX_CELLS, RunRecorder


def advance(tokens=100.0, steps=25.0, seconds=1.0, idle=0.0):
    return Advance(
        clocks=ClockReading(requests=1.0, tokens=tokens, steps=steps, kv_blocks=None, seconds=seconds),
        idle_seconds=idle,
    )


def recorded(requests, recorder=None):
    recorder = recorder or RunRecorder()
    for request in requests:
        recorder.add(request, advance())
    return recorder


def test_the_run_before_the_first_turn_has_no_beginning():
    assert recorded(range(5)).turn(4) is None


def test_a_run_goes_from_after_its_first_answer_to_the_first_answer_of_the_next_phase():
    recorder = recorded(range(5))
    recorder.turn(3)
    recorded(range(5, 10), recorder)
    # Answers 3 (first of the phase) to 8, and 9 is the onset: known by the end of the six cells 4..9.
    run = recorder.turn(9)
    assert run.ends(Clock.REQUESTS) == [1, 2, 3, 4, 5, 6]
    assert run.ends(Clock.TOKENS)[-1] == 600
    assert run.ends(Clock.KV_BLOCKS) is None


def test_a_turn_that_is_known_late_leaves_the_rest_to_the_next_run():
    recorder = recorded(range(3))
    recorder.turn(0)
    recorded(range(3, 8), recorder)
    assert len(recorder.turn(5).cells) == 5
    assert len(recorder.turn(7).cells) == 2


def test_what_is_left_of_an_answer_that_began_before_the_run_goes_into_its_next_cell():
    recorder = recorded(range(3))
    recorder.turn(2)
    rest = advance(tokens=40.0, idle=0.0)
    recorder.add(3, Advance(clocks=msgspec.structs.replace(rest.clocks, requests=0.0)))
    recorded(range(4, 7), recorder)
    run = recorder.turn(6)
    assert run.ends(Clock.REQUESTS) == [1, 2, 3]
    assert run.ends(Clock.TOKENS) == [140, 240, 340]


def test_a_turn_right_after_a_turn_is_no_run():
    recorder = recorded(range(3))
    recorder.turn(2)
    assert recorder.turn(2) is None


def test_an_onset_in_the_first_answer_of_a_phase_leaves_no_run_before_it():
    recorder = recorded(range(3))
    recorder.turn(2)
    recorded(range(3, 6), recorder)
    assert recorder.turn(2) is None
    assert len(recorder.turn(5).cells) == 3


def test_a_launch_drops_the_run_under_way():
    recorder = recorded(range(3))
    recorder.turn(0)
    recorder.drop()
    assert recorded(range(3, 6), recorder).turn(5) is None


def test_the_answer_that_collapsed_counts_as_long_as_it_would_have_been():
    recorder = recorded([0])
    recorder.turn(0)
    for request in (1, 2, 3):
        recorder.add(request, advance(tokens=100, steps=25, seconds=3, idle=2))
    recorder.add(4, advance(tokens=200, steps=160, seconds=9, idle=1))
    run = recorder.turn(4)
    assert run.cells[-1].steps == 50
    assert run.cells[-1].seconds == 1 + 2
    assert run.actual.steps == 75 + 160
    assert run.actual.seconds == 18


def test_without_token_counts_it_counts_as_an_answer_of_mean_length():
    recorder = recorded([0])
    recorder.turn(0)
    for request in (1, 2):
        recorder.add(request, advance(tokens=None, seconds=2))
    recorder.add(3, advance(tokens=None, seconds=9))
    assert recorder.turn(3).cells[-1].seconds == 2


def test_hours_of_health_take_no_more_room_and_lose_nothing():
    recorder = recorded([0])
    recorder.turn(0)
    recorded(range(1, 10_001), recorder)
    assert len(recorder.cells) <= MAX_CELLS
    run = recorder.turn(10_000)
    assert run.ends(Clock.REQUESTS)[-1] == 10_000
    assert run.actual.tokens == 1_000_000
    assert run.cells[-1].requests == 1


def test_answers_before_the_first_turn_are_kept_as_far_back_as_a_turn_may_lie():
    recorder = recorded(range(2 * MAX_CELLS))
    assert len(recorder.cells) == MAX_CELLS
    recorder.turn(2 * MAX_CELLS - 6)
    assert recorder.elapsed.requests == 5
    assert recorder.turn(2 * MAX_CELLS - 3).ends(Clock.REQUESTS) == [1, 2, 3]


def test_history_keeps_the_last_runs_and_compares_clocks_on_the_same_event():
    recorder, runs = RunRecorder(), RunLaws(RunHistory())
    recorded([0], recorder).turn(0)
    request = 0
    for length in [6] * 40:
        recorded(range(request + 1, request + 1 + length), recorder)
        request += length
        runs.add(recorder.turn(request))
    history = runs.history
    assert history.count == 40
    assert history.intervals[Clock.REQUESTS][-1] == (5, 6)
    assert len(history.learned(Clock.REQUESTS)) == 24
    assert len(history.intervals[Clock.REQUESTS]) <= 24 + LEARNED_TOGETHER
    # All answers are alike, so no clock can be better than another but for the rounding of its scale.
    assert history.scores[Clock.TOKENS] == pytest.approx(history.scores[Clock.REQUESTS], abs=0.1)
