"""``specbreaker replay pack``, and the program that it writes, run on a Python with nothing installed."""

from __future__ import annotations

import ast
import asyncio
import gzip
import http.client
import http.server
import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec import structs
from replay_samples import SYSTEM, exchange, user, write_exchanges

from detector.verdict import Cause
from replay.cli import replay_group
from replay.emulator import Emulator, serving
from replay.recorded import Exchange, exchange_of
from replay.repro import script
from replay.repro.expected import NothingExpected, expected_of, segments_of
from replay.session.schema import ContentMode
from tests.bench.replay_traffic import Truth, record

TIME_SCALE = 20
TOKENS = 200
NEVER_LATE = ("--max-lateness-seconds", "1000")
OLDEST = [str(path) for path in sorted(Path(sys.base_prefix).parent.glob("3.9*/bin/python3.9"))]
PYTHONS = [sys.executable, *OLDEST[:1]]
"""The oldest that is promised too, where it is installed beside this one."""


async def replay(*arguments: object) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, replay_group, [str(argument) for argument in arguments])


async def program(file: Path, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run a packed program without site-packages, environment and the user's directories."""
    command = [python, "-I", "-S", str(file), *arguments]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, cwd=file.parent, env={})


def measured(truth: Truth, requests: int, seed: int = 1, concurrency: int = 1) -> list[Exchange]:
    observations, steps = record(truth, "requests", concurrency, requests, seed)
    return [exchange_of(*pair) for pair in zip(observations, range(len(observations)), steps, strict=True)]


def packed(directory: Path, *options: str, exchanges: list[Exchange] | None = None) -> Path:
    """A program of a session with cycles, or of these exchanges."""
    source = write_exchanges(directory / "source", exchanges or measured("cycle", 12))
    ran = CliRunner().invoke(replay_group, ["pack", str(source), "-o", str(directory / "repro.py"), *options])
    assert ran.exit_code == 0, ran.output
    return directory / "repro.py"


