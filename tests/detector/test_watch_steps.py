"""The step rule: a collapse is seen inside the answer, and content that wanders is not one."""

import pytest
from watch_traffic import CHAT, DEAD, PROSE, Clock, h200, wandering_steps

from detector.observation import Step
from detector.verdict import Cause, Phase
from detector.watch import Watch, WatchConfig


def learned(clock, accepted=CHAT, **changes):
    """A watch that has seen ten healthy answers."""
    watch = Watch(WatchConfig())
    for _ in range(10):
        watch.update(clock.answer(accepted, **changes))
    return watch


def first_alarm(watch, request_id, accepted_tokens, start=0.0):
    """Number of the verify step at which the step rule first alarms, from 1; None if it never does."""
    watch.update_step(request_id, Step(start, 1))  # the prefill's token
    for number, accepted in enumerate(accepted_tokens, start=1):
        if watch.update_step(request_id, Step(start + number * 0.02, accepted + 1)) is not None:
            return number
    return None


@pytest.mark.parametrize("seed", range(3))
def test_wandering_prose_does_not_alarm(seed):
    assert first_alarm(learned(Clock()), "long", wandering_steps(20_000, seed, PROSE)) is None


@pytest.mark.parametrize(("accepted", "limit", "onset_within"), [(0.4, 600, 150), (0.05, 150, 30)])
@pytest.mark.parametrize("seed", range(3))
def test_a_dead_drafter_alarms_inside_the_answer(seed, accepted, limit, onset_within):
    """With the floor at 0.6, prose that wanders comes as low as 0.4 accepted tokens: that takes long to tell apart."""
    watch = learned(Clock())
    healthy = list(wandering_steps(200, seed, CHAT))
    dead = wandering_steps(1000, seed, accepted, logit_deviation=0.2)
    alarm = first_alarm(watch, "r", [*healthy, *dead])
    assert 200 < alarm <= 200 + limit
    assert (watch.verdict.phase, watch.verdict.degraded) == (Phase.TRANSITION, True)
    episode = watch.episodes[0]
    assert episode.cause is Cause.ACCEPTANCE_COLLAPSE
    assert episode.detected_step == alarm
    assert episode.onset_step == pytest.approx(201, abs=onset_within)


def test_h200_collapse_is_seen_by_the_first_dead_answer():
    """At the end of the answer of transition (the sixth of ten), or in the first steps of the next one."""
    watch = Watch(WatchConfig())
    inside = []
    for number, (observation, steps) in enumerate(h200("k8_cycle_by_request")):
        for step in steps:
            before = watch.verdict.degraded
            if watch.update_step(observation.request_id, step) is not None and not before:
                inside.append(number)
        watch.update(observation)
    assert {number % 10 for number in inside} == {6}
    assert len(watch.episodes) == 4
    for episode in watch.episodes:
        if episode.detected_step is None:
            assert episode.detected_request % 10 == 5
        else:
            assert episode.detected_request in inside
            assert episode.detected_step < 120
    assert [episode.end_request % 10 for episode in watch.episodes] == [9] * 4


@pytest.mark.parametrize("capture", ["k0", "k2", "k12", "k15"])
def test_h200_healthy_streams_never_alarm(capture):
    watch = Watch(WatchConfig())
    for observation, steps in h200(capture):
        assert all(watch.update_step(observation.request_id, step) is None for step in steps)
        watch.update(observation)


def test_nothing_is_judged_before_there_is_a_reference():
    assert first_alarm(Watch(WatchConfig()), "r", [0] * 5000) is None


def test_an_engine_without_speculation_never_alarms():
    watch = learned(Clock(), 0.0, num_speculative_tokens=0)
    assert first_alarm(watch, "r", [0] * 5000) is None


def test_the_first_event_is_not_a_step():
    watch = learned(Clock())
    for number in range(5000):
        assert watch.update_step(f"one-token answer {number}", Step(number, 1)) is None


