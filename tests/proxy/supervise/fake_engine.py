"""An engine for `supervise` to run: the emulator behind vLLM's command line, with what makes vLLM hard to end.

    fake_engine.py serve MODEL --port P [--host H] [--speculative-config JSON]
        [--note FILE]       append a JSON line about this launch: argv, pid, pids of its children
        [--core here|away]  begin a process that stays when this one is killed; away: in a session of its own
        [--orphans N]       let so many grandchildren end without a parent
        [--deaf]            ignore SIGTERM
        [--time-scale S]    engine seconds per real second
SIGUSR1 wedges it: it answers /health and /metrics, and never generates again. SIGUSR2 closes its port for good.
A speculative configuration with the method "broken" does not start; one with "hangs" is never ready.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from replay.emulator import Emulator, serving
from replay.emulator.scenario import load_scenario


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("serve")
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int)
    parser.add_argument("--speculative-config", type=json.loads, default={})
    parser.add_argument("--note", type=Path)
    parser.add_argument("--core", choices=["here", "away"])
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--orphans", type=int, default=0)
    parser.add_argument("--time-scale", type=float, default=50.0)
    options = parser.parse_args()
    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cores = []
    if options.core:
        sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
        away = options.core == "away"
        cores.append(subprocess.Popen([sys.executable, "-c", sleeper], start_new_session=away))
    for _ in range(options.orphans):
        leave_an_orphan()
    if options.note:
        with options.note.open("a") as note:
            launch = {"argv": sys.argv[1:], "pid": os.getpid(), "core": [core.pid for core in cores]}
            note.write(json.dumps(launch) + "\n")
    print("loading the weights", flush=True)
    method = options.speculative_config.get("method")
    if method == "broken":
        raise SystemExit("ValueError: no such method")
    if method == "hangs":
        time.sleep(1000)
    asyncio.run(serve(options, cores))


def leave_an_orphan() -> None:
    """A grandchild that outlives its parent for a moment."""
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            time.sleep(0.2)
        os._exit(0)
    os.waitpid(child, 0)


async def serve(options: argparse.Namespace, cores: list[subprocess.Popen[bytes]]) -> None:
    """Serve the emulator; SIGTERM ends it and its children."""
    depth = options.speculative_config.get("num_speculative_tokens", 0)
    scenario = load_scenario("healthy" if depth else "fallback")
    emulator = Emulator(
        msgspec.structs.replace(scenario, num_speculative_tokens=depth) if depth else scenario,
        model=options.model,
        time_scale=options.time_scale,
        dev_mode=True,
    )
    ended = asyncio.Event()
    if not options.deaf:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: emulator.die("wedge"))
    closed = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, closed.set)
    async with serving(emulator, options.host, options.port) as url:
        print(f"Application startup complete on {url}", flush=True)
        await asyncio.wait(
            {asyncio.ensure_future(one.wait()) for one in (ended, closed)}, return_when="FIRST_COMPLETED"
        )
    await ended.wait()
    for core in cores:
        core.kill()
        core.wait()


if __name__ == "__main__":
    main()
