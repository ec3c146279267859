"""What HAProxy's agent-check is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from types import SimpleNamespace

import pytest
from upstreams import answering, proxy_to

from detector.verdict import Verdict
from proxy import agent_check
from proxy.config import ConfigError
from proxy.routing import Routing


def advice(*, draining: bool = False, **backends: tuple[bool, bool]) -> bytes:
    """For backends given as (degraded, reachable), of which the first one serves."""
    watched = {
        name: SimpleNamespace(reachable=reachable, watch=SimpleNamespace(verdict=Verdict(degraded=degraded)))
        for name, (degraded, reachable) in backends.items()
    }
    order = tuple(SimpleNamespace(name=name) for name in backends)
    gateway = SimpleNamespace(draining=draining, routing=Routing(order, {}))  # type: ignore[arg-type]
    return agent_check.advice(gateway, SimpleNamespace(watched=watched))  # type: ignore[arg-type]


def test_a_healthy_proxy_serves() -> None:
    assert advice(primary=(False, True)) == b"ready up 100%\n"


def test_one_whose_serving_backend_is_degraded_is_avoided_and_not_cut_off() -> None:
    assert advice(primary=(True, True)) == b"ready up 1%\n"
    assert advice(primary=(True, True), plain=(False, True)) == b"ready up 1%\n"


def test_one_that_serves_from_a_healthy_fallback_serves_well() -> None:
    assert advice(plain=(False, True), primary=(True, True)) == b"ready up 100%\n"


def test_one_that_reaches_no_engine_is_down() -> None:
    assert advice(primary=(False, False), plain=(False, False)) == b"down\n"
    assert advice(primary=(False, False), plain=(False, True)) == b"ready up 100%\n"


def test_one_that_drains_says_so_whatever_else_there_is() -> None:
    assert advice(draining=True, primary=(True, False)) == b"drain\n"


async def test_whoever_connects_is_told_one_line() -> None:
    async with (
        proxy_to(answering([])) as proxy,
        await agent_check.listen("127.0.0.1", 0, proxy.gateway, proxy.control) as server,
    ):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with contextlib.closing(writer):
            assert await reader.read() == b"ready up 100%\n"


async def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError) as refusal:
            async with proxy_to(answering([]), server__agent=address):
                pass
    assert str(refusal.value) == f"server.agent: {address}: Address already in use"
