"""The admin port of a running proxy."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from upstreams import answering, connected, observed, proxy_to, settings, until, upstream

from proxy.serve import Proxy, running
from proxy.version import VERSION
from replay.emulator import Emulator, serving


@contextlib.asynccontextmanager
async def administered(**flags: Any) -> AsyncIterator[tuple[Proxy, aiohttp.ClientSession]]:
    async with proxy_to(answering([]), **flags) as proxy, aiohttp.ClientSession(proxy.admin_url) as http:
        yield proxy, http


async def test_healthz_says_that_the_process_lives() -> None:
    async with administered() as (_, http), http.get("/healthz") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "ok"})


async def test_readyz_follows_the_backends_and_the_drain() -> None:
    async with upstream(answering([])) as url:
        config = settings(url)
    async with running(config) as proxy, aiohttp.ClientSession(proxy.admin_url) as http:
        async with http.get("/readyz") as answer:
            assert (answer.status, await answer.json()) == (200, {"status": "ready"})
        async with connected(proxy) as client:
            await client.post()
            assert (await client.answer())[0] == 502
        await until(lambda: not proxy.control.watched["primary"].reachable)
        async with http.get("/healthz") as answer:
            assert answer.status == 200
        async with http.get("/readyz") as answer:
            assert (answer.status, await answer.json()) == (503, {"status": "no backend can be reached"})
        proxy.gateway.draining = True
        async with http.get("/readyz") as answer:
            assert (answer.status, await answer.json()) == (503, {"status": "draining"})


async def test_status_of_a_proxy_that_has_served() -> None:
    emulator = Emulator("healthy", model="m", time_scale=50)
    async with (
        serving(emulator) as url,
        running(settings(url, backend={"metrics": True})) as proxy,
        aiohttp.ClientSession(proxy.admin_url) as http,
    ):
        async with connected(proxy) as client:
            await client.post(b'{"model":"m","stream":true,"max_tokens":50,"messages":[{"role":"user","content":"x"}]}')
            await client.answer()
        await observed(proxy)
        async with http.get("/status") as answer:
            status = await answer.json()
    assert status["version"] == VERSION
    assert (status["mode"], status["serving"], status["policy_state"]) == ("observe", ["primary"], "primary")
    assert (status["in_flight"], status["recording"]) == (0, None)
    primary = status["backends"]["primary"]
    assert primary["url"] == url
    assert (primary["phase"], primary["degraded"], primary["reachable"]) == ("healthy", False, True)
    assert (primary["requests"], primary["engine_version"], primary["num_speculative_tokens"]) == (1, "0.32.0", 8)
    assert primary["last_request"]["acceptance_source"] == "engine"
    assert primary["last_request"]["completion_tokens"] == 50


async def test_explain_before_anything_happened() -> None:
    async with administered() as (_, http), http.get("/explain") as answer:
        explained = await answer.json()
    assert explained["last_decision"] == "nothing has been decided yet"
    assert explained["serving"] == "primary"
    assert explained["backends"]["primary"]["evidence"] == {}


async def test_metrics_are_the_text_format_and_count_what_was_refused() -> None:
    async with administered() as (proxy, http):
        async with connected(proxy) as client:
            await client.post(b"", path="/sleep")
            assert (await client.answer())[0] == 403
            await client.post()
            await client.answer()
        await observed(proxy)
        async with http.get("/metrics") as answer:
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            text = await answer.text()
    assert 'specbreaker_refused_total{status="403"} 1.0' in text
    assert 'specbreaker_requests_total{backend="primary",result="complete",status="200"} 1.0' in text
    assert f'specbreaker_build_info{{version="{VERSION}"}} 1.0' in text
    assert "specbreaker_observations_dropped_total 0.0" in text


async def test_the_page_loads_nothing_from_elsewhere() -> None:
    async with administered() as (_, http), http.get("/") as answer:
        page = await answer.text()
        assert (answer.status, answer.content_type) == (200, "text/html")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_unknown_pages_name_the_known_ones(method: str) -> None:
    async with administered() as (_, http), http.request(method, "/nothing") as answer:
        assert answer.status == 404
        error = (await answer.json())["error"]
    known = "/healthz /readyz /metrics /status /explain /runbooks/, and POST /actions/..."
    assert error == f"/nothing: no such page; there are {known}"


async def test_nothing_can_be_changed_by_asking() -> None:
    async with administered() as (proxy, http):
        for path in ("/healthz", "/readyz", "/metrics", "/status", "/explain", "/"):
            for method in ("POST", "PUT", "DELETE"):
                async with http.request(method, path) as answer:
                    assert answer.status == 405
        assert proxy.gateway.routing.order[0].name == "primary"


async def test_the_serving_port_passes_metrics_of_the_engine_not_ours() -> None:
    seen: list[Any] = []
    async with proxy_to(answering(seen, b"engine's own")) as proxy, aiohttp.ClientSession(proxy.url) as http:
        for path in ("/metrics", "/health", "/version"):
            async with http.get(path) as answer:
                assert await answer.read() == b"engine's own"
    assert [one.target for one in seen] == [b"/metrics", b"/health", b"/version"]
