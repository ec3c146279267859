"""Upstreams that do exactly what a test says, and a client that sees every byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import msgspec

from detector.observation import Observation
from proxy.config import Config, load
from proxy.serve import Proxy, running
from tests.proxy.local_server import close, serving

BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'


class Seen(msgspec.Struct):
    """One request as an upstream received it."""

    method: bytes
    target: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes

    def field(self, name: str) -> str | None:
        """The (only) value of a header, or None."""
        values = [value for key, value in self.fields if key.lower() == name.lower().encode()]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0].decode() if values else None


class Peer:
    """The upstream's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self, *, body: bool = True) -> Seen:
        """Read one request."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        method, target, _ = first.split(b" ")
        fields = [tuple(line.split(b": ", 1)) for line in lines]
        seen = Seen(method, target, fields, b"")  # type: ignore[arg-type]
        if body:
            seen.body = await self._body(seen)
        return seen

    async def _body(self, seen: Seen) -> bytes:
        if seen.field("transfer-encoding") == "chunked":
            body = b""
            while True:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
                if size == 0:
                    return body
        return await self.reader.readexactly(int(seen.field("content-length") or 0))

    async def send(self, *pieces: bytes) -> None:
        """Send pieces, each in a segment of its own as far as the kernel lets us."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def closed(self) -> None:
        """Wait until the other side closed."""
        while await self._read():
            pass

    async def _read(self) -> bytes:
        try:
            return await self.reader.read(65536)
        except ConnectionError:
            return b""


Script = Callable[[Peer], Awaitable[None]]


@contextlib.asynccontextmanager
async def upstream(script: Script) -> AsyncIterator[str]:
    """A server that runs the script for each connection; errors in a script fail the test at exit."""
    failures: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(Peer(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the proxy hung up, which some scripts are about, or the test is over
        except Exception as error:  # noqa: BLE001 - raised again at exit
            failures.append(error)
        finally:
            await close(writer)

    async with serving(serve) as url:
        yield url
    if failures:
        raise failures[0]


def settings(*urls: str, **flags: Any) -> Config:
    """A configuration on free ports; the first URL is the primary. Keys are written section__key."""
    backends = [
        {"name": "primary" if index == 0 else f"fallback{index}", "url": url, "metrics": False}
        | ({} if index == 0 else {"role": "fallback"})
        | flags.pop("backend", {})
        for index, url in enumerate(urls)
    ]
    values = {name.replace("__", "."): value for name, value in flags.items()}
    ports = {"server.listen": "127.0.0.1:0", "server.admin": "127.0.0.1:0"}
    return load(None, environment={}, flags={**ports, **values, "backends": backends})


@contextlib.asynccontextmanager
async def proxy_to(script: Script, **flags: Any) -> AsyncIterator[Proxy]:
    """A proxy in front of a scripted upstream."""
    async with upstream(script) as url, running(settings(url, **flags)) as proxy:
        yield proxy


class Client:
    """A raw connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Write pieces one after the other."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    def stop_reading(self) -> None:
        """Leave what comes in the kernel's buffers."""
        cast("asyncio.Transport", self.writer.transport).pause_reading()

    def read_again(self) -> None:
        """Undo stop_reading()."""
        cast("asyncio.Transport", self.writer.transport).resume_reading()

    async def post(self, body: bytes = BODY, *fields: str, path: str = "/v1/chat/completions") -> None:
        """Send a JSON request."""
        lines = "".join(f"{field}\r\n" for field in fields)
        head = f"POST {path} HTTP/1.1\r\nHost: proxy\r\nContent-Type: application/json\r\n{lines}"
        await self.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read a response head: status and lower-case fields."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        return int(first.split(" ")[1]), {name.lower(): value for name, value in fields.items()}

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read a whole response; the body without its transfer coding."""
        status, fields = await self.head()
        if fields.get("transfer-encoding") == "chunked":
            return status, fields, await self.chunked()
        if "content-length" in fields:
            return status, fields, await self.reader.readexactly(int(fields["content-length"]))
        return status, fields, await self.reader.read()

    async def chunked(self) -> bytes:
        """Read a chunked body to its end."""
        body = bytearray()
        while True:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            body += await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
            if size == 0:
                return bytes(body)

    async def rest_of_answer(self) -> bytes:
        """What is left of a chunked answer, chunk framing included, to its end or that of the connection."""
        data = b""
        try:
            while not data.endswith(b"0\r\n\r\n") and (piece := await self.reader.read(65536)):
                data += piece
        except ConnectionError:
            pass
        return data

    async def rest(self) -> bytes:
        """Whatever comes until the proxy closes; a reset counts as a close."""
        data = b""
        try:
            while piece := await self.reader.read(65536):
                data += piece
        except ConnectionError:
            pass
        return data


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Client]:
    """A raw client connection to an http://HOST:PORT."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Client(reader, writer)
    finally:
        await close(writer)


@contextlib.asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[Client]:
    """A raw client connection to the serving port."""
    async with opened(proxy.url) as client:
        yield client


def chunked(*payloads: bytes, end: bool = True) -> bytes:
    """Payloads as chunks."""
    return b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in payloads) + (b"0\r\n\r\n" if end else b"")


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def event(data: str) -> bytes:
    """A server-sent event."""
    return f"data: {data}\n\n".encode()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other tasks bring about; pytest's own time-out is the limit."""
    while not condition():  # noqa: ASYNC110 - what it asks has no event
        await asyncio.sleep(0.005)


def answer_of(body: bytes, *fields: str, status: int = 200) -> bytes:
    """A whole response with a length."""
    lines = "".join(f"{field}\r\n" for field in fields)
    return f"HTTP/1.1 {status} X\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body


def answering(seen: list[Seen], body: bytes = b"ok") -> Script:
    """An upstream that notes every request and answers it."""

    async def script(peer: Peer) -> None:
        while True:
            seen.append(await peer.request())
            await peer.send(answer_of(body))

    return script


async def observed(proxy: Proxy, backend: str = "primary") -> Observation:
    """The observation of the last answer, once every answer that ended has been measured."""
    measurement, watched = proxy.gateway.measurement, proxy.control.watched[backend]
    await until(lambda: not (measurement._running or measurement._finished or measurement._counting))
    await until(proxy.control._events._queue.empty)
    assert watched.last is not None, f"no answer of {backend} was measured"
    return watched.last


async def until_true(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that has to be asked for."""
    while not await condition():  # noqa: ASYNC110 - what it asks has no event
        await asyncio.sleep(0.02)
