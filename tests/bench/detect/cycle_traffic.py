"""Backends with and without a cycle, as runs: what the certificate is fed after a memoryless rule decoded the phases.

A law says how long a healthy run lasts, on one clock; a workload says what each answer adds to the clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from detector.stats.clocks import Advance, Clock, ClockReading
from detector.stats.runs import Run, RunRecorder

HEALTHY_STEP_SECONDS, HEALTHY_LENGTH, DEAD_LENGTH, OVERHEAD = 4.5 / 221, 4.5, 1.4, 1.14
MEAN_ANSWER = {Clock.REQUESTS: 1.0, Clock.TOKENS: 600.0, Clock.STEPS: 600 / 4.5, Clock.SECONDS: 3.0}
"""A mean healthy answer of the mixed workload, in units of each clock (seconds: its idle gap of 0.3 s included)."""
MEAN_FIXED_ANSWER = {
    Clock.REQUESTS: 1.0,
    Clock.TOKENS: 2000.0,
    Clock.STEPS: 2000 / 4.5,
    Clock.SECONDS: 2000 / 221 + 0.3,
}
"""The same for the other workloads."""
Generator = np.random.Generator
Law = Callable[[Generator, list[float]], float]
"""Draws the length of the next run in mean answers, given the lengths so far."""


@dataclass
class Traffic:
    """One kind of backend and client."""

    law: Law
    clock: Clock = Clock.REQUESTS
    workload: str = "fixed"
    """fixed: one prompt, 2000 tokens, as published; mixed: log-normal with mean 600; batches: 5 short answers, then 4
    long ones, and so on."""
    degraded: Law = field(default_factory=lambda: pick({3: 0.15, 4: 0.7, 5: 0.15}))
    idle_seconds: float = 0.3
    """Mean pause of the client before an answer."""
    nights: float = 0.0
    """Share of pauses that last 100 times as long."""
    missed: float = 0.0
    """Share of collapses that the decoder missed: two runs are read as one."""
    wobble: float = 0.0
    """Share of onsets that were decoded one request early or late."""


def pick(weights: Mapping[int, float]) -> Law:
    """A law on a few values."""
    values, shares = list(weights), list(weights.values())
    return lambda rng, _: float(rng.choice(values, p=shares))


def normal(mean: float, deviation: float, least: float = 1.0) -> Law:
    """Whole numbers around a mean."""
    return lambda rng, _: float(max(least, round(rng.normal(mean, deviation))))


def geometric(mean: float) -> Law:
    """No memory, in requests."""
    return lambda rng, _: float(rng.geometric(1 / mean))


def exponential(mean: float) -> Law:
    """No memory, on a continuous clock."""
    return lambda rng, _: float(rng.exponential(mean))


def decreasing_hazard(rng: Generator, _: list[float]) -> float:
    """The longer it has run, the less likely it collapses: each run has a rate of its own."""
    return float(rng.geometric(np.clip(rng.gamma(0.5, 0.4), 0.005, 1.0)))


def clustered(rng: Generator, _: list[float]) -> float:
    """Collapses in flurries."""
    return float(rng.geometric(1 / 2) if rng.random() < 0.7 else rng.geometric(1 / 30))


def after_the_last(rng: Generator, past: list[float]) -> float:
    """The mean follows the last runs."""
    recent = float(np.mean(past[-3:])) if past else 6.0
    return float(rng.geometric(1 / np.clip(0.3 + recent, 1.2, 30)))


PUBLISHED = {5: 0.2, 6: 0.6, 7: 0.2}
NULLS: dict[str, Traffic] = {
    "geometric, mean 6": Traffic(geometric(6)),
    "geometric, mean 40": Traffic(geometric(40)),
    "uniform 1..12 (boundary of the null)": Traffic(lambda rng, _: float(rng.integers(1, 13))),
    "clustered": Traffic(clustered),
    "decreasing hazard": Traffic(decreasing_hazard),
    "history-dependent": Traffic(after_the_last),
    "geometric onsets, collapses of fixed length": Traffic(geometric(6), degraded=pick({4: 1.0})),
    "geometric, decoder misses and wobbles": Traffic(geometric(12), missed=0.1, wobble=0.2),
    "geometric, mean 6, decoder blind for one answer (not covered)": Traffic(lambda rng, _: 1.0 + rng.geometric(1 / 6)),
    "geometric, mixed lengths": Traffic(geometric(6), workload="mixed"),
    "geometric, client works in batches": Traffic(geometric(6), workload="batches"),
    "chance per token, mixed lengths": Traffic(exponential(6), Clock.TOKENS, "mixed"),
    "chance per token, client works in batches": Traffic(exponential(6), Clock.TOKENS, "batches"),
    "chance per second, mixed lengths, nights": Traffic(exponential(6), Clock.SECONDS, "mixed", nights=0.02),
    "chance per step, client works in batches": Traffic(exponential(6), Clock.STEPS, "batches"),
}
CYCLES: dict[str, Traffic] = {
    "published jitter {5:.2, 6:.6, 7:.2}": Traffic(pick(PUBLISHED)),
    "published, mixed lengths": Traffic(pick(PUBLISHED), workload="mixed"),
    "published, decoder misses and wobbles": Traffic(pick(PUBLISHED), missed=0.02, wobble=0.1),
    "always 6": Traffic(pick({6: 1.0})),
    "always 10": Traffic(pick({10: 1.0})),
    "wide {4:.1, 5:.2, 6:.4, 7:.2, 8:.1}": Traffic(pick({4: 0.1, 5: 0.2, 6: 0.4, 7: 0.2, 8: 0.1})),
    "12, sd 33 %": Traffic(normal(12, 4)),
    "40, sd 10 %": Traffic(normal(40, 4)),
    "3, always": Traffic(pick({3: 1.0})),
    "tokens, mixed lengths, +-10 %": Traffic(lambda rng, _: 10 * rng.normal(1, 0.1), Clock.TOKENS, "mixed"),
    "steps, mixed lengths, +-10 %": Traffic(lambda rng, _: 10 * rng.normal(1, 0.1), Clock.STEPS, "mixed"),
    "seconds, mixed lengths, +-10 %": Traffic(
        lambda rng, _: 10 * rng.normal(1, 0.1), Clock.SECONDS, "mixed", idle_seconds=1.5
    ),
    "tokens, all answers alike": Traffic(lambda rng, _: 10 * rng.normal(1, 0.1), Clock.TOKENS),
}
PMFS: dict[str, dict[int, float]] = {
    "published jitter {5:.2, 6:.6, 7:.2}": PUBLISHED,
    "published, mixed lengths": PUBLISHED,
    "always 6": {6: 1.0},
    "always 10": {10: 1.0},
    "wide {4:.1, 5:.2, 6:.4, 7:.2, 8:.1}": {4: 0.1, 5: 0.2, 6: 0.4, 7: 0.2, 8: 0.1},
}
"""Laws in requests that an oracle may know."""


def runs(traffic: Traffic, rng: Generator) -> Iterator[tuple[Run, bool]]:
    """Runs in the order in which they end, with True for degraded ones; without end."""
    recorder = RunRecorder()
    past: list[float] = []
    request, kind = 0, 0
    degraded, left, fresh = False, 0.0, True
    while True:
        tokens = _tokens(traffic.workload, kind, rng)
        kind += 1
        advance, at = _answer(traffic, tokens, degraded, rng)
        if fresh:
            left = traffic.degraded(rng, past) if degraded else _healthy_length(traffic, rng, past)
            fresh = False
            recorder.cells, recorder.whole = [], True
            continue
        request += 1
        recorder.add(request, advance)
        left -= 1.0 if degraded else at
        if left <= 1e-9:
            run = recorder.turn(request)
            assert run is not None
            if not degraded:
                past.append(float(len(run.cells)))
            yield run, degraded
            degraded, fresh = not degraded, True


def _healthy_length(traffic: Traffic, rng: Generator, past: list[float]) -> float:
    mean = (MEAN_ANSWER if traffic.workload == "mixed" else MEAN_FIXED_ANSWER)[traffic.clock]
    length = traffic.law(rng, past)
    while rng.random() < traffic.missed:
        length += traffic.law(rng, past)
    if rng.random() < traffic.wobble:
        length = max(1.0, length + rng.choice([-1, 1]))
    return max(1e-6, length) * mean


def _tokens(workload: str, number: int, rng: Generator) -> float:
    if workload == "fixed":
        return 2000.0
    if workload == "batches":
        return 400.0 if number % 9 < 5 else 4000.0
    return float(np.clip(rng.lognormal(np.log(400), 0.9), 16, 8000))


def _answer(traffic: Traffic, tokens: float, degraded: bool, rng: Generator) -> tuple[Advance, float]:
    """What an answer adds to the clocks, and how much of a healthy run it uses up."""
    idle = float(rng.exponential(traffic.idle_seconds)) * (100.0 if rng.random() < traffic.nights else 1.0)
    content = 0.05 if traffic.workload == "fixed" else 0.2
    steps = tokens / float((DEAD_LENGTH if degraded else HEALTHY_LENGTH) * np.exp(rng.normal(0, content)))
    busy = steps * HEALTHY_STEP_SECONDS * (OVERHEAD if degraded else 1.0) * float(rng.normal(1, 0.02))
    prompt = float(rng.lognormal(7, 0.5)) if traffic.workload != "fixed" else 40.0
    clocks = ClockReading(
        requests=1.0, tokens=tokens, steps=steps, kv_blocks=(prompt + tokens) / 16, seconds=idle + busy
    )
    used = clocks.on(traffic.clock)
    assert used is not None
    return Advance(clocks=clocks, idle_seconds=idle), used
