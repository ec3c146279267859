"""The main job on real engines: a DFlash vLLM that collapses, a plain vLLM beside it, specbreaker in front.

Usage: python -m tests.engine.main_job [--requests 30] [--tokens 300] [--output docs/results/main-job.md]
       python -m tests.engine.main_job --dflash URL --plain URL --model NAME ...   with engines that run already

The engine's acceptance moves on its own request clock (5 fast, 1 transition, 3 slow, 1 recovery) while requests run one
after the other, once with the proxy in ``observe`` and once in ``act``. Beside each request stands what the engine's
own counters said of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from detector.observation import EngineSample, Observation
from detector.tap.promtext import parse
from replay.session.reader import read_session
from replay.session.schema import ResponseRecord
from tests.engine.server import MODEL, EngineServer

CYCLE = ((5, 0.9, 0.0), (1, 0.35, 4.0), (3, 0.02, 8.0), (1, 0.85, 0.0))
"""(requests, conditional acceptance, milliseconds added to each verify step). The added time makes a dead step cost
what it costs on a GPU beside a plain one: speculation that accepts nothing is slower than none."""
OWN_ENGINES = (
    "vLLM 0.32.0 on the CPU: DFlash K=7 as primary, the same model without speculation as fallback. "
    f"Cycle on the engine's request clock, (requests, acceptance, ms added to a verify step): {CYCLE}."
)
PROMPT = "def name(self, value):\n    return self.value\n" * 6


class RunningEngine:
    """An engine that somebody else started, whose acceptance somebody else moves."""

    def __init__(self, base_url: str, model: str) -> None:
        self.base_url = base_url.rstrip("/")
        self.model = model

    def schedule_acceptance(self, *periods: tuple[int, float, float]) -> None:
        """Not ours to move."""

    def set_acceptance(self, p: float | None = None, verify_ms: float = 0.0) -> None:
        """Not ours to move."""


Engine = EngineServer | RunningEngine


class Row(msgspec.Struct):
    """One request as the client and the engine's counters saw it."""

    index: int
    backend: str
    phase: str
    seconds: float
    counted_acceptance_length: float | None
    observation: Observation | None = None


class Specbreaker:
    """``specbreaker serve`` as an operator runs it, and what it recorded."""

    def __init__(self, url: str, admin: str, directory: Path, process: subprocess.Popen[str]) -> None:
        self.url = url
        self.admin = admin
        self.directory = directory
        self.process = process

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.terminate()
        return self.process.wait(30)

    def observations(self) -> dict[str, Observation]:
        """Observations by request id, from the sealed session file."""
        (path,) = self.directory.glob("*.jsonl.zst")
        records = [entry.record for entry in read_session(path)]
        return {one.request_id: one.observation for one in records if isinstance(one, ResponseRecord)}


@contextlib.asynccontextmanager
async def specbreaker(upstream: str, fallback: str, mode: str) -> AsyncIterator[Specbreaker]:
    """The proxy, ready; stopped and its files removed at the end."""
    with tempfile.TemporaryDirectory(prefix="specbreaker-main-job-") as name:
        directory = Path(name)
        config = directory / "specbreaker.toml"
        config.write_text(
            "[policy]\ndwell_seconds = 0.5\nmax_backoff_seconds = 4\n[measure]\nask_token_counts = true\n"
        )
        command = [sys.executable, "-m", "proxy", "serve", "--config", str(config), "--mode", mode]
        command += ["--upstream", upstream, "--fallback", fallback, "--record", str(directory / "record")]
        command += ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            said, found = "", None
            while not found:
                line = await asyncio.to_thread(process.stderr.readline)
                assert line, f"specbreaker did not start: {said}"
                said += line
                found = re.search(r"base_url (\S+)/v1 .* admin (\S+)/", line)
            drain = asyncio.get_running_loop().run_in_executor(None, process.stderr.read)
            yield Specbreaker(found[1], found[2], directory / "record", process)
            if process.poll() is None:
                process.terminate()
            await drain
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()


async def counters(session: aiohttp.ClientSession, engine: Engine) -> EngineSample:
    """The engine's own counters, asked directly."""
    async with session.get(f"{engine.base_url}/metrics") as answer:
        return parse(await answer.read(), time.monotonic())


