"""Writes docs/results/fleet.md: every figure is computed from the run."""

from __future__ import annotations

import msgspec
from fleet_rig import ANSWER_TOKENS, ARMS, ENGINES, HEALTHY_A, STEP_SECONDS


class Result(msgspec.Struct):
    """One arm with one seed. Rates are tokens per engine second, shares 0..1; CPU shares are of one core."""

    arm: str
    seed: int = 0
    failed: str = ""
    answers: int = 0
    lost: int = 0
    """Answers that were not whole."""
    fleet_tok_s: float | None = None
    """Agents x tokens / seconds that they waited for answers, first token included."""
    decode_tok_s: float | None = None
    """Of one stream: tokens / decode time."""
    slow_share: float | None = None
    slowest_tok_s: float | None = None
    longest_seconds: float | None = None
    healthy_tok_s: float | None = None
    """Of one stream in answers that no collapse touched, by the engines' own clocks: whether the machine kept up."""
    load_after: float = 0.0
    """Load average of the last minute of the arm."""
    canaries: int = 0
    canary_tokens: int = 0
    wall_seconds: float = 0.0
    harness_cpu_share: float = 0.0
    """Of the process that is the engines and the agents."""
    busiest_proxy_cpu_share: float = 0.0
    machine_cpu_share: float = 0.0
    """Of all cores."""


class Run(msgspec.Struct):
    """The whole benchmark."""

    date_utc: str
    command: str
    machine: str
    load_before: float
    time_scale: float
    answers_per_agent: int
    wall_seconds: float
    results: list[Result]


def line(result: Result) -> str:
    """One arm in one line, for the terminal."""
    if result.failed:
        return result.failed
    return (
        f"{result.fleet_tok_s or 0:.0f} tok/s, {100 * (result.slow_share or 0):.0f} % slow, {result.lost} lost, "
        f"{result.canaries} canaries; CPU of one core: harness {result.harness_cpu_share:.2f}, busiest proxy "
        f"{result.busiest_proxy_cpu_share:.2f}; machine {100 * result.machine_cpu_share:.0f} %"
    )


def mean(values: list[float]) -> float | None:
    """None without values."""
    return sum(values) / len(values) if values else None


def page(run: Run) -> str:
    """The whole page."""
    rows = [row for arm in ARMS if (row := _row(run, arm.name))]
    seeds = sorted({result.seed for result in run.results})
    return f"""# Ten engines behind HAProxy, with specbreakers and without

Written by `make bench-fleet` ({run.date_utc} UTC, {run.wall_seconds:.0f} s): do not edit.

{run.machine}; load average before the run {run.load_before:.2f}. Command: `{run.command}`.

{ENGINES} emulated engines (K = 8, {HEALTHY_A / STEP_SECONDS:.0f} tok/s healthy, 61 collapsed), each with a cycle of its
own: 5 to 9 healthy answers, then 3 to 5 collapsed ones, begun at another place; six count requests, two tokens, one
steps, one seconds. {ENGINES} agents ask for answers of {ANSWER_TOKENS} tokens, one after the other,
{run.answers_per_agent} each. The balancer is deploy/haproxy/haproxy.cfg; no engine has a fallback but the others behind
the balancer. Seeds, each another fleet: {", ".join(map(str, seeds))}; figures are means over them.

| | fleet tok/s | of no collapse | slow answers | longest wait, s | lost | canary tokens | untouched, tok/s | load |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Fleet tok/s: agents x tokens / seconds waited for answers. Slow: under 110 tok/s. Canary tokens: of all that the engines
generated. Untouched: decode rate of one stream, by the engines' own clocks, in answers that no collapse touched.
Load: the machine's load average in the last minute of the row, other programs included.

{_honesty(run)}
"""


def _row(run: Run, arm: str) -> str:
    found = [result for result in run.results if result.arm == arm]
    if not found:
        return ""
    if found[0].failed:
        return f"| {arm} | {found[0].failed} |" + " |" * 7
    best = mean([result.fleet_tok_s or 0.0 for result in run.results if result.arm == ARMS[0].name])
    rate = mean([result.fleet_tok_s or 0.0 for result in found]) or 0.0
    answered = sum((result.answers - result.lost) * ANSWER_TOKENS for result in found)
    canary = sum(result.canary_tokens for result in found)
    return (
        f"| {arm} | {rate:.0f} | {f'{100 * rate / best:.0f} %' if best else '-'} "
        f"| {100 * (mean([result.slow_share or 0.0 for result in found]) or 0.0):.1f} % "
        f"| {max(result.longest_seconds or 0.0 for result in found):.0f} "
        f"| {sum(result.lost for result in found)} | {100 * canary / max(1, canary + answered):.1f} % "
        f"| {mean([result.healthy_tok_s or 0.0 for result in found]):.1f} "
        f"| {max(result.load_after for result in found):.1f} |"
    )


def _honesty(run: Run) -> str:
    """Whether the machine kept up, from the run itself."""
    untouched = [result.healthy_tok_s for result in run.results if result.healthy_tok_s]
    harness = max(result.harness_cpu_share for result in run.results)
    proxy = max(result.busiest_proxy_cpu_share for result in run.results)
    machine = 100 * max(result.machine_cpu_share for result in run.results)
    text = f"""**Did the machine keep up?** Engine time runs {run.time_scale:g} times as fast as real time. Engines and
agents, one process, took at most {harness:.2f} of a core, the busiest proxy {proxy:.2f}, and all together at most
{machine:.0f} % of the machine."""
    if untouched:
        physics = HEALTHY_A / STEP_SECONDS
        text += f""" Untouched answers were decoded at {100 * min(untouched) / physics:.1f} % or more of the
{physics:.1f} tok/s that the emulator's physics give a stream alone; each further stream on an engine costs 0.1 ms a
step, and the rest is the machine. A collapsed answer takes {ANSWER_TOKENS * STEP_SECONDS:.0f} s: where the longest wait
is much longer, the machine was too busy for the proxies or the agents, and the row understates what they can do."""
    return text
