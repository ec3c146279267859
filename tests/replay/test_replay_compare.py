"""What ``replay compare`` says of two recordings, and of whose numbers."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from detector.observation import Observation, Step
from detector.stats.clocks import Clock
from detector.stats.run_law import learn_law
from detector.stats.runs import Run
from replay.cli import replay_group
from replay.compare import CYCLIC, Outcome, compare
from replay.evidence import residual
from replay.phases import Side, examine, rate_ratio
from replay.recorded import Exchange, exchange_of
from replay.result_session import BEGUN, ENDED
from replay.session.schema import EventRecord, SessionHeader, encode
from replay.timeline import SEGMENT_STEPS, cells_of
from tests.bench.replay_traffic import Truth, record

CHUNK_LOG = Path(__file__).parents[1] / "data" / "sessions" / "chunklog_one_cycle.jsonl"


@cache
def traffic(
    truth: Truth, clients: int = 1, requests: int = 70, seed: int = 1
) -> tuple[list[Observation], list[list[Step]]]:
    observations, steps = record(truth, "tokens", clients, requests, seed)
    return observations, steps


@cache
def side(truth: Truth, clients: int = 1, requests: int = 70, seed: int = 1) -> Side:
    return examine(*traffic(truth, clients, requests, seed))


def write(path: Path, truth: Truth, *, events: tuple[EventRecord, ...] = (), requests: int = 70) -> Path:
    pairs = zip(*traffic(truth, requests=requests), strict=True)
    exchanges: list[Exchange] = [exchange_of(one, seq, steps) for seq, (one, steps) in enumerate(pairs)]
    records = [SessionHeader(tool_version="0", session_id=truth)]
    lines = [encode(one).data for one in records]
    for one in exchanges:
        assert one.response is not None
        lines += [encode(one.request).data, encode(one.response).data]
    path.write_bytes(b"".join([*lines, *(encode(event).data for event in events)]))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(replay_group, ["compare", *(str(argument) for argument in arguments)])


# ---- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truth", "verdict"),
    [
        ("cycle", Outcome.REPRODUCED),
        ("chance", Outcome.SLOW_NOT_CYCLIC),
        ("slow", Outcome.SLOW_NOT_CYCLIC),
        ("healthy", Outcome.NOT_REPRODUCED),
    ],
)
def test_each_truth_has_its_verdict(truth: Truth, verdict: Outcome) -> None:
    found = compare(side("cycle", seed=0), side(truth, requests=20 if truth == "slow" else 70))
    assert found.verdict is verdict, found.reasons
    assert found.more_requests is None


def test_a_cycle_comes_with_its_evidence() -> None:
    found = compare(side("cycle", seed=0), side("cycle"))
    assert found.e_value >= CYCLIC
    assert found.b.onsets >= 4
    period = found.b.periods[Clock.TOKENS]
    assert period.low < 9.5 * 300 < period.high  # 6 requests healthy and 3.5 slow, of 300 tokens in the mean
    assert found.b.healthy.acceptance_length == pytest.approx(3.6, rel=0.1)
    assert found.b.slow.acceptance_length == pytest.approx(1.0, rel=0.15)
    assert found.b.healthy.steps_per_second == pytest.approx(found.b.slow.steps_per_second, rel=0.05)
    assert found.b.rate_ratio is not None
    assert found.b.rate_ratio.low < 0.3 < found.b.rate_ratio.high  # 1 / 3.6, and answers that are partly healthy


def test_one_collapse_decides_nothing_and_says_how_much_is_missing() -> None:
    found = compare(side("cycle", seed=0), side("cycle", requests=12))
    assert found.verdict is Outcome.INCONCLUSIVE
    assert found.more_requests is not None
    assert found.more_requests > 10


def test_a_short_healthy_run_decides_nothing() -> None:
    found = compare(side("cycle", seed=0), side("healthy", requests=8))
    assert found.verdict is Outcome.INCONCLUSIVE
    assert "3 are needed" in found.reasons[0]
    assert found.more_requests is not None


def test_without_a_collapse_in_a_there_is_nothing_to_reproduce() -> None:
    found = compare(side("healthy"), side("cycle"))
    assert (found.verdict, found.reasons) == (
        Outcome.INCONCLUSIVE,
        ["A shows no collapse: there is nothing to reproduce"],
    )


def test_a_replay_that_is_not_valid_decides_nothing() -> None:
    found = compare(side("cycle", seed=0), side("cycle"), faults=["requests were sent too late"])
    assert found.verdict is Outcome.INCONCLUSIVE
    assert found.reasons == ["B is no valid replay: requests were sent too late"]


def test_a_cycle_of_another_period_is_not_reproduced() -> None:
    a = side("cycle", seed=0)
    doubled = {
        clock: msgspec.structs.replace(period, estimate=period.estimate * 2, low=period.low * 2, high=period.high * 2)
        for clock, period in a.periods.items()
    }
    assert doubled
    other = msgspec.structs.replace(a, periods=doubled)
    found = compare(other, side("cycle"))
    assert found.verdict is Outcome.INCONCLUSIVE
    assert "its period is not A's on any clock" in found.reasons[1]


def test_collapses_that_last_otherwise_are_not_a_reproduction() -> None:
    a, b = side("cycle", seed=0), side("cycle")
    long = [(Run([cell.times(9.0) for cell in run.cells], run.actual.times(9.0)), True) for run, slow in b.runs if slow]
    found = compare(a, msgspec.structs.replace(b, runs=[*[run for run in b.runs if not run[1]], *long]))
    assert found.verdict is Outcome.INCONCLUSIVE
    assert "its collapses last otherwise than A's" in found.reasons[1]


def test_runs_that_the_ends_of_a_recording_cut_off_are_kept_apart() -> None:
    whole = side("cycle")
    assert whole.first_healthy is not None
    assert whole.under_way is not None
    known = [whole.first_healthy, *(run for run, _ in whole.runs), whole.under_way[0]]
    assert whole.whole is not None
    total = sum(run.actual.tokens or 0.0 for run in known)
    assert total == pytest.approx(whole.whole.actual.tokens)
    assert [slow for _, slow in whole.runs] == [index % 2 == 0 for index in range(len(whole.runs))]


def test_a_recording_that_begins_slow_has_no_first_healthy_run() -> None:
    observations, steps = traffic("cycle")
    slow = slow_answers(observations)
    begin = slow.index(True) + 1
    late = examine(observations[begin:], steps[begin:])
    assert late.first_healthy is None
    assert late.runs[0][1] is False


def test_what_is_left_of_a_run_met_at_random_is_at_most_the_whole_run() -> None:
    law = learn_law([(95.0, 105.0)] * 12)
    shares = [residual(law, low, low + 25.0) for low in (0.0, 25.0, 50.0, 75.0)]
    assert shares == pytest.approx([0.25] * 4, abs=0.08)
    assert residual(law, 200.0, 210.0) < 0.02 < law.between(95.0, 105.0)


def test_the_order_of_the_answers_does_not_matter() -> None:
    observations, steps = traffic("cycle")
    backwards = examine(observations[::-1], steps[::-1])
    assert backwards == side("cycle")


# ---- the timeline ----------------------------------------------------------------------------------------------------


def slow_answers(observations: list[Observation]) -> list[bool]:
    return [(one.acceptance_length or 0.0) < 1.9 for one in observations]


def test_cells_cover_the_answers_they_were_cut_from() -> None:
    observations, steps = traffic("cycle")
    cells = cells_of(observations, slow_answers(observations), steps)
    total = {clock: sum(cell.advance.clocks.on(clock) or 0.0 for cell in cells) for clock in Clock}
    assert total[Clock.REQUESTS] == pytest.approx(len(observations))
    assert total[Clock.TOKENS] == sum(one.completion_tokens or 0 for one in observations)
    assert total[Clock.STEPS] == sum(one.verify_steps or 0 for one in observations)
    whole = observations[-1].ended - observations[0].started
    assert total[Clock.SECONDS] == pytest.approx(whole)
    assert len(cells) > total[Clock.STEPS] / (2 * SEGMENT_STEPS)


def test_events_that_come_at_another_pace_than_the_engine_tells_are_cut_alike() -> None:
    """As from an emulator in fast motion: the times of events, not the engine's rates, say which segment is slow."""
    observations, steps = traffic("cycle")
    fast = [
        [Step(one.started + (step.at - one.started) / 10, step.tokens) for step in its]
        for one, its in zip(observations, steps, strict=True)
    ]
    slow = slow_answers(observations)
    usual, hurried = cells_of(observations, slow, steps), cells_of(observations, slow, fast)
    assert [cell.slow for cell in hurried] == [cell.slow for cell in usual]


