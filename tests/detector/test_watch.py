"""The detector of one backend: phases, numbering, restarts, snapshots."""

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watch_traffic import CHAT, DEAD, STEP_SECONDS, Clock

from detector.observation import Ending, EngineSample, Quality, Step
from detector.verdict import Cause, Phase
from detector.watch import Watch, WatchConfig


@pytest.fixture
def clock():
    return Clock()


def watch_of(answers):
    watch = Watch(WatchConfig())
    for answer in answers:
        watch.update(answer)
    return watch


def test_phases_of_one_collapse(clock):
    watch = Watch(WatchConfig())
    verdicts = [watch.update(clock.answer(content)) for content in [CHAT] * 5 + [DEAD] * 3 + [CHAT] * 2]
    assert [verdict.phase for verdict in verdicts[4:]] == [
        Phase.HEALTHY,
        Phase.TRANSITION,
        Phase.COLLAPSED,
        Phase.COLLAPSED,
        Phase.RECOVERING,
        Phase.HEALTHY,
    ]
    assert [verdict.degraded for verdict in verdicts[4:]] == [False, True, True, True, False, False]
    assert verdicts[7].since == verdicts[6].since < verdicts[8].since


def test_a_relapse_while_recovering_continues_the_episode(clock):
    watch = watch_of(clock.answer(content) for content in [CHAT] * 5 + [DEAD] * 2 + [CHAT])
    assert watch.episodes[0].end_request == 7
    watch.update(clock.answer(DEAD))
    assert (len(watch.episodes), watch.episodes[0].end_request, watch.verdict.phase) == (1, None, Phase.COLLAPSED)


def test_weak_evidence_is_a_transition_that_does_not_degrade(clock):
    watch = watch_of(clock.answer() for _ in range(10))
    verdict = watch.update(clock.answer(0.3, tokens=60))
    assert (verdict.phase, verdict.degraded) == (Phase.TRANSITION, False)
    assert watch.episodes == []
    assert watch.update(clock.answer()).phase is Phase.HEALTHY


def test_the_verdict_shows_the_numbers_that_decided(clock):
    watch = watch_of(clock.answer(content) for content in [CHAT] * 10 + [DEAD])
    evidence = watch.verdict.evidence
    assert evidence["acceptance_length"] == pytest.approx(1 + DEAD, abs=0.01)
    assert evidence["reference_acceptance_length"] == pytest.approx(1 + CHAT, abs=0.01)
    assert evidence["reference_step_seconds"] == pytest.approx(STEP_SECONDS, rel=0.02)
    assert evidence["evidence_nats"] >= evidence["alarm_nats"]


def test_reference_of_the_healthy_state(clock):
    watch = Watch(WatchConfig())
    assert watch.reference.acceptance_length is None
    for content in [CHAT] * 10 + [DEAD] * 5:
        watch.update(clock.answer(content))
    reference = watch.reference
    assert reference.acceptance_length == pytest.approx(1 + CHAT, abs=0.01)
    assert reference.decode_tokens_per_second == pytest.approx((1 + CHAT) / STEP_SECONDS, rel=0.02)


def test_tokens_lost_are_what_the_healthy_rate_would_have_given(clock):
    answers = [clock.answer(content) for content in [CHAT] * 10 + [DEAD] * 2 + [CHAT]]
    watch = watch_of(answers)
    healthy_rate = watch.reference.decode_tokens_per_second
    expected = sum(slow.decode_seconds * healthy_rate - slow.completion_tokens for slow in answers[10:12])
    assert watch.episodes[0].tokens_lost == pytest.approx(expected, rel=0.01)


def test_failed_and_broken_off_answers_are_counted_but_not_judged(clock):
    watch = watch_of(clock.answer() for _ in range(10))
    before = watch.verdict
    for ending in Ending:
        if ending.failed:
            assert watch.update(clock.answer(DEAD, ending=ending)) == before
    assert watch.update(clock.answer(DEAD, ending=Ending.CLIENT_GONE, completion_tokens=5)) == before
    assert watch.update(clock.answer(DEAD, status=400)) == before
    dead = watch.update(clock.answer(DEAD, ending=Ending.CLIENT_GONE))
    assert dead.degraded
    failed = sum(ending.failed for ending in Ending)
    assert watch.episodes[0].onset_request == 10 + failed + 2


