"""A client that reads slowly costs no memory, and is never taken for a slow engine."""

from __future__ import annotations

import asyncio
import socket
import time

import psutil
from served import served
from upstreams import (
    BODY,
    STREAM_HEAD,
    Client,
    Peer,
    answer_of,
    chunked,
    connected,
    event,
    observed,
    opened,
    proxy_to,
    settings,
    until,
    upstream,
)

from detector.observation import Ending, Source
from proxy.serve import Proxy, running
from proxy.server import ClientConnection
from proxy.upstream import WRITE_BUFFER_BYTES
from replay.emulator import Emulator, serving
from replay.emulator.scenario import parse_scenario

PIECE = event('{"choices":[{"index":0,"delta":{"content":"' + "x" * 65_000 + '"},"finish_reason":null}]}')
PIECES = 512
LAST = event('{"choices":[{"index":0,"delta":{"content":"c"},"finish_reason":"stop"}]}') + event("[DONE]")


class Firehose:
    """An engine that writes as many pieces as fast as it is read."""

    def __init__(self, pieces: int = PIECES) -> None:
        self.pieces = pieces
        self.written = 0
        self.hung_up = asyncio.Event()

    async def __call__(self, peer: Peer) -> None:
        if (await peer.request()).method == b"GET":
            return  # the proxy asks for metrics
        await peer.send(STREAM_HEAD)
        try:
            for _ in range(self.pieces):
                await peer.send(chunked(PIECE, end=False))
                self.written += 1
            await peer.send(chunked(LAST))
        finally:
            self.hung_up.set()


def only_connection(proxy: Proxy) -> ClientConnection:
    (connection,) = proxy.gateway.connections
    return connection


async def stalled(proxy: Proxy, client: Client) -> ClientConnection:
    """Ask, read nothing, and wait until the proxy has noticed."""
    client.stop_reading()
    await client.post()
    connection = only_connection(proxy)
    backend = proxy.gateway.backends[0]
    await until(lambda: any(exchange._reading_paused_at is not None for exchange in backend.exchanges))
    return connection


def pretend_that_it_lasts(proxy: Proxy, *, seconds: float) -> None:
    """Make the pause that is going on older than it is."""
    (exchange,) = proxy.gateway.backends[0].exchanges
    assert exchange._reading_paused_at is not None
    exchange._reading_paused_at -= seconds


async def test_the_engine_is_not_read_while_the_client_does_not_read() -> None:
    engine = Firehose()
    async with proxy_to(engine) as proxy, connected(proxy) as client:
        connection = await stalled(proxy, client)
        (exchange,) = proxy.gateway.backends[0].exchanges
        assert exchange._connection is not None
        assert not exchange._connection.transport.is_reading()
        assert connection.transport.get_write_buffer_size() < 4 * WRITE_BUFFER_BYTES
        assert engine.written < PIECES
        client.read_again()
        _, _, body = await client.answer()
    assert body == PIECE * PIECES + LAST


async def test_a_stalled_answer_is_observed_as_paced_by_the_client_and_has_no_rate() -> None:
    async with proxy_to(Firehose()) as proxy, connected(proxy) as client:
        await stalled(proxy, client)
        pretend_that_it_lasts(proxy, seconds=60.0)
        client.read_again()
        await client.answer()
        observation = await observed(proxy)
        assert observation.client_paced
        assert observation.decode_tokens_per_second is None
        assert observation.step_seconds is None
        assert observation.rate_source is None
        assert observation.ending is Ending.COMPLETE


async def test_a_client_that_never_reads_is_disconnected_and_the_engine_hung_up_on() -> None:
    engine = Firehose()
    async with proxy_to(engine, server__client_stall_seconds=0.05) as proxy, connected(proxy) as client:
        await stalled(proxy, client)
        pretend_that_it_lasts(proxy, seconds=60.0)
        await engine.hung_up.wait()
        observation = await observed(proxy)
        assert observation.ending is Ending.CLIENT_GONE
        assert observation.client_paced
        await until(lambda: not proxy.gateway.connections)


