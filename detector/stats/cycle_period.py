"""The period of a cycle: onset to onset on one clock, with a confidence interval for its mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul
from statistics import median

import msgspec

from detector.stats.clocks import Clock, ClockReading

T_QUANTILES = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.16,
    2.145,
    2.131,
    2.12,
    2.11,
    2.101,
    2.093,
    2.086,
    2.08,
    2.074,
    2.069,
    2.064,
    2.06,
    2.056,
    2.052,
    2.048,
    2.045,
    2.042,
    2.04,
)
"""97.5 % quantiles of Student's t with 1, 2, 3, ... degrees of freedom; a table, because scipy costs 25 MB."""
OUTLIER_FACTOR, OUTLIER_DEVIATIONS = 1.6, 8.0
"""Gaps so many times longer or shorter than the median, and so many (robust) deviations away from it, come from onsets
that were missed or invented."""


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """Mean length of a cycle, in units of its clock, and the 95 % confidence interval of that mean."""

    estimate: float
    low: float
    high: float


def period_of(gaps: Sequence[ClockReading], clock: Clock) -> Period | None:
    """The period from onset-to-onset gaps; None with fewer than two.

    An onset is only known to within the answer it fell into. Consecutive gaps share their onsets, so these roundings
    cancel in the sum but for the two ends: half an answer each, over n gaps. The rest is Student's t.
    """
    name = clock.value
    kept = usual_gaps(gaps, clock)
    count = len(kept)
    if count < 2:
        return None
    lengths = [getattr(gap, name) for gap in kept]
    estimate = sum(lengths) / count
    off = [length - estimate for length in lengths]
    variance = sum(map(mul, off, off)) / (count - 1)
    rounding = 0.0
    if clock is not Clock.REQUESTS:
        answers = [length / gap.requests for gap, length in zip(kept, lengths, strict=True) if gap.requests]
        rounding = sum(answers) / len(answers) / count if answers else 0.0
    spread = T_QUANTILES[min(count - 1, len(T_QUANTILES)) - 1] * math.sqrt(variance / count) + rounding
    return Period(estimate=estimate, low=max(0.0, estimate - spread), high=estimate + spread)


def usual_gaps(gaps: Sequence[ClockReading], clock: Clock) -> list[ClockReading]:
    """The gaps that this clock knows, without those that come from onsets that were missed or invented."""
    name = clock.value
    known = [gap for gap in gaps if getattr(gap, name)]
    if not known:
        return []
    lengths = [getattr(gap, name) for gap in known]
    middle = median(lengths)
    low, high = middle / OUTLIER_FACTOR, middle * OUTLIER_FACTOR
    if low <= min(lengths) and max(lengths) <= high:
        return known
    usual = OUTLIER_DEVIATIONS * 1.4826 * median([abs(length - middle) for length in lengths])
    low, high = min(low, middle - usual), max(high, middle + usual)
    return [gap for gap, length in zip(known, lengths, strict=True) if low <= length <= high]
