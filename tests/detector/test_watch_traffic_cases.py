"""What the detector must and must not call a collapse: captures, and traffic made to fool it."""

import math
import random

import pytest
from watch_traffic import CHAT, CODE, DEAD, PROSE, STEP_SECONDS, Clock, deployed, h200, published

from detector.observation import EngineSample, Quality
from detector.verdict import Cause, Phase
from detector.watch import Watch, WatchConfig


def watched(observations):
    """The watch after the answers, and whether each left the backend degraded."""
    watch = Watch(WatchConfig())
    return watch, [watch.update(observation).degraded for observation in observations]


def found(watch):
    return [(episode.onset_request, episode.detected_request, episode.end_request) for episode in watch.episodes]


def test_published_cycle_alarms_at_the_sixth_value_and_ends_at_the_tenth():
    watch, degraded = watched(published("dflash_n8"))
    assert found(watch) == [(5, 5, 9)]
    assert degraded == [False] * 5 + [True] * 4 + [False]
    assert watch.episodes[0].cause is Cause.UNKNOWN  # a rate alone does not say which factor fell


def test_published_control_without_a_cycle():
    watch, degraded = watched(published("mtp_n3"))
    assert watch.episodes == []
    assert not any(degraded)


@pytest.mark.parametrize("dropped", range(30))
def test_h200_cycle_is_found_from_wherever_the_watch_starts(dropped):
    """The answer of transition dates the onset; it or one of the next two alarms. A collapse needs three healthy
    answers before it, to be compared with; one with fewer may be missed, but never spoils those after it."""
    answers = [observation for observation, _ in h200("k8_cycle_by_request")][dropped:]
    watch, degraded = watched(answers)
    onsets = [onset for onset in (5, 15, 25, 35) if onset - dropped >= 3]
    full = [episode for episode in watch.episodes if episode.onset_request + dropped >= onsets[0]]
    assert [(episode.onset_request + dropped, episode.end_request + dropped) for episode in full] == [
        (onset, onset + 4) for onset in onsets
    ]
    assert not any(flag for index, flag in enumerate(degraded, dropped) if index % 10 not in (5, 6, 7, 8))
    for episode in full:
        assert 0 <= episode.detected_request - episode.onset_request <= 2
        assert episode.cause is Cause.ACCEPTANCE_COLLAPSE
        assert episode.acceptance_length == pytest.approx(1.2, abs=0.1)
        assert episode.step_seconds == pytest.approx(0.0065, abs=0.0005)
        assert episode.tokens_lost > 5000


@pytest.mark.parametrize("capture", ["k0", "k2", "k12", "k15"])
def test_h200_healthy_captures_are_quiet(capture):
    watch, degraded = watched(observation for observation, _ in h200(capture))
    assert watch.episodes == []
    assert not any(degraded)


@pytest.mark.parametrize("seed", range(3))
def test_mixed_healthy_traffic_rarely_alarms(seed):
    watch, _ = watched(deployed(1000, seed))
    assert len(watch.episodes) <= 2


@pytest.mark.parametrize(
    ("collapsed_as", "cause"),
    [((0.4, 1.14), Cause.ACCEPTANCE_COLLAPSE), ((None, 3.6), Cause.STEP_INFLATION)],
)
@pytest.mark.parametrize("seed", range(2))
def test_collapses_in_mixed_traffic_are_found_with_their_cause(collapsed_as, cause, seed):
    def collapsed(index):
        return collapsed_as if index >= 60 and index % 10 in (6, 7, 8, 9) else None

    watch, degraded = watched(deployed(560, seed, collapsed=collapsed))
    hits = [start for start in range(66, 560, 10) if any(degraded[start : start + 4])]
    assert len(hits) >= 45  # of 50
    blamed = [episode.cause for episode in watch.episodes if episode.onset_request >= 60]
    assert blamed.count(cause) >= 0.9 * len(blamed)


