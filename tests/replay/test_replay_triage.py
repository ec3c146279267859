"""``specbreaker replay triage``: clock and cause, by the emulator's engine in engine time and over sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from replay_samples import exchange, write_exchanges

from detector.stats.clocks import Clock, ClockReading
from detector.verdict import Phase
from replay.arms import ArmName
from replay.cli import replay_group
from replay.emulator import Emulator, serving
from replay.emulator.scenario import Clock as ScenarioClock
from replay.emulator.scenario import CyclePart, Scenario
from replay.recorded import read_recorded
from replay.session.reader import read_session
from replay.triage import ArmResult, Verdict, collapses, same_length, triage
from tests.bench.replay_traffic import Truth
from tests.bench.replay_triage import play

# ---- what the arms say -----------------------------------------------------------------------------------------------


@cache
def arms(truth: Truth, clock: ScenarioClock) -> dict[ArmName, ArmResult]:
    return play(truth, clock, 1, seed=2000, requests=60)


def verdicts(results: dict[ArmName, ArmResult]) -> dict[str, Verdict]:
    return {finding.hypothesis: finding.verdict for finding in triage(results).findings}


@pytest.mark.parametrize("clock", ["requests", "tokens", "steps", "seconds"])
def test_the_clock_is_named_and_no_other(clock: ScenarioClock) -> None:
    found = triage(arms("cycle", clock))
    assert found.clock == Clock(clock), found
    assert set(found.periods[ArmName.AS_IS]) == set(Clock)


def test_without_another_k_tokens_and_steps_are_not_told_apart() -> None:
    here = {name: arm for name, arm in arms("cycle", "tokens").items() if name is not ArmName.LOWER_K}
    found = triage(here)
    assert found.clock is None
    assert found.reason.startswith("not told apart: generated tokens, verify steps")


def test_what_the_cycle_does_without_is_excluded_and_what_it_needs_is_supported() -> None:
    found = verdicts(arms("cycle", "requests"))
    assert found["content"] is found["prefix cache"] is found["concurrency"] is Verdict.EXCLUDED
    assert found["speculation"] is Verdict.SUPPORTED


def test_a_cause_whose_arm_was_not_played_is_not_told_apart() -> None:
    results = arms("cycle", "requests")
    found = verdicts({ArmName.AS_IS: results[ArmName.AS_IS]})
    assert found["concurrency"] is Verdict.EXCLUDED
    assert {found[name] for name in ("content", "prefix cache", "speculation")} == {Verdict.NOT_TOLD_APART}
    assert triage({ArmName.AS_IS: results[ArmName.AS_IS]}).clock is None


def test_a_cause_without_which_nothing_collapses_is_supported() -> None:
    steady = arms("cycle", "requests")[ArmName.SPECULATION_OFF]
    found = verdicts({**arms("cycle", "requests"), ArmName.SALTED: steady, ArmName.ONE_PROMPT: steady})
    assert found["prefix cache"] is found["content"] is Verdict.SUPPORTED


def test_a_cycle_of_several_clients_says_nothing_of_other_causes() -> None:
    """The arms of one client leave out the other clients as well: what they lack may be either."""
    as_is = arms("cycle", "requests")[ArmName.AS_IS]
    steady = arms("cycle", "requests")[ArmName.SPECULATION_OFF]
    several = msgspec.structs.replace(as_is, in_flight=4)
    found = verdicts({**dict.fromkeys(ArmName, steady), ArmName.AS_IS: several})
    assert found.pop("concurrency") is Verdict.SUPPORTED
    assert set(found.values()) == {Verdict.NOT_TOLD_APART}


def test_slowness_that_follows_the_request_is_content() -> None:
    results = dict(arms("cycle", "requests"))
    as_is = results[ArmName.AS_IS]
    results[ArmName.SHUFFLED] = msgspec.structs.replace(results[ArmName.SHUFFLED], collapsed=as_is.collapsed)
    del results[ArmName.ONE_PROMPT]
    assert verdicts(results)["content"] is Verdict.SUPPORTED


def test_without_a_collapse_nothing_is_told() -> None:
    results = {name: arms("cycle", "requests")[ArmName.SPECULATION_OFF] for name in (ArmName.AS_IS, ArmName.SALTED)}
    found = triage(results)
    assert (found.clock, found.reason[:16]) == (None, "no arm collapsed")
    assert {finding.verdict for finding in found.findings} == {Verdict.NOT_TOLD_APART}
    assert not collapses(results[ArmName.AS_IS])


# ---- the test of equal lengths ---------------------------------------------------------------------------------------


def lengths(values: list[float]) -> list[ClockReading]:
    return [ClockReading(tokens=value) for value in values]


def test_equal_lengths_are_seldom_taken_for_different_ones() -> None:
    rng = np.random.default_rng(1)
    samples = [[lengths((1000 * rng.lognormal(0, 0.1, 5)).tolist()) for _ in range(5)] for _ in range(40)]
    found = [same_length(sample, Clock.TOKENS) or 0.0 for sample in samples]
    assert sum(1 for p_value in found if p_value < 0.1) <= 11  # 4 expected; more than 11 once in 2,000
    assert same_length(samples[0], Clock.TOKENS) == found[0]


def test_different_lengths_are_found_and_unknown_ones_are_left_out() -> None:
    one, other = lengths([100.0, 110.0, 95.0, 104.0]), lengths([205.0, 190.0, 210.0, 200.0])
    assert (same_length([one, other, one, other], Clock.TOKENS) or 1.0) < 0.001
    assert same_length([one, lengths([100.0])], Clock.TOKENS) is None
    assert same_length([one, other], Clock.STEPS) is None
    same = lengths([100.0] * 4)
    assert same_length([same, same], Clock.TOKENS) == 1.0


# ---- the command -----------------------------------------------------------------------------------------------------

NEVER_LATE = ("--max-lateness-seconds", "1000")


def engine(depth: int = 8) -> Scenario:
    """Five healthy requests and three slow ones."""
    healthy = CyclePart(phase=Phase.HEALTHY, length=5.0, acceptance=0.75)
    slow = CyclePart(phase=Phase.COLLAPSED, length=3.0, acceptance=0.001)
    return Scenario(name="cycle", cycle=[healthy, slow], num_speculative_tokens=depth)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pauses = [exchange(index, 10.0 + index / 1000, seconds=0.001, completion_tokens=60) for index in range(40)]
    return write_exchanges(tmp_path / "source", pauses)


def is_sealed(directory: Path) -> bool:
    session = read_session(next(directory.iterdir()))
    return bool(list(session)) and session.sealed


async def command(*arguments: object) -> Result:
    words = ["triage", *(str(argument) for argument in arguments)]
    return await asyncio.to_thread(CliRunner().invoke, replay_group, words)


async def test_all_arms_are_played_over_sockets_and_only_once(source: Path, tmp_path: Path) -> None:
    emulator = Emulator(engine(), time_scale=0)
    output = tmp_path / "out"
    async with serving(emulator) as url, serving(Emulator(engine(0), time_scale=0)) as without:
        words = (source, "--target", url, "--speculation-off", without, "-o", output, "--requests", 40, *NEVER_LATE)
        ran = await command(*words, "--json")
        served = len(emulator.log)
        again = await command(*words)
    assert ran.exit_code in (0, 1), ran.output
    told: dict[str, Any] = json.loads(ran.stdout)
    names = [arm["name"] for arm in told["arms"]]
    assert names == [name.value for name in ArmName if name not in (ArmName.ONE_CLIENT, ArmName.LOWER_K)]
    assert [arm["requests"] for arm in told["arms"]] == [40] * len(names)
    assert all(is_sealed(output / name) for name in names)
    # How long steps take says nothing at full speed, so seconds may be left; any other clock would be wrong.
    assert told["clock"] in (None, "requests")
    verdict = {one["hypothesis"]: one["verdict"] for one in told["hypotheses"]}
    assert verdict["generated tokens"] == verdict["verify steps"] == "excluded"
    assert verdict["content"] == verdict["prefix cache"] == "excluded"
    assert (served, len(emulator.log)) == (7 * 40, 7 * 40)
    assert "arm 1 of 8: as_is: played before" in again.stderr
    assert again.stdout.startswith("clock: ")
    other = await command(*words[:-4], "--requests", 30)
    assert other.exit_code == 2
    assert "was played with other source_requests: choose another --output" in other.stderr


async def test_the_prompts_of_an_arm_are_what_it_says(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    async with serving(Emulator("healthy", time_scale=0)) as url:
        few = ("--requests", 6, "--content", "text", "-o", output, *NEVER_LATE)
        chosen = ("--arm", "as_is", "--arm", "shuffled", "--arm", "one_prompt", "--arm", "half_tokens")
        ran = await command(source, "--target", url, *chosen, *few)
    assert ran.exit_code == 1, ran.output
    assert "no arm collapsed" in ran.stdout
    prompts = {name: _prompts(output / name) for name in ("as_is", "shuffled", "one_prompt", "half_tokens")}
    assert len(set(prompts["as_is"])) == 6
    assert sorted(prompts["shuffled"]) == sorted(prompts["as_is"])
    assert len(set(prompts["one_prompt"])) == 1
    halves = [one.completion_tokens for one in read_recorded(output / "half_tokens").exchanges]
    assert halves == [30] * 6


def _prompts(directory: Path) -> list[str]:
    bodies = [one.request.prompt.body for one in read_recorded(directory).exchanges if one.request.prompt]
    return [json.dumps(json.loads(body)["messages"]) for body in bodies if body is not None]


async def test_an_arm_ends_when_its_time_is_up(tmp_path: Path) -> None:
    slow = [exchange(index, 100.0 * index, completion_tokens=5) for index in range(3)]
    source = write_exchanges(tmp_path / "source", slow)
    async with serving(Emulator("healthy", time_scale=0)) as url:
        budget = ("--arm", "as_is", "--seconds", 1, *NEVER_LATE)
        ran = await command(source, "--target", url, "-o", tmp_path / "out", *budget, "--json")
    told = json.loads(ran.stdout)
    assert (told["stopped"], told["arms"][0]["requests"], told["arms"][0]["faults"]) == (None, 1, [])


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0.01)


async def test_ctrl_c_leaves_valid_files_and_the_arm_is_played_anew(tmp_path: Path) -> None:
    source = write_exchanges(tmp_path / "source", [exchange(0, 10.0, completion_tokens=4000)])
    output = tmp_path / "out"
    emulator = Emulator("healthy", time_scale=1)
    chosen = ("--arm", "as_is", "--requests", "1", *NEVER_LATE)
    async with serving(emulator) as url:
        words = ["-m", "proxy", "replay", "triage", str(source), "--target", url, "-o", str(output), *chosen]
        process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        await until(lambda: emulator.in_flight == 1 or process.poll() is not None)
        os.kill(process.pid, signal.SIGINT)
        stdout, stderr = await asyncio.to_thread(process.communicate)
    assert process.returncode == 1, stderr
    assert "interrupted: the same command goes on" in stdout
    assert "Traceback" not in stderr
    assert is_sealed(output / "as_is")
    async with serving(Emulator("healthy", time_scale=0)) as url:
        ran = await command(source, "--target", url, "-o", output, *chosen, "--json")
    (arm,) = json.loads(ran.stdout)["arms"]
    assert (arm["session"], arm["requests"]) == (str(output / "as_is-2"), 1)


async def test_a_command_makes_the_other_server(source: Path, tmp_path: Path) -> None:
    async with serving(Emulator("healthy", time_scale=0)) as url:
        words = (source, "--target", url, "--arm", "lower_k", "--requests", 2, *NEVER_LATE)
        touch = f"{sys.executable} -c 'import pathlib; pathlib.Path(r\"{tmp_path}/was-run\").touch()'"
        ran = await command(*words, "-o", tmp_path / "a", "--lower-k-command", touch, "--json")
        failed = await command(*words, "-o", tmp_path / "b", "--lower-k-command", "false")
    assert [arm["name"] for arm in json.loads(ran.stdout)["arms"]] == ["lower_k"]
    assert (tmp_path / "was-run").exists()
    assert (failed.exit_code, failed.stderr.splitlines()[-1]) == (
        2,
        "specbreaker replay triage: --lower-k-command: exit status 1",
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing", "--target", "http://127.0.0.1:9"], "missing: cannot be read"),
        (["SOURCE", "--target", "localhost:1"], "--target: not a URL"),
        (["SOURCE", "--target", "http://127.0.0.1:9", "--lower-k", "nowhere"], "--lower-k: not a URL"),
        (["SOURCE", "--target", "http://127.0.0.1:9", "--arm", "lower_k"], "--arm lower_k: needs --lower-k"),
    ],
)
async def test_bad_input_is_told_in_a_line(source: Path, arguments: list[str], said: str) -> None:
    ran = await command(*(str(source) if word == "SOURCE" else word for word in arguments))
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.output


async def test_a_target_that_is_not_there_is_exit_3(source: Path, tmp_path: Path) -> None:
    async with serving(Emulator("healthy", time_scale=0)) as url:
        pass
    ran = await command(source, "--target", url, "-o", tmp_path / "out")
    assert ran.exit_code == 3
    assert f"specbreaker replay triage: {url}: cannot be reached" in ran.stderr
