"""The step test with the floor that the watch itself learns: false alarms and delay, on content that wanders.

usage: python -m tests.bench.detect.floor_bench [--steps N] [--collapses N]

Prints the table of docs/detection-stream.md: a watch gets every step and every ended answer.
"""

from __future__ import annotations

import argparse

import numpy as np

from detector.observation import Observation, Quality, RequestFacts, Source, Step
from detector.watch import Watch
from tests.bench.detect import ours
from tests.bench.detect.stream_content import Content, answers, collapsing

STEP_SECONDS = 0.02
SEEDS = (1, 2)
HEALTHY_STEPS, COLLAPSED_STEPS, COLLAPSED_ACCEPTED = 100, 3000, 0.4
MIXES: dict[str, dict[float, float]] = {
    "code 40 %, chat 30 %, prose 20 %, tools 10 %": {4.2: 0.4, 3.2: 0.3, 2.2: 0.2, 5.0: 0.1},
    "code and chat, half each": {4.2: 0.5, 3.2: 0.5},
    "code 45 %, chat 30 %, tools 15 %, 1.5 accepted 10 %": {4.2: 0.45, 3.2: 0.3, 5.0: 0.15, 1.5: 0.1},
    "prose alone": {2.2: 1.0},
    "1.5 accepted alone": {1.5: 1.0},
}
"""Shares of contents, by their mean accepted tokens of 8."""


def observation(number: int, tokens: list[int], began: float, depth: int) -> Observation:
    """An ended answer whose events had these tokens, the prefill's first."""
    steps, generated = len(tokens) - 1, sum(tokens) - 1
    return Observation(
        request_id=f"r{number}",
        backend="bench",
        facts=RequestFacts(route="chat", stream=True),
        started_unix=began,
        started=began,
        ended=began + steps * STEP_SECONDS,
        status=200,
        completion_tokens=generated + 1,
        decode_seconds=steps * STEP_SECONDS,
        verify_steps=steps,
        acceptance_length=generated / steps,
        acceptance_source=Source.CADENCE,
        acceptance_quality=Quality.TRIMMED,
        num_speculative_tokens=depth,
        step_seconds=STEP_SECONDS,
        decode_tokens_per_second=generated / steps / STEP_SECONDS,
        rate_source=Source.CADENCE,
    )


def drawn(mix: dict[float, float], rng: np.random.Generator) -> Content:
    """Content of the next answer."""
    return Content(float(rng.choice(list(mix), p=list(mix.values()))))


def alarms(watch: Watch, mix: dict[float, float], steps: int, rng: np.random.Generator) -> int:
    """False alarms of the step test while the watch takes so many healthy steps in."""
    count, now, number = 0, 0.0, 0
    while steps > 0:
        content = drawn(mix, rng)
        tokens = next(answers(content, 4000, 400.0, rng))
        began = now
        for each in tokens:
            was_degraded = watch.verdict.degraded
            now += STEP_SECONDS
            alarmed = watch.update_step(f"r{number}", Step(now, each)) is not None
            count += alarmed and not was_degraded
        if len(tokens) > 1:
            watch.update(observation(number, tokens, began, content.depth))
        steps -= len(tokens) - 1
        number += 1
    return count


def delay(snapshot: bytes, mix: dict[float, float], rng: np.random.Generator) -> int | None:
    """Steps from a collapse inside an answer to the alarm; None: not seen."""
    watch = Watch(ours.config())
    watch.restore(snapshot)
    accepted = collapsing(drawn(mix, rng), HEALTHY_STEPS, COLLAPSED_STEPS, COLLAPSED_ACCEPTED, rng)
    watch.update_step("collapsing", Step(0.0, 1))
    for number, each in enumerate(accepted.tolist()):
        if watch.update_step("collapsing", Step(0.0, each + 1)) is not None and number >= HEALTHY_STEPS:
            return number - HEALTHY_STEPS + 1
    return None


def main() -> None:
    """Print a line of the table for each mix."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200_000, help="healthy steps of each seed")
    parser.add_argument("--collapses", type=int, default=100, help="of each seed")
    arguments = parser.parse_args()
    for name, mix in MIXES.items():
        false, delays = 0, []
        for seed in SEEDS:
            rng, watch = np.random.default_rng(seed), Watch(ours.config())
            false += alarms(watch, mix, arguments.steps, rng)
            snapshot = watch.snapshot()
            delays += [delay(snapshot, mix, rng) for _ in range(arguments.collapses)]
        seen = [steps for steps in delays if steps is not None]
        missed = f" ({1 - len(seen) / len(delays):.0%} missed)" if len(seen) < len(delays) else ""
        print(f"| {name} | {false} | {np.mean(seen):.0f}{missed} |", flush=True)


if __name__ == "__main__":
    main()
