"""``specbreaker replay run`` against the emulator."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from replay_samples import SYSTEM, exchange, user, write_exchanges

from detector.observation import Ending
from replay.cli import replay_group
from replay.detect import detect_command
from replay.emulator import Emulator, serving
from replay.recorded import Exchange, Recorded, read_recorded
from replay.session.reader import read_session
from replay.session.schema import ContentMode

NEVER_LATE = ("--max-lateness-seconds", "1000")
"""A busy machine is late; what lateness does is tested where it is not measured."""


async def replay(*arguments: object) -> Result:
    """Run the command beside the emulator of this event loop."""
    words = ["run", *(str(argument) for argument in arguments)]
    return await asyncio.to_thread(CliRunner().invoke, replay_group, words)


def result_of(directory: Path) -> Recorded:
    return read_recorded(directory)


def bodies_of(directory: Path) -> list[dict[str, Any]]:
    prompts = [one.request.prompt for one in result_of(directory).exchanges]
    return [json.loads(prompt.body) for prompt in prompts if prompt is not None and prompt.body is not None]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0.01)


def closely(count: int, **options: Any) -> list[Exchange]:
    return [exchange(index, 10.0 + index / 1000, **options) for index in range(count)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_exchanges(tmp_path / "source", closely(6))


async def test_the_result_is_a_session_that_was_measured(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    async with serving(Emulator("healthy", time_scale=0)) as url:
        ran = await replay(source, "--target", url, "-o", output, *NEVER_LATE, "--json")
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert (told["requests"], told["answered"], told["failed"], told["valid"]) == (6, 6, 0, True)
    assert told["prompt_tokens_median_error"] < 0.1
    result = result_of(output)
    observations = [one.observation for one in result.exchanges]
    assert [one.request_id for one in observations if one] == [f"r{index}" for index in range(6)]
    assert all(one and one.completion_tokens == 30 and one.acceptance_length for one in observations)
    assert all(one.steps for one in result.exchanges)
    assert [event.kind for event in result.events] == ["replay", "replay_end"]
    assert result.events[1].fields["valid"] is True
    assert len(result.engine) == 2
    (file,) = output.iterdir()
    session = read_session(file)
    assert list(session)
    assert session.sealed
    assert CliRunner().invoke(detect_command, [str(file)]).exit_code == 0


@pytest.mark.parametrize("schedule", ["open", "closed", "dependent"])
async def test_each_schedule_sends_everything_once(source: Path, tmp_path: Path, schedule: str) -> None:
    emulator = Emulator("healthy", time_scale=0)
    async with serving(emulator) as url:
        ran = await replay(source, "--target", f"{url}/v1", "-o", tmp_path / "out", "--schedule", schedule, *NEVER_LATE)
    assert ran.exit_code == 0, ran.output
    assert len(emulator.log) == 6
    assert sorted(one.request.seq for one in result_of(tmp_path / "out").exchanges) == list(range(6))


async def test_closed_keeps_to_its_concurrency(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    async with serving(Emulator("healthy", time_scale=0)) as url:
        await replay(source, "--target", url, "-o", output, "--schedule", "closed", "--concurrency", 1)
    exchanges = result_of(output).exchanges
    assert [one.observation.in_flight for one in exchanges if one.observation] == [1] * 6
    ends = [one.ended for one in exchanges]
    assert all(
        end is not None and following.request.at >= end for end, following in zip(ends, exchanges[1:], strict=False)
    )


async def test_a_later_turn_waits_for_the_turn_before(tmp_path: Path) -> None:
    first = [SYSTEM, user("Why?")]
    second = [*first, {"role": "assistant", "content": "Because."}, user("And?")]
    turns = [exchange(0, 0.0, seconds=0.01, messages=first), exchange(1, 0.02, messages=second)]
    source = write_exchanges(tmp_path / "source", turns)
    emulator = Emulator("healthy", time_scale=20)
    async with serving(emulator) as url:
        ran = await replay(source, "--target", url, "-o", tmp_path / "out", "--schedule", "dependent", *NEVER_LATE)
    assert ran.exit_code == 0, ran.output
    before, after = result_of(tmp_path / "out").exchanges
    assert before.ended is not None
    assert after.request.at >= before.ended


async def test_recorded_text_is_sent_and_not_stored_again(tmp_path: Path) -> None:
    exchanges = closely(2, mode=ContentMode.TEXT, messages=[user("my secret question")], temperature=0.5)
    source = write_exchanges(tmp_path / "source", exchanges, mode=ContentMode.TEXT)
    async with serving(Emulator("healthy", time_scale=0)) as url:
        kept = ("--content", "text")
        await replay(source, "--target", url, "-o", tmp_path / "text", "--cache", "salt", *kept, *NEVER_LATE)
        await replay(source, "--target", url, "-o", tmp_path / "none", *NEVER_LATE)
    first, second = bodies_of(tmp_path / "text")
    assert first["messages"] == [user("my secret question")]
    assert first["temperature"] == 0.5
    assert first["cache_salt"] != second["cache_salt"]
    session = read_session(next((tmp_path / "none").iterdir()))
    assert not any(b"secret" in entry.raw for entry in session)


async def test_the_cache_is_reset_where_the_target_lets_us(source: Path, tmp_path: Path) -> None:
    async with serving(Emulator("healthy", time_scale=0, dev_mode=True)) as url:
        ran = await replay(source, "--target", url, "-o", tmp_path / "a", "--cache", "reset", *NEVER_LATE)
        assert ran.exit_code == 0, ran.output
    async with serving(Emulator("healthy", time_scale=0)) as url:
        ran = await replay(source, "--target", url, "-o", tmp_path / "b", "--cache", "reset")
        assert ran.exit_code == 2
        assert "/reset_prefix_cache: HTTP 404: the cache was not reset" in ran.stderr
        command = f"{sys.executable} -c 'import pathlib; pathlib.Path(r\"{tmp_path}/was-run\").touch()'"
        told = ("--cache", "reset", "--reset-command", command)
        ran = await replay(source, "--target", url, "-o", tmp_path / "c", *told, *NEVER_LATE)
        assert ran.exit_code == 0, ran.output
    assert (tmp_path / "was-run").exists()


async def test_a_late_run_is_recorded_as_not_valid(source: Path, tmp_path: Path) -> None:
    async with serving(Emulator("healthy", time_scale=0)) as url:
        ran = await replay(source, "--target", url, "-o", tmp_path / "out", "--max-lateness-seconds", "1e-9")
    assert ran.exit_code == 1
    assert "not valid: requests were sent too late" in ran.stdout
    end = result_of(tmp_path / "out").events[-1]
    assert end.fields["valid"] is False
    assert end.fields["faults"]


async def test_a_run_goes_on_where_it_was_broken_off(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    emulator = Emulator("healthy", time_scale=0)
    async with serving(emulator) as url:
        await replay(source, "--target", url, "-o", output, *NEVER_LATE)
        _forget_answers(output, keep=2)
        ran = await replay(source, "--target", url, "-o", output, "--resume", *NEVER_LATE, "--json")
        assert (ran.exit_code, json.loads(ran.stdout)["sent"]) == (0, 4), ran.output
        other = await replay(source, "--target", url, "-o", output, "--resume", "--seed", 5)
        assert other.exit_code == 2
        assert "is a run with other options" in other.stderr
        again = await replay(source, "--target", url, "-o", output)
        assert again.exit_code == 2
        assert "already holds session files" in again.stderr
    assert len(emulator.log) == 6 + 4


def _forget_answers(directory: Path, *, keep: int) -> None:
    """Leave what a run leaves that was killed after so many answers."""
    (file,) = directory.iterdir()
    lines = [entry.raw for entry in read_session(file)]
    answers = [line for line in lines if b'"type":"response"' in line]
    left = [line for line in lines if line not in answers[keep:] and b'"type":"seal"' not in line]
    file.unlink()
    (directory / "left.jsonl").write_bytes(b"".join(left))


async def test_ctrl_c_leaves_a_valid_session_that_can_be_resumed(tmp_path: Path) -> None:
    source = write_exchanges(tmp_path / "source", closely(3, completion_tokens=4000))
    output = tmp_path / "out"
    emulator = Emulator("healthy", time_scale=1)
    async with serving(emulator) as url:
        words = ["-m", "proxy", "replay", "run", str(source), "--target", url, "-o", str(output)]
        process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        await until(lambda: emulator.in_flight == 3 or process.poll() is not None)
        os.kill(process.pid, signal.SIGINT)
        stdout, stderr = await asyncio.to_thread(process.communicate)
    assert process.returncode == 1, stderr
    assert "interrupted: --resume goes on" in stdout
    assert "Traceback" not in stderr
    session = read_session(next(output.iterdir()))
    assert list(session)
    assert session.sealed
    endings = [one.observation.ending for one in result_of(output).exchanges if one.observation]
    assert endings == [Ending.CLIENT_GONE] * 3
    async with serving(Emulator("healthy", time_scale=0)) as url:
        ran = await replay(source, "--target", url, "-o", output, "--resume", *NEVER_LATE, "--json")
    assert (ran.exit_code, json.loads(ran.stdout)["answered"]) == (0, 3), ran.output


async def test_a_target_that_goes_away_is_exit_3(tmp_path: Path) -> None:
    source = write_exchanges(tmp_path / "source", closely(12, completion_tokens=2000))
    output = tmp_path / "out"
    emulator = Emulator("healthy", time_scale=1)
    async with serving(emulator) as url:
        alone = ("--schedule", "closed", "--concurrency", 1)
        run = asyncio.create_task(replay(source, "--target", url, "-o", output, *alone, *NEVER_LATE))
        await until(lambda: emulator.in_flight == 1 or run.done())
        emulator.die("api_kill", exit_after_seconds=0)
        ran = await run
    assert ran.exit_code == 3, ran.output
    assert "the target is gone: --resume goes on" in ran.stdout


async def test_a_target_that_is_not_there_is_exit_3(source: Path, tmp_path: Path) -> None:
    async with serving(Emulator("healthy", time_scale=0)) as url:
        pass
    ran = await replay(source, "--target", url, "-o", tmp_path / "out")
    assert ran.exit_code == 3
    assert ran.stderr.startswith(f"specbreaker replay run: {url}: cannot be reached")
    assert not (tmp_path / "out").exists()


async def test_a_run_in_which_nothing_can_be_sent_is_bad_input(source: Path, tmp_path: Path) -> None:
    async with serving(Emulator("healthy", time_scale=0)) as url:
        ran = await replay(source, "--target", url, "-o", tmp_path / "out", "--prompts", "recorded")
    assert ran.exit_code == 2
    assert ran.stderr == "specbreaker replay run: no request can be sent: its text was not recorded\n"
    assert not (tmp_path / "out").exists()


async def test_the_only_model_of_the_target_is_taken(source: Path, tmp_path: Path) -> None:
    async with serving(Emulator("healthy", time_scale=0, model="renamed")) as url:
        ran = await replay(source, "--target", url, "-o", tmp_path / "out", *NEVER_LATE)
    assert ran.exit_code == 0, ran.output


async def test_a_key_is_taken_from_the_environment_only(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLAY_TEST_KEY", "k")
    async with serving(Emulator("healthy", time_scale=0, api_key="k")) as url:
        refused = await replay(source, "--target", url, "-o", tmp_path / "a")
        assert refused.exit_code == 2
        assert "name its variable with --api-key-env" in refused.stderr
        ran = await replay(
            source, "--target", url, "-o", tmp_path / "b", "--api-key-env", "REPLAY_TEST_KEY", *NEVER_LATE
        )
    assert ran.exit_code == 0, ran.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "missing: cannot be read"),
        (["SOURCE", "--target", "localhost:1"], "--target: not a URL"),
        (["SOURCE", "--target", "http://localhost:port"], "--target: not a URL"),
        (["SOURCE", "--resume"], "--resume: needs --output"),
        (["SOURCE", "--concurrency", "3"], "--concurrency: only with --schedule closed"),
        (["SOURCE", "--pauses"], "--pauses: only with --schedule closed"),
        (["SOURCE", "--reset-command", "true"], "--reset-command: only with --cache reset"),
        (["SOURCE", "--max-tokens", "0"], "'0' is neither a number above 0 nor 'recorded'"),
        (["SOURCE", "--api-key-env", "NO_SUCH_VARIABLE"], "the environment has no NO_SUCH_VARIABLE"),
        (["SOURCE", "-o", "OUT", "--resume"], "nothing to resume"),
    ],
)
async def test_bad_input_is_told_in_a_line(source: Path, tmp_path: Path, arguments: Sequence[str], said: str) -> None:
    places = {"SOURCE": str(source), "OUT": str(tmp_path / "out")}
    words = [places.get(argument, argument) for argument in arguments]
    ran = await replay("--target", "http://127.0.0.1:9", *words)
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.output