def data_of(file: Path) -> dict[str, Any]:
    found = re.search(r"json\.loads\(r'''(.*?)'''\)", file.read_text(), re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


# ---- the program, run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reproduction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed from a session that was recorded while an emulator went through the published cycle, in real time."""
    directory = tmp_path_factory.mktemp("pack")
    exchanges = [exchange(index, 10.0 + index, completion_tokens=TOKENS) for index in range(8)]
    source = write_exchanges(directory / "source", exchanges)

    async def record_session() -> None:
        async with serving(Emulator("published", time_scale=TIME_SCALE)) as url:
            alone = ("--schedule", "closed", *NEVER_LATE)
            ran = await replay("run", source, "--target", url, "-o", directory / "session", *alone)
        assert ran.exit_code == 0, ran.output

    asyncio.run(record_session())
    serve = "vllm serve 'my model' --speculative-config '{\"method\": \"dflash\"}'"
    words = ["pack", str(directory / "session"), "-o", str(directory / "repro.py"), "--serve-command", serve]
    ran = CliRunner().invoke(replay_group, words)
    assert ran.exit_code == 0, ran.output
    return directory / "repro.py"


@pytest.mark.parametrize("python", PYTHONS)
async def test_a_bare_python_reproduces_the_cycle(reproduction: Path, python: str) -> None:
    emulator = Emulator("published", time_scale=TIME_SCALE)
    async with serving(emulator) as url:
        ran = await program(reproduction, url, python=python)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    *_, verdict = ran.stdout.strip().splitlines()
    assert verdict.startswith("REPRODUCED: 1 collapse(s), 1 of them after a healthy stretch as in the recording")
    rows = re.findall(r"^ +\d+ +\d+ +200 ", ran.stdout, re.MULTILINE)
    assert len(rows) == len(emulator.log) == 8
    assert ran.stderr == ""


async def test_a_bare_python_sees_that_a_healthy_server_does_not(reproduction: Path) -> None:
    async with serving(Emulator("healthy", time_scale=TIME_SCALE)) as url:
        ran = await program(reproduction, f"{url}/v1/")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert re.search(r"^NOT_REPRODUCED: \d\.\d of the recording's longest healthy stretches", ran.stdout, re.MULTILINE)


async def test_what_is_in_the_file_is_shown_without_a_server(reproduction: Path) -> None:
    ran = await program(reproduction, "--show")
    assert ran.returncode == 0, ran.stderr
    assert "vllm serve 'my model' --speculative-config '{\"method\": \"dflash\"}'" in ran.stdout
    assert "engine_version: 0.32.0" in ran.stdout
    assert "num_speculative_tokens: 8" in ran.stdout
    assert "prompts: made up" in ran.stdout
    assert ran.stdout.count("after the one before") == 8


async def test_a_server_that_is_slow_from_the_first_step_decides_nothing(reproduction: Path) -> None:
    emulator = Emulator("published", time_scale=TIME_SCALE)
    emulator.force_phase("collapsed")
    async with serving(emulator) as url:
        ran = await program(reproduction, url)
    assert ran.returncode == 1
    assert "INCONCLUSIVE: slow from the first step on: start the server anew" in ran.stdout
    assert len(emulator.log) == 8, "more rounds would not help"


async def test_times_and_turns_are_kept_where_requests_overlap(tmp_path: Path) -> None:
    first = [SYSTEM, user("Why?")]
    second = [*first, {"role": "assistant", "content": "Because."}, user("And?")]
    whole = measured("cycle", 12)
    turns = [
        exchange(0, 0.0, seconds=1.0, messages=first),
        exchange(1, 0.5, seconds=1.0),
        exchange(2, 1.2, messages=second),
    ]
    moved = [turn.request for turn in turns]
    exchanges = [
        Exchange(request=moved[index], response=one.response) if index < 3 else one for index, one in enumerate(whole)
    ]
    data = data_of(packed(tmp_path, "--times", exchanges=exchanges))
    assert data["requests"][0]["at"] == 0.0
    assert data["requests"][1]["at"] == 0.5
    sent: list[int] = []
    for request in data["requests"]:
        request["at"] = None if request["at"] is None else request["at"] / 1000
    emulator = Emulator("healthy", time_scale=0)
    async with serving(emulator) as url:
        server = script.Server(url, 60.0)
        requests = await asyncio.to_thread(script.check_server, server, data, None)
        answers = await asyncio.to_thread(script.send_round, server, requests, lambda number, _: sent.append(number))
    assert sorted(sent) == list(range(12))
    assert all(answer["error"] is None for answer in answers)


# ---- what can go wrong -----------------------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_is_exit_3(reproduction: Path) -> None:
    async with serving(Emulator("healthy", time_scale=0)) as url:
        pass
    ran = await program(reproduction, url)
    assert ran.returncode == 3
    assert re.fullmatch(r"repro: 127\.0\.0\.1: cannot be reached: .*\n", ran.stderr)


async def test_a_server_that_refuses_is_exit_2(reproduction: Path) -> None:
    async with serving(Emulator("healthy", time_scale=0, api_key="k")) as url:
        ran = await program(reproduction, url)
    assert ran.returncode == 2
    assert "repro: no request was answered: HTTP 401" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which server?"),
        (["localhost:8000"], "not a URL: 'localhost:8000'"),
        (["http://localhost:port"], "not a URL"),
        (["http://127.0.0.1:9", "--rounds", "0"], "--rounds: at least 1"),
    ],
)
async def test_bad_usage_is_told_in_a_line(reproduction: Path, arguments: list[str], said: str) -> None:
    ran = await program(reproduction, *arguments)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


async def test_the_program_without_a_session_says_so() -> None:
    ran = await program(Path(script.__file__), "http://127.0.0.1:9")
    assert ran.returncode == 2
    assert "holds no session" in ran.stderr


