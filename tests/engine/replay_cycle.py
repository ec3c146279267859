"""A cycle of a real engine, recorded through the proxy, replayed, and compared: with the plug-in, and without it.

Usage: python -m tests.engine.replay_cycle [--requests 64] [--clocks requests tokens] [--output FILE]

Healthy is what the drafter does by itself; a collapse corrupts 19 of 20 drafts, so that every text stays the target's
own. Every step takes 30 ms more, in either phase: beside that, what else the machine does counts for little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from tests.engine.server import MODEL, EngineServer

PROMPT = "a b c d e f g h " * 20 + "32010.  321110  # " + "X" * 100
"""The tiny drafter is good at what follows this (A about 6), and at little else."""
TOKENS = 40
HEALTHY = {"step_delay_seconds": 0.03}
COLLAPSE = {"step_delay_seconds": 0.03, "corrupt_drafts": 0.95}
CYCLES: dict[str, dict[str, Any]] = {
    "requests": {"clock": "requests", "cycle": [{"length": 5, **HEALTHY}, {"length": 3, **COLLAPSE}]},
    "tokens": {"clock": "tokens", "cycle": [{"length": 220, **HEALTHY}, {"length": 100, **COLLAPSE}]},
}
"""By clock: about eight requests a turn. On that of tokens, a collapse begins in the middle of an answer."""


SAME = "the same cycle"
PAGE = """# A cycle of a real engine, recorded, replayed, compared

Written by `python -m tests.engine.replay_cycle --requests {requests} --clocks {clocks}` (`make replay-engine`).
{date}, {machine}, load {load} at the start.

vLLM 0.32.0 on the CPU, DFlash K=7, a model of 0.9 M parameters, with the plug-in of
[engine faults](../engine-faults.md). {requests} requests of {tokens} tokens, one after the other, are recorded through
the proxy, then replayed on the same engine with the same schedule, on the same engine with the schedule's first phase
alone (`replay run --schedule closed`), and at the recorded times on an engine started without `SPECBREAKER_FAULTS`.
Schedules:

{cycles}

| clock | replayed on | `replay compare` | why |
|---|---|---|---|
{rows}

| clock | side | collapses | healthy tok/s | A | slow tok/s | A |
|---|---|---|---|---|---|---|
{sides}
"""


class Compared(msgspec.Struct):
    """One comparison, as `replay compare --json` prints it, and the file names that it was given."""

    clock: str
    engine: str
    answer: dict[str, Any]

    @property
    def verdict(self) -> str:
        """REPRODUCED, SLOW_NOT_CYCLIC, NOT_REPRODUCED or INCONCLUSIVE."""
        return str(self.answer["verdict"])


async def command(*arguments: str, status: Sequence[int] = (0,)) -> str:
    """Run specbreaker and return what it prints; raises RuntimeError with what it said on another exit status."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, said = await process.communicate()
    if process.returncode not in status:
        raise RuntimeError(f"specbreaker {' '.join(arguments)}: {process.returncode}: {said.decode()}")
    return out.decode()