def test_canaries_are_judged_but_not_numbered(clock):
    watch = watch_of(clock.answer(content) for content in [CHAT] * 10 + [DEAD] * 2)
    assert watch.update(clock.answer(DEAD, canary=True, tokens=64)).degraded
    recovered = watch.update(clock.answer(canary=True, tokens=64))
    assert (recovered.phase, recovered.degraded) == (Phase.RECOVERING, False)
    assert watch.episodes[0].end_request == 12
    watch.update(clock.answer())
    watch.update(clock.answer(DEAD))
    assert watch.episodes[1].onset_request == 13


def test_acceptance_that_is_back_ends_its_collapse_though_steps_are_slow(clock):
    """A canary on a GPU that the fallback keeps busy: its steps take three times as long, its drafter is well."""
    watch = watch_of([clock.answer(content) for content in [CHAT] * 20 + [DEAD] * 3])
    assert watch.verdict.cause is Cause.ACCEPTANCE_COLLAPSE
    assert not watch.update(clock.answer(tokens=128, canary=True, each_step=3 * STEP_SECONDS)).degraded


def test_slow_steps_keep_an_inflation_going(clock):
    watch = watch_of([clock.answer(content) for content in [CHAT] * 20])
    for _ in range(3):
        watch.update(clock.answer(each_step=3 * STEP_SECONDS))
    assert watch.verdict.cause is Cause.STEP_INFLATION
    assert watch.update(clock.answer(tokens=128, canary=True, each_step=3 * STEP_SECONDS)).degraded


def test_answers_begun_before_the_alarm_cannot_prove_recovery(clock):
    watch = Watch(WatchConfig())
    early = clock.answer()
    for content in [CHAT] * 10 + [DEAD]:
        watch.update(clock.answer(content))
    late = msgspec.structs.replace(early, ended=clock.now)
    assert watch.update(late).degraded
    assert not watch.update(clock.answer()).degraded


def test_answers_begun_in_an_episode_cannot_prove_a_new_one(clock):
    answers = [clock.answer(content) for content in [CHAT] * 10 + [DEAD, DEAD, CHAT, CHAT, CHAT]]
    watch = watch_of(answers)
    straggler = clock.answer(DEAD, started=answers[11].started)
    assert not watch.update(straggler).degraded
    assert len(watch.episodes) == 1


def test_a_restart_forgets_the_phase_and_keeps_the_reference(clock):
    watch = watch_of(clock.answer(content) for content in [CHAT] * 10 + [DEAD] * 2)
    reference = watch.reference
    watch.restart(1)
    assert (watch.verdict.phase, watch.verdict.degraded) == (Phase.HEALTHY, False)
    assert watch.episodes[0].end_request == 12
    assert watch.reference == reference
    assert not watch.update(clock.answer(DEAD, generation=0)).degraded  # says nothing about the new process
    assert watch.update(clock.answer(DEAD, generation=1)).degraded
    assert watch.episodes[1].onset_request == 13


def plain(clock, generation, **changes):
    """An answer of an engine that runs without speculation."""
    return clock.answer(0.0, num_speculative_tokens=0, generation=generation, **changes)


def test_a_launch_at_another_level_is_no_collapse(clock):
    watch = watch_of(clock.answer() for _ in range(10))
    verdicts = [watch.update(plain(clock, 1)) for _ in range(10)]
    assert {verdict.phase for verdict in verdicts} == {Phase.HEALTHY}
    assert watch.reference.acceptance_length == pytest.approx(1.0)


def test_back_at_the_first_level_its_reference_is_known_at_once(clock):
    watch = watch_of(clock.answer() for _ in range(10))
    for _ in range(10):
        watch.update(plain(clock, 1))
    verdicts = [watch.update(clock.answer(DEAD, generation=2)) for _ in range(2)]
    assert verdicts[-1].cause is Cause.ACCEPTANCE_COLLAPSE
    assert watch.reference.acceptance_length == pytest.approx(1 + CHAT, abs=0.05)


