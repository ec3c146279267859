"""``specbreaker replay reduce`` against an emulator that ``--reset`` starts anew."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from reduction_engine import Restartable, restartable
from replay_samples import SYSTEM, exchange, user, write_exchanges

from replay.cli import replay_group
from replay.emulator import Emulator, serving
from replay.recorded import read_recorded
from replay.session.reader import read_session
from replay.session.schema import ContentMode

TOKENS = 120
"""Long enough for a collapse to be seen within one answer."""
NEVER_LATE = ("--max-lateness-seconds", "1000")


def published() -> Emulator:
    return Emulator("published", time_scale=0)


def healthy() -> Emulator:
    return Emulator("healthy", time_scale=0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    exchanges = [exchange(index, 10.0 + index / 1000, completion_tokens=TOKENS) for index in range(12)]
    return write_exchanges(tmp_path / "source", exchanges)


async def reduce(source: Path, engine: Restartable | str, output: Path, *arguments: object) -> Result:
    """Run the command beside the engine of this event loop."""
    place = (
        ["--target", engine] if isinstance(engine, str) else ["--target", engine.url, "--reset", engine.reset_command]
    )
    words = ["reduce", source, *place, "-o", output, *NEVER_LATE, *arguments]
    return await asyncio.to_thread(CliRunner().invoke, replay_group, [str(word) for word in words])


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0.01)


async def test_an_engine_that_counts_requests_is_found_out(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    async with restartable(published) as engine:
        ran = await reduce(source, engine, output, "--json")
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["ended"] == "minimal"
    assert found["one_prompt_repeated"]
    assert (found["source_requests"], found["requests"]) == (12, 6), "the published cycle collapses inside the sixth"
    assert found["triggered"] == found["whole_triggered"] == [2, 2]
    assert 5 < found["onset"]["requests"] < 6
    assert found["restarted"] is True
    assert found["notes"] == []
    assert engine.starts == found["trials"] + 1, "each trial begins with a reset"
    assert len(ran.stderr.splitlines()) == found["trials"]

    recorded = read_recorded(output)
    assert [event.kind for event in recorded.events] == ["reduce", "reduce_end"]
    assert recorded.events[0].fields["synthetic_prompts"] is True
    assert recorded.events[1].fields["ended"] == "minimal"
    bodies = {one.request.prompt.body for one in recorded.exchanges if one.request.prompt}
    assert (len(recorded.exchanges), len(bodies)) == (6, 1)
    assert all(one.steps for one in recorded.exchanges)
    session = read_session(output / "reduced.jsonl.zst")
    assert list(session)
    assert session.sealed


async def test_the_reduced_session_is_replayed_as_it_was_found(source: Path, tmp_path: Path) -> None:
    async with restartable(published) as engine:
        assert (await reduce(source, engine, tmp_path / "out")).exit_code == 0
    emulator = published()
    async with serving(emulator) as url:
        words = [
            "run",
            tmp_path / "out",
            "--target",
            url,
            "-o",
            tmp_path / "again",
            *NEVER_LATE,
            "--schedule",
            "closed",
        ]
        ran = await asyncio.to_thread(CliRunner().invoke, replay_group, [str(word) for word in words])
    assert ran.exit_code == 0, ran.output
    assert emulator.log[-1].first_collapsed_step is not None
    assert all(one.first_collapsed_step is None for one in emulator.log[:-1])


async def test_turns_and_text_survive(tmp_path: Path) -> None:
    first = [SYSTEM, user("Why?")]
    second = [*first, {"role": "assistant", "content": "Because."}, user("And?")]
    alone = [SYSTEM, user("Something else?")]
    turns = [exchange(number, number, mode=ContentMode.TEXT, messages=alone, max_tokens=TOKENS) for number in range(6)]
    turns[0] = exchange(0, 0.0, mode=ContentMode.TEXT, messages=first, max_tokens=TOKENS)
    turns[5] = exchange(5, 5.0, mode=ContentMode.TEXT, messages=second, max_tokens=TOKENS)
    source = write_exchanges(tmp_path / "source", turns, mode=ContentMode.TEXT)
    async with restartable(published) as engine:
        ran = await reduce(source, engine, tmp_path / "out", "--keep-content", "--time-scale", 1000, "--json")
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["source_indices"] == list(range(6))
    recorded = read_recorded(tmp_path / "out")
    bodies = [json.loads(one.request.prompt.body or "") for one in recorded.exchanges if one.request.prompt]
    assert [body["messages"] for body in bodies] == [first, *[alone] * 4, second]
    assert recorded.events[0].fields["synthetic_prompts"] is False


async def test_a_healthy_engine_gives_nothing_to_reduce(source: Path, tmp_path: Path) -> None:
    async with restartable(healthy) as engine:
        ran = await reduce(source, engine, tmp_path / "out")
    assert ran.exit_code == 1
    assert "the whole session does not make this target collapse" in ran.stdout
    assert not (tmp_path / "out" / "reduced.jsonl.zst").exists()


async def test_recorded_times_can_be_left_out_from_the_beginning(tmp_path: Path) -> None:
    exchanges = [exchange(index, 10.0 + 3600 * index, completion_tokens=TOKENS) for index in range(7)]
    source = write_exchanges(tmp_path / "source", exchanges)
    async with restartable(published) as engine:
        ran = await reduce(source, engine, tmp_path / "out", "--back-to-back", "--json")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["requests"] == 6


async def test_without_a_reset_the_command_says_what_that_costs(source: Path, tmp_path: Path) -> None:
    async with serving(published()) as url:
        ran = await reduce(source, url, tmp_path / "out", "--max-trials", 3)
    assert "the engine was not reset between trials" in ran.stdout
    assert "not what a fresh engine needs" in ran.stdout


async def test_a_reset_that_restarts_nothing_is_noticed(source: Path, tmp_path: Path) -> None:
    async with serving(published()) as url:
        ran = await reduce(source, url, tmp_path / "out", "--max-trials", 2, "--reset", "true")
    assert "--reset left the engine's process running" in ran.stdout


async def test_a_spent_budget_leaves_the_best_and_goes_on(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    async with restartable(published) as engine:
        ran = await reduce(source, engine, output, "--max-trials", 3)
        assert ran.exit_code == 1
        assert "--resume with a larger one goes on" in ran.stdout
        assert 6 <= len(read_recorded(output).exchanges) <= 9
        other = await reduce(source, engine, output, "--resume", "--seed", 5)
        assert other.exit_code == 2
        assert "is of other options: resume with the same" in other.stderr
        again = await reduce(source, engine, output)
        assert again.exit_code == 2
        assert "is in use: --resume goes on" in again.stderr
        before = engine.starts
        ran = await reduce(source, engine, output, "--resume", "--json")
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["requests"] == 6
    assert engine.starts - before == found["trials"] - 3, "no trial is repeated"


async def test_ctrl_c_leaves_the_best_so_far_as_a_valid_session(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    async with restartable(published) as engine:
        place = ["--target", engine.url, "--reset", engine.reset_command, "-o", str(output), *NEVER_LATE]
        words = [sys.executable, "-m", "proxy", "replay", "reduce", str(source), *place]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            await until(lambda: (output / "reduced.jsonl.zst").exists() or process.poll() is not None)
            os.kill(process.pid, signal.SIGINT)
            stdout, stderr = await asyncio.to_thread(process.communicate)
        assert process.returncode == 1, stderr
        assert "interrupted: --resume goes on" in stdout
        assert "Traceback" not in stderr
        session = read_session(output / "reduced.jsonl.zst")
        assert list(session)
        assert session.sealed
        assert read_recorded(output).events[-1].fields["ended"] == "interrupted"
        ran = await reduce(source, engine, output, "--resume", "--json")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["requests"] == 6


async def test_nothing_to_resume_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    async with serving(published()) as url:
        ran = await reduce(source, url, tmp_path / "out", "--resume")
    assert ran.exit_code == 2
    assert "nothing to resume: " in ran.stderr
    assert not (tmp_path / "out").exists()


async def test_a_target_that_is_gone_is_exit_3(source: Path, tmp_path: Path) -> None:
    async with serving(published()) as url:
        pass
    ran = await reduce(source, url, tmp_path / "out")
    assert ran.exit_code == 3
    assert ran.stderr.startswith(f"specbreaker replay reduce: {url}: cannot be reached")


@pytest.mark.parametrize(
    ("reset", "said"),
    [
        ("false", "--reset: exit status 1"),
        ("/no/such/command", "--reset: '/no/such/command' cannot be run"),
        ("'unclosed", "No closing quotation"),
    ],
)
async def test_a_reset_that_fails_is_told_in_a_line(source: Path, tmp_path: Path, reset: str, said: str) -> None:
    async with serving(published()) as url:
        ran = await reduce(source, url, tmp_path / "out", "--reset", reset)
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
