"""Rolling restarts of specbreaker under load, and what clients notice. `make bench-rolling` writes the page of results.

200 agents stream answers one after the other from an emulated engine, each answer on a connection of its own, and a
prober asks short questions all the time. Meanwhile new processes take over the serving socket, as the systemd units do
it, and the old ones finish.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import shlex
import signal
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import uvloop
from cycle_client import Answer, ask

sys.path.append(str(Path(__file__).parents[1] / "proxy"))

from served import Served, activated

from replay.emulator import Emulator, serving

STREAMS = 200
TOKENS = 300
TIME_SCALE = 0.2
"""The engine steps so slowly that 200 streams are about 1,000 events a second, and no core is busy."""
PROBE_SECONDS = 0.02


class Restart(msgspec.Struct):
    """One change of processes."""

    in_flight: int
    """Requests that the old process was answering when it was told to end."""
    seconds: float
    """From SIGTERM to its end."""
    status: int


class Seen(msgspec.Struct):
    """What clients saw, all in all."""

    answers: list[Answer] = []
    probes: list[float] = []
    """Seconds from connecting to the whole answer of each short question."""
    failed_probes: int = 0
    restarts: list[Restart] = []


async def agent(port: int, number: int, seen: Seen, stop: asyncio.Event) -> None:
    """Ask, read to the end, ask again; begin spread over one answer."""
    await asyncio.sleep(number / STREAMS * 5)
    while not stop.is_set():
        seen.answers.append(await ask(port, "m", number, TOKENS))


async def prober(port: int, seen: Seen, stop: asyncio.Event) -> None:
    """Short questions, each on a connection of its own."""
    request = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    while not stop.is_set():
        begun = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(writer):
                writer.write(request)
                good = (await reader.read()).startswith(b"HTTP/1.1 200")
        except OSError:
            good = False
        seen.failed_probes += not good
        seen.probes.append(time.monotonic() - begun)
        await asyncio.sleep(PROBE_SECONDS)


async def replaced(old: Served) -> Restart:
    """End a process whose successor accepts already."""
    begun = time.monotonic()
    old.process.send_signal(signal.SIGTERM)
    said = await asyncio.to_thread(old.wait_until_said, r"draining: (\d+) requests in flight")
    status = await asyncio.to_thread(old.ended)
    return Restart(in_flight=int(said[1]), seconds=time.monotonic() - begun, status=status)


async def measure(restarts: int) -> Seen:
    """Load, and processes that take turns."""
    seen, stop = Seen(), asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        port = listener.getsockname()[1]
        url = await stack.enter_async_context(serving(Emulator("healthy", model="m", time_scale=TIME_SCALE)))
        serves = stack.enter_context(activated(listener, "--upstream", url))
        load = [asyncio.create_task(agent(port, number, seen, stop)) for number in range(STREAMS)]
        load.append(asyncio.create_task(prober(port, seen, stop)))
        for number in range(restarts):
            # Every stream has begun, and some have ended, before the next change.
            while len(seen.answers) < (number + 1) * STREAMS:  # noqa: ASYNC110 - a benchmark may look now and then
                await asyncio.sleep(0.1)
            old, serves = serves, await asyncio.to_thread(stack.enter_context, activated(listener, "--upstream", url))
            seen.restarts.append(await replaced(old))
        stop.set()
        await asyncio.gather(*load)
        assert await asyncio.to_thread(serves.end) == 0
    return seen


def page(seen: Seen, command: str, load: float, wall: float) -> str:
    """The results."""
    cut = sum(not answer.whole and answer.status == 200 for answer in seen.answers)
    refused = sum(answer.status != 200 for answer in seen.answers)
    firsts = sorted(answer.ttft_seconds for answer in seen.answers if answer.ttft_seconds is not None)
    probes = sorted(seen.probes)
    rows = "\n".join(
        f"| {number} | {one.in_flight} | {one.seconds:.1f} | {one.status} |"
        for number, one in enumerate(seen.restarts, 1)
    )
    return f"""# Rolling restarts under load

Written by `make bench-rolling` ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {wall:.0f} s): do not edit.

{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores, Python
{platform.python_version()}; load average before the run {load:.2f}. Command: `{command}`.

{STREAMS} agents stream answers of {TOKENS} tokens, each on a connection of its own; a prober asks for `/v1/models`
every {1e3 * PROBE_SECONDS:.0f} ms. Processes of specbreaker take over the serving socket from one another (socket
activation).

| | |
|---|---|
| changes of processes | {len(seen.restarts)} |
| streamed answers | {len(seen.answers)} |
| cut or incomplete | {cut} |
| refused or failed | {refused} |
| short questions | {len(seen.probes)} |
| of them refused or failed | {seen.failed_probes} |
| time to first token, median and longest, ms | {1e3 * firsts[len(firsts) // 2]:.0f}, {1e3 * firsts[-1]:.0f} |
| short question, median and longest, ms | {1e3 * probes[len(probes) // 2]:.1f}, {1e3 * probes[-1]:.0f} |

| change | streams on the old process at SIGTERM | seconds to its end | exit status |
|---|---|---|---|
{rows}

What the longest times are due to was not looked into: engine, agents, prober and both processes share the machine.
"""


def main() -> None:
    """Measure and write the page; exit status 1 where a stream was cut or a request refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=4, metavar="N")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page there")
    options = parser.parse_args()
    load, begun = os.getloadavg()[0], time.monotonic()
    seen = uvloop.run(measure(options.restarts))
    command = f"tests/bench/rolling_restart.py {shlex.join(sys.argv[1:])}".strip()
    text = page(seen, command, load, time.monotonic() - begun)
    if options.page:
        options.page.write_text(text)
    print(text)
    if seen.failed_probes or not all(answer.whole for answer in seen.answers):
        sys.exit(1)


if __name__ == "__main__":
    main()
