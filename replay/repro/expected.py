"""What a packed session is expected to show, from the recorded answers, by the packed program's own rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from detector.observation import Observation, Source
from detector.verdict import Cause
from replay.recorded import Exchange
from replay.repro import script

MAX_ROUNDS = 2.0
"""A server that is faster or slower than the recorded one needs more of some clock to be let off."""
ACCEPTANCE, STEP_TIME = "acceptance_length", "step_seconds"
_FACTORS = {
    Cause.ACCEPTANCE_COLLAPSE: ACCEPTANCE,
    Cause.SPECULATION_OFF: ACCEPTANCE,
    Cause.STEP_INFLATION: STEP_TIME,
}
_SETTLED_ROUNDS = 50
_BURST_SHARE = 0.5
"""Events that span less of the decode time came at once."""
_SHORTEST_SECONDS = 1e-6
"""Times of events are kept to a microsecond."""


class NothingExpected(ValueError):
    """The recording shows no collapse that could be looked for: one line."""


def expected_of(exchanges: Sequence[Exchange], cause: Cause = Cause.UNKNOWN) -> dict[str, Any]:
    """Figures of either phase, healthy stretches, and how often the sequence has to be sent.

    cause: of the collapse; it says which factor of tok/s = A / step time collapsed. Raises NothingExpected.
    """
    parts = [part for one in exchanges for part in segments_of(one)]
    if not parts:
        raise NothingExpected("no answer's events are known with their tokens: record it with `replay run`")
    factor = _FACTORS.get(cause) or _likely_factor(parts)
    parts, slow = script.in_order(parts, _slow(parts, factor))
    runs = script.stretches(parts, slow)
    healthy = [lengths for is_slow, lengths in runs if not is_slow]
    complete = [lengths for is_slow, lengths in runs[:-1] if not is_slow]
    if not complete:
        raise NothingExpected("no healthy stretch in it ends in a slow one of 64 verify steps: pack a longer session")
    healthy_figures, slow_figures = (
        script.figures([part for part, its in zip(parts, slow, strict=True) if its is which]) for which in (False, True)
    )
    if not healthy_figures["tok_s"] or not slow_figures["tok_s"]:
        raise NothingExpected("its events came all at once: record it on a machine that is less busy")
    longest = {clock: max(lengths[clock] for lengths in healthy) for clock in script.CLOCKS}
    whole = sum(lengths["requests"] for _, lengths in runs)
    rounds = math.ceil(MAX_ROUNDS * script.WAITED_STRETCHES * longest["requests"] / whole)
    return {
        "healthy": _rounded(healthy_figures),
        "slow": _rounded(slow_figures),
        "factor": factor,
        "collapses": len(complete),
        "healthy_stretches": [_rounded(lengths) for lengths in complete],
        "longest_healthy": _rounded(longest),
        "rounds": rounds,
    }


def segments_of(exchange: Exchange) -> list[dict[str, float]]:
    """An answer's segments; none where the tokens of an event are not known.

    Where a busy machine took in the events of an answer at once, the engine's own decode time is spread over them.
    """
    answer, steps = exchange.observation, exchange.steps
    if answer is None or len(steps) < 2 or any(step.tokens is None for step in steps):
        return []
    times, counts = [step.at for step in steps], [float(step.tokens or 0) for step in steps]
    seconds = _engine_seconds(answer, sum(counts[1:]))
    if times[-1] - times[0] < _BURST_SHARE * seconds:
        begin = answer.started + (answer.ttft_seconds or 0.0)
        times = [begin + seconds * index / (len(times) - 1) for index in range(len(times))]
    return script.segments(answer.started, list(zip(times, counts, strict=True)))


def _engine_seconds(answer: Observation, tokens: float) -> float:
    """Decode time by the engine's own account; 0 where it gave none."""
    rate = answer.decode_tokens_per_second
    return tokens / rate if rate and answer.rate_source is Source.ENGINE else 0.0


def _slow(parts: Sequence[dict[str, float]], factor: str) -> list[bool]:
    """Which segments are slow by one factor: 2-means of its logarithms."""
    if factor == ACCEPTANCE:
        speeds = [math.log(max(part["decoded"], 1) / part["steps"]) for part in parts]
    else:
        speeds = [math.log(part["steps"] / max(part["seconds"], _SHORTEST_SECONDS)) for part in parts]
    low, high = min(speeds), max(speeds)
    for _ in range(_SETTLED_ROUNDS):
        middle = (low + high) / 2
        sides = [[speed for speed in speeds if speed < middle], [speed for speed in speeds if speed >= middle]]
        if not all(sides) or (fmean(sides[0]), fmean(sides[1])) == (low, high):
            break
        low, high = fmean(sides[0]), fmean(sides[1])
    return [speed < (low + high) / 2 for speed in speeds]


def _likely_factor(parts: Sequence[dict[str, float]]) -> str:
    """The one by which tok/s falls more; A in doubt, since any busy machine has some steps that take long."""
    falls = {factor: _fall(parts, _slow(parts, factor)) for factor in (ACCEPTANCE, STEP_TIME)}
    return ACCEPTANCE if falls[ACCEPTANCE] >= falls[STEP_TIME] / 2 else STEP_TIME


def _fall(parts: Sequence[dict[str, float]], slow: Sequence[bool]) -> float:
    """By how much tok/s falls from one side to the other, in logarithms; 0 without one of them."""
    rates = [
        script.figures([part for part, its in zip(parts, slow, strict=True) if its is which])["tok_s"]
        for which in (False, True)
    ]
    return math.log(rates[0] / rates[1]) if rates[0] and rates[1] else 0.0


def _rounded(values: dict[str, Any]) -> dict[str, float | None]:
    return {name: None if value is None else float(f"{value:.6g}") for name, value in values.items()}
