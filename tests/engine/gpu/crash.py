"""What four clients see when an engine under `specbreaker supervise` is killed: how long errors last, when it is back.

Usage: python tests/engine/gpu/crash.py [--model m] [--tokens 128] -- COMMAND OF THE ENGINE

The clients ask for one streamed answer after the other, at once again whatever they got. After some of them the API
server gets SIGKILL. Prints what came of the answers that ended after it; exit status 1 where one was lost without a
word.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import aiohttp
import psutil

PROXY, ADMIN = "127.0.0.1:18920", "127.0.0.1:18921"
CLIENTS, BEFORE, AFTER = 4, 20, 8
"""Clients, and the answers to wait for before the engine is killed and after it is back."""
CUT, REFUSED, WHOLE = "cut off with an error event", "refused with an error", "whole"


class Clients:
    """Ask without a pause; ``ended`` has what came of each answer, and when."""

    def __init__(self, session: aiohttp.ClientSession, model: str, tokens: int) -> None:
        self.ended: list[tuple[float, str]] = []
        self._session, self._changed = session, asyncio.Condition()
        self._body = {"model": model, "prompt": "a b c", "max_tokens": tokens, "ignore_eos": True, "stream": True}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            what = await self._ask()
            async with self._changed:
                self.ended.append((time.monotonic(), what))
                self._changed.notify_all()

    async def whole_since(self, moment: float, count: int) -> None:
        """Wait for so many whole answers that ended after this moment."""
        async with self._changed:
            await self._changed.wait_for(lambda: sum(at > moment and what == WHOLE for at, what in self.ended) >= count)

    async def _ask(self) -> str:
        try:
            async with self._session.post(f"http://{PROXY}/v1/completions", json=self._body) as answer:
                text = await answer.text()
        except aiohttp.ClientError as error:
            return f"lost: {type(error).__name__}"
        if answer.status != 200:
            return REFUSED if '"error"' in text else f"lost: {answer.status}"
        return WHOLE if "[DONE]" in text else CUT if '"error"' in text else "lost: no end"


async def measure(pid: int, model: str, tokens: int) -> list[str]:
    """Kill the engine under traffic; a line for each thing seen."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=900)) as session:
        clients = Clients(session, model, tokens)
        tasks = [asyncio.create_task(clients.run()) for _ in range(CLIENTS)]
        await clients.whole_since(0.0, BEFORE)
        (engine,) = psutil.Process(pid).children()
        killed = time.monotonic()
        engine.send_signal(signal.SIGKILL)
        await clients.whole_since(killed + 1, AFTER)
        for task in tasks:
            task.cancel()
    after = [(at - killed, what) for at, what in clients.ended if at > killed]
    lines = [f"{count} {what}" for what, count in Counter(what for _, what in after).items()]
    errors = [at for at, what in after if what != WHOLE]
    back = min(at for at, what in after if what == WHOLE and at > 1)
    return [*lines, f"last error {max(errors, default=0.0):.2f} s after the kill, answers again after {back:.1f} s"]


async def main() -> int:
    """Run it; 1: an answer was lost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="m")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    serve = ["-c", "from proxy.cli import main; main()", "supervise", "--listen", PROXY, "--admin", ADMIN, "--"]
    log = Path(tempfile.mkdtemp()) / "specbreaker.log"
    print(f"specbreaker's output: {log}", flush=True)
    with log.open("w") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *serve, *options.command, stdout=output, stderr=output, env=os.environ
        )
        try:
            lines = await measure(process.pid, options.model, options.tokens)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
    print("\n".join(lines))
    return int(any("lost" in line for line in lines))


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