def test_code_then_prose_halves_acceptance_without_alarm():
    clock = Clock()
    watch, _ = watched(clock.answer(content) for content in [5.0] * 60 + [2.0] * 60)
    assert watch.episodes == []


def test_more_requests_in_flight_are_no_collapse():
    clock = Clock()
    alone = [clock.answer() for _ in range(30)]
    busy = [clock.answer(each_step=STEP_SECONDS * 1.9, in_flight=8) for _ in range(30)]
    assert watched(alone + busy)[0].episodes == []
    clock = Clock()
    alone = [clock.rate_only() for _ in range(30)]
    busy = [clock.rate_only(each_step=STEP_SECONDS * 1.9, in_flight=8) for _ in range(30)]
    assert watched(alone + busy)[0].episodes == []


@pytest.mark.parametrize("kind", ["answer", "rate_only"])
def test_a_client_that_alternates_code_and_prose_is_no_cycle_of_collapses(kind):
    clock = Clock()
    contents = ([CODE] * 5 + [PROSE] * 4) * 20
    watch, _ = watched(getattr(clock, kind)(content) for content in contents)
    assert watch.episodes == []


def test_slow_drift_of_the_step_time_is_no_collapse():
    rng, clock, drift = random.Random(5), Clock(), 0.0
    answers = []
    for _ in range(2000):
        drift = 0.9 * drift + rng.gauss(0, 0.1 * 0.19**0.5)
        answers.append(clock.answer(each_step=STEP_SECONDS * 2.718**drift))
    assert watched(answers)[0].episodes == []


@pytest.mark.parametrize("kind", ["answer", "rate_only"])
def test_a_single_stall_is_no_alarm(kind):
    clock = Clock()
    answers = [getattr(clock, kind)(tokens=2000) for _ in range(40)]
    answers.append(getattr(clock, kind)(tokens=2000, stall_seconds=5.0))
    assert not any(watched(answers)[1])


def test_a_stall_seen_as_a_gap_is_not_slow_steps():
    """Five stalls in a row, each longer than the rest of its answer: were they not seen as gaps, they would alarm."""
    clock = Clock()
    answers = [clock.answer(tokens=400) for _ in range(40)]
    answers += [clock.answer(tokens=400, stall_seconds=5.0) for _ in range(5)]
    assert not any(watched(answers)[1])
    clock = Clock()
    unseen = [clock.answer(tokens=400) for _ in range(40)]
    unseen += [clock.answer(tokens=400, stall_seconds=5.0, longest_gap_seconds=None) for _ in range(5)]
    assert any(watched(unseen)[1])


def test_slow_steps_are_blamed_for_a_slowdown_with_healthy_acceptance():
    clock = Clock()
    answers = [clock.answer() for _ in range(20)] + [clock.answer(each_step=STEP_SECONDS * 3.6) for _ in range(3)]
    watch, degraded = watched(answers)
    assert degraded[-3:] == [False, True, True]  # one answer of slow steps may be a stall
    assert found(watch) == [(20, 21, None)]
    assert watch.verdict.cause is Cause.STEP_INFLATION
    assert watch.verdict.phase is Phase.COLLAPSED


@pytest.mark.parametrize("kind", ["answer", "rate_only"])
@pytest.mark.parametrize("offset", range(10))
def test_a_start_in_the_middle_of_a_cycle_recovers(kind, offset):
    clock = Clock()
    cycle = [CHAT] * 6 + [DEAD] * 4
    contents = [cycle[(index + offset) % 10] for index in range(200)]
    _, degraded = watched(getattr(clock, kind)(content) for content in contents)
    collapsed = [index for index, content in enumerate(contents) if index >= 60 and content == DEAD]
    assert sum(degraded[index] for index in collapsed) >= 0.9 * len(collapsed)
    assert not any(degraded[index] for index, content in enumerate(contents) if index >= 60 and content != DEAD)


