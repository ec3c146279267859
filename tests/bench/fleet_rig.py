"""Ten emulated engines, each with a cycle and a phase of its own, and the HAProxy above them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from cycle_targets import PATHS, REPOSITORY, Missing, Running, free_port, launched, ready, scaled, serve

from replay.emulator import Emulator, serving
from replay.emulator.scenario import CyclePart, Scenario

ENGINES = 10
ATTEMPTS = 4
ANSWER_TOKENS = 2000
CLOCKS = (
    "requests",
    "requests",
    "requests",
    "requests",
    "requests",
    "requests",
    "tokens",
    "tokens",
    "steps",
    "seconds",
)
HEALTHY_A, COLLAPSED_A = 3.6, 1.0005
STEP_SECONDS = 0.0164
"""The emulator's own at K = 8 for one stream."""
UNITS = {
    "requests": 1.0,
    "tokens": ANSWER_TOKENS,
    "steps": ANSWER_TOKENS / HEALTHY_A,
    "seconds": ANSWER_TOKENS / HEALTHY_A * STEP_SECONDS,
}
"""One healthy answer on each clock."""
COLLAPSED_UNITS = {**UNITS, "steps": ANSWER_TOKENS, "seconds": ANSWER_TOKENS * STEP_SECONDS}
"""One collapsed answer on each clock."""


class Arm(msgspec.Struct, frozen=True):
    """One way to run the fleet."""

    name: str
    balance: str
    specbreaker: bool = False
    canaries: bool = True
    collapses: bool = True


ARMS = (
    Arm("no collapse", "roundrobin", collapses=False),
    Arm("HAProxy, roundrobin", "roundrobin"),
    Arm("HAProxy, leastconn", "leastconn"),
    Arm("HAProxy and ten specbreakers", "roundrobin", specbreaker=True),
    Arm("the same without canaries_without_traffic", "roundrobin", specbreaker=True, canaries=False),
)


def scenario(index: int, seed: int, *, collapses: bool) -> Scenario:
    """One engine: 5 to 9 healthy answers, 3 to 5 collapsed ones, begun somewhere in its healthy time."""
    random_of = random.Random(seed * 1000 + index)
    clock = CLOCKS[index % len(CLOCKS)]
    healthy, collapsed = random_of.uniform(5.0, 9.0), random_of.uniform(3.0, 5.0)
    before = random_of.uniform(0.2, 1.0) * healthy
    parts = [
        CyclePart(phase="healthy", length=before * UNITS[clock], acceptance_length=HEALTHY_A),
        CyclePart(phase="collapsed", length=collapsed * COLLAPSED_UNITS[clock], acceptance_length=COLLAPSED_A),
        CyclePart(phase="healthy", length=max(0.01, healthy - before) * UNITS[clock], acceptance_length=HEALTHY_A),
    ]
    return Scenario(name=f"engine {index}", clock=clock, cycle=parts if collapses else parts[:1])


class Fleet(msgspec.Struct):
    """A running fleet."""

    port: int
    """Of the balancer."""
    emulators: list[Emulator]
    pids: list[int]
    """Of HAProxy and of every specbreaker."""


@contextlib.asynccontextmanager
async def fleet(arm: Arm, scale: float, seed: int, folder: Path) -> AsyncIterator[Fleet]:
    """The engines, what stands before each, and HAProxy; all are gone when the context ends. Raises Missing."""
    emulators = [
        Emulator(scenario(index, seed, collapses=arm.collapses), model="m", time_scale=scale, seed=seed + index)
        for index in range(ENGINES)
    ]
    async with contextlib.AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serving(one)) for one in emulators]
        ports = [int(url.rsplit(":", 1)[1]) for url in urls]
        pids: list[int] = []
        lines = [f"server e{index} 127.0.0.1:{port} check" for index, port in enumerate(ports)]
        if arm.specbreaker:
            starting = [_specbreaker(stack, index, one, arm, scale, folder) for index, one in enumerate(ports)]
            proxies = await asyncio.gather(*starting)
            pids = [pid for pid, _ in proxies]
            lines = [line for _, line in proxies]
        port = free_port()
        command = _haproxy(arm, port, lines, scale, folder)
        process = await stack.enter_async_context(launched(command, {}, folder / "haproxy.log"))
        await ready("haproxy", process, Running(port=port))
        yield Fleet(port, emulators, [process.pid, *pids])


async def _specbreaker(
    stack: contextlib.AsyncExitStack, index: int, engine: int, arm: Arm, scale: float, folder: Path
) -> tuple[int, str]:
    """Start one in front of an engine: its PID, and its line in HAProxy's configuration. Raises Missing."""
    for attempt in range(ATTEMPTS):
        running, agent = Running(port=free_port(), admin=free_port()), free_port()
        settings = scaled(scale)
        settings["server"] = {
            "listen": f"127.0.0.1:{running.port}",
            "admin": f"127.0.0.1:{running.admin}",
            "agent": f"127.0.0.1:{agent}",
        }
        settings["policy"]["canaries_without_traffic"] = arm.canaries
        command = serve(folder / f"e{index}.toml", {f"e{index}": engine}, settings)
        process = await stack.enter_async_context(launched(command, PATHS, folder / f"e{index}.log"))
        try:
            await ready(f"specbreaker {index}", process, running)
        except Missing:
            # A port that was free a moment ago may be somebody's by now.
            if attempt == ATTEMPTS - 1:
                raise
        else:
            server = f"127.0.0.1:{running.port} port {running.admin}"
            return process.pid, f"server e{index} {server} agent-check agent-port {agent}"
    raise AssertionError


def _haproxy(arm: Arm, port: int, lines: list[str], scale: float, folder: Path) -> list[str]:
    """deploy/haproxy/haproxy.cfg with these servers; its agent-check is as hurried as the engines' time."""
    program = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        raise Missing("not installed: the Debian package haproxy")
    text = (REPOSITORY / "deploy/haproxy/haproxy.cfg").read_text(encoding="utf-8")
    text = re.sub(r"^  server .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^  # An engine without speculation.*\n", "", text, flags=re.MULTILINE)
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{port}").replace("balance roundrobin", f"balance {arm.balance}")
    text = text.replace("agent-inter 500ms", f"agent-inter {max(1, round(500 / scale))}ms")
    if not arm.specbreaker:
        text = text.replace("GET /readyz", "GET /health")
    file = folder / "haproxy.cfg"
    file.write_text(text + "".join(f"  {line}\n" for line in lines))
    return [program, "-db", "-f", str(file)]
