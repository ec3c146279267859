"""The cycle benchmark's own parts: the model of the engine is the published cycle, and its harness counts right."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from pathlib import Path

import cycle
import cycle_page
import pytest
from cycle_client import Answer, ask
from cycle_model import (
    CLOCKS,
    DETECTORS,
    SLOW_TOK_S,
    Cycle,
    Detector,
    Outcome,
    Primary,
    Simulation,
    alone,
    oracle,
    published,
)
from cycle_results import DIRECT, Case, Result, Run
from cycle_targets import Upstreams, specbreaker

from detector.policy import Mode, PolicyConfig
from proxy.config import load
from replay.emulator import serving

ACT = PolicyConfig(mode=Mode.ACT, fallbacks=("fallback",))
NO_CYCLE = Cycle(clock="requests", healthy=math.inf, collapsed=1.0)


def play(clock: str, kind: str, requests: int = 120) -> Outcome:
    return Simulation(published(clock), ACT, DETECTORS[kind]).run(requests)


# ---- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", CLOCKS)
def test_the_primary_alone_is_the_published_cycle(clock: str) -> None:
    outcome = alone(published(clock), 100)
    assert outcome.tokens_per_second == pytest.approx(114, abs=4)
    assert outcome.slow_share() == pytest.approx(0.4, abs=0.1)
    assert max(outcome.rates) == pytest.approx(219.5, abs=1)
    assert min(outcome.rates) == pytest.approx(61, abs=1)


def test_the_model_gives_the_published_rates() -> None:
    rates = alone(published("requests"), 20).rates
    assert rates == pytest.approx([219.5, 219.5, 219.5, 219.5, 219.5, 103, 61, 61, 61, 210] * 2, rel=0.03)


@pytest.mark.parametrize("clock", CLOCKS)
def test_nobody_beats_the_oracle_and_everybody_beats_both_alone(clock: str) -> None:
    best = oracle(published(clock), 120, fallback_tok_s=130.0).tokens_per_second
    assert best > 145
    for kind in DETECTORS:
        assert 137 < play(clock, kind).tokens_per_second < 1.01 * best


def test_the_bar_of_the_published_cycle_is_met_and_few_answers_are_slow_once_it_is_learned() -> None:
    assert play("requests", "in stream").tokens_per_second > 165
    learned = play("requests", "in stream, learned forecast")
    assert learned.tokens_per_second > 180
    assert learned.slow_share(60) <= 0.05


def test_without_a_cycle_nothing_is_lost_even_to_false_alarms() -> None:
    quiet = Simulation(NO_CYCLE, ACT, Detector()).run(200)
    assert (quiet.switches, quiet.canaries) == (0, 0)
    alarmed = Simulation(NO_CYCLE, ACT, Detector(false_alarm_every=100)).run(1000)
    assert alarmed.switches > 0
    assert alarmed.tokens_per_second > 0.98 * quiet.tokens_per_second


def test_a_collapse_that_never_ends_costs_little_more_than_the_fallback() -> None:
    forever = Cycle(clock="seconds", healthy=100.0, collapsed=1e9)
    outcome = Simulation(forever, ACT, Detector()).run(150)
    assert outcome.tokens_per_second > 128
    assert outcome.canary_tokens < 0.2 * outcome.tokens


def test_time_on_every_clock_only_moves_while_it_should() -> None:
    for clock in CLOCKS:
        primary = Primary(published(clock), random.Random(0))
        primary.advance(10.0)
        assert (primary.position() > 0) == (clock == "seconds")
        job = primary.start(100)
        assert primary.advance(1e6) == [job]
        assert primary.position() > 0


# ---- the harness -----------------------------------------------------------------------------------------------------


async def test_an_answer_is_counted_whole_and_timed() -> None:
    case = Case(name="x", scenario="steady", fallback_tok_s=130.0, requests=2)
    primary, fallback = cycle.primary_of(case, 100.0), cycle.fallback_of(case, 100.0)
    async with serving(primary) as url:
        port = int(url.rsplit(":", 1)[1])
        answers = [await ask(port, "m", number, cycle.ANSWER_TOKENS) for number in range(2)]
        unknown = await ask(port, "another", 0, cycle.ANSWER_TOKENS)
    assert all(one.whole and one.decode_seconds and one.ttft_seconds for one in answers)
    assert (unknown.whole, unknown.status) == (False, 404)
    result = cycle.result_of(case, DIRECT, 100.0, [*answers, unknown], primary, fallback)
    assert (result.requests, result.lost, result.on_primary, result.on_fallback) == (3, 1, 2, 0)
    assert (result.canaries, len(result.rates)) == (0, 2)


async def test_a_port_that_refuses_is_a_lost_answer() -> None:
    case = Case(name="x", scenario="steady", fallback_tok_s=130.0)
    async with serving(cycle.fallback_of(case, 100.0)) as url:
        port = int(url.rsplit(":", 1)[1])
    assert await ask(port, "m", 0, 10) == Answer(whole=False)


def test_the_settings_of_ours_are_valid_and_scaled(tmp_path: Path) -> None:
    command, _, running = specbreaker(tmp_path, Upstreams(primary=1, fallback=2, time_scale=20.0))
    config = load(command[-1], environment={}, flags={})
    assert config.policy.mode == "act"
    assert config.policy.dwell_seconds == pytest.approx(0.1)
    assert str(running.port) in config.server.listen


def result(target: str, rate: float, rates: list[float], case: str = "requests") -> Result:
    return Result(
        case=case, target=target, requests=4, on_primary=4, tokens_per_second=rate, rates=rates, time_scale=10.0
    )


def test_the_page_says_what_passed_and_what_failed() -> None:
    case = cycle.CASES["requests"]
    slow = SLOW_TOK_S - 1
    run = Run(
        date_utc="",
        command="",
        machine="",
        time_scale=10.0,
        wall_seconds=1.0,
        cases=[case],
        oracles={"requests": 200.0},
        results=[
            result(DIRECT, 116.0, [220.0, slow]),
            result("specbreaker", 170.0, [slow, 220.0, 220.0, slow]),
            Result(case="requests", target="envoy", failed="not | installed"),
        ],
    )
    page = cycle_page.page(run)
    assert "| requests: specbreaker: tok/s ≥ 165.0 | 170.0 | pass |" in page
    assert "| requests: specbreaker: slow once learned, % ≤ 5.0 | 50.0 | FAIL |" in page
    assert "| specbreaker | 170.0 | 85 % | 50 % | 50 % |" in page
    assert "| envoy | not / installed |" in page
    table = [line for line in page.splitlines() if line.startswith("|")][-6:]
    assert all(one.count("|") == other.count("|") for one, other in pairwise(table))