def test_a_permanent_drop_is_one_alarm_and_then_the_new_reference():
    clock = Clock()
    watch, degraded = watched(clock.answer(content) for content in [CHAT] * 50 + [DEAD] * 300)
    assert found(watch) == [(50, 50, 249)]
    assert degraded[249:] == [False] * 101
    assert watch.reference.acceptance_length == pytest.approx(1 + DEAD, abs=0.01)


def test_a_new_reference_is_announced():
    clock = Clock()
    watch = Watch(WatchConfig(rebase_after_requests=5))
    verdicts = [watch.update(clock.answer(content)) for content in [CHAT] * 10 + [DEAD] * 5]
    assert verdicts[-1].evidence["rebased_after_requests"] == 5.0
    assert watch.rebases == 1
    assert verdicts[-1].phase is Phase.HEALTHY


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_without_acceptance_the_rate_decides(nothing):
    clock = Clock()
    unknown = {"acceptance_length": nothing, "step_seconds": nothing, "verify_steps": None}
    watch, degraded = watched(clock.answer(content, **unknown) for content in [CHAT] * 10 + [DEAD] * 3 + [CHAT] * 2)
    assert degraded == [False] * 10 + [True] * 3 + [False] * 2
    assert watch.episodes[0].cause is Cause.UNKNOWN


@pytest.mark.parametrize("seed", range(2))
def test_ar1_traffic_without_acceptance_hardly_alarms(seed):
    rng, clock, drift = random.Random(seed), Clock(), 0.0
    answers = []
    for _ in range(1000):
        drift = 0.9 * drift + rng.gauss(0, 0.1 * 0.19**0.5)
        answers.append(clock.rate_only(each_step=STEP_SECONDS * 2.718**drift))
    assert watched(answers)[0].episodes == []


@pytest.mark.parametrize("seed", range(4))
def test_the_first_rates_of_mixed_content_are_no_collapse(seed):
    """Nothing but rates is known, and not yet how much content moves them."""
    rng, clock = random.Random(seed), Clock()
    answers = []
    for _ in range(60):
        content, tokens = rng.choice((PROSE, CHAT, CODE)), int(rng.lognormvariate(6, 0.9)) + 16
        answers.append(clock.rate_only(content * math.exp(rng.gauss(0, 0.1)), tokens=tokens))
    assert watched(answers)[0].episodes == []


def test_blocks_of_content_are_no_collapse_for_a_rate():
    """Half an hour of code, then of prose: the rate falls by a third and stays there."""
    clock, rng = Clock(), random.Random(4)
    contents = ([CODE] * 30 + [PROSE] * 30) * 4
    answers = [clock.rate_only(content, each_step=STEP_SECONDS * math.exp(rng.gauss(0, 0.05))) for content in contents]
    assert watched(answers)[0].episodes == []


def test_a_mild_collapse_is_found_on_content_that_does_not_vary():
    """A 4.5 -> 2.0, which another backend's prose would have."""
    clock, rng = Clock(), random.Random(5)
    contents = [CHAT + rng.gauss(0, 0.15) for _ in range(100)] + [1.0] * 4
    watch, degraded = watched(clock.answer(content, tokens=2000) for content in contents)
    assert degraded[:100] == [False] * 100
    assert any(degraded[100:102])
    assert watch.episodes[0].cause is Cause.ACCEPTANCE_COLLAPSE


def test_collapses_that_are_found_do_not_become_the_reference():
    """Fifty cycles: after six healthy answers the first may take one answer more; none of the others takes longer."""
    clock, delays = Clock(), []
    watch, _ = watched(clock.answer(content, tokens=600) for content in ([CHAT] * 6 + [1.2] + [0.4] * 3) * 50)
    for episode in watch.episodes:
        delays.append(episode.detected_request % 10)
    assert len(watch.episodes) == 50
    assert max(delays[:1]) <= 8
    assert max(delays[1:]) <= 7


def test_answers_of_sixteen_tokens_do_not_alarm():
    rng, clock = random.Random(3), Clock()
    contents = [min(8.0, max(0.0, rng.gauss(CHAT, 2.5))) for _ in range(1000)]
    assert watched(clock.answer(content, tokens=16) for content in contents)[0].episodes == []


