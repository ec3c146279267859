"""A real HAProxy with deploy/haproxy/haproxy.cfg: it leaves an engine that collapses and comes back to it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import DEPLOY, installed
from engines import Engine, ask, engine, warmed_up
from monitoring import free_port, process
from upstreams import until_true

pytestmark = [pytest.mark.operations, pytest.mark.timeout(300)]


class Balancer:
    """A running HAProxy."""

    def __init__(self, url: str, socket: Path) -> None:
        self.url = url
        self._socket = socket

    async def listens(self) -> None:
        """Wait until it answers on its socket."""

        async def there() -> bool:
            return self._socket.exists()

        await until_true(there)

    async def servers(self) -> dict[str, tuple[str, int]]:
        """Status and weight of each server."""
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        with contextlib.closing(writer):
            writer.write(b"show stat\n")
            table = (await reader.read()).decode().removeprefix("# ").strip().splitlines()
        names = table[0].split(",")
        rows = [dict(zip(names, line.split(","), strict=False)) for line in table[1:]]
        return {
            row["svname"]: (row["status"], int(row["weight"]))
            for row in rows
            if row["pxname"] == "engines" and row["svname"] != "BACKEND"
        }

    async def until(self, server: str, weight: int) -> None:
        """Wait until a server is up with this weight."""

        async def reached() -> bool:
            return (await self.servers())[server] == ("UP", weight)

        await until_true(reached)


@contextlib.contextmanager
def haproxy(engines: dict[str, Engine], directory: Path) -> Iterator[Balancer]:
    text = (DEPLOY / "haproxy/haproxy.cfg").read_text(encoding="utf-8")
    for name, one in engines.items():
        address, admin = (url.removeprefix("http://") for url in (one.proxy.url, one.proxy.admin_url))
        line = f"server {name} {address} port {admin.rpartition(':')[2]} agent-check agent-port {one.agent_port}"
        text, count = re.subn(rf"server {name} \S+ port 8901 agent-check agent-port 8902", line, text)
        assert count == 1
    port, socket = free_port(), directory / "haproxy.sock"
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    text = text.replace("global\n", f"global\n  stats socket {socket}\n", 1)
    file = directory / "haproxy.cfg"
    file.write_text(text)
    with process(installed("haproxy"), "-db", "-f", str(file), log=directory / "haproxy.log"):
        yield Balancer(f"http://127.0.0.1:{port}", socket)


async def test_haproxy_leaves_a_collapsed_engine_and_comes_back(tmp_path: Path) -> None:
    async with engine("a", tmp_path) as a, engine("b", tmp_path) as b:
        await warmed_up(a, b)
        with haproxy({"a": a, "b": b}, tmp_path) as balancer:
            await balancer.listens()
            for name in ("a", "b"):
                await balancer.until(name, 100)
            assert {await ask(balancer.url) for _ in range(8)} == {"a", "b"}

            a.emulator.force_phase("collapsed")
            while (await balancer.servers())["a"] != ("UP", 1):
                await ask(a.proxy.url)
            given = [await ask(balancer.url) for _ in range(20)]
            assert given.count("b") >= 19

            a.emulator.force_phase("healthy")
            while (await balancer.servers())["a"] != ("UP", 100):
                await ask(a.proxy.url)
            assert {await ask(balancer.url) for _ in range(8)} == {"a", "b"}

            ending = asyncio.create_task(asyncio.to_thread(a.proxy.end))
            while not ending.done():
                await ask(balancer.url)
            assert await ending == 0
            assert {await ask(balancer.url) for _ in range(8)} == {"b"}
