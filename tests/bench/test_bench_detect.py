"""The detection benchmark's own parts: a wrong simulator or score would give figures that nobody could check."""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import subprocess

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.observation import Quality, Source
from detector.verdict import Phase
from tests.bench.detect import environment, ours, peers, physics, table
from tests.bench.detect import run as bench
from tests.bench.detect.bars import bars, verdict_of
from tests.bench.detect.calibrate import bisect, calibrate, lowest_edge_threshold
from tests.bench.detect.observations import observations_of
from tests.bench.detect.our_run import our_row, scenario_names
from tests.bench.detect.recorded import recorded_rows
from tests.bench.detect.results import Cost, Recorded, Result, Row
from tests.bench.detect.scenarios import CORE, NULL_OF, SCENARIOS
from tests.bench.detect.scoring import Score, TrueEpisode, score, true_episodes
from tests.bench.detect.series import Size
from tests.bench.detect.simulator import overdispersion, simulate

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


def test_content_with_a_memory_disperses_long_answers_more():
    """Beside 2,000 series of an AR(1) on the acceptance logit, whose steps are drawn one by one."""
    rng = np.random.default_rng(0)
    memory, deviation, depth = 60.0, 0.7, 8
    steps, carry = 450, math.exp(-1 / memory)
    middle = physics.conditional_acceptance(3.5, depth)
    wander = rng.normal(0, deviation, 2000)
    accepted = np.zeros((2000, steps))
    for step in range(steps):
        acceptance = 1 / (1 + np.exp(-wander) * (1 - middle) / middle)
        accepted[:, step] = np.minimum(rng.geometric(1 - acceptance) - 1, depth)
        wander = carry * wander + rng.normal(0, deviation * math.sqrt(1 - carry * carry), 2000)
    engine = SCENARIOS["wander"].engine
    for length in (4, 30, 90, 450):
        measured = accepted[:, :length].mean(1).var() * length / physics.variance_accepted(middle, depth)
        assert overdispersion(engine, length) == pytest.approx(measured, rel=0.15)
    assert overdispersion(SCENARIOS["deploy"].engine, 4) == overdispersion(SCENARIOS["deploy"].engine, 450) == 6


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
        for name in ("null_deploy", "null_engine_counts", "null_counters", "null_merged_events", "null_rate_only")
    }
    for one in by_source["null_engine_counts"]:
        if one.acceptance_length is not None:
            assert (one.acceptance_source, one.acceptance_quality) == (Source.ENGINE, Quality.EXACT)
            assert 1 + sum(one.position_acceptance) == pytest.approx(one.acceptance_length, rel=0.35)
    assert all(one.acceptance_length is None for one in by_source["null_rate_only"])
    counted = [one for one in by_source["null_counters"] if one.acceptance_source is Source.COUNTERS]
    assert 50 < len(counted) < 150
    assert all(one.in_flight == 1 for one in counted)
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


class RisingStatistic:
    """An edge peer whose statistic is minus the rate."""

    def __init__(self, reference):
        self.reference = reference

    def statistic(self, rate):
        return -rate


class Below:
    """A restarting peer that alarms at every rate below its threshold."""

    def __init__(self, reference, threshold):
        self.threshold = threshold

    def alarm(self, rate):
        return rate < self.threshold


@pytest.fixture
def simple_peers(monkeypatch):
    monkeypatch.setitem(peers.EDGES, "edge", RisingStatistic)
    monkeypatch.setitem(peers.RESTARTING, "restarting", (Below, 1.0, 400.0))


WARM = [200.0 + number % 5 for number in range(peers.WARM_RATES)]


def test_edge_peers_alarm_where_the_statistic_rises_and_hold_over_unknown_rates(simple_peers):
    rates = [*WARM, 200.0, 60.0, None, 60.0, 200.0, None, 60.0]
    first = peers.WARM_RATES
    assert peers.alarms_of("edge", -100.0, rates) == [first + 1, first + 6]
    assert peers.alarms_of("edge", -100.0, [None, *rates]) == [first + 2, first + 7]


