"""A client's connection: requests one after the other, no more held than can be answered, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator

import pytest
from upstreams import (
    BODY,
    STREAM_HEAD,
    Client,
    Peer,
    Seen,
    answer_of,
    answering,
    chunked,
    connected,
    event,
    proxy_to,
    until,
)

from proxy.serve import Proxy
from proxy.server import MAX_PIPELINED
from proxy.upstream import WRITE_BUFFER_BYTES
from tests.proxy.local_server import close


@contextlib.asynccontextmanager
async def one_stuck_request() -> AsyncIterator[tuple[Proxy, Client, asyncio.Event, list[bytes]]]:
    """A proxy whose engine holds the first request until ``go`` is set, and answers with the target's path."""
    go = asyncio.Event()
    asked: list[bytes] = []

    async def script(peer: Peer) -> None:
        while True:
            seen = await peer.request()
            asked.append(seen.target)
            await go.wait()
            await peer.send(answer_of(seen.target))

    async with proxy_to(script) as proxy, connected(proxy) as client:
        yield proxy, client, go, asked


def is_reading(proxy: Proxy) -> bool:
    """Whether the proxy reads from its (only) client."""
    (connection,) = proxy.gateway.connections
    return bool(connection.transport.is_reading())


async def test_pipelined_requests_wait_and_too_many_are_not_read() -> None:
    async with one_stuck_request() as (proxy, client, go, asked):
        requests = [b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number for number in range(3 * MAX_PIPELINED)]
        await client.send(requests[0])
        await until(lambda: asked == [b"/0"])
        await client.send(*requests[1:MAX_PIPELINED])
        assert is_reading(proxy)
        await client.send(requests[MAX_PIPELINED])
        await until(lambda: not is_reading(proxy))
        assert asked == [b"/0"]
        await client.send(*requests[MAX_PIPELINED + 1 :])
        go.set()
        assert [(await client.answer())[2] for _ in requests] == [b"/%d" % index for index in range(len(requests))]


async def test_the_body_of_a_pipelined_request_is_not_collected_without_limit() -> None:
    size = 64 * WRITE_BUFFER_BYTES
    async with one_stuck_request() as (proxy, client, go, asked):
        await client.send(b"GET /0 HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: asked == [b"/0"])
        client.writer.write(b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        client.writer.write(bytes(size))
        await until(lambda: not is_reading(proxy))
        (connection,) = proxy.gateway.connections
        assert sum(map(len, connection._incoming.parts)) < 4 * WRITE_BUFFER_BYTES
        go.set()
        assert (await client.answer())[2] == b"/0"
        assert (await client.answer())[2] == b"/v1/files"


async def test_a_client_that_asks_but_does_not_read_is_not_answered_without_limit() -> None:
    answer = bytes(16 * WRITE_BUFFER_BYTES)
    seen: list[Seen] = []
    async with proxy_to(answering(seen, answer)) as proxy, connected(proxy) as client:
        client.stop_reading()
        for number in range(MAX_PIPELINED):
            await client.send(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number)
        (connection,) = proxy.gateway.connections
        await until(lambda: connection.transport.get_write_buffer_size() > WRITE_BUFFER_BYTES)
        await until(lambda: connection._unread)
        assert connection.transport.get_write_buffer_size() < 4 * WRITE_BUFFER_BYTES
        client.read_again()
        for _ in range(MAX_PIPELINED):
            assert (await client.answer())[2] == answer
    assert len(seen) == MAX_PIPELINED


async def test_http2_upgrades_are_ignored_and_the_connection_goes_on() -> None:
    seen: list[Seen] = []
    upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    async with proxy_to(answering(seen)) as proxy, connected(proxy) as client:
        for number in range(2):
            await client.send(f"GET /{number} HTTP/1.1\r\nHost: p\r\n{upgrade}\r\n".encode())
            assert (await client.answer())[0] == 200
        await client.post(BODY, *upgrade.rstrip().split("\r\n"))
        assert (await client.answer())[0] == 200
        head = f"PUT /3 HTTP/1.1\r\nHost: p\r\n{upgrade}Transfer-Encoding: chunked\r\n\r\n".encode()
        await client.send(*(bytes([byte]) for byte in head + chunked(b"a", b"b")))
        assert (await client.answer())[0] == 200
    assert [one.target for one in seen] == [b"/0", b"/1", b"/v1/chat/completions", b"/3"]
    assert b'"content":"hi"' in seen[2].body
    assert seen[3].body == b"ab"
    assert [one.field("upgrade") for one in seen] == [None] * 4
    assert [one.field("http2-settings") for one in seen] == [None] * 4


async def test_connection_close_is_honoured() -> None:
    async with proxy_to(answering([])) as proxy, connected(proxy) as client:
        await client.post(BODY, "Connection: close")
        status, fields, _ = await client.answer()
        assert (status, fields["connection"]) == (200, "close")
        assert await client.rest() == b""


async def test_an_idle_client_is_closed_after_keep_alive_seconds() -> None:
    async with proxy_to(answering([]), server__keep_alive_seconds=0.01) as proxy, connected(proxy) as client:
        await client.post()
        await client.answer()
        assert await client.rest() == b""


async def test_a_request_is_sent_whole_while_the_answer_streams() -> None:
    """A chunked upload whose answer begins before its end, as in a transcription that streams."""
    pieces: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        pieces.append(await peer.reader.readexactly(len(chunked(b"one", end=False))))
        await peer.send(STREAM_HEAD + chunked(event("first"), end=False))
        pieces.append(await peer.reader.readexactly(len(chunked(b"two"))))
        await peer.send(chunked(event("[DONE]")))

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.send(b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n")
        await client.send(chunked(b"one", end=False))
        assert (await client.head())[0] == 200
        first = chunked(event("first"), end=False)
        assert await client.reader.readexactly(len(first)) == first
        await client.send(chunked(b"two"))
        assert await client.chunked() == event("[DONE]")
    assert b"".join(pieces) == chunked(b"one", b"two")


@pytest.mark.parametrize("rounds", range(5))
async def test_a_client_that_comes_while_the_proxy_closes_is_closed_too(rounds: int) -> None:
    """Whatever the loop had done for it by then; a socket that was lost would fail this test by its warning."""
    async with proxy_to(answering([])) as proxy:
        port = int(proxy.url.rsplit(":", 1)[1])
        coming = asyncio.create_task(asyncio.open_connection("127.0.0.1", port))
        for _ in range(rounds):
            await asyncio.sleep(0)
    with contextlib.suppress(ConnectionError):
        reader, writer = await coming
        assert await reader.read() == b""
        await close(writer)
    gc.collect()
