"""A cycle recorded, replayed and compared on an engine with the faults plug-in, under `specbreaker supervise`.

Usage: python tests/engine/gpu/session.py --out DIR --cycle JSON [--requests 60] [--tokens 512] -- ENGINE COMMAND

The engine's environment must have the plug-in (PYTHONPATH or installed); this sets VLLM_PLUGINS and SPECBREAKER_FAULTS.
DIR gets recorded, replayed and left-alone sessions, results.json and the engine's log. ``run.sh`` beside this file has
the command for an H200. Exit status: 0 where both verdicts are as they must be, 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

READY = re.compile(r"ready at level (\S+) after ([\d.]+) s")
START_SECONDS = 300.0
CONFIG = """
[record]
content = "text"
[measure]
ask_token_counts = true
[effects]
hold_seconds = 280
[supervise]
start_seconds = 300
[server]
admin_token_file = "{token}"
[[ladder]]
name = "off"
"""
PROBES: dict[str, dict[str, float]] = {
    "as configured": {},
    "acceptance 0.85": {"acceptance": 0.85},
    "acceptance 0.05": {"acceptance": 0.05},
    "corrupt_drafts 0.9": {"corrupt_drafts": 0.9},
    "step_delay_seconds 0.005": {"step_delay_seconds": 0.005},
}


class Faults:
    """The schedule's file: what is written holds from the engine's next step on, from zero of its clock."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.write({"clock": "requests", "cycle": [{"length": 1}]})

    def write(self, schedule: dict[str, Any]) -> None:
        """Whole or not at all: the engine may read at any time."""
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(schedule))
        new.replace(self.file)


class Session:
    """A running `specbreaker supervise` and its engine."""

    def __init__(self, url: str, engine_url: str, model: str, ready_seconds: float, tokens: int) -> None:
        self.url = url
        self.engine_url = engine_url
        self.model = model
        self.ready_seconds = ready_seconds
        self.tokens = tokens

    async def ask(self, url: str, index: int) -> dict[str, float]:
        """One streamed answer: A and S as its events show them, and its tokens per second."""
        text = f"Request {index}: write a program. " + "It reads a file and counts the words in it. " * 12
        usage = {"include_usage": True, "continuous_usage_stats": True}
        body = {"model": self.model, "max_tokens": self.tokens, "ignore_eos": True, "temperature": 0}
        body |= {"messages": [{"role": "user", "content": text}], "stream": True, "stream_options": usage}
        events: list[tuple[float, int]] = []
        limit = aiohttp.ClientTimeout(total=300)
        async with (
            aiohttp.ClientSession(timeout=limit) as session,
            session.post(f"{url}/v1/chat/completions", json=body) as answer,
        ):
            assert answer.status == 200, await answer.text()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    tokens = (event.get("usage") or {}).get("completion_tokens")
                    if event.get("choices") and tokens:
                        events.append((time.perf_counter(), tokens))
        seconds, steps = events[-1][0] - events[0][0], len(events) - 1
        made = events[-1][1] - events[0][1]
        return {"acceptance_length": made / steps, "steps_per_second": steps / seconds, "tok_s": made / seconds}


