"""Other levels on one GPU while clients ask on: two engines that take turns by sleep and wake.

Usage: python tests/engine/gpu/levels.py --out DIR --models MODELS [--turns 3] [--tokens 256]

MODELS has `target` and `draft` (DFlash), as for run.sh. Starts vLLM with DFlash K=8 and vLLM without speculation in
sleep mode on the same GPU, specbreaker in front of both, and has them take turns by `POST /actions/wake` while four
clients ask one streamed answer after the other. DIR gets levels.json: seconds of each phase, rates, and what the
clients got.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

PORTS = {"dflash": 18101, "plain": 18102}
PROXY, ADMIN = "http://127.0.0.1:18910", "http://127.0.0.1:18911"
START_SECONDS = 300.0
CLIENTS = 4


def speculation(models: Path) -> list[str]:
    """DFlash at K=8; weights are dummies, so the acceptance is vLLM's own synthetic one."""
    rates = [round(0.85 ** (place + 1), 6) for place in range(8)]
    config = {"method": "dflash", "model": str(models / "draft"), "num_speculative_tokens": 8}
    config |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rates}
    return ["--speculative-config", json.dumps(config)]


@asynccontextmanager
async def running(command: list[str], log: Path, environment: dict[str, str]) -> AsyncIterator[None]:
    """A process, ended with all it began."""
    with log.open("w") as file:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=file, stderr=file, env=os.environ | environment, start_new_session=True
        )
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def engine_command(models: Path, name: str, memory_share: float) -> list[str]:
    """vLLM in sleep mode."""
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(models / "target")]
    command += ["--served-model-name", "m", "--load-format", "dummy", "--host", "127.0.0.1", "--port", str(PORTS[name])]
    command += ["--max-num-seqs", "8", "--max-num-batched-tokens", "8192", "--max-model-len", "8192"]
    command += ["--enable-sleep-mode", "--gpu-memory-utilization", str(memory_share)]
    return command + (speculation(models) if name == "dflash" else [])


async def until_ready(http: aiohttp.ClientSession, url: str, log: Path, path: str = "/health") -> float:
    """Seconds until the path says 200."""
    begun = time.monotonic()
    while time.monotonic() - begun < START_SECONDS:
        try:
            async with http.get(f"{url}{path}") as answer:
                if answer.status == 200:
                    return time.monotonic() - begun
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.5)
    raise SystemExit(f"{url} was not ready within {START_SECONDS:g} s:\n{log.read_text(errors='replace')[-4000:]}")


class Clients:
    """Clients that ask one answer after the other, and what they got."""

    def __init__(self, http: aiohttp.ClientSession, tokens: int) -> None:
        self.results: Counter[str] = Counter()
        self.rates: list[tuple[str, float]] = []
        self._http, self._tokens = http, tokens
        self._enough = False
        self._tasks = [asyncio.create_task(self._ask_on(number)) for number in range(CLIENTS)]

    async def stop(self) -> None:
        """Let the running answers end."""
        self._enough = True
        await asyncio.gather(*self._tasks)

    async def _ask_on(self, number: int) -> None:
        while not self._enough:
            self.results[await self._ask(number)] += 1

    async def _ask(self, number: int) -> str:
        body = {"model": "m", "max_tokens": self._tokens, "ignore_eos": True, "stream": True, "temperature": 0}
        body |= {"messages": [{"role": "user", "content": f"client {number}: write a program"}]}
        first = last = 0.0
        ended = ""
        try:
            async with self._http.post(f"{PROXY}/v1/chat/completions", json=body) as answer:
                if answer.status != 200:
                    return f"error {answer.status}"
                backend = answer.headers["x-specbreaker-backend"]
                async for line in answer.content:
                    if line.startswith(b"data: "):
                        ended, last = line.decode().strip(), time.perf_counter()
                        first = first or last
        except aiohttp.ClientError as error:
            return f"lost: {error!r}"
        if ended != "data: [DONE]":
            return f"not whole: {ended[:100]}"
        self.rates.append((backend, self._tokens / (last - first)))
        return f"whole from {backend}"


def settings(directory: Path) -> str:
    """specbreaker in front of both engines; the plain one is the fallback."""
    token = directory / "token"
    token.write_text(secrets.token_hex(16))
    return f"""
[server]
listen = "{PROXY.removeprefix("http://")}"
admin = "{ADMIN.removeprefix("http://")}"
admin_token_file = "{token}"
[[backends]]
name = "dflash"
role = "primary"
url = "http://127.0.0.1:{PORTS["dflash"]}"
[[backends]]
name = "plain"
role = "fallback"
url = "http://127.0.0.1:{PORTS["plain"]}"
[policy]
mode = "act"
[effects]
drain_seconds = 60
hold_seconds = 120
[effects.sleep]
backends = ["dflash", "plain"]
"""


async def wake(http: aiohttp.ClientSession, directory: Path, backend: str) -> dict[str, Any]:
    """POST /actions/wake, and its outcome."""
    headers = {"authorization": f"Bearer {(directory / 'token').read_text()}"}
    async with http.post(f"{ADMIN}/actions/wake?backend={backend}&wait=1", headers=headers) as answer:
        return {"status": answer.status, **(await answer.json())}


async def run(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start everything, take turns, count."""
    found: dict[str, Any] = {"start_seconds": {}, "turns": []}
    limit = aiohttp.ClientTimeout(total=300)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=limit))
        for name in PORTS:
            log = options.out / f"{name}.log"
            command = engine_command(options.models, name, options.memory_share)
            await stack.enter_async_context(running(command, log, {"VLLM_SERVER_DEV_MODE": "1"}))
            found["start_seconds"][name] = await until_ready(http, f"http://127.0.0.1:{PORTS[name]}", log)
            print(f"{name} ready after {found['start_seconds'][name]:.0f} s", flush=True)
            if name == "dflash":
                begun = time.monotonic()
                async with http.post(f"http://127.0.0.1:{PORTS[name]}/sleep?level=1") as answer:
                    assert answer.status == 200, await answer.text()
                found["first_sleep_seconds"] = time.monotonic() - begun
        config = directory / "specbreaker.toml"
        config.write_text(settings(directory))
        proxy = [sys.executable, "-m", "proxy", "serve", "--config", str(config)]
        await stack.enter_async_context(running(proxy, options.out / "specbreaker.log", {}))
        await until_ready(http, ADMIN, options.out / "specbreaker.log", "/healthz")
        clients = Clients(http, options.tokens)
        await asyncio.sleep(options.stay_seconds)
        for turn in range(options.turns):
            backend = ("dflash", "plain")[turn % 2]
            outcome = await wake(http, directory, backend)
            print(json.dumps(outcome), flush=True)
            found["turns"].append(outcome)
            await asyncio.sleep(options.stay_seconds)
        await clients.stop()
        found["clients"] = dict(clients.results)
        for backend in PORTS:
            rates = sorted(rate for name, rate in clients.rates if name == backend)
            found[f"median_tok_s_{backend}"] = rates[len(rates) // 2] if rates else None
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--stay-seconds", type=float, default=10.0)
    parser.add_argument("--memory-share", type=float, default=0.8)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="specbreaker-levels-") as work:
        found = asyncio.run(run(Path(work), options))
    (options.out / "levels.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))
    whole = all(result.startswith("whole") for result in found["clients"])
    sys.exit(0 if whole and all(turn["succeeded"] for turn in found["turns"]) else 1)


if __name__ == "__main__":
    main()
