"""The cost model of K (``num_speculative_tokens``): what another K would give, and whether getting there pays.

    tok/s(K) = A(K) / T(K)

A(K) follows from the acceptance of each draft position, T(K) from step times that were measured at some levels. The
model proposes and a measurement accepts: between measured levels it is within a few percent on published sweeps
(``tests/detector/test_nspec.py``), and kernels, graphs and drafters that depend on K break it. So it never extrapolates
T, and says that it cannot tell where a number is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from detector.stats.proportion import wilson_interval

INTERPOLATION_ERROR: Final = 0.05
"""Bound of the error of an interpolated step time, nats. With each middle level of four published sweeps left out, the
largest was 0.043, between K=1 and K=7."""
TIE: Final = 0.01
"""Rates within this share of the best are as good as the best: then the smallest K is taken, since it wastes least."""


class LevelCost(msgspec.Struct, frozen=True, kw_only=True):
    """Step time of a backend at one K, measured at the load that the question is about.

    Raises:
        ValueError: a number is out of its range.
    """

    num_speculative_tokens: int
    """K >= 0; 0 is speculation off."""
    step_seconds: float
    """T(K) > 0."""
    step_log_error: float = 0.0
    """Bound of its error, nats; 0..1."""

    def __post_init__(self) -> None:
        if self.num_speculative_tokens < 0:
            raise ValueError(f"num_speculative_tokens must be at least 0, not {self.num_speculative_tokens}")
        if not (math.isfinite(self.step_seconds) and self.step_seconds > 0):
            raise ValueError(f"step_seconds must be above 0, not {self.step_seconds}")
        if not 0 <= self.step_log_error <= 1:
            raise ValueError(f"step_log_error must be 0..1, not {self.step_log_error}")


class Acceptance(msgspec.Struct, frozen=True, kw_only=True):
    """How a drafter is accepted, position by position.

    Raises:
        ValueError: a number is out of its range.
    """

    conditional: tuple[float, ...]
    """Share of accepted drafts at position i among the steps in which all before it were accepted; 0..1."""
    verify_steps: float | None = None
    """Steps that it was measured over, >= 0; None: unknown, and then no interval is known either."""

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in self.conditional):
            raise ValueError(f"conditional acceptances must be 0..1, not {self.conditional}")
        if self.verify_steps is not None and not (math.isfinite(self.verify_steps) and self.verify_steps >= 0):
            raise ValueError(f"verify_steps must be at least 0, not {self.verify_steps}")


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """An expected value and the interval that holds the true one; the bounds are None where nothing bounds it."""

    expected: float
    low: float | None = None
    high: float | None = None


class LevelRate(msgspec.Struct, frozen=True, kw_only=True):
    """What one K would give."""

    num_speculative_tokens: int
    acceptance_length: Estimate
    step_seconds: Estimate
    tokens_per_second: Estimate
    extrapolated_positions: int = 0
    """Draft positions beyond the measured ones that the expected value counts on."""


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """The K that a backend should run with."""

    num_speculative_tokens: int | None
    """A value of the ladder, or None: cannot tell."""
    tokens_per_second: Estimate | None
    is_clear: bool
    """Its rate is surely above that of every other value of the ladder that is known."""
    rates: tuple[LevelRate, ...]
    """Every value of the ladder whose rate is known, the smallest K first."""
    reason: str


def conditional_acceptances(position_acceptance: Sequence[float]) -> tuple[float, ...]:
    """Conditional acceptances from p_i, the share of all steps in which position i was accepted: p_i / p_(i-1).

    Ends before the first position that was never reached, or whose p_i is not a number.
    """
    conditional: list[float] = []
    before = 1.0
    for share in position_acceptance:
        if not before > 0 or not math.isfinite(share):
            break
        conditional.append(min(1.0, max(0.0, share / before)))
        before = share
    return tuple(conditional)


def expected_acceptance_length(conditional: Sequence[float], num_speculative_tokens: int) -> float:
    """A(K) = 1 + c_1 + c_1 c_2 + ... + c_1 ... c_K, bonus token included.

    With equal c this is (1 - c^(K+1)) / (1 - c), equation 1 of Leviathan et al. 2023 (arXiv 2211.17192); unequal ones
    only keep its chain. Beyond the measured positions the last one is repeated, which is the most that a drafter gives
    whose acceptance does not rise with the position (DFlash of vLLM pull request 43081: 0.77 falling to 0.60).
    """
    length, product = 1.0, 1.0
    for position in range(num_speculative_tokens):
        if position < len(conditional):
            product *= conditional[position]
        else:
            product *= conditional[-1] if conditional else 0.0
        length += product
    return length


def estimate_acceptance_length(acceptance: Acceptance, num_speculative_tokens: int) -> Estimate | None:
    """A(K) with its interval; None where no position was measured and K > 0.

    The bounds take each conditional acceptance at the end of its Wilson interval. The lower one counts on nothing
    beyond the measured positions.
    """
    conditional, steps = acceptance.conditional, acceptance.verify_steps
    if num_speculative_tokens == 0:
        return Estimate(expected=1.0, low=1.0, high=1.0)
    if not conditional:
        return None
    expected = expected_acceptance_length(conditional, num_speculative_tokens)
    if steps is None:
        return Estimate(expected=expected)
    bounds: list[tuple[float, float]] = []
    for share in conditional:
        bounds.append(wilson_interval(share, steps))
        steps *= share
    measured = min(num_speculative_tokens, len(conditional))
    return Estimate(
        expected=expected,
        low=expected_acceptance_length([low for low, _ in bounds], measured),
        high=expected_acceptance_length([high for _, high in bounds], num_speculative_tokens),
    )


def estimate_step_seconds(levels: Iterable[LevelCost], num_speculative_tokens: int) -> Estimate | None:
    """T(K): as measured, or on the line between the two measured levels around it, K >= 1; None outside of them.

    T(0) is no point of that line, since a drafter has a fixed cost (up to 10 % off on the published sweeps). The line
    is not prolonged: beyond the largest measured K kernels and graphs may change.
    """
    measured = {level.num_speculative_tokens: level for level in levels}
    level = measured.get(num_speculative_tokens)
    if level is not None:
        return _within(level.step_seconds, level.step_log_error)
    below = [depth for depth in measured if 1 <= depth < num_speculative_tokens]
    above = [depth for depth in measured if depth > num_speculative_tokens]
    if not below or not above:
        return None
    left, right = measured[max(below)], measured[min(above)]
    way = (num_speculative_tokens - max(below)) / (min(above) - max(below))
    seconds = left.step_seconds + way * (right.step_seconds - left.step_seconds)
    return _within(seconds, INTERPOLATION_ERROR + max(left.step_log_error, right.step_log_error))


def break_even_acceptance_length(levels: Iterable[LevelCost], num_speculative_tokens: int) -> float | None:
    """T(K)/T(0): with a smaller A, speculation costs more than it gives. None where one of the two is unknown.

    From tok/s = A/T: A/T(K) < 1/T(0).
    """
    known = list(levels)
    with_drafts = estimate_step_seconds(known, num_speculative_tokens)
    without = estimate_step_seconds(known, 0)
    return None if with_drafts is None or without is None else with_drafts.expected / without.expected


def level_rate(levels: Iterable[LevelCost], acceptance: Acceptance, num_speculative_tokens: int) -> LevelRate | None:
    """tok/s of one stream at this K; None where A or T is unknown there."""
    length = estimate_acceptance_length(acceptance, num_speculative_tokens)
    step = estimate_step_seconds(levels, num_speculative_tokens)
    if length is None or step is None:
        return None
    return LevelRate(
        num_speculative_tokens=num_speculative_tokens,
        acceptance_length=length,
        step_seconds=step,
        tokens_per_second=Estimate(
            expected=length.expected / step.expected,
            low=None if length.low is None or step.high is None else length.low / step.high,
            high=None if length.high is None or step.low is None else length.high / step.low,
        ),
        extrapolated_positions=max(0, num_speculative_tokens - len(acceptance.conditional)),
    )


def recommend(ladder: Iterable[int], levels: Iterable[LevelCost], acceptance: Acceptance) -> Recommendation:
    """The K of the ladder with the highest tok/s, the smallest one of those within ``TIE`` of it.

    More acceptance never lowers it, since A(K2)/A(K1) with K2 > K1 grows with every conditional acceptance. With fewer
    than two values of the ladder to compare it cannot tell.
    """
    depths = sorted({depth for depth in ladder if depth >= 0})
    known = list(levels)
    found = {depth: level_rate(known, acceptance, depth) for depth in depths}
    rates = tuple(rate for rate in found.values() if rate is not None)
    missing = [depth for depth, rate in found.items() if rate is None]
    gap = f"; not known: K={', '.join(map(str, missing))}" if missing else ""
    if len(rates) < 2:
        reason = f"cannot tell: two values of K are needed whose A and step time are known{gap}"
        return Recommendation(
            num_speculative_tokens=None, tokens_per_second=None, is_clear=False, rates=rates, reason=reason
        )
    best = max(rate.tokens_per_second.expected for rate in rates)
    chosen = next(rate for rate in rates if rate.tokens_per_second.expected >= best * (1 - TIE))
    others = [rate for rate in rates if rate is not chosen]
    runner_up = max(others, key=lambda rate: rate.tokens_per_second.expected)
    return Recommendation(
        num_speculative_tokens=chosen.num_speculative_tokens,
        tokens_per_second=chosen.tokens_per_second,
        is_clear=all(_surely_above(chosen.tokens_per_second, rate.tokens_per_second) for rate in others),
        rates=rates,
        reason=f"{_in_words(chosen)}; next best {_in_words(runner_up)}{gap}",
    )


def _surely_above(one: Estimate, other: Estimate) -> bool:
    return one.low is not None and other.high is not None and one.low > other.high


def _in_words(rate: LevelRate) -> str:
    beyond = rate.extrapolated_positions
    assumed = f", {beyond} positions assumed" if beyond else ""
    return (
        f"K={rate.num_speculative_tokens}: {rate.tokens_per_second.expected:.1f} tok/s "
        f"(A {rate.acceptance_length.expected:.2f}, step {rate.step_seconds.expected * 1e3:.2f} ms{assumed})"
    )


def _within(value: float, log_error: float) -> Estimate:
    factor = math.exp(log_error)
    return Estimate(expected=value, low=value / factor, high=value * factor)


# ---- does a restart pay? ---------------------------------------------------------------------------------------------


def seconds_for(tokens_per_answer: float, rates: Iterable[float]) -> float:
    """Decode seconds of answers of this length, one at each rate (tok/s, > 0): what a mean of rates would hide."""
    return sum(tokens_per_answer / rate for rate in rates)


def pay_back_cycles(downtime_seconds: float, cycle_seconds: float, cycle_tokens: float, other_rate: float) -> float:
    """Cycles after which a restart to a level of steady ``other_rate`` has earned its downtime; infinite: never.

    The same tokens take ``cycle_seconds`` now and ``cycle_tokens / other_rate`` then, so each cycle saves the
    difference, and the downtime D has to be saved first: D / (cycle_seconds - cycle_tokens / other_rate). Nothing is
    served during the downtime.

    Raises:
        ValueError: an argument is not positive (the downtime may be 0).
    """
    if downtime_seconds < 0 or not all(number > 0 for number in (cycle_seconds, cycle_tokens, other_rate)):
        raise ValueError("pay-back needs positive seconds, tokens and rate, and a downtime of at least 0")
    saved_seconds = cycle_seconds - cycle_tokens / other_rate
    return downtime_seconds / saved_seconds if saved_seconds > 0 else math.inf


def restart_gain_tokens(
    rate_now: float, rate_after: float, downtime_seconds: float, horizon_seconds: float, rate_meanwhile: float = 0.0
) -> float:
    """Tokens that a restart now gains until the horizon; negative: it does not pay within it.

    Without it rate_now x horizon; with it rate_meanwhile (of a fallback, during the downtime) and then rate_after.
    Rates are tokens / time over good and bad phases, tok/s; a horizon within the downtime only counts the loss.
    """
    down = min(downtime_seconds, horizon_seconds)
    return rate_meanwhile * down + rate_after * (horizon_seconds - down) - rate_now * horizon_seconds
