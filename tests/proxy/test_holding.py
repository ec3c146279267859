"""Requests that wait for an engine to come back: in order, bounded, and never forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import msgspec
import pytest
from upstreams import Client, Peer, Seen, answer_of, answering, connected, settings, until, upstream

from proxy.config import Config
from proxy.effects.traffic import Traffic
from proxy.serve import Proxy, running
from proxy.upstream import Away, UpstreamConnection

AWAY = Away("the engine is being restarted", time.monotonic() + 30)


def bounded(config: Config, requests: int, seconds: float) -> Config:
    effects = msgspec.structs.replace(config.effects, hold_requests=requests, hold_seconds=seconds)
    return msgspec.structs.replace(config, effects=effects)


@contextlib.asynccontextmanager
async def away(requests: int = 10, seconds: float = 100.0) -> AsyncIterator[tuple[Proxy, list[Seen]]]:
    """A proxy whose only engine is away, and what that engine has seen."""
    seen: list[Seen] = []
    async with (
        upstream(answering(seen)) as url,
        running(bounded(settings(url), requests, seconds), {"primary": AWAY}) as proxy,
    ):
        yield proxy, seen


def back(proxy: Proxy) -> None:
    proxy.executor.traffic.back("primary", "level", relaunched=True)


async def refusal(client: Client) -> tuple[int, str, str, int]:
    status, fields, body = await client.answer()
    error = msgspec.json.decode(body)["error"]
    return status, error["type"], error["message"], int(fields["retry-after"])


async def test_requests_wait_and_are_served_in_order_by_the_new_launch() -> None:
    async with away() as (proxy, seen), connected(proxy) as one, connected(proxy) as two:
        await one.post(b'{"model":"1"}')
        await until(lambda: len(proxy.gateway.holding) == 1)
        await two.post(b'{"model":"2"}')
        await until(lambda: len(proxy.gateway.holding) == 2)
        assert seen == []
        back(proxy)
        assert [(await client.answer())[0] for client in (one, two)] == [200, 200]
        assert [b'"1"' in seen[0].body, b'"2"' in seen[1].body] == [True, True]
        assert proxy.control.watched["primary"].backend.generation == 1
        assert len(proxy.gateway.holding) == 0


async def test_one_too_many_is_told_when_to_come_back() -> None:
    async with away(requests=1) as (proxy, _), connected(proxy) as one, connected(proxy) as two:
        await one.post()
        await until(lambda: len(proxy.gateway.holding) == 1)
        await two.post()
        status, kind, message, retry_after = await refusal(two)
        assert (status, kind) == (503, "ServiceUnavailableError")
        assert message == "the engine is being restarted, and 1 requests wait for it already"
        assert 1 <= retry_after <= 30
        back(proxy)
        assert (await one.answer())[0] == 200


async def test_who_waited_long_enough_is_told_so_on_a_connection_that_stays() -> None:
    async with away(seconds=0.01) as (proxy, _), connected(proxy) as client:
        for _ in range(2):
            await client.post()
            assert (await refusal(client))[2] == "the engine is being restarted; it was waited for 0.01 s"


async def test_who_leaves_makes_room() -> None:
    async with away(requests=1) as (proxy, seen):
        async with connected(proxy) as client:
            await client.post()
            await until(lambda: len(proxy.gateway.holding) == 1)
        await until(lambda: len(proxy.gateway.holding) == 0)
        async with connected(proxy) as client:
            await client.post()
            await until(lambda: len(proxy.gateway.holding) == 1)
            back(proxy)
            assert (await client.answer())[0] == 200
        assert len(seen) == 1


async def test_a_body_that_streams_in_waits_too() -> None:
    async with away() as (proxy, seen), connected(proxy) as client:
        await client.send(b"PUT /v1/files HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
        await until(lambda: len(proxy.gateway.holding) == 1)
        await client.send(b"1\r\nc\r\n0\r\n\r\n")
        back(proxy)
        assert (await client.answer())[0] == 200
        assert seen[0].body == b"abc"


async def test_a_question_without_a_body_is_answered_at_once() -> None:
    async with away() as (proxy, _), connected(proxy) as client:
        await client.send(b"GET /health HTTP/1.1\r\nHost: p\r\n\r\n")
        assert (await refusal(client))[:3] == (503, "ServiceUnavailableError", "the engine is being restarted")


async def test_a_shutdown_lets_nobody_wait() -> None:
    async with away() as (proxy, _), connected(proxy) as client:
        await client.post()
        await until(lambda: len(proxy.gateway.holding) == 1)
        drained = asyncio.ensure_future(proxy.drain())
        assert (await refusal(client))[2] == "the proxy is shutting down"
        await drained


@pytest.mark.parametrize("refused", [False, True])
async def test_who_was_connecting_when_the_engine_left_waits_too(
    monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    seen: list[Seen] = []
    async with upstream(answering(seen)) as url, running(settings(url)) as proxy, connected(proxy) as client:
        backend = proxy.control.watched["primary"].backend
        connecting, go, connect = asyncio.Event(), asyncio.Event(), backend.connect

        async def slowly() -> UpstreamConnection:
            connecting.set()
            await go.wait()
            if refused and backend.away is not None:
                raise ConnectionRefusedError
            return await connect()

        monkeypatch.setattr(backend, "connect", slowly)
        await client.post()
        await connecting.wait()
        proxy.executor.traffic.gone("primary", "a test", 1)
        await until(lambda: backend.away is not None)
        go.set()
        await until(lambda: len(proxy.gateway.holding) == 1)
        assert seen == []
        back(proxy)
        assert (await client.answer())[0] == 200


async def test_an_engine_that_left_is_emptied_and_the_next_request_goes_to_the_fallback() -> None:
    seen: list[Seen] = []
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(peer: Peer) -> None:
        while True:
            await peer.request()
            begun.set()
            await go.wait()
            await peer.send(answer_of(b"slow"))

    async with (
        upstream(slow) as one,
        upstream(answering(seen)) as two,
        running(settings(one, two, policy__mode="act")) as proxy,
        connected(proxy) as running_one,
        connected(proxy) as next_one,
    ):
        traffic = Traffic(proxy.executor.traffic.backends, proxy.control._events, 60)
        await running_one.post()
        await begun.wait()
        leaving = asyncio.ensure_future(traffic.leave("primary", "a test", 1))
        await until(lambda: proxy.control.watched["primary"].backend.away is not None)
        await next_one.post()
        assert (await next_one.answer())[1]["x-specbreaker-backend"] == "fallback1"
        assert not leaving.done()
        go.set()
        assert (await running_one.answer())[2] == b"slow"
        assert await leaving >= 0