@asynccontextmanager
async def recording(upstream: str, directory: Path) -> AsyncIterator[str]:
    """`specbreaker serve --record` in front of an engine; its URL. The session is sealed when the context ends."""
    arguments = ["serve", "--upstream", upstream, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    config = directory.with_suffix(".toml")
    config.write_text('[record]\ncontent = "text"\n[measure]\nask_token_counts = true\n')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", *arguments, "--config", str(config), "--record", str(directory)),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        found, said = None, b""
        while not found:
            line = await process.stderr.readline()
            said += line
            assert line, f"specbreaker did not start: {said.decode()}"
            found = re.search(r"base_url (\S+)/v1 ", line.decode())
        rest = asyncio.create_task(process.stderr.read())
        yield found[1]
        process.terminate()
        await rest
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ask(url: str, requests: int) -> None:
    """One streamed answer after the other."""
    body = {"model": MODEL, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0, "stream": True}
    async with aiohttp.ClientSession() as session:
        for index in range(requests):
            asked = body | {"prompt": f"{index}: {PROMPT}"}
            async with session.post(f"{url}/v1/completions", json=asked) as answer:
                assert (await answer.read()).endswith(b"data: [DONE]\n\n")


async def record_and_replay(engine: EngineServer, clock: str, requests: int, directory: Path) -> Compared:
    """Record a cycle on this clock, replay it on the same engine, compare; A stays in the directory."""
    recorded = directory / f"{clock}-a"
    engine.set_faults(CYCLES[clock])
    async with recording(engine.base_url, recorded) as url:
        await ask(url, requests)
    engine.set_faults(CYCLES[clock])
    return await replay(engine, clock, SAME, recorded, directory / f"{clock}-b")


async def replay(
    engine: EngineServer, clock: str, name: str, recorded: Path, replayed: Path, schedule: str = "closed"
) -> Compared:
    """Replay a recording on an engine, and compare what came of it with the recording."""
    # One after the other, no request has a time at which it is due; 1 s is for machines that do much else.
    target = ["--target", engine.base_url, "--output", str(replayed), "--schedule", schedule]
    target += ["--max-lateness-seconds", "1"]
    await command("replay", "run", str(recorded), *target)
    said = await command("replay", "compare", "--json", str(recorded), str(replayed), status=(0, 1))
    return Compared(clock, name, json.loads(said))


async def replay_healthy(engine: EngineServer, clock: str, directory: Path) -> Compared:
    """Replay the recording in the directory on the same engine, held in the healthy phase."""
    engine.set_faults({"clock": clock, "cycle": CYCLES[clock]["cycle"][:1]})
    return await replay(engine, clock, "the healthy phase for ever", directory / f"{clock}-a", directory / f"{clock}-h")


async def run(requests: int, clocks: Sequence[str], directory: Path) -> AsyncIterator[Compared]:
    """Each clock recorded and replayed on an engine with the plug-in, then replayed on one that is left alone."""
    async with EngineServer() as engine:
        for clock in clocks:
            yield await record_and_replay(engine, clock, requests, directory)
            yield await replay_healthy(engine, clock, directory)
    async with EngineServer(faults=False) as engine:
        for clock in clocks:
            recorded, replayed = directory / f"{clock}-a", directory / f"{clock}-c"
            # At the recorded times: one answer after the other, it would be through before A's cycle is, in seconds.
            yield await replay(engine, clock, "no fault asked for", recorded, replayed, schedule="open")


def page(compared: Sequence[Compared], requests: int, clocks: Sequence[str], load: float) -> str:
    """The results as Markdown."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    rows = [f"| {one.clock} | {one.engine} | {one.verdict} | {one.answer['reasons'][0]} |" for one in compared]
    sides = [
        f"| {one.clock} | {name} | {_side(one.answer[side])} |"
        for one in compared
        for side, name in (("a", "recorded"), ("b", f"replayed, {one.engine}"))
        if side == "b" or one.engine == SAME
    ]
    return PAGE.format(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=machine,
        load=f"{load:.1f}",
        requests=requests,
        clocks=" ".join(clocks),
        tokens=TOKENS,
        cycles="\n".join(f"- `{json.dumps(schedule)}`" for schedule in (CYCLES[clock] for clock in clocks)),
        rows="\n".join(rows),
        sides="\n".join(sides),
    )


def _side(side: dict[str, Any]) -> str:
    def figures(part: dict[str, Any] | None) -> str:
        if not part or not part.get("acceptance_length"):
            return "|"
        return f"{part['tokens_per_second']:.0f} | {part['acceptance_length']:.2f}"

    return f"{side['onsets']} | {figures(side.get('healthy'))} | {figures(side.get('slow'))}"


async def write_page(options: argparse.Namespace) -> None:
    """Run it all; the page grows with every comparison."""
    load, compared = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory(prefix="specbreaker-replay-") as directory:
        async with aclosing(run(options.requests, options.clocks, Path(directory))) as found:
            async for one in found:
                compared.append(one)
                options.output.write_text(page(compared, options.requests, options.clocks, load))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--clocks", nargs="+", choices=list(CYCLES), default=list(CYCLES))
    parser.add_argument("--output", type=Path, default=Path("docs/results/replay-engine.md"))
    asyncio.run(write_page(parser.parse_args()))


if __name__ == "__main__":
    main()
