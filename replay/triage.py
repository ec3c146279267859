"""Which clock a cycle runs on and what it needs, from how it changed when the load was changed.

A clock: the time from collapse to collapse, counted on the right clock, is the same in all arms, while the arms were
made so that any other clock runs faster or slower in some of them. A cause: an arm without it collapses all the same,
or had the opportunity and did not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray

from detector.observation import Observation, Step
from detector.stats.clocks import Clock, ClockReading
from detector.stats.cycle_period import Period, usual_gaps
from detector.watch import WatchConfig
from replay.arms import ArmName, source_id
from replay.compare import WAITED_RUNS, waited
from replay.phases import Side, examine, gaps_of, judged

EXCLUDED = 0.001
"""A clock is excluded where equal periods in all arms would look so unequal with at most this probability."""
SUPPORTED = 0.01
"""A clock is supported where they would with at least this, and every other clock is excluded."""
BY_ACCIDENT = 0.001
"""Collapses count where false alarms alone would be so many with less than this probability."""
PERMUTATIONS = 9999
CLOCKS = {
    Clock.REQUESTS: "count (requests)",
    Clock.TOKENS: "generated tokens",
    Clock.STEPS: "verify steps",
    Clock.KV_BLOCKS: "KV blocks",
    Clock.SECONDS: "seconds",
}


class Verdict(StrEnum):
    """What the arms say of a hypothesis."""

    SUPPORTED = "supported"
    EXCLUDED = "excluded"
    NOT_TOLD_APART = "not told apart"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A hypothesis, and the numbers that speak for or against it."""

    hypothesis: str
    verdict: Verdict
    reasons: list[str]
    p_value: float | None = None
    """Of a clock: how probable such unequal periods are if they are equal."""


class ArmResult(msgspec.Struct, frozen=True, kw_only=True):
    """What an arm showed."""

    side: Side
    collapsed: dict[str, bool]
    """By recorded request: whether its answer lies in a collapse."""
    in_flight: int
    """Most requests at once."""
    cached_tokens: int | None
    """Prompt tokens that came from the cache; None: the engine does not tell."""


class Triage(msgspec.Struct, frozen=True, kw_only=True):
    """The table."""

    clock: Clock | None
    """The clock that the cycle runs on; None: undetermined."""
    reason: str
    findings: list[Finding]
    periods: dict[ArmName, dict[Clock, Period]]


def result_of(observations: Sequence[Observation], steps: Sequence[Sequence[Step]] = ()) -> ArmResult:
    """Judge the answers of an arm."""
    side = examine(observations, steps)
    order = [source_id(observations[index].request_id) for index in judged(observations)]
    cached = [one.cached_tokens for one in observations if one.cached_tokens is not None]
    return ArmResult(
        side=side,
        collapsed=dict(zip(order, side.collapsed, strict=True)),
        in_flight=max((one.in_flight or 1 for one in observations), default=1),
        cached_tokens=sum(cached) if cached else None,
    )


def triage(arms: Mapping[ArmName, ArmResult]) -> Triage:
    """Weigh the arms that were played."""
    clocks = _clocks(arms)
    clock, reason = _named(arms, clocks)
    findings = [_content(arms), *clocks.values(), _cache(arms), _concurrency(arms), _speculation(arms)]
    periods = {name: arm.side.periods for name, arm in arms.items()}
    return Triage(clock=clock, reason=reason, findings=findings, periods=periods)


# ---- clocks ----------------------------------------------------------------------------------------------------------


def _clocks(arms: Mapping[ArmName, ArmResult]) -> dict[Clock, Finding]:
    sides = [arm.side for arm in comparable(arms).values()]
    p_values = {clock: _same_cycle(sides, clock) for clock in Clock}
    found = {}
    for clock, name in CLOCKS.items():
        p_value = p_values[clock]
        others = [p_values[other] for other in Clock if other is not clock and not _is_tokens(clock, other)]
        alone = all(other is not None and other < EXCLUDED for other in others)
        verdict = Verdict.NOT_TOLD_APART
        if p_value is not None and p_value < EXCLUDED:
            verdict = Verdict.EXCLUDED
        elif p_value is not None and p_value >= SUPPORTED and alone:
            verdict = Verdict.SUPPORTED
        found[clock] = Finding(hypothesis=name, verdict=verdict, reasons=[_periods(arms, clock)], p_value=p_value)
    return found