def test_the_cycle_of_one_level_is_not_forecast_at_another(clock):
    watch = watch_of(clock.answer(content) for content in ([CHAT] * 6 + [DEAD] * 3) * 5 + [CHAT] * 5)
    assert watch.verdict.forecast.next_request_probability > 0.3
    for _ in range(8):
        assert watch.update(plain(clock, 1)).forecast is None
    assert watch.cycle.e_value < watch.strongest_cycle.e_value
    for _ in range(5):
        watch.update(clock.answer(generation=2))
    assert watch.verdict.forecast is not None


def test_a_watch_at_its_second_level_is_stored_whole(clock):
    watch = watch_of(clock.answer() for _ in range(10))
    watch.update(plain(clock, 1))
    restored = Watch(WatchConfig())
    restored.restore(watch.snapshot())
    for answer in [plain(clock, 1), clock.answer(generation=2), clock.answer(DEAD, generation=2)]:
        assert restored.update(answer) == watch.update(answer)
    assert restored.snapshot() == watch.snapshot()


def test_speculation_that_stops_while_the_engine_runs_is_a_finding(clock):
    watch = watch_of(clock.answer() for _ in range(10))
    assert [watch.update(plain(clock, 0)) for _ in range(3)][-1].degraded


def test_steps_after_a_launch_wait_until_its_level_is_known(clock):
    watch = watch_of(clock.answer() for _ in range(10))
    watch.restart(1)
    for number in range(400):
        assert watch.update_step("first", Step(clock.now + number * 0.02, 1)) is None
    watch.update_engine(EngineSample(at=clock.now, num_speculative_tokens=8))
    assert any(watch.update_step("next", Step(clock.now + 9 + number * 0.02, 1)) for number in range(400))


def test_an_answer_of_a_newer_launch_restarts(clock):
    watch = watch_of(clock.answer(content) for content in [CHAT] * 10 + [DEAD] * 2)
    assert not watch.update(clock.answer(generation=3)).degraded
    assert watch.episodes[0].end_request == 12


def test_recovery_adds_up(clock):
    """Answers of a few words, none of which is enough alone."""
    watch = watch_of(clock.answer(content) for content in [CHAT] * 20 + [DEAD] * 3)
    canaries = 0
    while watch.verdict.degraded:
        watch.update(clock.answer(2.2, canary=True, tokens=6))
        canaries += 1
    assert 2 <= canaries <= 6


def test_memory_is_bounded(clock):
    watch = watch_of(clock.answer(content) for content in ([CHAT] * 3 + [DEAD] * 2) * 300)
    assert len(watch.episodes) == 256
    assert watch.episodes_total >= 299
    for number in range(5000):
        watch.update_step(f"never ended {number:05}", Step(0.0, 1))
    size = len(watch.snapshot())
    for number in range(5000, 6000):
        watch.update_step(f"never ended {number:05}", Step(0.0, 1))
    assert len(watch.snapshot()) == size


@pytest.mark.parametrize("setting", [{"mean_requests_between_false_alarms": 1.0}, {"rebase_after_requests": 0}])
def test_a_watch_setting_out_of_range_is_named(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        WatchConfig(**setting)


@pytest.mark.parametrize("damaged", [b"", b"\x00", b"not a snapshot", msgspec.msgpack.encode({"version": 99})])
def test_a_foreign_snapshot_is_refused(damaged):
    watch = Watch(WatchConfig())
    with pytest.raises(ValueError, match="snapshot"):
        watch.restore(damaged)
    assert watch.verdict.phase is Phase.HEALTHY


numbers = st.one_of(
    st.none(), st.just(math.nan), st.just(math.inf), st.floats(1e-3, 1e4), st.sampled_from([0.0, -1.0, 1.0])
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "acceptance_length": numbers,
        "step_seconds": numbers,
        "decode_tokens_per_second": numbers,
        "decode_seconds": numbers,
        "longest_gap_seconds": numbers,
        "ttft_seconds": numbers,
        "verify_steps": st.one_of(st.none(), st.integers(0, 5000)),
        "completion_tokens": st.one_of(st.none(), st.integers(0, 5000)),
        "num_speculative_tokens": st.one_of(st.none(), st.integers(0, 16)),
        "position_acceptance": st.one_of(st.none(), st.just(()), st.tuples(st.floats(-0.5, 1.5)), st.just((math.nan,))),
        "acceptance_quality": st.one_of(st.none(), st.sampled_from(Quality)),
        "ending": st.sampled_from(Ending),
        "canary": st.booleans(),
        "generation": st.integers(0, 2),
        "in_flight": st.integers(0, 64),
        "started": st.floats(0.0, 500.0),
    },
)
inputs = st.lists(
    st.one_of(
        st.tuples(st.just("answer"), st.sampled_from([CHAT, CHAT, DEAD]), changes),
        st.tuples(st.just("step"), st.sampled_from(["a", "b"]), st.one_of(st.none(), st.integers(0, 12))),
    ),
    max_size=30,
)


