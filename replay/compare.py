"""Does one recording show the cycle of another? Four answers, each with what it rests on (``replay.evidence``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from detector.stats.clocks import Clock
from replay.evidence import chance_evidence, cyclic_evidence, duration_evidence
from replay.phases import Side

CYCLIC = 20.0
"""E-value from which on B counts as cyclic: where its collapses come by chance, at most once in so many."""
BY_CHANCE = 5.0
"""The same for the opposite: that B's collapses do not follow A's cycle."""
OTHER_DURATIONS = 20.0
"""The same for collapses that last otherwise than A's: then it is no reproduction, whatever the healthy runs are."""
WAITED_RUNS = 3.0
"""So many of A's longest healthy stretches without a collapse, on every clock, are enough to say there is none."""
USUAL_NATS = 0.8
"""Evidence of one cycle that is typical, for the number of requests that are still missing."""


class Outcome(StrEnum):
    """What a comparison says of B."""

    REPRODUCED = "REPRODUCED"
    """B collapses in a cycle that can be A's."""
    SLOW_NOT_CYCLIC = "SLOW_NOT_CYCLIC"
    """B is slow, all along or now and then, but not in a cycle."""
    NOT_REPRODUCED = "NOT_REPRODUCED"
    """B had the opportunity to collapse and did not."""
    INCONCLUSIVE = "INCONCLUSIVE"


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The finding."""

    verdict: Outcome
    reasons: list[str]
    e_value: float
    """Evidence that B is cyclic, A's cycle taken into account."""
    chance_e_value: float
    """Evidence that B's collapses do not follow A's cycle."""
    more_requests: int | None
    """About how many more requests B needs to be decided; None: it is, or more would not help."""
    a: Side
    b: Side


def compare(a: Side, b: Side, *, faults: Sequence[str] = ()) -> Comparison:
    """Compare; ``faults`` say why B cannot be believed, as the replay itself noted."""
    e_value, chance = cyclic_evidence(a, b), chance_evidence(a, b)
    verdict, reasons, more = _decide(a, b, e_value, chance, faults)
    return Comparison(
        verdict=verdict, reasons=reasons, e_value=e_value, chance_e_value=chance, more_requests=more, a=a, b=b
    )


_Decision = tuple[Outcome, list[str], int | None]


def _decide(a: Side, b: Side, e_value: float, chance: float, faults: Sequence[str]) -> _Decision:
    if faults:
        return Outcome.INCONCLUSIVE, [f"B is no valid replay: {fault}" for fault in faults], None
    if not a.onsets:
        return Outcome.INCONCLUSIVE, ["A shows no collapse: there is nothing to reproduce"], None
    if not b.requests:
        return Outcome.INCONCLUSIVE, ["B holds no answer that can be judged"], None
    if not b.onsets:
        return _without_collapse(a, b)
    if e_value >= CYCLIC:
        return _with_cycle(a, b, e_value)
    if chance >= BY_CHANCE or b.cycle.verdict == "not_cyclic":
        said = f"B collapsed {b.onsets} times, and by chance rather than in A's cycle (e-value {chance:.3g})"
        return Outcome.SLOW_NOT_CYCLIC, [said], None
    if b.slow_requests == b.requests:
        return Outcome.SLOW_NOT_CYCLIC, ["B was slow from its first answer to its last"], None
    said = f"B collapsed {b.onsets} times: too few to tell a cycle from chance (e-value {e_value:.3g} of {CYCLIC:g})"
    return Outcome.INCONCLUSIVE, [said], _missing_for_cycle(a, b, e_value)


def _with_cycle(a: Side, b: Side, e_value: float) -> _Decision:
    durations = duration_evidence(a, b)
    if durations >= OTHER_DURATIONS:
        said = f"B's healthy stretches look like a cycle (e-value {e_value:.3g})"
        but = f"but its collapses last otherwise than A's (e-value {durations:.3g})"
        return Outcome.INCONCLUSIVE, [said, but], _missing_for_cycle(a, b, 1.0)
    common = [clock for clock in a.periods if clock in b.periods]
    agree = [
        clock
        for clock in common
        if a.periods[clock].low <= b.periods[clock].high and b.periods[clock].low <= a.periods[clock].high
    ]
    said = f"B collapses in a cycle (e-value {e_value:.3g})"
    if common and not agree:
        return Outcome.INCONCLUSIVE, [said, "but its period is not A's on any clock: it may be another cycle"], None
    where = f"; its period agrees with A's in {', '.join(agree)}" if agree else ""
    return Outcome.REPRODUCED, [said + where], None


def _without_collapse(a: Side, b: Side) -> _Decision:
    if _slow_all_along(a, b):
        said = f"B accepts {b.healthy.acceptance_length:.2f} tokens per step all along, like A while it was collapsed"
        return Outcome.SLOW_NOT_CYCLIC, [said], None
    stretches = waited(a, b)
    if stretches >= WAITED_RUNS:
        said = f"B ran for {stretches:.1f} of A's longest healthy stretches without a collapse"
        return Outcome.NOT_REPRODUCED, [said], None
    if stretches > 0:
        more = math.ceil(b.requests * (WAITED_RUNS / stretches - 1))
        said = f"B ran for only {stretches:.1f} of A's longest healthy stretches, {WAITED_RUNS:g} are needed"
        return Outcome.INCONCLUSIVE, [said], max(1, more)
    return Outcome.INCONCLUSIVE, ["A was never seen healthy: how long to wait for a collapse is not known"], None


def _slow_all_along(a: Side, b: Side) -> bool:
    """B's one level of acceptance is nearer to A's collapsed one."""
    healthy, slow, here = a.healthy.acceptance_length, a.slow.acceptance_length, b.healthy.acceptance_length
    if healthy is None or slow is None or here is None or slow >= healthy:
        return False
    return here < math.sqrt(healthy * slow)


def waited(a: Side, b: Side) -> float:
    """Length of B in A's longest healthy stretches, on the clock on which it is least."""
    if a.longest_healthy is None or b.whole is None:
        return 0.0
    shares = []
    for clock in Clock:
        usual, here = a.longest_healthy.actual.on(clock), b.whole.actual.on(clock)
        if usual and here is not None:
            shares.append(here / usual)
    return min(shares, default=0.0)


def _missing_for_cycle(a: Side, b: Side, e_value: float) -> int:
    runs = sum(1 for _, degraded in b.runs if not degraded)
    per_run = max(USUAL_NATS / 2, math.log(max(e_value, 1e-9)) / runs) if runs else USUAL_NATS
    missing = max(1, math.ceil((math.log(CYCLIC) - max(0.0, math.log(max(e_value, 1e-9)))) / per_run))
    side = b if b.onsets > 1 else a
    return math.ceil(missing * side.requests / max(1, side.onsets))