async def ask(
    session: aiohttp.ClientSession, proxy: Specbreaker, model: str, request_id: str, tokens: int
) -> tuple[str, str, float]:
    """One streamed chat completion through the proxy: backend, phase, seconds."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    started = time.monotonic()
    headers = {"x-request-id": request_id}
    async with session.post(f"{proxy.url}/v1/chat/completions", json=body, headers=headers) as answer:
        text = await answer.read()
        assert answer.status == 200, text
        assert text.endswith(b"data: [DONE]\n\n"), text[-200:]
        assert b'"usage"' not in text, "the client got usage that it had not asked for"
        return (
            answer.headers["x-specbreaker-backend"],
            answer.headers["x-specbreaker-phase"],
            time.monotonic() - started,
        )


async def sequence(
    dflash: Engine,
    plain: Engine,
    mode: str,
    requests: int,
    tokens: int,
    enough: Callable[[list[Row]], bool] = lambda rows: False,
) -> tuple[list[Row], dict[str, Any]]:
    """Requests one after the other through the proxy in this mode; rows, and the proxy's last /status.

    At most ``requests``; fewer where ``enough`` says so of the rows up to then.
    """
    rows = []
    async with aiohttp.ClientSession() as session, specbreaker(dflash.base_url, plain.base_url, mode) as proxy:
        dflash.schedule_acceptance(*CYCLE)
        for index in range(requests):
            before = await counters(session, dflash)
            backend, phase, seconds = await ask(session, proxy, dflash.model, f"row-{index}", tokens)
            after = await counters(session, dflash)
            rows.append(Row(index, backend, phase, seconds, _counted(before, after) if backend == "primary" else None))
            if enough(rows):
                break
        async with session.get(f"{proxy.admin}/status") as answer:
            status = await answer.json()
        proxy.stop()
        observations = proxy.observations()
    for row in rows:
        row.observation = observations[f"row-{row.index}"]
    return rows, status


def _counted(before: EngineSample, after: EngineSample) -> float | None:
    if before.drafts is None or after.drafts is None or after.drafts == before.drafts:
        return None
    accepted = (after.accepted_tokens or 0) - (before.accepted_tokens or 0)
    return 1 + accepted / (after.drafts - before.drafts)


async def side_by_side(dflash: Engine, plain: Engine, streams: int, requests: int, tokens: int) -> tuple[float, float]:
    """Mean A of concurrent requests: (from the proxy's Observations, from the engine's counters)."""
    async with aiohttp.ClientSession() as session, specbreaker(dflash.base_url, plain.base_url, "observe") as proxy:
        dflash.set_acceptance(p=0.7)
        before = await counters(session, dflash)

        async def worker(stream: int) -> None:
            for index in range(requests):
                await ask(session, proxy, dflash.model, f"side-{stream}-{index}", tokens)

        async with asyncio.TaskGroup() as group:
            for stream in range(streams):
                group.create_task(worker(stream))
        after = await counters(session, dflash)
        proxy.stop()
        observed = list(proxy.observations().values())
    steps = sum(one.verify_steps or 0 for one in observed)
    tokens_of_steps = sum((one.acceptance_length or 0) * (one.verify_steps or 0) for one in observed)
    counted = _counted(before, after)
    assert counted is not None
    return tokens_of_steps / steps, counted


def time_weighted(rows: list[Row]) -> float:
    """tok/s over all requests: tokens / seconds as the client waited for them."""
    tokens = sum((row.observation.completion_tokens or 0) if row.observation else 0 for row in rows)
    return tokens / sum(row.seconds for row in rows)


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| # | served by | phase | S (steps/s) | A | A by the engine's counters | tok/s | source |",
        "|" + "---|" * 8,
    ]
    for row in rows:
        seen = row.observation
        assert seen is not None
        cells = (
            str(row.index + 1),
            row.backend,
            row.phase,
            _number(1 / seen.step_seconds if seen.step_seconds else None, 1),
            _number(seen.acceptance_length, 4),
            _number(row.counted_acceptance_length, 4),
            _number(seen.decode_tokens_per_second, 0),
            seen.acceptance_source or "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def report(
    results: dict[str, tuple[list[Row], dict[str, Any]]], beside: tuple[float, float], command: str, about: str
) -> str:
    """The page for docs/results."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = f"{cpu[1] if cpu else platform.machine()}, Python {platform.python_version()}"
    parts = [
        f"# The main job on a real vLLM\n\n{datetime.now(UTC):%Y-%m-%d}, {machine}.\n\n{about}\n",
        f"Command: `{command}`\n",
        "| mode | tok/s, tokens / time | switches | canaries |\n|---|---|---|---|",
    ]
    for mode, (rows, status) in results.items():
        served = [row.backend for row in rows]
        switches = sum(one != two for one, two in itertools.pairwise(served))
        canaries = status["backends"]["primary"]["requests"] - served.count("primary")
        parts.append(f"| {mode} | {time_weighted(rows):.0f} | {switches} | {canaries} |")
    for mode, (rows, status) in results.items():
        parts.append(f"\n## {mode}\n\n{table(rows)}")
        parts.append(f"Episodes seen: {len(status['backends']['primary']['episodes'])}.\n")
    parts.append(
        f"\n## Four streams at a time\n\nA over all requests: {beside[0]:.4f} measured at the proxy, "
        f"{beside[1]:.4f} by the engine's counters ({100 * (beside[0] / beside[1] - 1):+.2f} %).\n"
    )
    return "\n".join(parts)


@contextlib.asynccontextmanager
async def engines(dflash: str | None, plain: str | None, model: str) -> AsyncIterator[tuple[Engine, Engine]]:
    """Both engines: those of the URLs, or two of our own."""
    if dflash is not None and plain is not None:
        yield RunningEngine(dflash, model), RunningEngine(plain, model)
        return
    async with EngineServer("dflash") as one, EngineServer("plain") as two:
        yield one, two


async def main() -> None:
    """Run everything and write the page."""
    arguments = argparse.ArgumentParser(description="The main job on real engines.")
    arguments.add_argument("--requests", type=int, default=30)
    arguments.add_argument("--tokens", type=int, default=300)
    arguments.add_argument("--output", type=Path, default=Path("docs/results/main-job.md"))
    arguments.add_argument("--modes", nargs="+", choices=["observe", "advise", "act"], default=["observe", "act"])
    arguments.add_argument("--dflash", help="URL of an engine that runs already")
    arguments.add_argument("--plain", help="URL of one without speculation")
    arguments.add_argument("--model", default=MODEL)
    arguments.add_argument("--engines", default=OWN_ENGINES, help="what they are, for the page")
    options = arguments.parse_args()
    async with engines(options.dflash, options.plain, options.model) as (dflash, plain):
        results = {
            mode: await sequence(dflash, plain, mode, options.requests, options.tokens) for mode in options.modes
        }
        beside = await side_by_side(dflash, plain, 4, 6, options.tokens)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    command = "python -m tests.engine.main_job " + shlex.join(sys.argv[1:])
    options.output.write_text(report(results, beside, command.strip(), options.engines))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    asyncio.run(main())
