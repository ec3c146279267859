"""WebSockets through the proxy: a handshake, then bytes in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import WSCloseCode, WSMsgType, web
from upstreams import Client, Peer, connected, proxy_to, settings, until

from proxy.serve import Proxy, running

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def realtime(handler: Handler, **flags: object) -> AsyncIterator[Proxy]:
    """A proxy in front of an aiohttp server with that handler on /v1/realtime."""
    app = web.Application()
    app.router.add_get("/v1/realtime", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        async with running(settings(f"http://{host}:{port}", **flags)) as proxy:
            yield proxy
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def session(proxy: Proxy, **options: Any) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A client's WebSocket through the proxy."""
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{proxy.url}/v1/realtime?model=m", **options) as socket,
    ):
        yield socket


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Send every message back as it came."""
    socket = web.WebSocketResponse(max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        else:
            await socket.send_bytes(message.data)
    return socket


async def test_text_and_binary_messages_of_all_sizes_come_back_equal() -> None:
    async with realtime(echo) as proxy, session(proxy, max_msg_size=0) as socket:
        for size in (0, 1, 125, 126, 65535, 65536, 3_000_000):
            await socket.send_str("é" * size)
            assert await socket.receive_str() == "é" * size
            payload = bytes(index % 251 for index in range(min(size, 70000))) * (1 if size < 70000 else 43)
            await socket.send_bytes(payload)
            assert await socket.receive_bytes() == payload


async def test_the_handshake_passes_with_its_query_key_and_protocol() -> None:
    asked: list[web.Request] = []

    async def handler(request: web.Request) -> web.WebSocketResponse:
        asked.append(request)
        socket = web.WebSocketResponse(protocols=("realtime",))
        await socket.prepare(request)
        await socket.close()
        return socket

    headers = {"authorization": "Bearer sk-1", "x-request-id": "ws-1"}
    async with (
        realtime(handler) as proxy,
        session(proxy, headers=headers, protocols=("other", "realtime")) as socket,
    ):
        assert socket.protocol == "realtime"
        await socket.receive()
    assert asked[0].query_string == "model=m"
    assert asked[0].headers["authorization"] == "Bearer sk-1"
    assert asked[0].headers["x-request-id"] == "ws-1"
    assert asked[0].headers["x-forwarded-for"] == "127.0.0.1"


async def test_pings_and_pongs_pass_in_both_directions() -> None:
    heard: asyncio.Queue[tuple[WSMsgType, bytes]] = asyncio.Queue()

    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        await socket.ping(b"from the engine")
        async for message in socket:
            heard.put_nowait((message.type, message.data))
            if message.type is WSMsgType.PING:
                await socket.pong(message.data)
        return socket

    async with realtime(handler) as proxy, session(proxy, autoping=False) as socket:
        message = await socket.receive()
        assert (message.type, message.data) == (WSMsgType.PING, b"from the engine")
        await socket.pong(message.data)
        assert await heard.get() == (WSMsgType.PONG, b"from the engine")
        await socket.ping(b"from the client")
        assert await heard.get() == (WSMsgType.PING, b"from the client")
        message = await socket.receive()
        assert (message.type, message.data) == (WSMsgType.PONG, b"from the client")


@pytest.mark.parametrize(
    ("code", "reason"),
    [(WSCloseCode.OK, b""), (WSCloseCode.GOING_AWAY, b"restart"), (WSCloseCode.POLICY_VIOLATION, "grün".encode())],
)
async def test_the_engines_close_code_and_reason_reach_the_client(code: WSCloseCode, reason: bytes) -> None:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.close(code=code, message=reason)
        return socket

    async with realtime(handler) as proxy, session(proxy) as socket:
        message = await socket.receive()
        assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, code, reason.decode())


async def test_the_clients_close_code_reaches_the_engine() -> None:
    codes: asyncio.Queue[int | None] = asyncio.Queue()

    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        codes.put_nowait(socket.close_code)
        return socket

    async with realtime(handler) as proxy:
        async with session(proxy) as socket:
            await socket.close(code=4001)
        assert await codes.get() == 4001
        await until(lambda: not proxy.gateway.backends[0].exchanges)


def frame(payload: bytes, *, opcode: int, final: bool) -> bytes:
    """A masked frame; the mask is zero, so that the payload reads as it is."""
    length = struct.pack("!B", 0x80 | len(payload)) if len(payload) < 126 else struct.pack("!BH", 0xFE, len(payload))
    return bytes([opcode | (0x80 if final else 0)]) + length + bytes(4) + payload


HANDSHAKE = (
    b"GET /v1/realtime HTTP/1.1\r\nHost: p\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


async def test_fragments_reach_the_engine_as_fragments_even_with_a_ping_between() -> None:
    got: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCHING)
        got.append(await peer.reader.readexactly(len(sent)))
        await peer.send(got[0][::-1])

    parts = (
        frame(b"one ", opcode=1, final=False),
        frame(b"ping", opcode=9, final=True),
        frame(b"x" * 1000, opcode=0, final=False),
        frame(b"", opcode=0, final=True),
    )
    sent = b"".join(parts)
    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.send(HANDSHAKE)
        assert await client.reader.readuntil(b"\r\n\r\n") == SWITCHING
        for byte in sent:
            await client.send(bytes([byte]))
        assert await client.reader.readexactly(len(sent)) == sent[::-1]
    assert got == [sent]


async def test_frames_that_come_with_the_handshake_are_not_lost() -> None:
    got: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCHING + b"hello")
        got.append(await peer.reader.readexactly(5))

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.send(HANDSHAKE + b"early")
        assert await client.reader.readuntil(b"hello") == SWITCHING + b"hello"
        await client.rest()
    assert got == [b"early"]


async def test_a_refused_upgrade_passes_as_the_answer_it_is() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"error": "no realtime here"}, status=426, headers={"x-own": "1"})

    async with realtime(handler) as proxy, aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(f"{proxy.url}/v1/realtime")
        assert refused.value.headers is not None
        assert (refused.value.status, refused.value.headers["x-own"]) == (426, "1")
        async with http.get(
            f"{proxy.url}/v1/realtime", headers={"connection": "upgrade", "upgrade": "websocket"}
        ) as got:
            assert (got.status, await got.json()) == (426, {"error": "no realtime here"})


async def test_an_engine_that_hangs_up_ends_the_clients_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCHING, b"last words")

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.send(HANDSHAKE)
        assert (await client.rest()) == SWITCHING + b"last words"


async def test_a_client_that_hangs_up_ends_the_engines_connection() -> None:
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCHING)
        await peer.closed()
        closed.set()

    async with proxy_to(script) as proxy:
        async with connected(proxy) as client:
            await client.send(HANDSHAKE)
            await client.reader.readuntil(b"\r\n\r\n")
        await closed.wait()


async def shake_hands(client: Client) -> None:
    await client.send(HANDSHAKE)
    assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


async def test_a_silent_session_is_not_timed_out() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCHING, b"1")
        while data := await peer.reader.read(100):
            await peer.send(data)

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await shake_hands(client)
        assert await client.reader.readexactly(1) == b"1"
        (exchange,) = proxy.gateway.backends[0].exchanges
        (connection,) = proxy.gateway.connections
        for _ in range(2):
            days_later = time.monotonic() + 1e6
            exchange.sweep(days_later)
            connection.sweep(days_later)
            await client.send(b"2")
            assert await client.reader.readexactly(1) == b"2"


async def test_a_client_that_does_not_read_its_session_holds_the_engine_back() -> None:
    written = 0
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        nonlocal written
        await peer.request()
        await peer.send(SWITCHING)
        for _ in range(1024):
            await peer.send(bytes(65536))
            written += 65536
        go_on.set()

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.send(HANDSHAKE)
        client.stop_reading()
        (connection,) = proxy.gateway.connections
        await until(lambda: connection._unread)
        assert connection.transport.get_write_buffer_size() < 1_000_000
        assert written < 1024 * 65536
        client.read_again()
        await client.reader.readuntil(b"\r\n\r\n")
        assert len(await client.reader.readexactly(1024 * 65536)) == 1024 * 65536
        await go_on.wait()