async def specbreaker(*arguments: str, status: tuple[int, ...] = (0, 1)) -> str:
    """Run a command of specbreaker; what it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    if process.returncode not in status:
        raise SystemExit(f"specbreaker {' '.join(arguments)}: exit status {process.returncode}")
    return out.decode()


@asynccontextmanager
async def supervised(work: Path, out: Path, command: list[str], faults: Faults, tokens: int) -> AsyncIterator[Session]:
    """Start and end `specbreaker supervise --record`; what it and the engine say goes to engine.log."""
    config, token = work / "specbreaker.toml", work / "token"
    token.write_text(secrets.token_hex(16))
    config.write_text(CONFIG.format(token=token))
    environment = os.environ | {"VLLM_PLUGINS": "specbreaker_faults", "SPECBREAKER_FAULTS": str(faults.file)}
    ports = ["--listen", "127.0.0.1:18900", "--admin", "127.0.0.1:18901"]
    log_file = out / "engine.log"
    with log_file.open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", "supervise", "--config", str(config), *ports),
            *("--record", str(work / "recorded"), "--", *command),
            stdout=log,
            stderr=log,
            env=environment,
        )
        try:
            ready = await _until_ready(process, log_file)
            engine = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
            async with aiohttp.ClientSession() as session, session.get(f"{engine}/v1/models") as answer:
                model = (await answer.json())["data"][0]["id"]
            yield Session("http://127.0.0.1:18900", engine, model, ready, tokens)
        finally:
            if process.returncode is None:
                process.terminate()
            print("specbreaker ended with", await process.wait(), flush=True)


async def _until_ready(process: asyncio.subprocess.Process, log: Path) -> float:
    deadline = time.monotonic() + START_SECONDS
    while not (found := READY.search(log.read_text(errors="replace"))):
        if process.returncode is not None or time.monotonic() > deadline:
            print(log.read_text(errors="replace")[-6000:])
            raise SystemExit("the engine did not start: the end of its log is above")
        await asyncio.sleep(0.5)
    print(f"ready after {found[2]} s", flush=True)
    return float(found[2])


async def run(work: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All of it; what is to be kept."""
    faults = Faults(work / "faults.json")
    found: dict[str, Any] = {"cycle": json.loads(options.cycle), "command": options.command}
    async with supervised(work, out, options.command, faults, options.tokens) as session:
        found |= {"machine": machine(), "ready_seconds": session.ready_seconds, "requests": [], "probes": {}}
        for index in range(2):  # what is compiled at first use is not part of the cycle
            await session.ask(session.engine_url, -1 - index)
        for name, fault in PROBES.items():
            faults.write({"clock": "requests", "cycle": [{"length": 1, **fault}]})
            await session.ask(session.engine_url, -3)
            found["probes"][name] = await session.ask(session.engine_url, -3)
            print(name, found["probes"][name], flush=True)
        faults.write(found["cycle"])
        for index in range(options.requests):
            found["requests"].append(await session.ask(session.url, index))
            print(index + 1, *(f"{name} {value:.2f}" for name, value in found["requests"][-1].items()), flush=True)
        recorded = await snapshot(work, options.requests)
        alone = {"clock": "requests", "cycle": [{"length": 1, **json.loads(options.left_alone)}]}
        for name, schedule in (("replayed", found["cycle"]), ("left-alone", alone)):
            faults.write(schedule)
            target = ["--target", session.engine_url, "--output", str(work / name), "--schedule", "closed"]
            print(await specbreaker("replay", "run", recorded, *target), flush=True)
            found[name] = json.loads(await specbreaker("replay", "compare", "--json", recorded, str(work / name)))
            print(await specbreaker("replay", "compare", recorded, str(work / name)), flush=True)
        found["speculation_off"] = await speculation_off(work, session)
    for name in ("recorded", "replayed", "left-alone"):
        keep(work / name, out / name)
    found["detect"] = json.loads(await specbreaker("detect", "--json", str(next(out.glob("recorded.jsonl*")))))
    return found


async def speculation_off(work: Path, session: Session) -> dict[str, Any]:
    """Restart at the level without speculation while a client asks on: the outcome, and what the client got."""
    asked: list[dict[str, float]] = []

    async def ask_on() -> None:
        while True:
            asked.append(await session.ask(session.url, len(asked)))

    client = asyncio.create_task(ask_on())
    headers = {"authorization": f"Bearer {(work / 'token').read_text()}"}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=400)) as http,
        http.post("http://127.0.0.1:18901/actions/restart?level=off&wait=1", headers=headers) as answer,
    ):
        outcome = await answer.json()
    before = len(asked)
    while len(asked) < before + 4 and not client.done():  # noqa: ASYNC110 - what it waits for has no event
        await asyncio.sleep(0.1)
    failed = client.done() and repr(client.exception())
    client.cancel()
    print("speculation off:", outcome, asked[-1], flush=True)
    return {"outcome": outcome, "answers": len(asked), "failed": failed or None, "after": asked[-1]}


def keep(session: Path, name: Path) -> None:
    """Copy the parts of a session to NAME.jsonl.zst, NAME-1.jsonl.zst and so on."""
    parts = sorted(path for path in session.iterdir() if ".jsonl" in path.name)
    for number, part in enumerate(parts):
        ending = part.name[part.name.index(".jsonl") :]
        shutil.copy(part, name.with_name(f"{name.name}-{number}{ending}" if number else f"{name.name}{ending}"))


async def snapshot(work: Path, requests: int) -> str:
    """A copy of the recording that is still being written, once the last answer is in it."""
    while True:
        copy = shutil.copytree(work / "recorded", work / "copy", dirs_exist_ok=True)
        if sum(part.read_bytes().count(b'"type":"response"') for part in copy.iterdir()) >= requests:
            return str(copy)
        await asyncio.sleep(0.5)


def machine() -> str:
    """What it ran on."""
    described = f"{platform.machine()}, Python {platform.python_version()}"
    try:
        import torch
    except ImportError:
        return described
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{device}, torch {torch.__version__}, {described}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--cycle", required=True, help="a schedule of replay.faults, as JSON")
    parser.add_argument("--left-alone", default="{}", help="the fault of an engine that stays healthy, as JSON")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and what starts the engine")
    options = parser.parse_args()
    options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="specbreaker-session-") as work:
        found = asyncio.run(run(Path(work), options.out, options))
    (options.out / "results.json").write_text(json.dumps(found, indent=1))
    verdicts = (found["replayed"]["verdict"], found["left-alone"]["verdict"])
    print("verdicts:", *verdicts)
    sys.exit(0 if verdicts == ("REPRODUCED", "NOT_REPRODUCED") else 1)


if __name__ == "__main__":
    main()