def test_restarting_peers_alarm_only_where_the_rate_fell(simple_peers):
    rates = [*WARM, 60.0, 300.0, None, 199.0]
    first = peers.WARM_RATES
    assert peers.alarms_of("restarting", 100.0, rates) == [first]
    assert peers.alarms_of("restarting", 1000.0, rates) == [first, first + 3]


def test_rules_of_the_field_by_hand():
    first = peers.WARM_RATES
    three = "3 in a row < h x median"
    assert peers.alarms_of(three, -0.5, [*WARM, 60, 60, 200, 60, 60, 60, 60]) == [first + 5]
    prometheus = "Prometheus rule: avg of 6 < h x long average"
    assert peers.alarms_of(prometheus, -0.5, [*WARM, *[60.0] * 8, *[200.0] * 8, *[60.0] * 8]) == [
        first + 5,  # six answers fill the window
        first + 8 + 8 + 4,
    ]
    assert peers.alarms_of("EWMA chart, weight 0.3", 3.0, [*WARM, 60.0, 201.0, 202.0]) == [first]


def test_an_edge_threshold_comes_down_only_while_alarms_are_few():
    # Far down the statistic is always above: no edges there, and no detector either.
    statistics_ = [[0.0, 5.0, 0.0, 4.0, 0.0, 3.0, 0.0]]
    assert lowest_edge_threshold(statistics_, allowed=2) == 4.0
    assert lowest_edge_threshold(statistics_, allowed=1) == 5.0
    assert lowest_edge_threshold(statistics_, allowed=0) > 5.0


def test_bisection_finds_the_lowest_threshold_that_is_quiet_enough():
    found = bisect(lambda threshold: 100 if threshold < 30 else 10, 1.0, 400.0, allowed=10)
    assert found == pytest.approx(30, rel=0.01)
    assert found >= 30


def test_calibration_keeps_the_mean_time_between_false_alarms(simple_peers):
    rates = [*WARM, *(100.0 + number % 97 for number in range(850))]
    for name in ("edge", "restarting"):
        threshold, between = calibrate(name, [rates], mean_requests=100.0)
        assert len(peers.alarms_of(name, threshold, rates)) <= 10
        assert between >= 100


def made_up_result(**changes):
    null = Row(detector=ours.NAME, scenario="null_deploy", score=Score(requests=12000, false_alarms=6))
    found = Score(requests=1000, episodes=100, missed=1, delays=[1] * 99)
    recorded = Recorded(
        name="published, dflash_n8 (10 rates)",
        requests=10,
        true_onsets=[5],
        true_ends=[8],
        episodes=[{"detected_request": 5, "detected_step": None, "cause": "unknown"}],
        cycle_verdict="undetermined",
        cycle_known=False,
    )
    fields = {
        "date_utc": "2026-11-22 11:00",
        "command": "run",
        "commit": "abc",
        "machine": {"CPU": "one"},
        "settings": {"seeds": "1"},
        "wall_seconds": 1.0,
        "rows": [null, Row(detector=ours.NAME, scenario="deploy", score=found, causes={"acceptance_collapse": 99})],
        "costs": [
            Cost(
                detector=ours.NAME,
                microseconds_per_request=50.0,
                microseconds_per_healthy_request=50.0,
                microseconds_per_step=1.0,
            )
        ],
        "recorded": [recorded],
        "skipped": ["the peers: no network"],
    }
    return Result(**(fields | changes))


def verdicts(result):
    return {bar.name: bar.cells[-1] for bar in bars(result)}


def test_every_bar_of_a_good_run_is_kept():
    assert set(verdicts(made_up_result()).values()) == {"pass", "not measured"}


