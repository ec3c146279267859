"""`specbreaker supervise` on a real vLLM: down the ladder and up again, killed, hung, while clients go on asking.

Usage: python -m tests.engine.supervise [--requests 500] [--output docs/results/supervise.md]

The engine is started with DFlash K=7 and restarted at K=3, without speculation, at K=3 and at K=7 again. Four
clients ask one request after the other all the time; each must get a whole answer or a clear error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil

from detector.tap.promtext import parse
from proxy import processes
from tests.engine.server import HERE, MODEL, EngineServer, installed_venv
from tests.proxy.supervise.supervised import Clients, Supervised, started

STEPS = ("dflash-3", "off", "dflash-3", "dflash-7")
DRAFTER = f'method = "dflash", model = {json.dumps(str(HERE / "models/dflash"))}'
LADDER = f"""
[[ladder]]
name = "dflash-7"
speculative_config = {{ {DRAFTER}, num_speculative_tokens = 7 }}
[[ladder]]
name = "dflash-3"
speculative_config = {{ {DRAFTER}, num_speculative_tokens = 3 }}
[[ladder]]
name = "off"
"""
CONFIG = """
[[backends]]
name = "primary"
idle_timeout_seconds = 10
[supervise]
start_seconds = 400
hang_seconds = 10
[effects]
hold_seconds = 400
"""
CLIENTS = 4
TOKENS = 60


class Step(msgspec.Struct):
    """One restart: the level, K as the new engine's own /metrics show it, and the seconds of its phases."""

    level: str
    num_speculative_tokens: int
    phases: dict[str, float]
    requests: int
    """Requests that ended while it was under way."""


class Crash(msgspec.Struct):
    """One process of the engine was killed or stopped, the rest not."""

    left: int
    """Processes that live on and hold the model."""
    seconds: float
    """From the signal until the engine was ready again."""
    results: Counter[str]
    """Of the requests that ended meanwhile."""


class Run(msgspec.Struct):
    """What came of it."""

    first_start_seconds: float
    steps: list[Step]
    results: Counter[str]
    """Of all requests but those of the crash and the hang."""
    crash: Crash
    """The API server was killed."""
    hang: Crash
    """The EngineCore was stopped; /health goes on to say 200."""
    left: int
    """Processes that were left at the end."""


async def run(requests: int) -> Run:
    """Start, step down and up, end; at least so many requests are asked, spread over all of it."""
    venv = installed_venv()
    with tempfile.TemporaryDirectory(prefix="specbreaker-supervise-") as name:
        directory = Path(name)
        environment = EngineServer().environment(venv) | {"VLLM_SERVER_DEV_MODE": "1"}

        def command(port: int) -> list[str]:
            return EngineServer(port=port).command(venv)

        with started(directory, ladder=LADDER, config=CONFIG, command=command, environment=environment) as supervised:
            supervised.patience_seconds = 400
            await supervised.until_ready()
            status, outcome = await supervised.act("reset-prefix-cache?wait=1")
            assert status == 200, outcome
            first = float((await supervised.until_said(r"ready at level dflash-7 after ([\d.]+) s"))[1])
            clients = Clients(supervised.url, CLIENTS, TOKENS, MODEL)
            share = requests // (len(STEPS) + 1) + 1
            await clients.more(share)
            steps, sessions = [], {await _session(supervised)}
            for level in STEPS:
                steps.append(await _step(supervised, clients, level))
                sessions.add(await _session(supervised))
                await clients.more(share)
            results = Counter(clients.results)
            crash = await _crash(supervised, clients, signal.SIGKILL)
            sessions.add(await _session(supervised))
            hang = await _crash(supervised, clients, signal.SIGSTOP)
            sessions.add(await _session(supervised))
            await clients.stop()
            supervised.process.terminate()
            assert await supervised.ended() == 0, "\n".join(supervised.said[-30:])
            left = sum(process.session in sessions for process in processes.table().values())
            return Run(first, steps, results, crash, hang, left)


async def _step(supervised: Supervised, clients: Clients, level: str) -> Step:
    before = clients.results.total()
    status, outcome = await supervised.act(f"restart?level={level}&wait=1")
    assert status == 200, outcome
    depth = await _depth(supervised)
    return Step(level, depth, outcome["phases"], clients.results.total() - before)


