"""Measure targets in front of the stub, beside one another in one run.

usage: load.py --stub PORT [--target NAME=PORT[:PID] ...] [--targets FILE] [--out FILE] [--quick] [--phases P,P]

`direct`, the stub itself, is always the first target. A FILE of targets has a line ``NAME PORT PID VERSION`` for each,
tabs between; a PORT of ``-`` says that the target is missing, and VERSION why. Rounds go direct, A, B, direct, A, B,
so that a drift of the machine meets all of them. FILE of --out is JSON (`results.Run`); standard output gets the
table.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import shlex
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import msgspec
import table
import uvloop
from phases import Load, Target, find_held_rate, run_alone, run_memory, run_paced, set_gap
from results import DIRECT, Alone, Paced, Run, TargetResult, distribution
from stream_client import TargetFailed

PHASES = ("alone", "paced", "memory", "rate")
QUICK = Load(
    rounds=2,
    alone_streams=5,
    short_streams=20,
    paced_seconds=1.5,
    memory_streams=500,
    memory_limit_seconds=3,
    level_seconds=0.4,
)
Measured = TypeVar("Measured")


class Bench:
    """One run. A target that fails is left out of what follows, and its row says why."""

    def __init__(self, stub_port: int, targets: list[Target], load: Load) -> None:
        self._stub_port = stub_port
        self._targets = [Target(name=DIRECT, port=stub_port, pid=None, version=""), *targets]
        self._load = load
        self._rows = {target.name: TargetResult(name=target.name, version=target.version) for target in self._targets}

    async def run(self, phases: list[str]) -> list[TargetResult]:
        """Run the named phases; the rows, `direct` first."""
        await set_gap(self._stub_port, 0)
        await self._each("warm-up", lambda target: run_alone(target, self._load))
        measurements = {"alone": self._alone, "paced": self._paced, "memory": self._memory, "rate": self._rate}
        for phase in phases:
            await measurements[phase]()
        return list(self._rows.values())

    async def _each(self, phase: str, measure: Callable[[Target], Awaitable[Measured]]) -> dict[str, Measured]:
        """What `measure` says of each target that has not failed, by name."""
        measured = {}
        for target in self._targets:
            row = self._rows[target.name]
            if row.failed:
                continue
            print(f"{phase}: {target.name}", file=sys.stderr, flush=True)
            try:
                measured[target.name] = await measure(target)
            except TargetFailed as error:
                row.failed = f"{phase}: {error}"
                print(row.failed, file=sys.stderr, flush=True)
            gc.collect()  # Collection is off while a measurement runs.
        return measured

    def _measured_rows(self) -> list[TargetResult]:
        return [row for row in self._rows.values() if not row.failed]

    async def _alone(self) -> None:
        await set_gap(self._stub_port, 0)
        rounds = [
            await self._each(f"alone {number}", lambda target: run_alone(target, self._load))
            for number in range(self._load.rounds)
        ]
        for row in self._measured_rows():
            short, long = zip(*(one_round[row.name] for one_round in rounds), strict=True)
            row.alone = Alone(
                ttft=distribution([[answer.ttft_seconds for answer in one_round] for one_round in short]),
                total=distribution([[answer.total_seconds for answer in one_round] for one_round in long]),
            )

    async def _paced(self) -> None:
        await set_gap(self._stub_port, self._load.gap_seconds)
        rounds = [
            await self._each(f"paced {number}", lambda target: run_paced(target, self._load))
            for number in range(self._load.rounds)
        ]
        for row in self._measured_rows():
            answers = [one_round[row.name][0] for one_round in rounds]
            cpu_seconds = [one_round[row.name][1] for one_round in rounds]
            row.paced = Paced(
                ttft=distribution([[answer.ttft_seconds for answer in one_round] for one_round in answers]),
                event_delay=distribution(
                    [[delay for answer in one_round for delay in answer.delays_seconds()] for one_round in answers]
                ),
                events=sum(len(answer.sent_ns) for one_round in answers for answer in one_round),
                cpu_seconds=None if None in cpu_seconds else sum(spent for spent in cpu_seconds if spent is not None),
            )

    async def _memory(self) -> None:
        await set_gap(self._stub_port, 0)
        for name, memory in (await self._each("memory", lambda target: run_memory(target, self._load))).items():
            self._rows[name].memory = memory

    async def _rate(self) -> None:
        await set_gap(self._stub_port, self._load.gap_seconds)
        for name, held in (await self._each("rate", lambda target: find_held_rate(target, self._load))).items():
            self._rows[name].held_rate = held


def parse_target(text: str) -> Target:
    """``NAME=PORT`` or ``NAME=PORT:PID``."""
    name, equals, address = text.partition("=")
    port, _, pid = address.partition(":")
    if not equals or not port.isdigit() or (pid and not pid.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PORT or NAME=PORT:PID")
    return Target(name=name, port=int(port), pid=int(pid) if pid else None, version="")


def read_targets(file: Path) -> tuple[list[Target], list[TargetResult]]:
    """The targets that run, and the rows of those that are missing."""
    running: list[Target] = []
    missing: list[TargetResult] = []
    for line in file.read_text().splitlines():
        name, port, pid, release = line.split("\t")
        if port == "-":
            missing.append(TargetResult(name=name, version="", failed=f"missing: {release}"))
        else:
            running.append(Target(name=name, port=int(port), pid=int(pid), version=release))
    return running, missing


def machine() -> dict[str, str]:
    """What the figures depend on besides the targets."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "CPU": models[0] if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "uvloop": version("uvloop"),
        "load average at start": f"{os.getloadavg()[0]:.2f}",
    }


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure proxies in front of the stub, beside one another.")
    parser.add_argument("--stub", type=int, required=True, metavar="PORT")
    parser.add_argument("--target", type=parse_target, action="append", default=[], metavar="NAME=PORT[:PID]")
    parser.add_argument("--targets", type=Path, metavar="FILE", help="lines of NAME PORT PID VERSION, tabs between")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: shows that it works, no more")
    parser.add_argument("--phases", default=",".join(PHASES), help="default: %(default)s")
    options = parser.parse_args()
    options.phases = options.phases.split(",")
    if unknown := set(options.phases) - set(PHASES):
        parser.error(f"no phase {', '.join(sorted(unknown))}: there are {', '.join(PHASES)}")
    return options


def main() -> None:
    """Read the command line, measure, write."""
    options = parse_options()
    running, missing = read_targets(options.targets) if options.targets else ([], [])
    load = QUICK if options.quick else Load()
    started = time.monotonic()
    facts, date = machine(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    gc.disable()
    rows = uvloop.run(Bench(options.stub, running + options.target, load).run(options.phases))
    run = Run(
        date_utc=date,
        command=shlex.join(["load.py", *sys.argv[1:]]),
        machine=facts,
        settings=msgspec.structs.asdict(load),
        wall_seconds=time.monotonic() - started,
        targets=rows + missing,
    )
    if options.out:
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1))
    print(table.figures(run))


if __name__ == "__main__":
    main()
