"""Which ``num_speculative_tokens`` pays, from what was measured: the table behind ``specbreaker tune``.

The cost model (``nspec``) compares the K whose step time was measured or lies between two that were. Beyond them a step
time is assumed, in a wide range, and marked: such a K is never advised to be set, only to be measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec

from detector.levels import MeasuredLevel, PositionSource, pooled_acceptance
from detector.nspec import (
    INTERPOLATION_ERROR,
    TIE,
    Acceptance,
    Estimate,
    LevelCost,
    LevelRate,
    Recommendation,
    break_even_acceptance_length,
    estimate_acceptance_length,
    level_rate,
    recommend,
)

Basis = Literal["measured", "interpolated", "assumed"]

DEFAULT_LADDER: Final = (0, 1, 2, 3, 4, 6, 8, 10, 12, 15)
PARALLEL_METHODS: Final = ("dflash",)
"""Methods that draft all positions in one pass, so that one more costs little."""
PARALLEL_GROWTH: Final = (0.015, 0.035)
"""What one more draft token adds to ln T: a middle and an upper value. An H200 showed 0.005 (K=8 to 15); the published
DFlash sweeps of a 5090M (K=8 to 20) and of two 3090s (K=7 to 15) give 0.018 to 0.034 with the A of equal positions."""
AUTOREGRESSIVE_GROWTH: Final = (0.1, 0.23)
"""The same where each position is a pass of the drafter: 0.07 to 0.23 in the four published sweeps of MTP and EAGLE."""


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table: what a K gives, and how far that is known."""

    num_speculative_tokens: int
    basis: Basis
    """Of the step time."""
    acceptance_length: Estimate
    step_seconds: Estimate
    tokens_per_second: Estimate
    """A / T by the model."""
    measured_tokens_per_second: Estimate | None = None
    measured_answers: int = 0
    extrapolated_positions: int = 0
    """Draft positions beyond the measured ones, taken to be accepted like the last measured one."""
    break_even_acceptance_length: float | None = None
    """Below this A, this K is slower than no speculation. None: T(0) was not measured."""


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """The table and what follows from it."""

    levels: tuple[Level, ...]
    """The smallest K first."""
    num_speculative_tokens: int | None
    """The K to set; None: it cannot be told from what was measured."""
    is_clear: bool
    """Its rate is surely above that of every other K that is measured or interpolated."""
    worth_measuring: int | None
    """An assumed K that may be better than the one to set."""
    reason: str
    conditional_acceptance: tuple[float, ...]
    """Share of accepted drafts at each position, among the steps in which all before it were accepted."""
    notes: tuple[str, ...]
    """What the figures rest on, where that is less than a count."""


def advise(measured: Sequence[MeasuredLevel], *, ladder: Iterable[int] = (), method: str = "dflash") -> Advice:
    """Compare the values of K.

    ladder: those that could be set; none: ``DEFAULT_LADDER``. The measured ones always belong to it. method: of
    drafting, as vLLM names it; it says how far a step time may grow beyond the measured ones.
    """
    costs = [cost for level in measured if (cost := level.cost) is not None]
    acceptance = pooled_acceptance(measured)
    depths = sorted({*(ladder or DEFAULT_LADDER), *(level.num_speculative_tokens for level in measured)})
    found = recommend(depths, costs, acceptance)
    known = {rate.num_speculative_tokens for rate in found.rates}
    assumed = [rate for depth in depths if depth not in known and (rate := _assumed(costs, acceptance, depth, method))]
    levels = sorted(
        [
            *(_level(rate, _basis(rate, costs), measured, costs) for rate in found.rates),
            *(_level(rate, "assumed", measured, costs) for rate in assumed),
        ],
        key=lambda level: level.num_speculative_tokens,
    )
    chosen, is_clear, reason = found.num_speculative_tokens, found.is_clear, found.reason
    if chosen is None:
        chosen, is_clear, reason = _by_rates(measured, found)
    best_known = max((rate.tokens_per_second.expected for rate in found.rates), default=0.0)
    better = [rate for rate in assumed if rate.tokens_per_second.expected > best_known * (1 + TIE)]
    best = max(better, key=lambda rate: rate.tokens_per_second.expected, default=None)
    return Advice(
        levels=tuple(levels),
        num_speculative_tokens=chosen,
        is_clear=is_clear,
        worth_measuring=None if best is None else best.num_speculative_tokens,
        reason=reason,
        conditional_acceptance=acceptance.conditional,
        notes=tuple(_notes(measured, levels)),
    )


