"""A real Prometheus and a real Alertmanager with the files of deploy/prometheus, hurried: a minute is a second."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web
from deployed import DEPLOY, document, installed
from upstreams import until_true

PROMETHEUS = DEPLOY / "prometheus"
SCRAPE = "250ms"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Webhook:
    """Receives what Alertmanager sends."""

    def __init__(self) -> None:
        self.url = ""
        self._seen: set[tuple[str, str]] = set()
        self._news = asyncio.Condition()
        self.alerts: list[dict[str, Any]] = []

    async def receive(self, request: web.Request) -> web.Response:
        """One notification."""
        alerts = (await request.json())["alerts"]
        async with self._news:
            self.alerts += alerts
            self._seen |= {(alert["labels"]["alertname"], alert["status"]) for alert in alerts}
            self._news.notify_all()
        return web.Response()

    async def told(self, name: str, status: str) -> dict[str, Any]:
        """Wait until an alert was told as ``firing`` or ``resolved``; the first such alert."""
        async with self._news:
            await self._news.wait_for(lambda: (name, status) in self._seen)
        return next(one for one in self.alerts if (one["labels"]["alertname"], one["status"]) == (name, status))


@contextlib.asynccontextmanager
async def webhook() -> AsyncIterator[Webhook]:
    """A server for notifications."""
    hook, app = Webhook(), web.Application()
    app.router.add_post("/", hook.receive)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hook.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    try:
        yield hook
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def process(*command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is ended with the context; what it says goes to a file."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as running:
        try:
            yield running
        finally:
            running.terminate()


async def ready(url: str, program: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a page answers 200."""
    async with aiohttp.ClientSession() as http:
        while True:
            assert program.poll() is None, log.read_text()
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(url) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def alertmanager(hook: Webhook, directory: Path) -> AsyncIterator[str]:
    """HOST:PORT of an Alertmanager that notifies the webhook."""
    settings = document(PROMETHEUS / "alertmanager.yaml")
    settings["route"] |= {"group_wait": "100ms", "group_interval": "300ms"}
    settings["receivers"][0]["webhook_configs"][0]["url"] = hook.url
    file, address, log = directory / "alertmanager.yaml", f"127.0.0.1:{free_port()}", directory / "alertmanager.log"
    file.write_text(yaml.safe_dump(settings))
    command = (
        installed("prometheus-alertmanager"),
        f"--config.file={file}",
        f"--storage.path={directory / 'alerts'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    )
    with process(*command, log=log) as program:
        await ready(f"http://{address}/-/ready", program, log)
        yield address


@contextlib.asynccontextmanager
async def prometheus(targets: dict[str, str], manager: str, directory: Path) -> AsyncIterator[str]:
    """URL of a Prometheus that has scraped these targets by job; a minute of the rules is a second."""
    settings = document(PROMETHEUS / "prometheus.yaml")
    settings["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE}
    settings["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [manager]
    for job in settings["scrape_configs"]:
        job["static_configs"][0]["targets"] = [targets[job["job_name"]]]
    file, address, log = directory / "prometheus.yaml", f"127.0.0.1:{free_port()}", directory / "prometheus.log"
    file.write_text(yaml.safe_dump(settings))
    for rules in PROMETHEUS.glob("*.rules.yaml"):
        hurried = re.sub(r"for: (\d+)m$", r"for: \1s", rules.read_text(encoding="utf-8"), flags=re.MULTILINE)
        (directory / rules.name).write_text(hurried)
    command = (
        installed("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={directory / 'series'}",
        f"--web.listen-address={address}",
    )
    with process(*command, log=log) as program:
        await ready(f"http://{address}/-/ready", program, log)
        url = f"http://{address}"

        async def scraped() -> bool:
            return len(await query(url, "up == 1")) == len(targets)

        await until_true(scraped)
        yield url


async def query(url: str, expression: str) -> list[Any]:
    """The series that an expression gives now. Raises AssertionError where Prometheus refuses it."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/api/v1/query", params={"query": expression}) as answer:
        said = await answer.json()
    assert said["status"] == "success", f"{expression}: {said}"
    result: list[Any] = said["data"]["result"]
    return result
