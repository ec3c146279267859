"""What a packed session is expected to show, from the recorded answers, by the packed program's own rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from replay.recorded import Exchange
from replay.repro import script

MAX_ROUNDS = 2.0
"""A server that is faster or slower than the recorded one needs more of some clock to be let off."""
_SETTLED_ROUNDS = 50


class NothingExpected(ValueError):
    """The recording shows no collapse that could be looked for: one line."""


def expected_of(exchanges: Sequence[Exchange]) -> dict[str, Any]:
    """Figures of either phase, healthy stretches, and how often the sequence has to be sent.

    Which factor collapsed: the one that accounts for more of the fall of tok/s = A / step time. Raises NothingExpected.
    """
    parts = [part for one in exchanges for part in segments_of(one)]
    if not parts:
        raise NothingExpected("no answer's events are known with their tokens: record it with `replay run`")
    parts, slow = script.in_order(parts, _slow(parts))
    if True not in slow or slow[0]:
        where = "is slow from its first step on" if slow and slow[0] else "shows no slow phase of 64 verify steps"
        raise NothingExpected(f"it {where}: pack a session with a healthy beginning and a longer collapse")
    healthy_figures, slow_figures = (
        script.figures([part for part, its in zip(parts, slow, strict=True) if its is which]) for which in (False, True)
    )
    runs = script.stretches(parts, slow)
    healthy = [lengths for is_slow, lengths in runs if not is_slow]
    complete = [lengths for lengths, _ in zip(healthy, [one for one in runs if one[0]], strict=False)]
    longest = {clock: max(lengths[clock] for lengths in healthy) for clock in script.CLOCKS}
    whole = sum(lengths["requests"] for _, lengths in runs)
    rounds = math.ceil(MAX_ROUNDS * script.WAITED_STRETCHES * longest["requests"] / whole)
    return {
        "healthy": _rounded(healthy_figures),
        "slow": _rounded(slow_figures),
        "factor": _factor(healthy_figures, slow_figures),
        "collapses": len(complete),
        "healthy_stretches": [_rounded(lengths) for lengths in complete],
        "longest_healthy": _rounded(longest),
        "rounds": rounds,
    }


def segments_of(exchange: Exchange) -> list[dict[str, float]]:
    """An answer's segments; none where the tokens of an event are not known."""
    steps = exchange.steps
    if exchange.observation is None or any(step.tokens is None for step in steps):
        return []
    return script.segments(exchange.observation.started, [(step.at, float(step.tokens or 0)) for step in steps])


def _slow(parts: Sequence[dict[str, float]]) -> list[bool]:
    """2-means of the logarithms of tok/s: a segment belongs to the side whose mean is nearer."""
    rates = [math.log(max(part["decoded"], 1) / part["seconds"]) for part in parts]
    low, high = min(rates), max(rates)
    for _ in range(_SETTLED_ROUNDS):
        middle = (low + high) / 2
        sides = [[rate for rate in rates if rate < middle], [rate for rate in rates if rate >= middle]]
        if not all(sides) or (fmean(sides[0]), fmean(sides[1])) == (low, high):
            break
        low, high = fmean(sides[0]), fmean(sides[1])
    return [rate < (low + high) / 2 for rate in rates]


def _factor(healthy: dict[str, float | None], slow: dict[str, float | None]) -> str:
    def nats(name: str) -> float:
        return abs(math.log((slow[name] or 1.0) / (healthy[name] or 1.0)))

    return max(("acceptance_length", "step_seconds"), key=nats)


def _rounded(values: dict[str, Any]) -> dict[str, float | None]:
    return {name: None if value is None else float(f"{value:.6g}") for name, value in values.items()}
