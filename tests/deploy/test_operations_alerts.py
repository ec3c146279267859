"""A real Prometheus scrapes a running specbreaker in front of an engine that collapses, and Alertmanager tells it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from deployed import DEPLOY
from monitoring import Webhook, alertmanager, prometheus, query, webhook
from served import Served, served

from replay.emulator import Emulator, serving
from replay.emulator.scenario import parse_scenario

pytestmark = [pytest.mark.operations, pytest.mark.timeout(420)]

SCENARIO = """
name = "hurried"
num_speculative_tokens = 8
clock = "requests"
[[cycle]]
phase = "healthy"
length = 20
acceptance_length = 3.6
[[cycle]]
phase = "collapsed"
length = 12
acceptance_length = 1.0005
"""
TIME_SCALE = 8
CONFIGURATION = """
[[backends]]
name = "dflash"
url = "{primary}"
[[backends]]
name = "plain"
url = "{fallback}"
role = "fallback"
[measure]
scrape_seconds = 0.5
"""


async def agent(url: str) -> None:
    """Asks for one answer after the other until cancelled; lets a proxy that is gone be."""
    body = {"model": "m", "stream": True, "max_tokens": 300, "messages": [{"role": "user", "content": "hi"}]}
    async with aiohttp.ClientSession() as http:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.post(f"{url}/v1/chat/completions", json=body) as answer:
                    await answer.read()


async def test_a_cycle_fires_and_resolves_and_so_do_a_refused_file_and_a_death(tmp_path: Path) -> None:
    primary = Emulator(parse_scenario(SCENARIO, "hurried"), model="m", time_scale=TIME_SCALE)
    fallback = Emulator("fallback", model="m", time_scale=TIME_SCALE)
    file = tmp_path / "specbreaker.toml"
    async with serving(primary) as primary_url, serving(fallback) as fallback_url, webhook() as hook:
        file.write_text(CONFIGURATION.format(primary=primary_url, fallback=fallback_url))
        with served("--config", str(file)) as proxy:
            targets = {
                "specbreaker": proxy.admin_url.removeprefix("http://"),
                "vllm": primary_url.removeprefix("http://"),
            }
            async with (
                alertmanager(hook, tmp_path) as manager,
                prometheus(targets, manager, tmp_path) as metrics,
                asyncio.TaskGroup() as tasks,
            ):
                asking = tasks.create_task(agent(proxy.url))
                await collapse_is_told(hook)
                await dashboard_is_answered(metrics)
                await refused_file_is_told(hook, proxy, file)
                asking.cancel()
                await asyncio.to_thread(proxy.end)
                await hook.told("SpecbreakerDown", "firing")
    (tmp_path / "notifications.json").write_text(json.dumps(hook.alerts, indent=1))


async def collapse_is_told(hook: Webhook) -> None:
    fired = await hook.told("BackendCollapsed", "firing")
    assert (fired["labels"]["severity"], fired["labels"]["backend"]) == ("warning", "dflash")
    assert fired["annotations"]["description"].startswith("Backend dflash of 127.0.0.1:")
    await hook.told("BackendCollapsed", "resolved")
    told = {alert["labels"]["alertname"] for alert in hook.alerts}
    assert told <= {"BackendCollapsed", "VllmDrafterDead"}, "nothing else is wrong"


async def dashboard_is_answered(metrics: str) -> None:
    dashboard: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboard.json").read_text(encoding="utf-8"))
    answered = set()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "1m").replace("$__interval", "1m")
            if await query(metrics, expression.replace("$job", ".*").replace("$instance", ".*")):
                answered.add(panel["title"])
    assert answered >= {"Phase", "Decode rate", "Acceptance length", "Step time", "Episodes", "Requests", "Tokens lost"}
    [whole] = await query(metrics, "instance:specbreaker_decode_tokens_per_second:rate5m")
    assert 0 < float(whole["value"][1]) < TIME_SCALE * 230


async def refused_file_is_told(hook: Webhook, proxy: Served, file: Path) -> None:
    right = file.read_text()
    file.write_text(right + "[polcy]\n")
    proxy.process.send_signal(signal.SIGHUP)
    await hook.told("ConfigReloadFailed", "firing")
    file.write_text(right)
    proxy.process.send_signal(signal.SIGHUP)
    await hook.told("ConfigReloadFailed", "resolved")
