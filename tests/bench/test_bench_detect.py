"""The detection benchmark's own parts: a wrong simulator or score would give figures that nobody could check."""

from __future__ import annotations

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.observation import Quality, Source
from detector.verdict import Phase
from tests.bench.detect import ours, physics
from tests.bench.detect.observations import observations_of
from tests.bench.detect.scenarios import CORE, NULL_OF, SCENARIOS
from tests.bench.detect.scoring import Score, TrueEpisode, score, true_episodes
from tests.bench.detect.simulator import simulate

REQUESTS = 400
COLLAPSING = sorted(NULL_OF)


def answers_of(name, requests=REQUESTS, seed=5, warm=0):
    return simulate(SCENARIOS[name], requests, seed, warm)


@given(st.floats(0.01, 0.99), st.integers(1, 15))
def test_acceptance_and_its_mean_are_each_others_inverse(acceptance, depth):
    mean = physics.mean_accepted(acceptance, depth)
    assert 0 < mean < depth
    assert physics.conditional_acceptance(mean, depth) == pytest.approx(acceptance, abs=1e-3)


def test_moments_of_a_chain_by_hand():
    # K = 2, p = 1/2: 0, 1, 2 accepted with probability 1/2, 1/4, 1/4.
    assert physics.mean_accepted(0.5, 2) == pytest.approx(0.75)
    assert physics.variance_accepted(0.5, 2) == pytest.approx(1.25 - 0.75**2)


def test_published_machine():
    assert 4.5 / physics.step_seconds(8) == pytest.approx(221)
    assert 1 / physics.step_seconds(0) == pytest.approx(136)


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_every_scenario_is_possible_and_the_same_for_the_same_seed(name):
    answers = answers_of(name, 60)
    depth = SCENARIOS[name].engine.num_speculative_tokens
    assert answers == answers_of(name, 60)
    assert answers != answers_of(name, 60, seed=6)
    for answer in answers:
        assert answer.started < answer.ended
        assert 1 <= answer.verify_steps <= answer.tokens
        assert answer.tokens <= answer.verify_steps * (depth + 1)
        assert 0 < answer.longest_gap_seconds <= answer.decode_seconds * 1.5
        assert len(answer.position_acceptance) == depth
        assert list(answer.position_acceptance) == sorted(answer.position_acceptance, reverse=True)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if SCENARIOS[name].collapse is None])
def test_a_null_never_collapses(name):
    assert not any(answer.degraded or answer.phase is not Phase.HEALTHY for answer in answers_of(name, 200))


def test_every_collapse_has_a_null_of_the_same_traffic():
    assert {name for name, scenario in SCENARIOS.items() if scenario.collapse is not None} == set(NULL_OF)
    for name, null in NULL_OF.items():
        with_collapse, without = SCENARIOS[name], SCENARIOS[null]
        assert without.collapse is None
        assert (with_collapse.workload.content, with_collapse.measuring) == (
            without.workload.content,
            without.measuring,
        )


def test_published_cycle_has_its_rates_and_runs():
    answers = answers_of("blog", 2000)
    rates = {
        phase: statistics.mean(answer.tokens_per_second for answer in answers if answer.phase is phase)
        for phase in Phase
    }
    assert rates[Phase.HEALTHY] == pytest.approx(221, rel=0.02)
    assert rates[Phase.COLLAPSED] == pytest.approx(60, rel=0.03)
    assert rates[Phase.COLLAPSED] < rates[Phase.TRANSITION] < rates[Phase.RECOVERING] < rates[Phase.HEALTHY]
    episodes = true_episodes([answer.degraded for answer in answers])[1:-1]
    assert {episode.end - episode.onset + 1 for episode in episodes} == {3, 4, 5}
    assert statistics.mean(later.onset - one.end - 1 for one, later in itertools.pairwise(episodes)) == (
        pytest.approx(6, abs=0.1)  # 5 healthy and 1 recovering
    )


