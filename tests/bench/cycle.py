"""What clients get over a collapse cycle, with each proxy in front of the same two emulated engines.

usage: cycle.py [--quick] [--cases A,B] [--targets A,B] [--time-scale S] [--out FILE] [--page FILE]

A client asks one answer of 2000 tokens after the other. The primary has the published physics (220 tok/s healthy, 61
collapsed), its cycle on one of the clocks; the fallback is steady. The engines' time runs S times as fast as real time,
and so do all time constants of specbreaker's policy. `make bench-cycle` writes docs/results/cycle.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import cycle_model
import cycle_page
import msgspec
import uvloop
from cycle_client import Answer, ask
from cycle_results import DIRECT, SUBJECTS, Case, Result, Run
from cycle_targets import MOST_TIME_SCALE, PEERS, TARGETS, Missing, Running, Upstreams, started
from results import quantile

from replay.emulator import Emulator, serving
from replay.emulator.scenario import Scenario, parse_scenario

ANSWER_TOKENS = 2000
THINK_SECONDS = 0.2
"""Engine seconds between an answer and the next request: an agent does something with the answer."""

CASES = {
    case.name: case
    for case in (
        Case(name="requests", scenario="published", fallback_tok_s=130.0, peers=PEERS),
        Case(name="requests, long", scenario="published", fallback_tok_s=130.0, requests=300),
        Case(name="requests, fallback 136", scenario="published", fallback_tok_s=136.0),
        Case(name="tokens", scenario="published-tokens", fallback_tok_s=130.0, peers=PEERS[:3]),
        Case(name="steps", scenario="published-steps", fallback_tok_s=130.0),
        Case(name="seconds", scenario="published-seconds", fallback_tok_s=130.0),
        Case(name="healthy", scenario="steady", fallback_tok_s=130.0, null=True),
        Case(name="wandering content", scenario="healthy", fallback_tok_s=130.0, null=True),
    )
}
QUICK_CASES = ("requests", "tokens", "healthy")
QUICK_TARGETS = SUBJECTS[:1]

STEADY = """
name = "steady"
num_speculative_tokens = 8
[[cycle]]
phase = "healthy"
length = 1
acceptance_length = 3.6
"""


def primary_of(case: Case, scale: float) -> Emulator:
    """The engine that may collapse. It tells its own rates, as vLLM does from 0.29 on: they are in engine seconds,
    while arrival times are real ones, and a mixture of both would be no measurement."""
    scenario: Scenario | str = parse_scenario(STEADY, "steady") if case.scenario == "steady" else case.scenario
    return Emulator(scenario, model="m", time_scale=scale)


def fallback_of(case: Case, scale: float) -> Emulator:
    """The same machine without speculation."""
    text = f"""
