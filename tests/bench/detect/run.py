"""Measure specbreaker's detector, and the peers, on simulated traffic and on recordings.

usage: python -m tests.bench.detect.run [--quick] [--only ours|peers] [--scenarios NAME,...] [--jobs 2]
                                        [--captures DIR] [--output docs/results/detection.md]

Prints a line per scenario; with --output it also writes the page, and the figures beside it as JSON.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np

from replay.readers import ReadError
from tests.bench.detect import environment, ours, table
from tests.bench.detect.our_run import COLD_SUFFIX, RATES_SUFFIX, our_cost, our_row, scenario_names
from tests.bench.detect.recorded import CAPTURES_VARIABLE, recorded_rows
from tests.bench.detect.results import Cost, PeerResult, Recorded, Result, Row
from tests.bench.detect.scenarios import CORE
from tests.bench.detect.series import CALIBRATION_SEEDS, COLLAPSE_SEEDS, FULL, NULL_SEEDS, QUICK, WARM_REQUESTS, Size

PEER_SECONDS = 900


def measure_peers(names: list[str], quick: bool) -> PeerResult:
    """Run the peers in their own environment.

    Raises:
        environment.EnvironmentUnavailable: it cannot be made, or the run failed in it.
    """
    chosen = [name for name in names if name in {scenario.name for scenario in CORE}]
    if not chosen:
        return PeerResult(rows=[], costs=[])
    command = [str(environment.python()), "-m", "tests.bench.detect.peer_run", "--scenarios", ",".join(chosen)]
    done = subprocess.run(
        [*command, *(["--quick"] if quick else [])],
        stdout=subprocess.PIPE,
        env=environment.variables(),
        cwd=environment.REPOSITORY,
        timeout=PEER_SECONDS,
    )
    if done.returncode != 0:
        raise environment.EnvironmentUnavailable(f"peer_run ended with {done.returncode}: see above")
    return msgspec.json.decode(done.stdout, type=PeerResult)


def measure_ours(names: list[str], size: Size, jobs: int) -> Iterator[Row]:
    """specbreaker on these scenarios, printed as they come."""
    # Not forked: the peers may be waited for in a thread of this process.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for row in pool.map(our_row, names, repeat(size)):
            print(table.text_line(row), flush=True)
            yield row


def measure(args: argparse.Namespace, names: list[str]) -> Result:
    """Everything that the command line asks for. Peers and our own run side by side where there are two jobs."""
    begin, size = time.monotonic(), QUICK if args.quick else FULL
    rows: list[Row] = []
    costs: list[Cost] = []
    recorded: list[Recorded] = []
    skipped: list[str] = []
    with ThreadPoolExecutor(1) as background:
        peers: Future[PeerResult] | None = None
        if args.only != "ours" and args.jobs > 1:
            peers = background.submit(measure_peers, names, args.quick)
        if args.only != "peers":
            rows += measure_ours(names, size, args.jobs)
            recorded = recorded_rows(args.captures)
        if args.only != "ours":
            try:
                theirs = peers.result() if peers else measure_peers(names, args.quick)
                rows, costs = rows + theirs.rows, costs + theirs.costs
            except (environment.EnvironmentUnavailable, subprocess.TimeoutExpired) as error:
                skipped.append(f"the peers: {error}")
        else:
            skipped.append("the peers: --only ours")
    if args.only != "peers":
        # Alone on the machine: the two above would be measured too. In a process of its own: the recordings that this
        # one still holds are more for the garbage collector to look through.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            costs.insert(0, pool.submit(our_cost, size).result())
    if args.captures is None:
        why = f"neither --captures nor {CAPTURES_VARIABLE} was given"
        skipped.append(f"the whole H200 captures: {why}, so the copies in tests/data/watch were read")
    return Result(
        date_utc=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        command="python -m tests.bench.detect.run " + shlex.join(sys.argv[1:]),
        commit=commit(),
        machine=machine(),
        settings=settings(size),
        wall_seconds=time.monotonic() - begin,
        rows=rows,
        costs=costs,
        recorded=recorded,
        skipped=skipped,
    )


def settings(size: Size) -> dict[str, str]:
    """How much was simulated, and with which seeds."""
    return {
        "answers per seed with collapses": f"{size.collapse_requests} after {WARM_REQUESTS} healthy ones",
        "seeds with collapses": ", ".join(map(str, COLLAPSE_SEEDS[: size.seeds])),
        "answers per seed without": str(size.null_requests),
        "seeds without": ", ".join(map(str, NULL_SEEDS[: size.seeds])),
        "seeds of the peers' calibration": ", ".join(map(str, CALIBRATION_SEEDS)),
        "mean_requests_between_false_alarms": f"{ours.MEAN_REQUESTS_BETWEEN_FALSE_ALARMS:g}",
    }


def machine() -> dict[str, str]:
    """What costs depend on, and the version of numpy, whose generators make the traffic."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return {
        "CPU": models[0] if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "Python": platform.python_version(),
        "numpy": np.__version__,
        "load average at the end": f"{os.getloadavg()[0]:.2f}",
    }


def commit() -> str:
    """Of the measured tree, with a mark where files differ from it."""
    command = ["git", "-C", str(environment.REPOSITORY), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.detect.run",
        description="Measure specbreaker's detector, and the peers, on simulated traffic and on recordings.",
        epilog=f"NAME{COLD_SUFFIX} is a scenario met in its middle, NAME{RATES_SUFFIX} one with rates alone.",
    )
    folder = os.environ.get(CAPTURES_VARIABLE)
    parser.add_argument("--quick", action="store_true", help="fewer answers, one seed: a minute, and coarse figures")
    parser.add_argument("--only", choices=("ours", "peers"))
    parser.add_argument("--scenarios", metavar="NAME,...", help="instead of all")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument(
        "--captures",
        type=Path,
        default=Path(folder) if folder else None,
        help=f"folder of the H200 chunk logs (default: {CAPTURES_VARIABLE}, else the copies in tests/data)",
    )
    parser.add_argument("--output", type=Path, metavar="PAGE", help="write the page, and PAGE with the ending .json")
    return parser.parse_args()


def main() -> None:
    """Run what the command line asks for."""
    args = arguments()
    try:
        result = measure(args, scenario_names(args.scenarios))
    except (ValueError, ReadError) as error:
        sys.exit(f"run.py: {error}")
    print(table.text_summary(result))
    if args.output and args.quick:
        print(f"{args.output}: left as it is, because the figures of --quick are coarse")
    elif args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(table.page(result))
        args.output.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
        print(f"{args.output} written")


if __name__ == "__main__":
    main()