def feed(watch, clock, items):
    returned = []
    for kind, first, second in items:
        if kind == "answer":
            returned.append(watch.update(clock.answer(first, **second)))
        else:
            returned.append(watch.update_step(first, Step(clock.now, second)))
    return returned


@settings(max_examples=150, deadline=None)
@given(before=inputs, after=inputs)
def test_a_restored_watch_behaves_the_same_to_the_byte(before, after):
    first, clock = Watch(WatchConfig()), Clock()
    for content in [CHAT] * 4:
        first.update(clock.answer(content))
    feed(first, clock, before)
    second = Watch(WatchConfig())
    second.restore(first.snapshot())
    twin = Clock()
    twin.now, twin._numbers = clock.now, iter(range(1000, 2000))
    clock._numbers = iter(range(1000, 2000))
    assert repr(feed(first, clock, after)) == repr(feed(second, twin, after))
    assert first.snapshot() == second.snapshot()
    assert repr(first.episodes) == repr(second.episodes)


CAUSES_OF_HEALTHY_ANSWERS = (
    None,
    Cause.QUEUEING,
    Cause.LONG_CONTEXT,
    Cause.CONTENT,
    Cause.ARTEFACT,
    Cause.DEGENERATE_OUTPUT,
)
"""What one slow answer may be put down to while the backend is healthy."""


@settings(max_examples=150, deadline=None)
@given(items=inputs)
def test_what_the_watch_says_is_consistent(items):
    watch, clock = Watch(WatchConfig()), Clock()
    for item in items:
        feed(watch, clock, [item])
        verdict, episodes = watch.verdict, watch.episodes
        open_episodes = [episode for episode in episodes if episode.end_request is None]
        assert verdict.degraded == bool(open_episodes)
        assert open_episodes == episodes[-1:] or not open_episodes
        assert all(math.isfinite(number) for number in verdict.evidence.values())
        assert verdict.cause in CAUSES_OF_HEALTHY_ANSWERS or verdict.degraded
        for episode in episodes:
            assert episode.onset_request <= episode.detected_request
            assert episode.end_request is None or episode.end_request >= episode.detected_request
            assert episode.tokens_lost is None or episode.tokens_lost >= 0


@pytest.mark.parametrize("left_in_time", [False, True])
def test_the_next_collapse_is_seen_coming_whether_or_not_an_answer_was_hit(clock, left_in_time):
    """Five answers, then canaries until it is healthy again. An answer that was hit ends after the recovery; where
    traffic left in time there is none. Both cycles are equally long on the engine's clock of requests."""
    watch, risks = Watch(WatchConfig()), []
    for turn in range(8):
        for _ in range(5):
            watch.update(clock.answer())
        risks.append(watch.forecast.next_request_probability if watch.forecast is not None else 0.0)
        started = clock.now
        for content in (DEAD, DEAD, DEAD, CHAT):
            watch.update(clock.answer(content, tokens=400, canary=True))
        if not left_in_time or turn % 2:
            watch.update(clock.answer(0.8, started=started))
    assert min(risks[3:]) > 0.7
    assert (watch.episodes_total, watch.verdict.degraded) == (8, False)
