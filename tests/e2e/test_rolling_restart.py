"""A new process takes over the serving socket while the old one finishes its answers: nothing is cut or refused."""

from __future__ import annotations

import asyncio
import signal
import socket

from served import activated
from upstreams import STREAM_HEAD, Peer, chunked, event, opened, upstream

STREAMS = 200
"""Half of them begin before the change, half after it."""
HEAD = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
"""The engine closes after each answer and says so: a POST on a connection that is closing is not sent again."""
FIRST = event('{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}')
LAST = event("[DONE]")


class Engine:
    """Begins every stream at once, and ends all when ``go`` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, peer: Peer) -> None:
        if (await peer.request()).target == b"/v1/completions":
            await peer.send(HEAD + chunked(FIRST, LAST))
        else:
            await peer.send(HEAD + chunked(FIRST, end=False))
            await self.go.wait()
            await peer.send(chunked(LAST))


async def stream(url: str, begun: asyncio.Semaphore) -> bool:
    """One request on a connection of its own; whether its answer is whole."""
    async with opened(url) as client:
        await client.post()
        status, _ = await client.head()
        assert status == 200, await client.rest()
        await client.reader.readuntil(FIRST)
        begun.release()
        return (await client.rest_of_answer()).endswith(chunked(LAST))


async def ask_all_the_time(url: str, stop: asyncio.Event) -> int:
    """Short requests one after the other, each on a connection of its own; how many were answered, which is all."""
    answered = 0
    while not stop.is_set():
        async with opened(url) as client:
            await client.post(path="/v1/completions")
            status, _, body = await client.answer()
        assert (status, body) == (200, FIRST + LAST), body
        answered += 1
    return answered


async def wait_for(begun: asyncio.Semaphore, count: int) -> None:
    for _ in range(count):
        await begun.acquire()


async def test_two_hundred_streams_over_a_change_of_processes() -> None:
    engine, begun, stop = Engine(), asyncio.Semaphore(0), asyncio.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        async with upstream(engine) as upstream_url, asyncio.TaskGroup() as tasks:
            with activated(listener, "--upstream", upstream_url) as old:
                short = tasks.create_task(ask_all_the_time(old.url, stop))
                streams = [tasks.create_task(stream(old.url, begun)) for _ in range(STREAMS // 2)]
                await wait_for(begun, STREAMS // 2)
                with activated(listener, "--upstream", upstream_url) as new:
                    old.process.send_signal(signal.SIGTERM)
                    said = await asyncio.to_thread(old.wait_until_said, r"draining: (\d+) requests in flight")
                    assert int(said[1]) >= STREAMS // 2
                    streams += [tasks.create_task(stream(new.url, begun)) for _ in range(STREAMS // 2)]
                    await wait_for(begun, STREAMS // 2)
                    assert old.process.poll() is None
                    engine.go.set()
                    assert all(await asyncio.gather(*streams))
                    assert await asyncio.to_thread(old.ended) == 0
                    assert (await asyncio.to_thread(short_request, new.url)).startswith(b"HTTP/1.1 200")
                    stop.set()
                    assert await short > 0
                    assert await asyncio.to_thread(new.end) == 0


def short_request(url: str) -> bytes:
    """The first line of an answer, when the old process is gone."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /v1/completions HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n")
        return connection.recv(64)
