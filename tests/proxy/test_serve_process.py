"""`specbreaker serve` as a process: how it starts, drains and ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from served import LOOPBACK, SPECBREAKER, Served, clean_environment, served
from upstreams import BODY, STREAM_HEAD, Client, Peer, Script, answering, chunked, event, opened, until, upstream

CONTENT = event('{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}')


class Held:
    """An engine that begins a stream and ends it when ``go`` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.hung_up = asyncio.Event()

    async def __call__(self, peer: Peer) -> None:
        if (await peer.request()).method == b"GET":
            return
        await peer.send(STREAM_HEAD + chunked(CONTENT, end=False))
        leaving = asyncio.create_task(peer.closed())
        ending = asyncio.create_task(self.go.wait())
        await asyncio.wait({leaving, ending}, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            self.hung_up.set()
        else:
            await peer.send(chunked(event("[DONE]")))
        for task in (leaving, ending):
            task.cancel()
        await asyncio.gather(leaving, ending, return_exceptions=True)


@contextlib.asynccontextmanager
async def serving_process(script: Script, *arguments: str, **variables: str) -> AsyncIterator[Served]:
    async with upstream(script) as url:
        with served("--upstream", url, *arguments, **variables) as process:
            yield process


async def first_event(client: Client) -> None:
    await client.post()
    assert (await client.head())[0] == 200
    assert CONTENT in await client.reader.readuntil(CONTENT)


async def refuses(url: str) -> bool:
    try:
        async with opened(url):
            return False
    except OSError:
        return True


async def test_sigterm_lets_the_running_stream_end_and_refuses_new_connections() -> None:
    engine = Held()
    async with serving_process(engine, "--log-format", "json") as process, opened(process.url) as client:
        await first_event(client)
        async with opened(process.url) as idle:
            process.process.send_signal(signal.SIGTERM)
            assert await idle.rest() == b""
        while not await refuses(process.url):
            pass
        async with aiohttp.ClientSession(process.admin_url) as http, http.get("/readyz") as answer:
            assert (answer.status, await answer.json()) == (503, {"status": "draining"})
        assert process.process.poll() is None
        engine.go.set()
        rest = await client.rest()
        assert rest.endswith(chunked(event("[DONE]")))
        assert await asyncio.to_thread(process.ended) == 0
    messages = [json.loads(line)["message"] for line in process.said]
    assert "draining: 1 requests in flight" in messages


async def test_a_second_signal_ends_at_once() -> None:
    engine = Held()
    async with serving_process(engine) as process, opened(process.url) as client:
        await first_event(client)
        process.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait_until_said, "draining: 1 requests")
        process.process.send_signal(signal.SIGINT)
        assert not (await client.rest()).endswith(b"0\r\n\r\n")
        await engine.hung_up.wait()
        assert await asyncio.to_thread(process.ended) == 0
    assert not any("Traceback" in line for line in process.said)


async def test_a_drain_has_a_limit() -> None:
    async with (
        serving_process(Held(), SPECBREAKER_SERVER__DRAIN_SECONDS="0.05") as process,
        opened(process.url) as client,
    ):
        await first_event(client)
        assert await asyncio.to_thread(process.end) == 0
        assert not (await client.rest()).endswith(b"0\r\n\r\n")


async def test_the_whole_of_a_finished_answer_is_delivered_before_the_process_ends() -> None:
    """The answer is done for the engine, but its client has not read it yet."""
    answer = bytes(range(256)) * 4096 * 16
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        seen = await peer.request()
        if seen.target == b"/v1/files/1/content":
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)
            asked.set()

    async with serving_process(script) as process, opened(process.url) as client:
        client.stop_reading()
        await client.send(b"GET /v1/files/1/content HTTP/1.1\r\nHost: p\r\n\r\n")
        await until(lambda: client.writer.transport.get_write_buffer_size() == 0)
        async with aiohttp.ClientSession(process.admin_url) as http:
            while True:
                async with http.get("/status") as status:
                    if (await status.json())["backends"]["primary"]["requests"]:
                        break
        process.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait_until_said, "draining")
        client.read_again()
        _, _, body = await client.answer()
        assert body == answer
        assert await asyncio.to_thread(process.ended) == 0


async def test_records_are_sealed_when_it_ends(tmp_path: Path) -> None:
    engine = Held()
    engine.go.set()
    async with serving_process(engine, "--record", str(tmp_path)) as process:
        async with opened(process.url) as client:
            await client.post()
            await client.answer()
        assert await asyncio.to_thread(process.end, signal.SIGINT) == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".zst"]


async def test_json_logs_parse_line_by_line_and_hold_no_prompt_and_no_key() -> None:
    variables = {"SPECBREAKER_LOG__LEVEL": "debug"}
    async with serving_process(answering([]), "--log-format", "json", **variables) as process:
        async with opened(process.url) as client:
            await client.post(BODY.replace(b"hi", b"a-secret-prompt"), "Authorization: Bearer sk-secret")
            await client.answer()
        assert await asyncio.to_thread(process.end) == 0
    entries = [json.loads(line) for line in process.said]
    assert all({"time", "level", "logger", "message"} <= set(entry) for entry in entries)
    assert any(entry["message"].startswith("ready: base_url") for entry in entries)
    assert "secret" not in "".join(process.said)


# ---- what keeps it from starting -------------------------------------------------------------------------------------


def refused(*arguments: str) -> tuple[int, str]:
    """Exit status and standard error of a process that does not start."""
    done = subprocess.run(
        [SPECBREAKER, "serve", *arguments], stderr=subprocess.PIPE, text=True, env=clean_environment(), timeout=60
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("flag", ["--listen", "--admin"])
def test_a_port_in_use_is_one_line_and_status_2(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, said = refused("--upstream", "http://127.0.0.1:9", *LOOPBACK, flag, address)
    name = flag.removeprefix("--")
    assert (status, said) == (2, f"specbreaker: server.{name}: {address}: Address already in use\n")


@pytest.mark.parametrize("flag", ["--listen", "--admin"])
def test_a_host_that_is_not_there_is_one_line_and_status_2(flag: str) -> None:
    status, said = refused("--upstream", "http://127.0.0.1:9", *LOOPBACK, flag, "no-such-host.invalid:1")
    assert status == 2
    assert said.startswith(f"specbreaker: server.{flag.removeprefix('--')}: no-such-host.invalid:1: ")
    assert said.count("\n") == 1
    assert "Unknown error" not in said


def test_a_record_directory_that_cannot_be_written_is_one_line_and_status_2(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_text("")
    status, said = refused("--upstream", "http://127.0.0.1:9", *LOOPBACK, "--record", str(file))
    assert status == 2
    assert said.startswith(f"specbreaker: record.directory: {file}: ")
    assert said.count("\n") == 1


async def test_without_an_upstream_it_demonstrates() -> None:
    with served() as process:
        assert any("demonstration" in line for line in process.said)
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{process.base_url}/models") as answer:
                assert [model["id"] for model in (await answer.json())["data"]] == ["emulated"]
            async with http.get(f"{process.admin_url}/status") as answer:
                status = msgspec.json.decode(await answer.read())
        assert (status["mode"], status["serving"]) == ("act", ["primary", "fallback"])
        assert await asyncio.to_thread(process.end) == 0