async def _crash(supervised: Supervised, clients: Clients, number: signal.Signals) -> Crash:
    """Kill the API server, or stop the EngineCore, and wait until the engine is there again."""
    before = Counter(clients.results)
    session = await _session(supervised)
    restarts = sum("started again at dflash-7" in line for line in supervised.said)
    hit = session if number is signal.SIGKILL else _engine_core(session)
    started_at = time.monotonic()
    os.kill(hit, number)
    left = sum(one.session == session and one.state != "Z" for one in processes.table().values())
    await supervised.until_said("started again at dflash-7", restarts + 1)
    seconds = time.monotonic() - started_at
    await clients.more(CLIENTS)
    return Crash(left, seconds, Counter(clients.results) - before)


def _engine_core(session: int) -> int:
    children = psutil.Process(session).children(recursive=True)
    return next(one.pid for one in children if " ".join(one.cmdline()).startswith("VLLM::EngineCore"))


async def _depth(supervised: Supervised) -> int:
    """K, from the engine itself."""
    url = f"http://127.0.0.1:{supervised.engine_port}/metrics"
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        return parse(await answer.read(), 0.0).num_speculative_tokens or 0


async def _session(supervised: Supervised) -> int:
    """The session of the engine's processes: the pid of the first of them."""
    return int((await supervised.get("explain"))["engine"]["pid"])


def report(outcome: Run, command: str) -> str:
    """The page for docs/results."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    lines = [
        f"# Restarts at another level, on a real vLLM\n\n{datetime.now(UTC):%Y-%m-%d}, {cpu[1] if cpu else ''}, "
        f"Python {platform.python_version()}. vLLM 0.32.0 on the CPU, DFlash, a model of 0.9 M parameters; on a GPU "
        "start takes 90 to 150 s. The machine did other work beside it.\n",
        f"Command: `{command}`\n",
        f"First start, at dflash-7: {outcome.first_start_seconds:.1f} s.\n",
        "| level | K by the engine's /metrics | drain s | stop s | start s | answers that ended meanwhile |",
        "|---|---|---|---|---|---|",
    ]
    for step in outcome.steps:
        seconds = " | ".join(f"{step.phases[phase]:.1f}" for phase in ("drain", "stop", "start"))
        lines.append(f"| {step.level} | {step.num_speculative_tokens} | {seconds} | {step.requests} |")
    lines += [
        f"\n{CLIENTS} clients, one request of {TOKENS} tokens after the other, throughout: "
        f"{counted(outcome.results)}.\n",
        "Then the API server was killed (SIGKILL), as the kernel does when memory runs out: "
        f"{outcome.crash.left} processes of the engine were left behind and killed, and "
        f"it was ready again after {outcome.crash.seconds:.1f} s. Meanwhile {counted(outcome.crash.results)}.\n",
        "Then the EngineCore was stopped (SIGSTOP): it lives, and /health says 200. With idle_timeout_seconds and "
        "hang_seconds of 10 s each it was killed with all the others and ready again after "
        f"{outcome.hang.seconds:.1f} s. Meanwhile {counted(outcome.hang.results)}.\n",
        f"Processes of the engine left at the end: {outcome.left}.\n",
    ]
    return "\n".join(lines)


def counted(results: Counter[str]) -> str:
    """Results in words."""
    whole, total = results["whole"], results.total()
    errors = sum(number for result, number in results.items() if result.startswith("error"))
    return f"{total} requests, {whole} whole answers, {errors} clear errors, {total - whole - errors} lost"


def lost(results: Counter[str]) -> dict[str, Any]:
    """Results that are neither whole answers nor clear errors."""
    return {result: number for result, number in results.items() if result.startswith("lost")}


async def main() -> None:
    """Run and write the page."""
    arguments = argparse.ArgumentParser(description="supervise on a real vLLM.")
    arguments.add_argument("--requests", type=int, default=500)
    arguments.add_argument("--output", type=Path, default=Path("docs/results/supervise.md"))
    options = arguments.parse_args()
    outcome = await run(options.requests)
    command = f"python -m tests.engine.supervise {shlex.join(sys.argv[1:])}".strip()
    options.output.write_text(report(outcome, command))
    print(options.output.read_text())


if __name__ == "__main__":
    asyncio.run(main())
