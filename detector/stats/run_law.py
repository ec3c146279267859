"""The predictive law of the next run's length on one clock, learned from the runs before it.

A mixture, weighted by how well each part explained the past runs: bumps of any centre near the median of the past runs
and a relative spread of 5 to 35 %, exponential laws, a broad law (``run_parts``), and, where asked for, the published
cycle. A run is known by its last cell (low, high]; every part gives the probability of that cell.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from detector.stats.run_parts import (
    CONTAMINATION,
    PARTS,
    SHARES,
    Array,
    Interval,
    broad_below,
    part_cells,
    parts_below,
    safe_log,
)

WINDOW = 24
"""Past runs that a law is learned from."""
FORGETTING = 0.93
"""Weight of a run relative to the run after it."""
SIGNATURE_SHARE = 0.3
"""Weight of the published cycle before anything was seen."""
HEALTHY_SIGNATURE = {4.0: 0.0, 5.0: 0.2, 6.0: 0.8, 7.0: 1.0}
"""Published cycle: distribution function of the healthy run, in requests."""
DEGRADED_SIGNATURE = {2.0: 0.0, 3.0: 0.15, 4.0: 0.85, 5.0: 1.0}
LONGEST = 64.0
TABLE: Array = np.concatenate(
    [[0.0], np.geomspace(1 / 32, 0.18, 18)[:-1], np.geomspace(0.18, 6.0, 148), np.geomspace(6.0, LONGEST, 25)[1:]]
)
"""Lengths at which a law is tabulated, in units of the typical length: close together where bumps may be."""
_PRIOR_POINTS = 320
_SCALES_PER_NAT = 4
"""The typical length is rounded, so that what was computed for a past run can be used again."""
KEPT_SCALE_NATS = 0.35
"""And it stays while it is off by no more than this, for the same reason."""
_CACHED_SCALES = 64

_AGE_WEIGHTS: Array = FORGETTING ** np.arange(WINDOW - 1.0, -1.0, -1.0)
# Of the bumps, and of the broad law.
_LOG_SHARES: Array = np.log(SHARES)
_TABLE_OF_PARTS: Array = np.ascontiguousarray(parts_below(TABLE).T)


class Points(NamedTuple):
    """Lengths at which a law is tabulated: for many looks at once, and for one."""

    array: Array
    values: list[float]


@lru_cache(_CACHED_SCALES)
def scaled_points(scale: float) -> Points:
    """The common table, of laws of this typical length."""
    lengths = TABLE * scale
    return Points(lengths, lengths.tolist())


class RunLaw:
    """Distribution of a run's length on one clock, as a table: linear between its points, ~1/x beyond the last."""

    def __init__(self, points: Points, cumulative: Array, log_evidence: float = 0.0) -> None:
        """``log_evidence``: log probability that its parts gave to the past runs, weighted by ``FORGETTING``."""
        self.points, self.cumulative, self.log_evidence = points, cumulative, log_evidence
        self._values: list[float] | None = None
        self.projected: list[float] = []
        """Kept by ``run_bet``: its projection on the laws without a cycle."""

    @property
    def values(self) -> list[float]:
        """``cumulative`` for one look."""
        if self._values is None:
            self._values = self.cumulative.tolist()
        return self._values

    def below(self, length: float) -> float:
        """Probability that the run is at most this long."""
        if length <= 0:
            return 0.0
        lengths, cumulative = self.points.values, self._values or self.values
        if length >= lengths[-1]:
            return 1 - (1 - cumulative[-1]) * lengths[-1] / length
        at = bisect_right(lengths, length)
        left, low = lengths[at - 1], cumulative[at - 1]
        return low + (cumulative[at] - low) * (length - left) / (lengths[at] - left)

    def below_both(self, length: float, later: float) -> tuple[float, float]:
        """``below`` of two lengths, the larger one last."""
        lengths, cumulative = self.points.values, self._values or self.values
        if length <= 0 or later >= lengths[-1]:
            return self.below(length), self.below(later)
        at = bisect_right(lengths, length)
        left, low = lengths[at - 1], cumulative[at - 1]
        first = low + (cumulative[at] - low) * (length - left) / (lengths[at] - left)
        at = bisect_right(lengths, later, at)
        left, low = lengths[at - 1], cumulative[at - 1]
        return first, low + (cumulative[at] - low) * (later - left) / (lengths[at] - left)

    def between(self, low: float, high: float) -> float:
        """Probability of (low, high], at least 1e-12."""
        below, until = self.below_both(low, high)
        return max(1e-12, until - below)


class RunWindow:
    """Log probabilities of the last cells of past runs on one clock under each part, ready for ``learn_laws``.

    Rows are written behind each other, and the last ``WINDOW`` of them are the window.
    """

    def __init__(self, scale: float = 0.0) -> None:
        """scale: the typical length that such a window had before; 0: none."""
        self.scale, self._end = scale, 0
        self._log_parts = np.empty((2 * WINDOW, PARTS))

    @property
    def log_parts(self) -> Array:
        """A row for each run, a column for each part."""
        return self._log_parts[max(0, self._end - WINDOW) : self._end]

    def missing(self, runs: Sequence[Interval], new: int) -> list[Interval]:
        """The cells that are to be appended, now that these are the runs, so many of them new."""
        scale = typical_length(runs, self.scale)
        if scale != self.scale:
            self.scale, self._end, new = scale, 0, WINDOW
        elif self._end + new > 2 * WINDOW:
            kept = self._log_parts[self._end - WINDOW + new : self._end]
            self._log_parts[: len(kept)], self._end = kept, len(kept)
        return [(low / scale, high / scale) for low, high in runs[-new:]]

    def append(self, log_parts: Array) -> None:
        """Take what was missing in."""
        end = self._end + len(log_parts)
        self._log_parts[self._end : end] = log_parts
        self._end = end