async def test_a_client_that_never_reads_a_finished_answer_is_cut_off_in_the_end() -> None:
    """The answer fits into the buffers: nothing is paused, but the connection must not stay for ever."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer_of(bytes(16 * 1024 * 1024)))

    async with proxy_to(script) as proxy, connected(proxy) as client:
        client.stop_reading()
        await client.post(BODY, "Connection: close")
        connection = await _with_unsent_rest(proxy)
        connection.close()
        connection.sweep(time.monotonic())
        assert proxy.gateway.connections
        connection.sweep(time.monotonic() + proxy.gateway.settings.server.client_stall_seconds)
        await until(lambda: not proxy.gateway.connections)


async def _with_unsent_rest(proxy: Proxy) -> ClientConnection:
    await until(lambda: bool(proxy.gateway.connections))
    connection = only_connection(proxy)
    await until(lambda: connection.transport.get_write_buffer_size() > WRITE_BUFFER_BYTES)
    return connection


HEALTHY = """
name = "steady"
num_speculative_tokens = 8
[[cycle]]
phase = "healthy"
length = 1
acceptance_length = 4.0
"""


async def slow_connection(proxy: Proxy) -> socket.socket:
    """A client connection with a small window: what is not read stays with the proxy, not in the kernel."""
    host, port = proxy.url.removeprefix("http://").rsplit(":", 1)
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.setblocking(False)
    known = set(proxy.gateway.connections)
    await asyncio.get_running_loop().sock_connect(narrow, (host, int(port)))
    await until(lambda: bool(proxy.gateway.connections - known))
    (connection,) = proxy.gateway.connections - known
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection.transport.set_write_buffer_limits(2048)
    return narrow


async def test_a_drain_waits_until_what_was_answered_has_been_delivered() -> None:
    whole = bytes(range(256)) * 800

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer_of(whole))

    loop = asyncio.get_running_loop()
    async with upstream(script) as url, running(settings(url)) as proxy:
        with await slow_connection(proxy) as narrow:
            connection = only_connection(proxy)
            connection.transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
            await loop.sock_sendall(narrow, b"GET /v1/files/1/content HTTP/1.1\r\nHost: p\r\n\r\n")
            await until(lambda: connection.transport.get_write_buffer_size() > 0 and not connection.busy)
            draining = asyncio.create_task(proxy.drain())
            await until(lambda: connection._closed)
            assert not draining.done()
            got = b""
            while data := await loop.sock_recv(narrow, 65536):
                got += data
            assert got.endswith(whole)
            await draining


async def ask_slowly(proxy: Proxy, emulator: Emulator, served_before: int) -> None:
    """Ask; begin to read when the engine has long finished."""
    loop = asyncio.get_running_loop()
    with await slow_connection(proxy) as narrow:
        body = chat(300)
        fields = f"Host: p\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
        await loop.sock_sendall(narrow, f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body)
        await until(lambda: len(emulator.log) > served_before)
        got = b""
        while data := await loop.sock_recv(narrow, 65536):
            got += data
        assert b"data: [DONE]\n\n" in got


def chat(tokens: int) -> bytes:
    return b'{"model":"m","stream":true,"max_tokens":%d,"messages":[{"role":"user","content":"hi"}]}' % tokens


async def test_slow_clients_do_not_make_a_healthy_engine_look_degraded() -> None:
    emulator = Emulator(parse_scenario(HEALTHY, "steady"), model="m", version="0.20.2", time_scale=20)
    async with serving(emulator) as url, running(settings(url, measure__ask_token_counts=True)) as proxy:
        for _ in range(8):
            async with connected(proxy) as client:
                await client.post(chat(300))
                await client.answer()
            assert not (await observed(proxy)).client_paced
        for number in range(6):
            await ask_slowly(proxy, emulator, 8 + number)
            observation = await observed(proxy)
            assert observation.client_paced
            assert observation.decode_tokens_per_second is None
        verdict = proxy.control.watched["primary"].watch.verdict
        assert (verdict.degraded, verdict.phase) == (False, "healthy")
        assert proxy.control.episodes("primary") == []


async def test_the_engines_own_time_still_gives_the_rate() -> None:
    emulator = Emulator(parse_scenario(HEALTHY, "steady"), model="m", time_scale=20)
    async with serving(emulator) as url, running(settings(url)) as proxy:
        await ask_slowly(proxy, emulator, 0)
        observation = await observed(proxy)
    (truth,) = emulator.log
    assert observation.client_paced
    assert (observation.rate_source, observation.acceptance_source) == (Source.ENGINE, Source.ENGINE)
    assert observation.acceptance_length == truth.acceptance_length
    assert observation.decode_tokens_per_second is not None
    assert abs(observation.decode_tokens_per_second / (truth.decode_tokens_per_second or 0) - 1) < 0.02


async def test_the_process_does_not_grow_with_what_a_client_leaves_unread() -> None:
    pieces = 768
    async with upstream(Firehose(pieces)) as url:
        with served("--upstream", url) as proxy:
            process = psutil.Process(proxy.process.pid)
            before = peak = process.memory_info().rss
            async with opened(proxy.url) as client:
                await client.post()
                await client.head()
                left = pieces * len(PIECE)
                while left > 0:
                    left -= len(await client.reader.readexactly(20_000))
                    peak = max(peak, process.memory_info().rss)
    assert peak - before < 24 * 1024 * 1024