def _is_tokens(clock: Clock, other: Clock) -> bool:
    """KV blocks are filled by generated tokens above all: whoever names tokens need not exclude them."""
    return clock is Clock.TOKENS and other is Clock.KV_BLOCKS


def comparable(arms: Mapping[ArmName, ArmResult]) -> dict[ArmName, ArmResult]:
    """Arms of one client: with several, the engine's steps are fewer than those of its streams."""
    return {name: arm for name, arm in arms.items() if arm.in_flight == 1 and name is not ArmName.SPECULATION_OFF}


def _same_cycle(sides: Sequence[Side], clock: Clock) -> float | None:
    """Probability of periods, or of healthy stretches, so different, if both are the same in all arms (Bonferroni).

    Stretches tell more where only healthy answers run differently, as with a lower K; periods are known more exactly.
    """
    found = [
        same_length([gaps_of(side.runs) for side in sides], clock),
        same_length([_healthy_lengths(side) for side in sides], clock),
    ]
    known = [p_value for p_value in found if p_value is not None]
    return min(1.0, len(known) * min(known)) if known else None


def _healthy_lengths(side: Side) -> list[ClockReading]:
    """Of each complete healthy run, as it would have been without the collapse in its last cell."""
    return [
        ClockReading(**{clock.value: ends[-1] for clock in Clock if (ends := run.ends(clock)) is not None})
        for run, degraded in side.runs
        if not degraded
    ]


def same_length(arms: Sequence[Sequence[ClockReading]], clock: Clock) -> float | None:
    """Probability of lengths that differ so much between arms, if they have one law on this clock.

    A permutation test (Fisher 1935) of the sum of squares between the arms' mean logarithms: the lengths are dealt out
    to the arms anew. Exact where they have one law in all arms. None: fewer than two arms have two of them.
    """
    logs = []
    for its in arms:
        lengths = [length for one in usual_gaps(its, clock) if (length := one.on(clock)) is not None]
        if len(lengths) > 1:
            logs.append(np.log(lengths))
    if len(logs) < 2:
        return None
    pooled = np.concatenate(logs)
    pooled = pooled - pooled.mean()
    counts = np.array([len(its) for its in logs])
    drawn = np.random.default_rng(0).permuted(np.tile(pooled, (PERMUTATIONS, 1)), axis=1)
    seen = _between(pooled[None, :], counts)[0]
    return float((1 + (_between(drawn, counts) >= seen * (1 - 1e-9)).sum()) / (PERMUTATIONS + 1))