name = "fallback"
num_speculative_tokens = 0
[[cycle]]
phase = "healthy"
length = 1
acceptance = 0.0
[step_time]
target_seconds = {1 / case.fallback_tok_s!r}
"""
    return Emulator(parse_scenario(text, "fallback"), model="m", time_scale=scale)


@contextlib.asynccontextmanager
async def target(name: str, folder: Path, up: Upstreams) -> AsyncIterator[Running]:
    """The target; ``direct`` is the primary itself."""
    if name == DIRECT:
        yield Running(port=up.primary)
    else:
        async with started(name, folder, up) as running:
            yield running


async def measure(case: Case, name: str, scale: float, folder: Path) -> Result:
    """One target on one case, on fresh engines."""
    primary, fallback = primary_of(case, scale), fallback_of(case, scale)
    async with serving(primary) as primary_url, serving(fallback) as fallback_url:
        ports = [int(url.rsplit(":", 1)[1]) for url in (primary_url, fallback_url)]
        up = Upstreams(primary=ports[0], fallback=ports[1], time_scale=scale)
        try:
            async with target(name, folder, up) as running:
                answers = await _ask_all(case, running, scale)
        except Missing as error:
            return Result(case=case.name, target=name, failed=str(error))
    return result_of(case, name, scale, answers, primary, fallback)


async def _ask_all(case: Case, running: Running, scale: float) -> list[Answer]:
    answers = []
    for number in range(case.requests):
        answers.append(await ask(running.port, running.model, number, ANSWER_TOKENS, running.key))
        await asyncio.sleep(THINK_SECONDS / scale)
    return answers


def result_of(
    case: Case, name: str, scale: float, answers: list[Answer], primary: Emulator, fallback: Emulator
) -> Result:
    """The figures of one run; rates in tokens per engine second."""
    whole = [one for one in answers if one.whole and one.decode_seconds and one.ttft_seconds]
    rates = [(ANSWER_TOKENS - 1) / (one.decode_seconds or 1) / scale for one in whole]
    canaries = [one for one in primary.log if one.completion_tokens != ANSWER_TOKENS]
    return Result(
        case=case.name,
        target=name,
        requests=len(answers),
        lost=len(answers) - len(whole),
        time_scale=scale,
        on_primary=len(primary.log) - len(canaries),
        on_fallback=len(fallback.log),
        tokens_per_second=len(rates) / sum(1 / rate for rate in rates) if rates else None,
        rates=[round(rate, 1) for rate in rates],
        ttft_p99_ms=quantile([1e3 * (one.ttft_seconds or 0.0) for one in whole], 0.99) if whole else None,
        canaries=len(canaries),
        canary_tokens=sum(one.completion_tokens for one in canaries),
    )


def oracle_of(case: Case) -> float | None:
    """What a client with perfect foresight gets, from the model of the engine (tests/bench/cycle_model.py)."""
    clock = {"published": "requests"}.get(case.scenario, case.scenario.removeprefix("published-"))
    if case.null or clock not in cycle_model.CLOCKS:
        return None
    cycle = cycle_model.published(clock)
    return cycle_model.oracle(cycle, case.requests, fallback_tok_s=case.fallback_tok_s).decode_tokens_per_second


async def run(cases: list[Case], targets: list[str], scale: float) -> list[Result]:
    """All targets on all cases, one after the other."""
    results = []
    with tempfile.TemporaryDirectory(prefix="specbreaker-cycle-") as folder:
        for case in cases:
            for name in (DIRECT, *targets):
                if name in PEERS and name not in case.peers:
                    continue
                print(f"{case.name}: {name}", file=sys.stderr, flush=True)
                result = await measure(case, name, min(scale, MOST_TIME_SCALE.get(name, scale)), Path(folder))
                results.append(result)
                print(f"  {cycle_page.line(result)}", file=sys.stderr, flush=True)
    return results


def _chosen(text: str | None, known: dict[str, object], default: tuple[str, ...]) -> list[str]:
    names = [name.strip() for name in text.split(";")] if text else list(default)
    for name in names:
        if name not in known:
            sys.exit(f"cycle.py: no such name: {name}; there are: {'; '.join(known)}")
    return names


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three cases, no peers, fast clock: shows that it works")
    parser.add_argument("--cases", metavar="A;B", help="; ".join(CASES))
    parser.add_argument("--targets", metavar="A;B", help="; ".join(TARGETS))
    parser.add_argument("--requests", type=int, metavar="N", help="instead of each case's own number")
    parser.add_argument("--time-scale", type=float, default=None, metavar="S", help="default 10; 20 with --quick")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write the page and, beside it, its JSON; not with --quick"
    )
    options = parser.parse_args()
    scale = options.time_scale or (20.0 if options.quick else 10.0)
    cases = [CASES[name] for name in _chosen(options.cases, CASES, QUICK_CASES if options.quick else tuple(CASES))]
    if options.targets:
        cases = [msgspec.structs.replace(case, peers=PEERS) for case in cases]
    if options.requests:
        cases = [msgspec.structs.replace(case, requests=options.requests) for case in cases]
    targets = _chosen(options.targets, TARGETS, QUICK_TARGETS if options.quick else (*QUICK_TARGETS, *PEERS))
    begun = time.monotonic()
    results = uvloop.run(run(cases, targets, scale))
    done = Run(
        date_utc=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        command=f"tests/bench/cycle.py {shlex.join(sys.argv[1:])}".strip(),
        machine=f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}",
        time_scale=scale,
        wall_seconds=time.monotonic() - begun,
        cases=cases,
        oracles={case.name: oracle for case in cases if (oracle := oracle_of(case)) is not None},
        results=results,
    )
    page = cycle_page.page(done)
    if options.page and not options.quick:
        options.page.write_text(page)
        options.page.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(done)))
    print(page)
    if any(result.target in SUBJECTS and (result.failed or result.lost) for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
