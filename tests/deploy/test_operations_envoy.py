"""A real Envoy with deploy/envoy/envoy.yaml: it leaves an engine that collapses and comes back to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
import yaml
from deployed import DEPLOY, document, installed
from engines import Engine, ask, engine, warmed_up
from monitoring import free_port, process
from upstreams import until_true

pytestmark = [pytest.mark.operations, pytest.mark.timeout(300)]

AVOIDED = (
    "canaries_without_traffic = true\ndwell_seconds = 0.2\ncanary_interval_seconds = 0.2\nmax_backoff_seconds = 0.5"
)


class Balancer:
    """A running Envoy."""

    def __init__(self, url: str, admin: str) -> None:
        self.url = url
        self._admin = admin

    async def health(self) -> dict[int, str]:
        """By port of the serving port: HEALTHY, DEGRADED or UNHEALTHY; empty before Envoy answers."""
        try:
            async with aiohttp.ClientSession() as http, http.get(f"{self._admin}/clusters?format=json") as answer:
                clusters = (await answer.json(content_type=None))["cluster_statuses"]
        except aiohttp.ClientConnectionError:
            return {}
        [engines] = [one for one in clusters if one["name"] == "engines"]
        return {
            host["address"]["socket_address"]["port_value"]: _health(host["health_status"])
            for host in engines["host_statuses"]
        }

    async def until(self, one: Engine, health: str) -> None:
        """Wait until an engine has this health."""

        async def reached() -> bool:
            return (await self.health()).get(port_of(one.proxy.url)) == health

        await until_true(reached)


def _health(status: dict[str, object]) -> str:
    if status.get("failed_active_health_check"):
        return "UNHEALTHY"
    return "DEGRADED" if status.get("failed_active_degraded_check") else "HEALTHY"


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


@contextlib.contextmanager
def envoy(engines: list[Engine], directory: Path) -> Iterator[Balancer]:
    settings = document(DEPLOY / "envoy/envoy.yaml")
    port, admin = free_port(), free_port()
    settings["admin"] = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}}
    [listener], [cluster] = settings["static_resources"]["listeners"], settings["static_resources"]["clusters"]
    listener["address"]["socket_address"]["port_value"] = port
    [group] = cluster["load_assignment"]["endpoints"]
    for host, one in zip(group["lb_endpoints"], engines, strict=True):
        address = {"address": "127.0.0.1", "port_value": port_of(one.proxy.url)}
        host["endpoint"]["address"]["socket_address"] = address
        host["endpoint"]["health_check_config"] = {"port_value": port_of(one.proxy.admin_url)}
    file = directory / "envoy.yaml"
    file.write_text(yaml.safe_dump(settings))
    command = (installed("envoy"), "-c", str(file), "--concurrency", "1", "-l", "warning", "--use-dynamic-base-id")
    with process(*command, log=directory / "envoy.log"):
        yield Balancer(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}")


async def test_envoy_leaves_a_collapsed_engine_and_comes_back(tmp_path: Path) -> None:
    async with engine("a", tmp_path, AVOIDED) as a, engine("b", tmp_path, AVOIDED) as b:
        await warmed_up(a, b)
        with envoy([a, b], tmp_path) as balancer:
            for one in (a, b):
                await balancer.until(one, "HEALTHY")
            assert {await ask(balancer.url) for _ in range(24)} == {"a", "b"}

            a.emulator.force_phase("collapsed")
            while (await balancer.health())[port_of(a.proxy.url)] != "DEGRADED":
                await ask(balancer.url)
            assert {await ask(balancer.url) for _ in range(20)} == {"b"}

            # Nobody but its own specbreaker asks it now.
            a.emulator.force_phase("healthy")
            await balancer.until(a, "HEALTHY")
            assert {await ask(balancer.url) for _ in range(24)} == {"a", "b"}

            ending = asyncio.create_task(asyncio.to_thread(a.proxy.end))
            while not ending.done():
                await ask(balancer.url)
            assert await ending == 0
            assert {await ask(balancer.url) for _ in range(8)} == {"b"}


async def test_envoy_asks_degraded_engines_where_no_other_is_left(tmp_path: Path) -> None:
    async with engine("a", tmp_path, AVOIDED) as a, engine("b", tmp_path, AVOIDED) as b:
        await warmed_up(a, b)
        with envoy([a, b], tmp_path) as balancer:
            for one in (a, b):
                await balancer.until(one, "HEALTHY")
                one.emulator.force_phase("collapsed")
            for one in (a, b):
                while (await balancer.health())[port_of(one.proxy.url)] != "DEGRADED":
                    await ask(one.proxy.url)
            assert {await ask(balancer.url) for _ in range(24)} == {"a", "b"}