def _by_rates(measured: Sequence[MeasuredLevel], found: Recommendation) -> tuple[int | None, bool, str]:
    """K, whether it is clear, and why, where the model cannot tell: by the measured rates of two K or more."""
    if len(measured) < 2:
        if len(found.rates) == 1:
            depth = found.rates[0].num_speculative_tokens
            return None, False, f"cannot tell: the step time is known at K={depth} alone; record at a second K"
        return None, False, "cannot tell: one K was measured, and not its A; record at a second K"
    best = max(level.tokens_per_second.expected for level in measured)
    ordered = sorted(measured, key=lambda level: level.num_speculative_tokens)
    chosen = next(level for level in ordered if level.tokens_per_second.expected >= best * (1 - TIE))
    low = chosen.tokens_per_second.low or 0.0
    is_clear = all(low > (one.tokens_per_second.high or math.inf) for one in measured if one is not chosen)
    reason = f"K={chosen.num_speculative_tokens}: {chosen.tokens_per_second.expected:.1f} tok/s, by rates alone"
    return chosen.num_speculative_tokens, is_clear, reason


def assumed_step_seconds(levels: Iterable[LevelCost], num_speculative_tokens: int, method: str) -> Estimate | None:
    """T(K) outside of the measured K >= 1, from the nearest of them; None without one, and for K = 0.

    From no growth at all to the upper growth of the published sweeps, and ``INTERPOLATION_ERROR`` on both sides.
    """
    drafting = [level for level in levels if level.num_speculative_tokens >= 1]
    if not drafting or num_speculative_tokens < 1:
        return None
    nearest = min(drafting, key=lambda level: abs(level.num_speculative_tokens - num_speculative_tokens))
    middle, upper = PARALLEL_GROWTH if method in PARALLEL_METHODS else AUTOREGRESSIVE_GROWTH
    way = num_speculative_tokens - nearest.num_speculative_tokens
    margin = INTERPOLATION_ERROR + nearest.step_log_error
    return Estimate(
        expected=nearest.step_seconds * math.exp(middle * way),
        low=nearest.step_seconds * math.exp(min(0.0, upper * way) - margin),
        high=nearest.step_seconds * math.exp(max(0.0, upper * way) + margin),
    )


def _assumed(costs: Sequence[LevelCost], acceptance: Acceptance, depth: int, method: str) -> LevelRate | None:
    step = assumed_step_seconds(costs, depth, method)
    length = estimate_acceptance_length(acceptance, depth)
    if step is None or length is None:
        return None
    # The cost model does the rest with the middle; the range is wider than its bound of an error can say.
    middle = level_rate([LevelCost(num_speculative_tokens=depth, step_seconds=step.expected)], acceptance, depth)
    if middle is None:
        return None
    rate = Estimate(
        expected=middle.tokens_per_second.expected,
        low=None if length.low is None or step.high is None else length.low / step.high,
        high=None if length.high is None or step.low is None else length.high / step.low,
    )
    return msgspec.structs.replace(middle, step_seconds=step, tokens_per_second=rate)


def _basis(rate: LevelRate, costs: Iterable[LevelCost]) -> Basis:
    measured = any(cost.num_speculative_tokens == rate.num_speculative_tokens for cost in costs)
    return "measured" if measured else "interpolated"


def _level(rate: LevelRate, basis: Basis, measured: Sequence[MeasuredLevel], costs: Sequence[LevelCost]) -> Level:
    depth = rate.num_speculative_tokens
    own = next((level for level in measured if level.num_speculative_tokens == depth), None)
    without = next((cost.step_seconds for cost in costs if cost.num_speculative_tokens == 0), None)
    break_even = break_even_acceptance_length(costs, depth)
    if break_even is None and without is not None:
        break_even = rate.step_seconds.expected / without
    return Level(
        num_speculative_tokens=depth,
        basis=basis,
        acceptance_length=rate.acceptance_length,
        step_seconds=rate.step_seconds,
        tokens_per_second=rate.tokens_per_second,
        measured_tokens_per_second=None if own is None else own.tokens_per_second,
        measured_answers=0 if own is None else own.answers,
        extrapolated_positions=rate.extrapolated_positions,
        break_even_acceptance_length=None if depth == 0 else break_even,
    )


def _notes(measured: Sequence[MeasuredLevel], levels: Sequence[Level]) -> Iterable[str]:
    for level in measured:
        depth, positions = level.num_speculative_tokens, level.positions
        if level.step_seconds is None:
            yield f"K={depth}: A is not known, so neither is its step time: only its rate was measured"
        if positions is not None and positions.source is PositionSource.EQUAL:
            yield f"K={depth}: acceptance by position is not known; every position is taken to be accepted alike"
    loads = {level.in_flight for level in measured}
    if len(loads) > 1:
        yield f"the levels were measured at different loads ({', '.join(map(str, sorted(loads)))} requests in flight)"
    for row in levels:
        own, model = row.measured_tokens_per_second, row.tokens_per_second
        if own is not None and _apart(own, model):
            yield (
                f"K={row.num_speculative_tokens}: measured {own.expected:.1f} tok/s, but {model.expected:.1f} by the "
                "acceptance of all levels: its content differs, or the drafter depends on K"
            )


def _apart(one: Estimate, other: Estimate) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low > other.high or other.low > one.high
