"""The predictive law of the next run's length on one clock, learned from the runs before it.

A mixture, weighted by how well each part explained the past runs: bumps (log-normal, of any centre near the median of
the past runs and a relative spread of 5 to 35 %), a memoryless law, a broad law, and, where asked for, the published
cycle. A run is known by its last cell (low, high]; every part gives the probability of that cell.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from statistics import median

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]
"""The last cell of a run on one clock: the phase ended somewhere in (low, high]."""

WINDOW = 24
"""Past runs that a law is learned from."""
FORGETTING = 0.93
"""Weight of a run relative to the run after it."""
SPREADS = (0.05, 0.1, 0.2, 0.35)
"""Standard deviations of the log length."""
REACH = 1.4
"""Nats above and below the median of the past runs in which a bump may have its centre (a factor of four)."""
BUMP_SHARE, MEMORYLESS_SHARE, BROAD_SHARE = 0.88, 0.1, 0.02
"""Weights before anything was seen."""
CONTAMINATION = 0.05
"""Share of the broad law in every bump: onsets that were missed or invented."""
SIGNATURE_SHARE = 0.3
"""Weight of the published cycle before anything was seen."""
HEALTHY_SIGNATURE = {4.0: 0.0, 5.0: 0.2, 6.0: 0.8, 7.0: 1.0}
"""Published cycle: distribution function of the healthy run, in requests."""
DEGRADED_SIGNATURE = {2.0: 0.0, 3.0: 0.15, 4.0: 0.85, 5.0: 1.0}
_POINTS = 320
_TABLE = np.concatenate([[0.0], np.geomspace(1 / 32, 64.0, _POINTS)])
"""Lengths at which a law is tabulated, in units of the typical length."""
_SCALES_PER_NAT = 4
"""The typical length is rounded, so that what was computed for a past run can be used again."""
_CACHED_CELLS = 2048
_CACHED_LAWS = 16
"""The test for a cycle and the filter learn from the same runs."""


def _bumps() -> tuple[Array, Array, Array]:
    centres: list[float] = []
    spreads: list[float] = []
    weights: list[float] = []
    for spread in SPREADS:
        at = np.arange(-REACH, REACH + 1e-9, 0.75 * spread)
        centres += at.tolist()
        spreads += [spread] * len(at)
        weights += [1 / len(SPREADS) / len(at)] * len(at)
    return np.array(centres), np.array(spreads), np.array(weights)


_CENTRES, _SPREADS, _BUMP_WEIGHTS = _bumps()


class RunLaw(msgspec.Struct, frozen=True):
    """Distribution of a run's length on one clock, as a table: linear between its points, ~1/x beyond the last."""

    lengths: list[float]
    cumulative: list[float]

    def below(self, length: float) -> float:
        """Probability that the run is at most this long."""
        if length <= 0:
            return 0.0
        if length >= self.lengths[-1]:
            return 1 - (1 - self.cumulative[-1]) * self.lengths[-1] / length
        at = bisect_right(self.lengths, length)
        left, right = self.lengths[at - 1], self.lengths[at]
        low, high = self.cumulative[at - 1], self.cumulative[at]
        return low + (high - low) * (length - left) / (right - left)

    def between(self, low: float, high: float) -> float:
        """Probability of (low, high], at least 1e-12."""
        return max(1e-12, self.below(high) - self.below(low))


def learn_law(runs: Sequence[Interval], signature: dict[float, float] | None = None) -> RunLaw:
    """The law of the next run after these, the oldest first; at least one, of positive length.

    signature: distribution function of a law known from elsewhere, in the units of the runs.
    """
    return _learned(tuple(runs[-WINDOW:]), None if signature is None else tuple(signature.items()))