def test_deployed_traffic_has_its_marginals():
    answers = answers_of("null_deploy", 6000)
    assert statistics.median(answer.tokens for answer in answers) == pytest.approx(400, rel=0.08)
    shares = [sum(answer.content == name for answer in answers) / 6000 for name in ("code", "chat", "prose", "tool")]
    assert shares == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.03)
    assert sum(answer.shape.name != answer.content for answer in answers) / 6000 == pytest.approx(0.15, abs=0.03)
    assert sum(answer.no_rate for answer in answers) / 6000 == pytest.approx(0.02, abs=0.01)
    by_content = {
        name: statistics.mean(answer.acceptance_length for answer in answers if answer.content == name)
        for name in ("prose", "chat", "code", "tool")
    }
    assert by_content == pytest.approx({"prose": 3.2, "chat": 4.2, "code": 5.2, "tool": 6.0}, rel=0.07)


def test_modes_move_their_own_factor():
    def collapsed(name):
        return [answer for answer in answers_of(name) if answer.phase is Phase.COLLAPSED]

    inflated = [answer.decode_seconds / answer.verify_steps for answer in collapsed("blog_steptime")]
    assert statistics.mean(inflated) == pytest.approx(3.6 * physics.PUBLISHED_STEP_SECONDS, rel=0.01)
    assert statistics.mean(answer.acceptance_length for answer in collapsed("blog_steptime")) == pytest.approx(
        4.5, 0.02
    )
    assert all(answer.acceptance_length == 1 for answer in collapsed("speculation_off"))
    mild = statistics.mean(answer.acceptance_length for answer in collapsed("mild_published"))
    assert mild == pytest.approx(2.0, rel=0.02)


def test_truth_names_the_onset_inside_the_transition():
    for answer in answers_of("blog"):
        if answer.phase is not Phase.TRANSITION:
            assert answer.onset_step is None
            continue
        assert 0 < answer.onset_step < answer.verify_steps
        healthy_tokens = (1 - answer.collapsed_share) * answer.tokens
        assert answer.onset_step == pytest.approx(healthy_tokens / 4.5, rel=0.25)


@pytest.mark.parametrize("name", COLLAPSING)
def test_warm_traffic_is_healthy_and_then_it_collapses(name):
    answers = answers_of(name, 700, warm=100)
    # Side by side, an answer that started earlier may end later.
    warm = 100 - SCENARIOS[name].workload.workers
    assert not any(answer.degraded for answer in answers[:warm])
    assert sum(answer.degraded for answer in answers[warm:]) >= 10


@pytest.mark.parametrize("name", ["deploy_tokens", "deploy_steps", "deploy_time", "idle_gaps", "workers_8"])
def test_other_clocks_do_not_count_requests(name):
    """Runs that are regular on their own clock are not on the request clock."""
    answers = answers_of(name, 4000)
    episodes = true_episodes([answer.degraded for answer in answers], SCENARIOS[name].workload.workers - 1)
    lengths = [later.onset - one.onset for one, later in itertools.pairwise(episodes)]
    assert len(lengths) >= 10
    assert statistics.stdev(lengths) / statistics.mean(lengths) > 0.12


def test_answers_side_by_side_overlap_and_come_in_the_order_of_their_ends():
    answers = answers_of("workers_8")
    assert [answer.ended for answer in answers] == sorted(answer.ended for answer in answers)
    middle = answers[200].started + 0.01
    assert sum(answer.started <= middle < answer.ended for answer in answers) >= 5


