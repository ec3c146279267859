"""`specbreaker supervise` as a process of its own, an engine for it, and clients that count what they get."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil

FAKE_ENGINE = str(Path(__file__).with_name("fake_engine.py"))
TOKEN = "a-token-of-the-tests"
LADDER = """\
[[ladder]]
name = "dflash-8"
speculative_config = { method = "dflash", num_speculative_tokens = 8 }
[[ladder]]
name = "dflash-4"
speculative_config = { method = "dflash", num_speculative_tokens = 4 }
[[ladder]]
name = "off"
[[ladder]]
name = "broken"
speculative_config = { method = "broken" }
[[ladder]]
name = "hangs"
speculative_config = { method = "hangs" }
"""
AT_8 = ("--speculative-config", '{"method":"dflash","num_speculative_tokens":8}')


def free_port() -> int:
    """A port that nobody listens on, outside the range that the kernel gives to others."""
    while True:
        port = random.randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Supervised:
    """A running `specbreaker supervise`."""

    def __init__(self, process: subprocess.Popen[str], note: Path, port: int) -> None:
        self.process = process
        self.engine_port = port
        self.patience_seconds = 100.0
        self.said: list[str] = []
        self._note = note
        self._changed = threading.Condition()
        self._closed = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.said.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def until_said(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until so many lines match; the last of them."""
        return await asyncio.to_thread(self._until_said, pattern, times)

    def _until_said(self, pattern: str, times: int) -> re.Match[str]:
        def found() -> list[re.Match[str]]:
            return [match for line in self.said if (match := re.search(pattern, line))]

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= times or self._closed, self.patience_seconds)
            matches = found()
        assert len(matches) >= times, f"it never said {pattern!r} {times} times:\n" + "\n".join(self.said)
        return matches[times - 1]

    async def until_listening(self) -> None:
        """Wait until ``url`` and ``admin_url`` are known; the engine is not ready yet."""
        found = await self.until_said(r"listening on (http://\S+)/v1, admin (http://\S+)/;")
        self.url, self.admin_url = found[1], found[2]

    async def until_ready(self) -> None:
        """Wait for the first start."""
        await self.until_listening()
        await self.until_said(f"ready: base_url {self.url}/v1")

    async def ended(self) -> int:
        """Wait for the end; the exit status."""
        status = await asyncio.to_thread(self.process.wait, 100)
        await asyncio.to_thread(self._reader.join)
        return status

    @property
    def launches(self) -> list[dict[str, Any]]:
        """What the engine noted of each of its launches."""
        return [json.loads(line) for line in self._note.read_text().splitlines()] if self._note.exists() else []

    @property
    def pids(self) -> list[int]:
        """Processes of all launches."""
        return [pid for launch in self.launches for pid in (launch["pid"], *launch["core"])]

    def alive(self) -> list[int]:
        """Those of them that live."""
        return [pid for pid in self.pids if lives(pid)]

    async def act(self, action: str, token: str = TOKEN) -> tuple[int, dict[str, Any]]:
        """POST /actions/ACTION."""
        headers = {"authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{self.admin_url}/actions/{action}", headers=headers) as answer,
        ):
            return answer.status, await answer.json()

    async def get(self, page: str) -> Any:
        """A JSON page of the admin port."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.admin_url}/{page}") as answer:
            return await answer.json()

    async def metrics(self) -> dict[str, float]:
        """The exposition: series with labels, and their values."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.admin_url}/metrics") as answer:
            text = await answer.text()
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}