def _between(rows: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of squares between the groups of each row: so many columns in each group, one group after the other."""
    begins = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = np.add.reduceat(rows, begins, axis=1)
    return np.asarray((sums**2 / counts).sum(axis=1), dtype=np.float64)


def _periods(arms: Mapping[ArmName, ArmResult], clock: Clock) -> str:
    parts = []
    for name in comparable(arms):
        period = arms[name].side.periods.get(clock)
        if period is not None:
            parts.append(f"{name} {period.estimate:.4g} ({period.low:.4g}-{period.high:.4g})")
    return "period: " + (", ".join(parts) or "in no arm two in a row")


def _named(arms: Mapping[ArmName, ArmResult], clocks: Mapping[Clock, Finding]) -> tuple[Clock | None, str]:
    supported = [clock for clock, finding in clocks.items() if finding.verdict is Verdict.SUPPORTED]
    left = [finding.hypothesis for finding in clocks.values() if finding.verdict is Verdict.NOT_TOLD_APART]
    if len(supported) == 1:
        beside = f"; {', '.join(left)} not told apart from it" if left else ""
        return supported[0], f"its period is the same in all arms, that of no other clock is{beside}"
    if not any(collapses(arm) for arm in arms.values()):
        return None, "no arm collapsed more often than by false alarms: there is nothing to tell apart"
    if not left:
        return None, "on no clock is the period the same in all arms: something else drives it, or chance"
    return None, f"not told apart: {', '.join(left)}"


# ---- causes ----------------------------------------------------------------------------------------------------------


def collapses(arm: ArmResult) -> bool:
    """Whether the arm collapsed more often than false alarms would (Poisson, at the detector's rate)."""
    expected = arm.side.requests / WatchConfig().mean_requests_between_false_alarms
    fewer = sum(math.exp(-expected) * expected**k / math.factorial(k) for k in range(arm.side.onsets))
    return arm.side.onsets > 0 and 1 - fewer < BY_ACCIDENT


def _needed(
    arms: Mapping[ArmName, ArmResult], name: ArmName, without: str, reference: ArmResult | None
) -> tuple[Verdict, str]:
    """Whether the cycle needs what this arm leaves out; ``reference`` leaves out nothing else than this arm does."""
    arm = arms.get(name)
    if arm is None:
        return Verdict.NOT_TOLD_APART, f"{name}: not played"
    said = f"{name}: {arm.side.onsets} collapses in {arm.side.requests} requests {without}"
    if collapses(arm):
        return Verdict.EXCLUDED, said
    if reference is None or not collapses(reference):
        return Verdict.NOT_TOLD_APART, f"{said}; with it, as many clients did not collapse either"
    stretches = waited(reference.side, arm.side)
    said += f", {stretches:.1f} of the longest healthy stretches before (3 are needed)"
    absent = arm.side.onsets == 0 and stretches >= WAITED_RUNS
    return Verdict.SUPPORTED if absent else Verdict.NOT_TOLD_APART, said


def _alone(arms: Mapping[ArmName, ArmResult]) -> ArmResult | None:
    """The recording as played by one client: what the other arms of one client are held against."""
    as_is = arms.get(ArmName.AS_IS)
    return arms.get(ArmName.ONE_CLIENT, as_is if as_is is not None and as_is.in_flight == 1 else None)


def _content(arms: Mapping[ArmName, ArmResult]) -> Finding:
    verdict, said = _needed(arms, ArmName.ONE_PROMPT, "of one prompt", _alone(arms))
    reasons = [said]
    p_value = _follows_request(arms)
    if p_value is not None:
        reasons.append(f"{ArmName.SHUFFLED}: the same requests are slow in another order, p = {p_value:.2g}")
        if p_value < BY_ACCIDENT:
            verdict = Verdict.NOT_TOLD_APART if verdict is Verdict.EXCLUDED else Verdict.SUPPORTED
    return Finding(hypothesis="content", verdict=verdict, reasons=reasons)


def _follows_request(arms: Mapping[ArmName, ArmResult]) -> float | None:
    """Probability that so many requests are slow in both orders, if order alone decides; None: not known.

    Orders were drawn at random, so under that hypothesis all pairings are as likely (a permutation test).
    """
    shuffled, before = arms.get(ArmName.SHUFFLED), _alone(arms)
    if shuffled is None or before is None:
        return None
    common = [name for name in before.collapsed if name in shuffled.collapsed]
    first = np.array([before.collapsed[name] for name in common], dtype=np.float64)
    second = np.array([shuffled.collapsed[name] for name in common], dtype=np.float64)
    if not 0 < first.sum() < len(common) or not 0 < second.sum() < len(common):
        return None
    drawn = np.random.default_rng(0).permuted(np.tile(second, (PERMUTATIONS, 1)), axis=1)
    return float((1 + (drawn @ first >= second @ first).sum()) / (PERMUTATIONS + 1))


def _cache(arms: Mapping[ArmName, ArmResult]) -> Finding:
    alone = _alone(arms)
    if alone is not None and collapses(alone) and alone.cached_tokens == 0:
        said = "it collapsed while no prompt token came from the cache"
        return Finding(hypothesis="prefix cache", verdict=Verdict.EXCLUDED, reasons=[said])
    verdict, said = _needed(arms, ArmName.SALTED, "that find no prefix", alone)
    return Finding(hypothesis="prefix cache", verdict=verdict, reasons=[said])


def _concurrency(arms: Mapping[ArmName, ArmResult]) -> Finding:
    as_is = arms.get(ArmName.AS_IS)
    name = ArmName.AS_IS if as_is is not None and as_is.in_flight == 1 else ArmName.ONE_CLIENT
    verdict, said = _needed(arms, name, "one at a time", as_is)
    return Finding(hypothesis="concurrency", verdict=verdict, reasons=[said])


def _speculation(arms: Mapping[ArmName, ArmResult]) -> Finding:
    verdict, said = _needed(arms, ArmName.SPECULATION_OFF, "without speculation", _alone(arms))
    reasons = [said]
    if ArmName.LOWER_K in arms:
        lower, also = _needed(arms, ArmName.LOWER_K, "with a lower K", _alone(arms))
        reasons.append(also)
        # A cycle that a lower K keeps says nothing: it may still need a drafter.
        if lower is Verdict.SUPPORTED and verdict is Verdict.NOT_TOLD_APART:
            verdict = lower
    return Finding(hypothesis="speculation", verdict=verdict, reasons=reasons)