def test_a_drafter_that_dies_in_steps_as_one_did_in_the_field():
    """Windows of a real report: 45 % of 3 drafts accepted, then 33 %, then 1.5 %. Only the last is a collapse."""
    clock = Clock()
    shares = [0.45, 0.41, 0.49, 0.46, 0.47, 0.45, 0.33, 0.015]
    watch, degraded = watched(clock.answer(3 * share, num_speculative_tokens=3) for share in shares)
    assert degraded == [False] * 7 + [True]
    assert watch.episodes[0].cause is Cause.ACCEPTANCE_COLLAPSE


@pytest.mark.parametrize("depth", [0, None])
def test_speculation_switched_off_is_told_from_a_dead_drafter(depth):
    clock = Clock()
    answers = [clock.answer() for _ in range(10)]
    answers += [clock.answer(0.0, each_step=STEP_SECONDS * 0.45, num_speculative_tokens=depth) for _ in range(2)]
    watch, _ = watched(answers)
    assert watch.verdict.cause is Cause.SPECULATION_OFF
    assert [episode.cause for episode in watch.episodes] == [Cause.SPECULATION_OFF]
    clock = Clock()
    dead = [clock.answer() for _ in range(10)] + [clock.answer(0.0) for _ in range(2)]
    assert watched(dead)[0].verdict.cause is Cause.ACCEPTANCE_COLLAPSE


def test_a_drafter_that_is_always_poor_is_judged_by_its_own_level():
    """28 % at the first position is that rig's health (1.39 tokens a step), not a collapse; 3 % is."""
    clock = Clock()
    watch, degraded = watched(clock.answer(accepted, tokens=2000) for accepted in [0.39] * 60 + [0.03] * 2)
    assert degraded == [False] * 60 + [True] * 2
    assert watch.episodes[0].cause is Cause.ACCEPTANCE_COLLAPSE


def test_the_first_position_decides_where_it_is_known():
    """A = 1.9 is poor by the acceptance length; with a live first position it is content, with a dead one it is not."""
    for first_position, expected in ((0.65, []), (0.05, [(20, 20, None)])):
        clock = Clock()
        healthy = [clock.answer(position_acceptance=(0.8, 0.64)) for _ in range(20)]
        poor = [clock.answer(0.9, position_acceptance=(first_position, 0.01)) for _ in range(3)]
        assert found(watched(healthy + poor)[0]) == expected


def test_merged_events_hide_no_collapse_and_prove_no_health():
    clock = Clock()
    healthy = [clock.answer() for _ in range(20)]
    merged_low = [clock.answer(0.2, acceptance_quality=Quality.UPPER_BOUND) for _ in range(2)]
    assert watched(healthy + merged_low)[1][-2:] == [True, True]
    clock = Clock()
    healthy = [clock.answer() for _ in range(20)]
    # Dead drafter, but a lagging reader made 4 tokens an event of it; only the rate still shows it.
    merged_high = [clock.answer(DEAD, acceptance_length=4.0, acceptance_quality=Quality.UPPER_BOUND) for _ in range(2)]
    assert any(watched(healthy + merged_high)[1])


def test_a_late_first_token_is_queueing_not_a_collapse():
    clock = Clock()
    watch, degraded = watched(clock.answer() for _ in range(30))
    watch.update_engine(EngineSample(at=0.0, requests_waiting=3.0))
    degraded.append(watch.update(clock.answer(ttft_seconds=4.0)).degraded)
    assert watch.verdict.cause is Cause.QUEUEING
    assert watch.verdict.phase is Phase.HEALTHY
    assert not any(degraded)


def test_a_late_first_token_alone_is_not_blamed_on_a_queue():
    clock = Clock()
    watch, _ = watched([clock.answer() for _ in range(30)] + [clock.answer(ttft_seconds=4.0)])
    assert watch.verdict.cause is None