def test_where_times_are_noisy_the_tokens_of_a_step_tell_what_is_slow() -> None:
    """As from a busy machine that holds events up and lets them go in bursts."""
    observations, steps = traffic("cycle")
    rng = np.random.default_rng(3)
    noisy = []
    for its in steps:
        gaps = np.diff([step.at for step in its], prepend=its[0].at)
        held_up = np.repeat(rng.lognormal(0.0, 1.0, len(its) // SEGMENT_STEPS + 1), SEGMENT_STEPS)[: len(its)]
        noisy.append([Step(float(at), step.tokens) for at, step in zip((gaps * held_up).cumsum(), its, strict=True)])
    slow = slow_answers(observations)
    usual, here = cells_of(observations, slow, steps), cells_of(observations, slow, noisy)
    assert sum(1 for one, other in zip(usual, here, strict=True) if one.slow != other.slow) < 0.02 * len(usual)


def test_without_events_each_answer_is_a_cell() -> None:
    observations, _ = traffic("cycle")
    slow = [index % 3 == 0 for index in range(len(observations))]
    cells = cells_of(observations, slow, [])
    assert [cell.slow for cell in cells] == slow


def test_what_runs_at_once_is_put_in_the_order_of_time() -> None:
    observations, steps = traffic("cycle", clients=4)
    slow = [cell.slow for cell in cells_of(observations, slow_answers(observations), steps)]
    changes = sum(1 for one, following in pairwise(slow) if one != following)
    assert changes == pytest.approx(2 * 70 / 9.5, abs=4)  # two a cycle, however many ran at once


def test_the_ratio_of_rates_is_of_tokens_over_time() -> None:
    def answer(tokens: float, seconds: float) -> Observation:
        observation = traffic("healthy")[0][0]
        measured = {
            "completion_tokens": tokens + 1,
            "decode_seconds": seconds,
            "decode_tokens_per_second": tokens / seconds,
        }
        return msgspec.structs.replace(observation, **measured)

    ratio = rate_ratio([answer(100, 2), answer(100, 2)], [answer(300, 1), answer(100, 1)])
    assert ratio is not None
    assert ratio.estimate == pytest.approx(50 / 200)
    assert rate_ratio([], [answer(1, 1)]) is None


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_exits_0_when_reproduced(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", "cycle"), write(tmp_path / "b.jsonl", "cycle", requests=60)
    result = run(a, b, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["verdict"] == "REPRODUCED"
    assert {"reasons", "e_value", "chance_e_value", "more_requests"} <= found.keys()
    assert {"requests", "onsets", "slow_share", "rate_ratio", "healthy", "slow", "cycle"} <= found["b"].keys()


def test_the_command_exits_1_with_any_other_verdict(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", "cycle"), write(tmp_path / "b.jsonl", "healthy")
    result = run(a, b)
    assert result.exit_code == 1
    verdict, _, first, *_ = result.stdout.splitlines()
    assert verdict == "NOT_REPRODUCED"
    assert first.startswith("A: 70 requests, ")


def test_the_command_believes_what_a_replay_says_of_itself(tmp_path: Path) -> None:
    begun = EventRecord(at=0.0, kind=BEGUN)
    late = EventRecord(at=1.0, kind=ENDED, fields={"valid": False, "faults": ["sent too late"]})
    a = write(tmp_path / "a.jsonl", "cycle")
    invalid = run(a, write(tmp_path / "b.jsonl", "cycle", events=(begun, late)))
    assert "B is no valid replay: sent too late" in invalid.stdout
    broken_off = run(a, write(tmp_path / "c.jsonl", "cycle", events=(begun,)))
    assert "it was broken off" in broken_off.stdout


def test_other_formats_can_be_compared() -> None:
    result = run(CHUNK_LOG, CHUNK_LOG)
    assert result.exit_code == 1
    assert result.stdout.startswith("INCONCLUSIVE\n")
    assert "more requests would decide" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing", "missing"], "missing: cannot be read"),
        ([CHUNK_LOG, CHUNK_LOG, "--backend-b", "other"], "no answer of a backend 'other'; it has: "),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[object], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
