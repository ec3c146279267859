"""What a fleet of engines that collapse, each in its own cycle, gives its clients, with specbreakers and without.

Ten emulated engines behind one HAProxy; as many agents, each asking for one answer after the other. `make bench-fleet`
writes docs/results/fleet.md. The engines' time runs S times as fast as real time, and so do all time constants.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shlex
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import fleet_page
import psutil  # type: ignore[import-untyped]
import uvloop
from cycle_client import Answer, ask
from cycle_targets import Missing
from fleet_page import Result, Run
from fleet_rig import ANSWER_TOKENS, ARMS, ENGINES, Arm, Fleet, fleet
from process_cost import cpu_seconds

THINK_SECONDS = 0.2
"""Engine seconds between an answer and the agent's next request."""
SLOW_TOK_S = 110.0


async def measure(arm: Arm, scale: float, answers: int, seed: int, folder: Path) -> Result:
    """One arm on fresh engines; ``answers`` by each agent."""
    try:
        async with fleet(arm, scale, seed, folder) as rig:
            before, begun = _cpu(rig), time.monotonic()
            agents = [_agent(rig.port, number, answers, scale) for number in range(ENGINES)]
            given = [answer for each in await asyncio.gather(*agents) for answer in each]
            wall, after = time.monotonic() - begun, _cpu(rig)
    except Missing as error:
        return Result(arm=arm.name, failed=str(error))
    return result_of(arm, scale, given, rig, wall, [late - early for early, late in zip(before, after, strict=True)])


async def _agent(port: int, agent: int, answers: int, scale: float) -> list[Answer]:
    """One agent's answers. Agents begin spread over one healthy answer."""
    given = []
    await asyncio.sleep(agent / ENGINES * 9.0 / scale)
    for number in range(answers):
        given.append(await ask(port, "m", 1000 * agent + number, ANSWER_TOKENS))
        await asyncio.sleep(THINK_SECONDS / scale)
    return given


def _cpu(rig: Fleet) -> list[float]:
    """CPU seconds so far: of this process, which is the engines and the agents, and of each other one."""
    own = psutil.Process().cpu_times()
    return [own.user + own.system, *(cpu_seconds(pid) for pid in rig.pids)]


def result_of(arm: Arm, scale: float, given: list[Answer], rig: Fleet, wall: float, cpu: list[float]) -> Result:
    """The figures of one arm; rates in tokens per engine second."""
    whole = [one for one in given if one.whole and one.decode_seconds and one.ttft_seconds is not None]
    waited = [scale * ((one.ttft_seconds or 0.0) + (one.decode_seconds or 0.0)) for one in whole]
    rates = [(ANSWER_TOKENS - 1) / scale / (one.decode_seconds or 1.0) for one in whole]
    served = [request for emulator in rig.emulators for request in emulator.log]
    canaries = [request for request in served if request.completion_tokens != ANSWER_TOKENS]
    return Result(
        arm=arm.name,
        answers=len(given),
        lost=len(given) - len(whole),
        fleet_tok_s=ENGINES * len(whole) * ANSWER_TOKENS / sum(waited) if waited else None,
        decode_tok_s=len(rates) / sum(1 / rate for rate in rates) if rates else None,
        slow_share=sum(rate < SLOW_TOK_S for rate in rates) / len(rates) if rates else None,
        slowest_tok_s=min(rates, default=None),
        longest_seconds=max(waited, default=None),
        canaries=len(canaries),
        canary_tokens=sum(request.completion_tokens for request in canaries),
        wall_seconds=wall,
        harness_cpu_share=cpu[0] / wall,
        busiest_proxy_cpu_share=max(cpu[1:]) / wall,
        machine_cpu_share=sum(cpu) / wall / (os.cpu_count() or 1),
    )


async def run(arms: list[Arm], scale: float, answers: int, seeds: list[int]) -> list[Result]:
    """All arms, one after the other, for each seed."""
    results = []
    with tempfile.TemporaryDirectory(prefix="specbreaker-fleet-") as folder:
        for seed in seeds:
            for arm in arms:
                print(f"seed {seed}: {arm.name}", file=sys.stderr, flush=True)
                result = await measure(arm, scale, answers, seed, Path(folder))
                result.seed = seed
                results.append(result)
                print(f"  {fleet_page.line(result)}", file=sys.stderr, flush=True)
    return results


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", metavar="1,2", help="; ".join(f"{i}: {arm.name}" for i, arm in enumerate(ARMS)))
    parser.add_argument("--answers", type=int, default=40, metavar="N", help="by each agent (default 40)")
    parser.add_argument("--time-scale", type=float, default=4.0, metavar="S", help="default 4")
    parser.add_argument("--seeds", default="1", metavar="1,2", help="each one a fleet with other cycles")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page there")
    options = parser.parse_args()
    arms = [ARMS[int(number)] for number in options.arms.split(",")] if options.arms else list(ARMS)
    load, begun = os.getloadavg()[0], time.monotonic()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    results = uvloop.run(run(arms, options.time_scale, options.answers, seeds))
    done = Run(
        date_utc=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        command=f"tests/bench/fleet.py {shlex.join(sys.argv[1:])}".strip(),
        machine=f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
        load_before=load,
        time_scale=options.time_scale,
        answers_per_agent=options.answers,
        wall_seconds=time.monotonic() - begun,
        results=results,
    )
    page = fleet_page.page(done)
    if options.page:
        options.page.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