def test_sources_tell_what_they_can_know():
    by_source = {
        name: observations_of(SCENARIOS[name], answers_of(name, 200))
        for name in ("null_deploy", "null_engine_counts", "null_merged_events", "null_rate_only")
    }
    for one in by_source["null_engine_counts"]:
        if one.acceptance_length is not None:
            assert (one.acceptance_source, one.acceptance_quality) == (Source.ENGINE, Quality.EXACT)
            assert 1 + sum(one.position_acceptance) == pytest.approx(one.acceptance_length, rel=0.35)
    assert all(one.acceptance_length is None for one in by_source["null_rate_only"])
    pairs = zip(by_source["null_merged_events"], answers_of("null_merged_events", 200), strict=True)
    assert all(one.acceptance_length >= answer.acceptance_length for one, answer in pairs if one.acceptance_length)
    cadence = by_source["null_deploy"]
    assert any(one.decode_seconds is None for one in cadence)
    assert any(one.acceptance_length is None and one.decode_seconds is not None for one in cadence)
    for one in cadence:
        if one.step_seconds is not None:
            assert one.decode_tokens_per_second == pytest.approx(one.acceptance_length / one.step_seconds)


def test_true_episodes():
    truth = [False, True, True, False, True, False, False, True]
    assert true_episodes(truth) == [TrueEpisode(1, 2), TrueEpisode(4, 4), TrueEpisode(7, 7)]
    assert true_episodes(truth, gap=1) == [TrueEpisode(1, 4), TrueEpisode(7, 7)]
    assert true_episodes([False] * 3) == []


#            0      1      2     3     4      5      6      7     8      9
TRUTH = [False, False, True, True, True, False, False, True, False, False]


@pytest.mark.parametrize(
    ("alarms", "missed", "false_alarms", "delays"),
    [
        ([2, 7], 0, 0, [0, 0]),
        ([4, 7], 0, 0, [2, 0]),
        ([2, 3, 4, 7], 0, 0, [0, 0]),
        ([5, 7], 1, 0, [0]),  # one answer late: neither found nor false
        ([6, 9], 2, 2, []),
        ([0, 2, 7], 0, 1, [0, 0]),
        ([], 2, 0, []),
    ],
)
def test_score_by_hand(alarms, missed, false_alarms, delays):
    result = score(TRUTH, alarms)
    assert (result.missed, result.false_alarms, result.delays) == (missed, false_alarms, delays)
    assert (result.requests, result.episodes, result.short_episodes) == (10, 2, 1)


def test_score_counts_from_where_it_begins_and_leaves_cut_collapses_out():
    result = score([True, True, False, False, True], [0, 3], begin=1)
    assert (result.requests, result.episodes, result.false_alarms) == (4, 0, 1)
    assert result.missed_share is None
    assert result.mean_delay is None


def test_score_of_answers_side_by_side_allows_each_worker_one_late_answer():
    truth = [False, True, False, True, False, False, False]
    alone, three = score(truth, [1, 5], workers=1), score(truth, [1, 5], workers=3)
    assert (alone.episodes, alone.false_alarms) == (2, 1)
    assert (three.episodes, three.missed, three.false_alarms) == (1, 0, 0)


def test_flags_are_shares_of_degraded_and_healthy_answers():
    flagged = [True, False, False, True, True, True, False, True, False, False]
    result = score(TRUTH, [3, 7], flagged)
    assert result.recall == pytest.approx(3 / 4)
    assert result.healthy_flagged_share == pytest.approx(2 / 6)


def test_scores_add_up():
    once = score(TRUTH, [0, 4])
    twice = once + once
    assert twice.delays == [2, 2]
    assert twice.false_alarms_per_1000 == once.false_alarms_per_1000 == 100
    assert (twice.requests, twice.missed_share, twice.short_missed_share) == (20, 0.5, 1.0)
    assert Score() + once == once


def test_our_detector_is_watched_answer_by_answer():
    scenario = SCENARIOS["blog"]
    answers = simulate(scenario, 120, seed=1, warm=60)
    watched = ours.watch_answers(observations_of(scenario, answers))
    assert len(watched.flagged) == 120
    for number in watched.alarms:
        assert watched.flagged[number]
        assert not watched.flagged[number - 1]
    found = score([answer.degraded for answer in answers], watched.alarms, watched.flagged)
    assert found.episodes >= 4
    assert found.missed < found.episodes


def test_core_scenarios_are_the_fifteen():
    assert len(CORE) == 15
    assert len({scenario.name for scenario in CORE}) == 15