def keep_up(windows: Sequence[RunWindow], runs: Sequence[Sequence[Interval]], new: Sequence[int]) -> None:
    """Each window has these runs, the oldest first, of positive length; at most so many, the last, are new to it."""
    missing = [window.missing(its, count) for window, its, count in zip(windows, runs, new, strict=True)]
    cells = [cell for its in missing for cell in its]
    if not cells:
        return
    rows, end = safe_log(part_cells(np.array(cells))), 0
    for window, its in zip(windows, missing, strict=True):
        begin, end = end, end + len(its)
        window.append(rows[begin:end])


def learn_law(runs: Sequence[Interval], signature: dict[float, float] | None = None) -> RunLaw:
    """The law of the next run after these, the oldest first; at least one, of positive length.

    signature: distribution function of a law known from elsewhere, in the units of the runs.
    """
    window = RunWindow()
    keep_up([window], [runs], [len(runs)])
    law = learn_laws([window])[0]
    return law if signature is None else with_signature(law, runs, signature)


def learn_laws(windows: Sequence[RunWindow]) -> list[RunLaw]:
    """``learn_law`` for several clocks."""
    logs = np.empty((len(windows), PARTS))
    for row, window in zip(logs, windows, strict=True):
        np.dot(_AGE_WEIGHTS[WINDOW - len(window.log_parts) :], window.log_parts, out=row)
    logs += _LOG_SHARES
    best = logs.max(axis=1, keepdims=True)
    logs -= best
    weights = np.exp(logs, out=logs)
    totals = weights.sum(axis=1, keepdims=True)
    weights /= totals
    evidence = (best + np.log(totals)).ravel().tolist()
    points = [scaled_points(window.scale) for window in windows]
    return [RunLaw(*one) for one in zip(points, _rising(weights @ _TABLE_OF_PARTS), evidence, strict=True)]


def with_signature(law: RunLaw, runs: Sequence[Interval], signature: dict[float, float]) -> RunLaw:
    """``law``, learned from these runs, mixed with a law known from elsewhere by how well each explained them."""
    window = np.array(runs[-WINDOW:], dtype=np.float64)
    lengths, shares = list(signature), list(signature.values())
    known = np.interp(window, lengths, shares)
    broad = broad_below(window * (LONGEST / law.points.values[-1]))
    cells = (1 - CONTAMINATION) * (known[:, 1] - known[:, 0]) + CONTAMINATION * (broad[:, 1] - broad[:, 0])
    evidence = float(_AGE_WEIGHTS[WINDOW - len(window) :] @ safe_log(cells))
    odds = math.exp(max(-700.0, min(700.0, evidence - law.log_evidence))) * SIGNATURE_SHARE / (1 - SIGNATURE_SHARE)
    cumulative = (law.cumulative + odds * np.interp(law.points.array, lengths, shares)) / (1 + odds)
    total = law.log_evidence + math.log1p(-SIGNATURE_SHARE) + math.log1p(odds)
    return RunLaw(law.points, cumulative, total)


def prior_law(
    mean: float, signature: dict[float, float], share: float = SIGNATURE_SHARE, points: Points | None = None
) -> RunLaw:
    """The law before any run was seen: the published cycle by ``share``, else any length around ``mean``."""
    if points is None:
        table = np.concatenate([[0.0], np.geomspace(1 / 32, LONGEST * mean, _PRIOR_POINTS)])
        points = Points(table, table.tolist())
    known = np.interp(points.array, list(signature), list(signature.values()))
    return RunLaw(points, share * known + (1 - share) * broad_below(points.array / mean))


def typical_length(runs: Sequence[Interval], before: float = 0.0) -> float:
    """Median of the middles of the last cells, rounded to a quarter of a nat; ``before``, if that is near enough."""
    doubled = sorted([low + high for low, high in runs[-WINDOW:]])
    middle = (doubled[len(doubled) // 2] + doubled[(len(doubled) - 1) // 2]) / 4
    if before > 0 and abs(math.log(middle / before)) <= KEPT_SCALE_NATS:
        return before
    return math.exp(round(math.log(middle) * _SCALES_PER_NAT) / _SCALES_PER_NAT)


def memoryless_log_cells(low: Array, high: Array) -> Array:
    """Log probability of each cell under the exponential law of unknown rate, predicted from the cells before it.

    With a gamma prior (shape 1, scale 1 typical length) the predictive law is Lomax: P(X > x) = (b / (b + x))^a with
    a = 1 + runs, b = 1 + their summed length. Cells that follow each other are on the last axis.
    """
    shape = -1.0 - np.arange(low.shape[-1])
    scale = np.ones_like(low)
    np.cumsum(((low + high) / 2)[..., :-1], axis=-1, out=scale[..., 1:])  # the last cell may be open, (low, inf)
    scale[..., 1:] += 1.0
    return safe_log(np.exp(np.log1p(low / scale) * shape) - np.exp(np.log1p(high / scale) * shape))


def _rising(cumulative: Array) -> Array:
    """Rounding must not make a distribution function fall."""
    np.maximum.accumulate(cumulative, axis=-1, out=cumulative)
    return np.minimum(cumulative, 1.0, out=cumulative)