def lives(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@contextlib.contextmanager
def started(
    directory: Path,
    *engine: str,
    config: str = "",
    ladder: str = LADDER,
    command: Callable[[int], list[str]] | None = None,
    environment: Mapping[str, str] = os.environ,
    prefix: tuple[str, ...] = (),
    arguments: tuple[str, ...] = (),
) -> Iterator[Supervised]:
    """`specbreaker supervise` in front of the fake engine, begun and not waited for; at the end it is gone."""
    port = free_port()
    note, file, token = directory / "launches", directory / "specbreaker.toml", directory / "token"
    token.write_text(TOKEN)
    file.write_text(f'{ladder}\n[server]\nadmin_token_file = "{token}"\n{config}')
    engine_command = [sys.executable, FAKE_ENGINE, "serve", "m", "--port", str(port), "--host", "127.0.0.1"]
    engine_command += ["--note", str(note), *engine]
    ports = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    ours = [*prefix, sys.executable, "-m", "proxy", "supervise", "--config", str(file), *ports, *arguments, "--"]
    variables = {name: value for name, value in environment.items() if not name.startswith("SPECBREAKER_") or command}
    variables["PYTHONPATH"] = os.pathsep.join([variables.get("PYTHONPATH", ""), *sys.path]).strip(os.pathsep)
    with subprocess.Popen(
        [*ours, *(command(port) if command else engine_command)], stderr=subprocess.PIPE, text=True, env=variables
    ) as process:
        supervised = Supervised(process, note, port)
        try:
            yield supervised
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            # In a PID namespace the noted pids are not ours; unshare kills what is in there.
            for pid in supervised.alive() if not prefix else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            supervised._reader.join()


@contextlib.asynccontextmanager
async def supervising(directory: Path, *engine: str, **options: Any) -> AsyncIterator[Supervised]:
    """The same, ready."""
    with started(directory, *engine, **options) as supervised:
        await supervised.until_ready()
        yield supervised


# ---- clients ---------------------------------------------------------------------------------------------------------


async def ask(http: aiohttp.ClientSession, url: str, max_tokens: int = 50, model: str = "m") -> str:
    """One streamed chat completion: "whole", "error: ..." where it ended with a clear error, "lost: ..." otherwise."""
    body = {
        "model": model,
        "stream": True,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": "hi"}],
    }
    try:
        async with http.post(f"{url}/v1/chat/completions", json=body) as answer:
            text = await answer.read()
    except aiohttp.ClientError as error:
        return f"lost: {error!r}"
    if answer.status != 200:
        try:
            return f"error: {answer.status} {msgspec.json.decode(text)['error']['message']}"
        except (msgspec.DecodeError, LookupError, TypeError):
            return f"lost: {answer.status} {text[:100]!r}"
    events = [part.removeprefix(b"data: ") for part in text.split(b"\n\n") if part]
    whole = events[-1:] == [b"[DONE]"] and not any(event.startswith(b'{"error"') for event in events)
    if whole:
        return "whole"
    return f"error: {events[-1].decode()}" if events[-1:] and events[-1].startswith(b'{"error"') else f"lost: {text!r}"


class Clients:
    """Clients that ask one request after the other until they are told to stop."""

    def __init__(self, url: str, number: int = 4, max_tokens: int = 50, model: str = "m") -> None:
        self.results: Counter[str] = Counter()
        self._url = url
        self._max_tokens = max_tokens
        self._model = model
        self._enough = False
        self._tasks = [asyncio.ensure_future(self._ask_on()) for _ in range(number)]

    async def _ask_on(self) -> None:
        # A connection for each request: the proxy closes one after an error event, which a kept one learns too late.
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
            while not self._enough:
                self.results[await ask(http, self._url, self._max_tokens, self._model)] += 1

    async def more(self, number: int) -> None:
        """Wait for so many more answers."""
        wanted = self.results.total() + number
        while self.results.total() < wanted:  # noqa: ASYNC110 - what it asks has no event
            await asyncio.sleep(0.01)

    async def stop(self) -> Counter[str]:
        """Let the running requests end; all results."""
        self._enough = True
        await asyncio.gather(*self._tasks)
        return self.results


async def until(condition: Callable[[], Any]) -> None:
    """Wait for something that other processes bring about; pytest's own time-out is the limit."""
    while not condition():  # noqa: ASYNC110 - what it asks has no event
        await asyncio.sleep(0.02)