@pytest.mark.parametrize("spoiled", [None, 10])
def test_merged_and_uncounted_events_say_nothing(spoiled):
    """With K = 8 no step gives ten tokens. An event of one token is one step, even where others were merged."""
    watch = learned(Clock())
    watch.update_step("r", Step(0.0, 1))
    for number in range(5000):
        assert watch.update_step("r", Step(0.1 + number, spoiled)) is None
    assert first_alarm(watch, "r", [0] * 5000, start=5001.0) is not None


def test_a_collapse_is_seen_across_streams_and_short_answers():
    clock = Clock()
    watch = learned(clock)
    alarmed = None
    for number in range(40):
        if first_alarm(watch, f"short {number}", [0] * 10) is not None:
            alarmed = number
            break
    assert alarmed is not None
    assert watch.episodes[0].onset_request == 10


def test_answers_too_short_for_a_block_alarm_when_they_end():
    clock = Clock()
    watch = learned(clock)
    unjudged = {"acceptance_length": None, "verify_steps": None, "step_seconds": None}
    unjudged |= {"decode_tokens_per_second": None, "num_speculative_tokens": None}
    for number in range(20):
        assert first_alarm(watch, f"short {number}", [0] * 5, start=clock.now) is None
        if watch.update(clock.answer(DEAD, request_id=f"short {number}", **unjudged)).degraded:
            break
    assert watch.verdict.degraded
    (episode,) = watch.episodes
    assert (episode.detected_request, episode.detected_step) == (10 + number, 5)
    assert 10 <= episode.onset_request < episode.detected_request


def test_the_request_number_is_put_right_when_the_answer_ends():
    """With several answers in flight the number of the alarming one is known only when it ends."""
    clock = Clock()
    watch = learned(clock)
    assert first_alarm(watch, "slow", [0] * 500, start=clock.now) is not None
    assert watch.episodes[0].detected_request == 10
    watch.update(clock.answer(DEAD))
    watch.update(clock.answer(DEAD))
    watch.update(clock.answer(DEAD, request_id="slow"))
    assert (watch.episodes[0].onset_request, watch.episodes[0].detected_request) == (12, 12)


def test_the_answer_that_alarmed_cannot_prove_recovery_by_its_mean():
    """Half of it was fast, so its mean acceptance is that of prose; only an answer begun later counts."""
    clock = Clock()
    watch = learned(clock)
    started = clock.now
    assert first_alarm(watch, "half", [4] * 100 + [0] * 200, start=started) is not None
    verdict = watch.update(clock.answer(1.33, request_id="half", started=started))
    assert verdict.degraded
    assert not watch.update(clock.answer()).degraded


def test_the_alarm_repeats_while_acceptance_stays_dead():
    watch = learned(Clock())
    watch.update_step("r", Step(0.0, 1))
    alarms = [watch.update_step("r", Step(number * 0.02, 1)) for number in range(1, 1000)]
    assert sum(verdict is not None for verdict in alarms) >= 5
    assert len(watch.episodes) == 1


def test_an_alarm_while_recovering_resumes_the_episode():
    clock = Clock()
    watch = learned(clock)
    for content in (DEAD, DEAD, CHAT):
        watch.update(clock.answer(content))
    assert watch.verdict.phase is Phase.RECOVERING
    assert first_alarm(watch, "r", [0] * 500, start=clock.now) is not None
    assert (watch.verdict.phase, len(watch.episodes)) == (Phase.COLLAPSED, 1)
    assert watch.episodes[0].end_request is None


def test_the_answer_that_was_hit_and_runs_on_after_the_recovery_resumes_nothing():
    """Canaries proved the recovery while it still ran, slow to its end."""
    clock = Clock()
    watch = learned(clock)
    started = clock.now
    assert first_alarm(watch, "hit", [4] * 100 + [0] * 200, start=started) is not None
    while watch.verdict.degraded:
        watch.update(clock.answer(tokens=128, canary=True))
    for number in range(400):
        assert watch.update_step("hit", Step(clock.now + number * 0.02, 1)) is None
    verdict = watch.update(clock.answer(0.3, request_id="hit", started=started))
    assert (verdict.phase, verdict.degraded) == (Phase.RECOVERING, False)
    assert len(watch.episodes) == 1
    assert watch.update(clock.answer()).phase is Phase.HEALTHY
