"""A client that leaves: the engine stops working for it at once, in the wiring that users run."""

from __future__ import annotations

import socket
import struct

import aiohttp
import msgspec
import pytest
from served import served
from upstreams import Client, opened, until

from replay.emulator import Emulator, serving
from replay.emulator.clock import ScaledClock
from replay.emulator.scenario import parse_scenario

LONG = """
name = "long"
num_speculative_tokens = 8
[[cycle]]
phase = "healthy"
length = 1
acceptance_length = 3.6
"""
TIMES = 5
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no time: closing resets the connection."""


async def ask(client: Client, *, stream: bool) -> None:
    body = {"model": "emulated", "stream": stream, "max_tokens": 20_000, "messages": [{"role": "user", "content": "x"}]}
    await client.post(msgspec.json.encode(body))
    if stream:
        assert (await client.head())[0] == 200
        await client.reader.readuntil(b"\n\n")


async def running_gauge(url: str) -> float:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_requests_running"))


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_the_engine_aborts_when_the_client_leaves(stream: bool, reset: bool) -> None:
    clock = ScaledClock(1.0)
    emulator = Emulator(parse_scenario(LONG, "long"), clock=clock)
    delays = []
    async with serving(emulator) as url:
        with served("--upstream", url) as proxy:
            for number in range(TIMES):
                async with opened(proxy.url) as client:
                    await ask(client, stream=stream)
                    await until(lambda: emulator.in_flight == 1)
                    if reset:
                        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    left_at = clock.now()
                    client.writer.transport.abort()
                await until(lambda number=number: len(emulator.log) == number + 1)  # type: ignore[misc]
                delays.append(emulator.log[-1].ended_at - left_at)
            assert await running_gauge(url) == 0
    for served_request in emulator.log:
        assert served_request.finish_reason == "abort"
        assert served_request.completion_tokens < 20_000
    # A busy machine may hold up one of them; a proxy that waits for something holds up all.
    assert min(delays) < 0.2


async def test_a_client_that_leaves_takes_no_other_with_it() -> None:
    emulator = Emulator(parse_scenario(LONG, "long"))
    async with serving(emulator) as url:
        with served("--upstream", url) as proxy:
            async with opened(proxy.url) as stays:
                await ask(stays, stream=True)
                async with opened(proxy.url) as leaves:
                    await ask(leaves, stream=True)
                    assert emulator.in_flight == 2
                await until(lambda: len(emulator.log) == 1)
                assert emulator.in_flight == 1
                for _ in range(10):
                    assert b"data: " in await stays.reader.readuntil(b"\n\n")
            await until(lambda: len(emulator.log) == 2)
            assert await running_gauge(url) == 0


async def test_a_client_that_leaves_before_the_first_token_is_not_served() -> None:
    slow = LONG + "[prefill]\nfixed_seconds = 3600\n"
    emulator = Emulator(parse_scenario(slow, "slow"))
    async with serving(emulator) as url:
        with served("--upstream", url) as proxy:
            async with opened(proxy.url) as client:
                body = {"model": "emulated", "stream": True, "messages": [{"role": "user", "content": "x"}]}
                await client.post(msgspec.json.encode(body))
                await until(lambda: emulator.in_flight == 1)
            await until(lambda: emulator.in_flight == 0)
    assert (emulator.log[0].finish_reason, emulator.log[0].completion_tokens) == ("abort", 0)