@pytest.mark.parametrize(
    ("bar", "changes"),
    [
        (
            "worst null",
            {"rows": [Row(detector=ours.NAME, scenario="null_iid", score=Score(requests=900, false_alarms=1))]},
        ),
        (
            "collapsing scenarios kept",
            {"rows": [Row(detector=ours.NAME, scenario="mild", score=Score(requests=900, episodes=9, missed=9))]},
        ),
        ("CPU per request", {"costs": [Cost(detector=ours.NAME, microseconds_per_request=101.0)]}),
        (
            "CPU per request while nothing collapses",
            {
                "costs": [
                    Cost(detector=ours.NAME, microseconds_per_request=50.0, microseconds_per_healthy_request=101.0)
                ]
            },
        ),
        (
            "published rates: alarm at",
            {"recorded": [msgspec.structs.replace(made_up_result().recorded[0], episodes=[])]},
        ),
        (
            "cycle claimed on too little",
            {"recorded": [msgspec.structs.replace(made_up_result().recorded[0], cycle_verdict="cyclic")]},
        ),
    ],
)
def test_a_bar_that_is_not_kept_says_so(bar, changes):
    assert verdicts(made_up_result(**changes))[bar] == "FAIL"


def test_short_collapses_do_not_count_against_the_bar():
    short = Score(requests=100, episodes=10, short_episodes=5, missed=5, short_missed=5, delays=[1] * 5)
    assert verdict_of(Row(detector=ours.NAME, scenario="random_slow", score=short)) == "pass"
    assert short.missed_share == 0.5


def test_the_page_has_every_row_and_survives_its_own_json():
    result = made_up_result()
    page = table.page(result)
    for text in (
        "| null_deploy | 12,000 | 6 | 0.50 (0.18 to 1.09) |",
        "1.00 / 1",
        "the peers: no network",
        "1.0 %",
        "abc",
    ):
        assert text in page
    assert msgspec.json.decode(msgspec.json.encode(result), type=Result) == result
    blocks = itertools.groupby(page.splitlines(), key=lambda line: line.startswith("|"))
    for lines in (list(lines) for is_table, lines in blocks if is_table):
        assert len({line.count("|") for line in lines}) == 1, lines


def test_recorded_series_are_found_where_they_should_be():
    published, _, cycle, *_, k15 = recorded_rows(None)
    assert (published.requests, cycle.requests) == (10, 40)
    assert cycle.true_onsets == [5, 15, 25, 35]
    assert cycle.found == 4
    assert k15.false_alarms == 0
    assert all(one.cycle_verdict != "cyclic" for one in (published, k15))


def test_a_suffix_changes_what_the_detector_meets_or_is_told():
    size = Size(collapse_requests=60, null_requests=60, seeds=1)
    whole, cold, by_rates = (our_row("blog" + suffix, size) for suffix in ("", ":cold", ":rates"))
    assert whole.score.requests == by_rates.score.requests == 60
    assert cold.score.requests == 0  # nothing is scored before it has had time to find its feet
    assert (by_rates.detector, by_rates.scenario) == (ours.NAME_RATES, "blog")


def test_peers_that_cannot_be_installed_are_left_out_with_the_reason(monkeypatch):
    def no_network(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "trying\nERROR: no network\n")

    monkeypatch.setenv("XDG_CACHE_HOME", "/nonexistent")
    monkeypatch.setattr(environment.subprocess, "run", no_network)
    monkeypatch.setattr(bench, "commit", lambda: "abc")
    args = argparse.Namespace(quick=True, only="peers", jobs=1, captures=None)
    result = bench.measure(args, ["null_iid"])
    assert result.skipped[0].startswith("the peers: ")
    assert result.skipped[0].endswith("ERROR: no network")
    assert (result.rows, result.costs) == ([], [])


def test_scenario_names_are_checked():
    assert scenario_names("deploy,blog:cold,blog:rates") == ["deploy", "blog:cold", "blog:rates"]
    with pytest.raises(ValueError, match="no scenario 'deply'; there are: blog"):
        scenario_names("deply")