class _Plain(http.server.BaseHTTPRequestHandler):
    """A server that refuses to count tokens by event, and counts the whole answer."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "continuous_usage_stats" in body["stream_options"]:
            self.send_error(400)
            return
        self.send_response(200)
        self.end_headers()
        events = [{"choices": [{"delta": {"content": word}}]} for word in ("", "one", "two", "three")]
        events.append({"choices": [], "usage": {"completion_tokens": 7, "prompt_tokens": 5}})
        for event in events:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n" if body["model"] != "cut" else b"")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def plain_server() -> Iterator[script.Server]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Plain) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield script.Server(f"http://127.0.0.1:{server.server_port}", 60.0)
        finally:
            server.shutdown()
            thread.join()


def test_a_server_without_counts_is_asked_again_and_its_tokens_are_spread() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    with plain_server() as server:
        whole = script.ask(server, "/v1/chat/completions", {"model": "m", "stream_options": options})
        cut = script.ask(server, "/v1/chat/completions", {"model": "cut", "stream_options": options})
    assert (whole["error"], whole["counted"]) == (None, False)
    assert [tokens for _, tokens in whole["events"]] == [1.0, 3.0, 3.0]
    assert cut["error"] == "the stream was cut"


CAPTURES = Path(__file__).parents[1] / "data/tap"


class _Captured:
    """A socket that has received these bytes."""

    def __init__(self, received: bytes) -> None:
        self._received = received

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(io.BytesIO(self._received))


def read_capture(name: str) -> dict[str, Any]:
    """What the program makes of a response of a real vLLM."""
    answer = http.client.HTTPResponse(_Captured(gzip.decompress((CAPTURES / name).read_bytes())))  # type: ignore[arg-type]
    answer.begin()
    told: dict[str, Any] = {"started": 0.0, "events": [], "error": None, "usage": {}, "counted": True}
    try:
        script._read_events(answer, told)
    except (http.client.HTTPException, ValueError) as error:
        told["error"] = str(error)
    script._spread_tokens(told)
    return told


@pytest.mark.parametrize("route", ["chat", "completion"])
def test_real_answers_with_counts_by_event_are_read_exactly(route: str) -> None:
    told = read_capture(f"dflash_trained_{route}_stream.raw.gz")
    assert (told["error"], told["counted"]) == (None, True)
    assert sum(tokens for _, tokens in told["events"]) == told["usage"]["completion_tokens"]
    assert max(tokens for _, tokens in told["events"]) > 1, "an event is a verify step"


def test_real_answers_without_counts_by_event_have_the_mean_in_each() -> None:
    told = read_capture("dflash_trained_chat_stream_usage_only.raw.gz")
    assert (told["error"], told["counted"]) == (None, False)
    assert sum(tokens for _, tokens in told["events"]) == pytest.approx(told["usage"]["completion_tokens"])
    silent = read_capture("dflash_trained_chat_stream_plain.raw.gz")
    assert (silent["error"], silent["events"]) == (None, [])


@pytest.mark.parametrize("capture", sorted(path.name for path in CAPTURES.glob("kill_*_stream.raw.gz")))
def test_real_answers_of_killed_engines_are_failures(capture: str) -> None:
    drained = "_st20_" in capture
    assert (read_capture(capture)["error"] is None) == drained, "with a shutdown time-out the answer was finished"


# ---- what is in the file ---------------------------------------------------------------------------------------------


def test_the_program_needs_the_standard_library_of_3_9_only(tmp_path: Path) -> None:
    tree = ast.parse(packed(tmp_path).read_text(), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)


def test_the_same_session_gives_the_same_program(tmp_path: Path) -> None:
    exchanges = measured("cycle", 12)
    first, second = (packed(tmp_path / name, exchanges=exchanges).read_text() for name in "ab")
    assert first == second


SECRET = [
    user("my 'secret' question, with '''quotes''', a \\ and an ü, and long enough to stand in the table of texts")
]


def texts_recorded() -> list[Exchange]:
    whole = measured("cycle", 12)
    asked = [exchange(index, float(index), mode=ContentMode.TEXT, messages=SECRET).request for index in range(12)]
    return [Exchange(request=request, response=one.response) for request, one in zip(asked, whole, strict=True)]


def test_recorded_text_stays_out_unless_asked_for(tmp_path: Path) -> None:
    without = packed(tmp_path / "a", exchanges=texts_recorded())
    assert "secret" not in without.read_text()
    given = packed(tmp_path / "b", "--with-text", exchanges=texts_recorded())
    data = data_of(given)
    assert data["texts"] == [SECRET[0]["content"]], "however often it is sent"
    assert data["text"] is True
    assert [script.filled(one["body"], data["texts"])["messages"] for one in data["requests"]] == [SECRET] * 12
    assert given.stat().st_mode & 0o077 == 0
    assert compile(given.read_text(), str(given), "exec")


def test_keys_in_the_serve_command_stay_out(tmp_path: Path) -> None:
    file = packed(tmp_path, "--serve-command", "vllm serve m --api-key 's e c' --hf-token=abc --port 8000")
    assert data_of(file)["serve_command"] == "vllm serve m --api-key *** --hf-token=*** --port 8000"


def test_several_answers_in_one_stream_are_left_out(tmp_path: Path) -> None:
    whole = measured("cycle", 12)
    asked = [one.request for one in (exchange(0, 0.0, n=2), *(exchange(index, 1.0 * index) for index in range(1, 12)))]
    exchanges = [Exchange(request=request, response=one.response) for request, one in zip(asked, whole, strict=True)]
    assert len(data_of(packed(tmp_path, exchanges=exchanges))["requests"]) == 11


def test_what_a_reduction_made_up_is_sent_as_it_was_tried(tmp_path: Path) -> None:
    from replay.session.schema import EventRecord, SessionHeader, encode
    from replay.session.writer import SessionWriter

    fields = {"synthetic_prompts": True, "timing": "back_to_back"}
    records = [record for one in texts_recorded() for record in (one.request, one.response) if record is not None]
    events = [EventRecord(at=0.0, kind="reduce", fields=fields), EventRecord(at=0.0, kind="reduce_end")]
    writer = SessionWriter(tmp_path / "source", SessionHeader(tool_version="0", session_id="s"))
    writer.append([encode(one) for one in (*events, *records)])
    writer.close()
    output = tmp_path / "repro.py"
    ran = CliRunner().invoke(replay_group, ["pack", str(tmp_path / "source"), "-o", str(output)])
    assert ran.exit_code == 0, ran.output
    assert ran.stderr == ""
    assert data_of(output)["texts"] == [SECRET[0]["content"]]
    assert data_of(output)["text"] is False
    assert all(request["at"] is None for request in data_of(output)["requests"])


@pytest.mark.parametrize(
    ("truth", "options", "exit_code", "said"),
    [
        ("healthy", [], 1, "it shows no collapse: there is nothing to reproduce"),
        ("cycle", ["--with-text"], 2, "--with-text: the session holds no text"),
        ("cycle", ["-o", "TAKEN"], 2, "File exists"),
    ],
)
def test_what_cannot_be_packed_is_told_in_a_line(
    tmp_path: Path, truth: Truth, options: list[str], exit_code: int, said: str
) -> None:
    source = write_exchanges(tmp_path / "source", measured(truth, 12))
    taken = tmp_path / "taken"
    taken.touch()
    words = [str(taken) if option == "TAKEN" else option for option in options]
    ran = CliRunner().invoke(replay_group, ["pack", str(source), "-o", str(tmp_path / "repro.py"), *words])
    assert ran.exit_code == exit_code
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


# ---- the rule --------------------------------------------------------------------------------------------------------


def judged(exchanges: list[Exchange], expected: dict[str, Any], failed: int = 0) -> dict[str, Any]:
    parts = [part for one in exchanges for part in segments_of(one)]
    return script.judge(parts, failed, len(exchanges), expected)


@pytest.mark.parametrize(
    ("truth", "requests", "verdict"),
    [
        ("cycle", 40, script.REPRODUCED),
        ("healthy", 40, script.NOT_REPRODUCED),
        ("healthy", 5, script.INCONCLUSIVE),
        ("slow", 10, script.INCONCLUSIVE),
        ("chance", 40, script.INCONCLUSIVE),
    ],
)
@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_rule(truth: Truth, requests: int, verdict: str, concurrency: int) -> None:
    expected = expected_of(measured("cycle", 40, concurrency=concurrency))
    assert expected["collapses"] >= 3
    found = judged(measured(truth, requests, seed=4, concurrency=concurrency), expected)
    assert found["verdict"] == verdict, found["reason"]


def test_failed_requests_decide_nothing() -> None:
    found = judged(measured("cycle", 40, seed=4), expected_of(measured("cycle", 40)), failed=5)
    assert (found["verdict"], found["reason"]) == (script.INCONCLUSIVE, "5 of 40 requests failed")


def _stepwise(factors: list[float]) -> list[dict[str, float]]:
    """Segments of 100 tokens and 32 steps, which take so many times 0.5 s."""
    found, at = [], 0.0
    for factor in factors:
        part = {"arrived": at, "started": at, "ended": at + 0.5 * factor, "seconds": 0.5 * factor}
        found.append({**part, "requests": 1.0, "tokens": 100, "decoded": 100, "steps": 32})
        at += 0.5 * factor
    return found


def test_longer_steps_are_told_on_a_faster_server_too() -> None:
    healthy, slow = script.figures(_stepwise([1.0])), script.figures(_stepwise([3.0]))
    stretch = {"requests": 6.0, "tokens": 600.0, "steps": 192.0, "seconds": 3.0}
    expected = {
        "healthy": healthy,
        "slow": slow,
        "factor": "step_seconds",
        "collapses": 1,
        "healthy_stretches": [stretch],
        "longest_healthy": stretch,
        "rounds": 3,
    }
    collapsed = script.judge(_stepwise([0.5] * 6 + [1.5] * 3), 0, 9, expected)
    assert collapsed["verdict"] == script.REPRODUCED, collapsed["reason"]
    assert script.judge(_stepwise([0.5] * 60), 0, 60, expected)["verdict"] == script.NOT_REPRODUCED


def test_what_faster_steps_make_up_for_is_no_collapse() -> None:
    expected = expected_of(measured("cycle", 12))
    parts = _stepwise([1.0] * 6 + [0.6] * 3)
    for part in parts[6:]:
        part["decoded"] = 32
    found = script.judge(parts, 0, 9, expected)
    assert found["verdict"] == script.INCONCLUSIVE
    assert found["reason"].startswith("slow phases have 53% of the healthy tok/s, in the recording 2")


def test_events_that_came_all_at_once_still_count() -> None:
    """A busy machine takes in many events at one moment: their tokens are known, their times are not."""
    bursts = []
    for index, one in enumerate(measured("cycle", 40)):
        assert one.response is not None
        first, *rest = one.response.chunk_us
        chunk_us = (first + sum(rest), *[0] * len(rest)) if index % 3 == 0 else one.response.chunk_us
        bursts.append(Exchange(request=one.request, response=structs.replace(one.response, chunk_us=chunk_us)))
    expected, whole = expected_of(bursts, Cause.ACCEPTANCE_COLLAPSE), expected_of(measured("cycle", 40))
    for clock in ("requests", "tokens", "steps"):
        lengths = [run[clock] for run in expected["healthy_stretches"]]
        assert lengths == pytest.approx([run[clock] for run in whole["healthy_stretches"]])
    assert expected["healthy"]["tok_s"] == pytest.approx(whole["healthy"]["tok_s"], rel=0.05)
    assert judged(bursts, whole)["verdict"] == script.REPRODUCED


def test_what_is_expected_comes_from_the_recording() -> None:
    expected = expected_of(measured("cycle", 40))
    assert expected["factor"] == "acceptance_length"
    assert expected["healthy"]["acceptance_length"] == pytest.approx(3.6, abs=0.3)
    assert expected["slow"]["acceptance_length"] == pytest.approx(1.0, abs=0.1)
    assert all(3 < run["requests"] < 9 for run in expected["healthy_stretches"][1:])
    with pytest.raises(NothingExpected, match="no healthy stretch in it ends in a slow one"):
        expected_of(measured("cycle", 3))
    with pytest.raises(NothingExpected, match="no answer's events are known"):
        expected_of([exchange(0, 0.0)])


def test_a_collapse_of_the_step_time_is_packed_as_one() -> None:
    exchanges = measured("healthy", 12)
    slowed = []
    for index, one in enumerate(exchanges):
        assert one.response is not None
        factor = 4 if 5 <= index <= 7 else 1
        chunk_us = tuple(delta * factor for delta in one.response.chunk_us)
        slowed.append(Exchange(request=one.request, response=structs.replace(one.response, chunk_us=chunk_us)))
    expected = expected_of(slowed)
    assert expected["factor"] == "step_seconds"
    assert expected["collapses"] == 1
    assert expected["healthy_stretches"][0]["requests"] == pytest.approx(5.0)