@lru_cache(_CACHED_LAWS)
def _learned(runs: tuple[Interval, ...], signature: tuple[tuple[float, float], ...] | None) -> RunLaw:
    window = np.array(runs, dtype=np.float64)
    scale = typical_length(runs)
    low, high = window[:, 0] / scale, window[:, 1] / scale
    ages = np.arange(len(window))[::-1]
    weight_of_run = FORGETTING**ages
    broad = _broad(high) - _broad(low)
    bumps = (1 - CONTAMINATION) * bump_cells(low, high) + CONTAMINATION * broad[:, None]
    parts = [
        np.log(BUMP_SHARE * _BUMP_WEIGHTS) + weight_of_run @ _safe_log(bumps),
        np.array([math.log(MEMORYLESS_SHARE) + float(weight_of_run @ memoryless_log_cells(low, high))]),
        np.array([math.log(BROAD_SHARE) + float(weight_of_run @ _safe_log(broad))]),
    ]
    tables = [_memoryless_below(_TABLE, low, high), _broad(_TABLE)]
    if signature is not None:
        lengths, shares = zip(*signature, strict=True)
        cells = np.interp(window[:, 1], lengths, shares) - np.interp(window[:, 0], lengths, shares)
        evidence = float(weight_of_run @ _safe_log((1 - CONTAMINATION) * cells + CONTAMINATION * broad))
        parts = [part + math.log(1 - SIGNATURE_SHARE) for part in parts]
        parts.append(np.array([math.log(SIGNATURE_SHARE) + evidence]))
        tables.append(np.interp(_TABLE * scale, lengths, shares))
    logs = np.concatenate(parts)
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    cumulative = _TABLE_OF_BUMPS @ weights[: len(_CENTRES)]
    for table, weight in zip(tables, weights[len(_CENTRES) :], strict=True):
        cumulative += weight * table
    return RunLaw((_TABLE * scale).tolist(), np.minimum(1.0, np.maximum.accumulate(cumulative)).tolist())


def prior_law(mean: float, signature: dict[float, float], share: float = SIGNATURE_SHARE) -> RunLaw:
    """The law before any run was seen: the published cycle by ``share``, else any length around ``mean``."""
    table = np.concatenate([[0.0], np.geomspace(1 / 32, 64 * mean, _POINTS)])
    known = np.interp(table, list(signature), list(signature.values()))
    cumulative = share * known + (1 - share) * _broad(table / mean)
    return RunLaw(table.tolist(), cumulative.tolist())


def typical_length(runs: Sequence[Interval]) -> float:
    """Median of the middles of the last cells, rounded to a quarter of a nat."""
    middle = median((low + high) / 2 for low, high in runs[-WINDOW:])
    return math.exp(round(math.log(middle) * _SCALES_PER_NAT) / _SCALES_PER_NAT)


def bump_cells(low: Array, high: Array) -> Array:
    """Probability of each cell (rows; lengths in units of the typical one) under each bump (columns)."""
    return np.stack([_bumps_between(*cell) for cell in zip(low.tolist(), high.tolist(), strict=True)])


@lru_cache(_CACHED_CELLS)
def _bumps_between(low: float, high: float) -> Array:
    below = _bump_below(np.array([low, high]))
    return np.asarray(below[1] - below[0], dtype=np.float64)


def memoryless_log_cells(low: Array, high: Array) -> Array:
    """Log probability of each cell under the exponential law of unknown rate, predicted from the cells before it.

    With a gamma prior (shape 1, scale 1 typical length) the predictive law is Lomax: P(X > x) = (b / (b + x))^a with
    a = 1 + runs, b = 1 + their summed length.
    """
    middles = (low + high) / 2
    shape = 1.0 + np.arange(len(low))
    scale = 1.0 + np.concatenate([[0.0], np.cumsum(middles)[:-1]])
    cells = (scale / (scale + low)) ** shape - (scale / (scale + high)) ** shape
    return _safe_log(cells)


def _memoryless_below(table: Array, low: Array, high: Array) -> Array:
    shape, scale = 1.0 + len(low), 1.0 + float(((low + high) / 2).sum())
    return 1 - (scale / (scale + table)) ** shape


def _bump_below(lengths: Array) -> Array:
    with np.errstate(divide="ignore"):
        logs = np.log(lengths)
    scores = (logs[:, None] - _CENTRES) / (math.sqrt(2) * _SPREADS)
    # numpy has no normal distribution function, and scipy.special would cost the proxy 25 MB.
    return np.array([[0.5 + 0.5 * math.erf(score) for score in row] for row in scores.tolist()])


def _broad(lengths: Array) -> Array:
    """Log-logistic with median 1: every order of magnitude is possible, and the density falls."""
    return np.asarray(lengths / (1 + lengths), dtype=np.float64)


def _safe_log(probabilities: Array) -> Array:
    return np.asarray(np.log(np.maximum(probabilities, 1e-300)), dtype=np.float64)


_TABLE_OF_BUMPS = _bump_below(_TABLE)
