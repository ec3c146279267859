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
_CACHED_SCALES = 64
_CACHED_LAWS = 8
"""The test for a cycle and the filter learn from the same runs."""

_AGE_WEIGHTS: Array = FORGETTING ** np.arange(WINDOW - 1.0, -1.0, -1.0)
_NORMAL_SCORES: Array = np.linspace(-8.0, 8.0, 16385)
# numpy has no normal distribution function, and scipy.special would cost the proxy 25 MB. Linear in between: to 3e-8.
_NORMAL_BELOW: Array = np.array([0.5 * math.erfc(-score / math.sqrt(2)) for score in _NORMAL_SCORES.tolist()])


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
_LOG_BUMP_SHARES: Array = np.log(BUMP_SHARE * _BUMP_WEIGHTS)


class RunLaw:
    """Distribution of a run's length on one clock, as a table: linear between its points, ~1/x beyond the last."""

    def __init__(self, lengths: Array, cumulative: Array, log_evidence: float = 0.0) -> None:
        """``log_evidence``: log probability that its parts gave to the past runs, weighted by ``FORGETTING``."""
        self.lengths, self.cumulative, self.log_evidence = lengths, cumulative, log_evidence
        self._rows: tuple[list[float], list[float]] | None = None

    def below(self, length: float) -> float:
        """Probability that the run is at most this long."""
        if length <= 0:
            return 0.0
        if self._rows is None:
            self._rows = self.lengths.tolist(), self.cumulative.tolist()  # several times as fast, one by one
        lengths, cumulative = self._rows
        if length >= lengths[-1]:
            return 1 - (1 - cumulative[-1]) * lengths[-1] / length
        at = bisect_right(lengths, length)
        left, low = lengths[at - 1], cumulative[at - 1]
        return low + (cumulative[at] - low) * (length - left) / (lengths[at] - left)

    def below_all(self, lengths: Array) -> Array:
        """``below`` for many lengths, ascending."""
        inside = np.interp(lengths, self.lengths, self.cumulative)
        last = self.lengths[-1]
        if lengths[-1] <= last:
            return inside
        return np.where(lengths <= last, inside, 1 - (1 - inside) * last / np.maximum(lengths, last))

    def between(self, low: float, high: float) -> float:
        """Probability of (low, high], at least 1e-12."""
        return max(1e-12, self.below(high) - self.below(low))


def learn_law(runs: Sequence[Interval], signature: dict[float, float] | None = None) -> RunLaw:
    """The law of the next run after these, the oldest first; at least one, of positive length.

    signature: distribution function of a law known from elsewhere, in the units of the runs.
    """
    law = learn_laws([runs])[0]
    return law if signature is None else with_signature(law, runs, signature)


def learn_laws(windows: Sequence[Sequence[Interval]]) -> list[RunLaw]:
    """``learn_law`` for several clocks; those that know equally many runs are worked out together."""
    recent = [tuple(runs[-WINDOW:]) for runs in windows]
    found: dict[tuple[Interval, ...], RunLaw] = {}
    for count in {len(runs) for runs in recent}:
        alike = tuple(runs for runs in recent if len(runs) == count)
        found.update(zip(alike, _learned(alike), strict=True))
    return [found[runs] for runs in recent]


@lru_cache(_CACHED_LAWS)
def _learned(windows: tuple[tuple[Interval, ...], ...]) -> list[RunLaw]:
    """A law for each window (rows of all arrays), of equally many runs (columns)."""
    scales = [typical_length(runs) for runs in windows]
    cells = np.array(windows) / np.array(scales)[:, None, None]
    low, high = cells[:, :, 0], cells[:, :, 1]
    ages = _AGE_WEIGHTS[WINDOW - low.shape[1] :]
    bumps = np.array([_log_bumps(*cell) for cell in cells.reshape(-1, 2).tolist()])
    memoryless = memoryless_log_cells(low, high)
    logs = np.empty((len(windows), len(_CENTRES) + 2))
    logs[:, :-2] = _LOG_BUMP_SHARES + ages @ bumps.reshape(*low.shape, -1)
    logs[:, -2] = math.log(MEMORYLESS_SHARE) + memoryless @ ages
    logs[:, -1] = math.log(BROAD_SHARE) + _safe_log(_broad(high) - _broad(low)) @ ages
    best = logs.max(axis=1)
    weights = np.exp(logs - best[:, None])
    totals = weights.sum(axis=1)
    weights /= totals[:, None]
    cumulative = weights[:, :-2] @ _TABLE_OF_BUMPS.T
    cumulative += weights[:, -2, None] * _memoryless_below(_TABLE, low, high) + weights[:, -1, None] * _TABLE_OF_BROAD
    evidence = (best + np.log(totals)).tolist()
    return [RunLaw(*one) for one in zip(map(_lengths, scales), _rising(cumulative), evidence, strict=True)]


def with_signature(law: RunLaw, runs: Sequence[Interval], signature: dict[float, float]) -> RunLaw:
    """``law``, learned from these runs, mixed with a law known from elsewhere by how well each explained them."""
    window = np.array(runs[-WINDOW:], dtype=np.float64)
    lengths, shares = np.array(list(signature)), np.array(list(signature.values()))
    scale = typical_length(runs)
    known = np.interp(window, lengths, shares)
    broad = _broad(window / scale)
    cells = (1 - CONTAMINATION) * (known[:, 1] - known[:, 0]) + CONTAMINATION * (broad[:, 1] - broad[:, 0])
    evidence = float(_AGE_WEIGHTS[WINDOW - len(window) :] @ _safe_log(cells))
    odds = math.exp(max(-700.0, min(700.0, evidence - law.log_evidence))) * SIGNATURE_SHARE / (1 - SIGNATURE_SHARE)
    table = np.interp(_TABLE * scale, lengths, shares)
    cumulative = (law.cumulative + odds * table) / (1 + odds)
    total = law.log_evidence + math.log1p(-SIGNATURE_SHARE) + math.log1p(odds)
    return RunLaw(law.lengths, _rising(cumulative), total)


def _rising(cumulative: Array) -> Array:
    """Rounding must not make a distribution function fall."""
    return np.asarray(np.minimum(1.0, np.maximum.accumulate(cumulative, axis=-1)))


@lru_cache(_CACHED_SCALES)
def _lengths(scale: float) -> Array:
    return _TABLE * scale


def prior_law(mean: float, signature: dict[float, float], share: float = SIGNATURE_SHARE) -> RunLaw:
    """The law before any run was seen: the published cycle by ``share``, else any length around ``mean``."""
    table = np.concatenate([[0.0], np.geomspace(1 / 32, 64 * mean, _POINTS)])
    known = np.interp(table, list(signature), list(signature.values()))
    cumulative = share * known + (1 - share) * _broad(table / mean)
    return RunLaw(table, cumulative)


def typical_length(runs: Sequence[Interval]) -> float:
    """Median of the middles of the last cells, rounded to a quarter of a nat."""
    middle = median((low + high) / 2 for low, high in runs[-WINDOW:])
    return math.exp(round(math.log(middle) * _SCALES_PER_NAT) / _SCALES_PER_NAT)


def bump_cells(low: Array, high: Array) -> Array:
    """Probability of each cell (lengths in units of the typical one) under each bump, on one more axis."""
    cells = zip(low.ravel().tolist(), high.ravel().tolist(), strict=True)
    return np.array([_bumps_between(*cell) for cell in cells]).reshape(*low.shape, len(_CENTRES))


@lru_cache(_CACHED_CELLS)
def _bumps_between(low: float, high: float) -> Array:
    below = _bump_below(np.array([low, high]))
    return np.asarray(below[1] - below[0], dtype=np.float64)


@lru_cache(_CACHED_CELLS)
def _log_bumps(low: float, high: float) -> Array:
    broad = high / (1 + high) - low / (1 + low)
    return _safe_log((1 - CONTAMINATION) * _bumps_between(low, high) + CONTAMINATION * broad)


def memoryless_log_cells(low: Array, high: Array) -> Array:
    """Log probability of each cell under the exponential law of unknown rate, predicted from the cells before it.

    With a gamma prior (shape 1, scale 1 typical length) the predictive law is Lomax: P(X > x) = (b / (b + x))^a with
    a = 1 + runs, b = 1 + their summed length. Cells that follow each other are on the last axis.
    """
    middles = (low + high) / 2
    shape = 1.0 + np.arange(low.shape[-1])
    scale = 1.0 + np.cumsum(middles, axis=-1) - middles
    cells = (scale / (scale + low)) ** shape - (scale / (scale + high)) ** shape
    return _safe_log(cells)


def _memoryless_below(table: Array, low: Array, high: Array) -> Array:
    shape, scale = 1.0 + low.shape[-1], 1.0 + ((low + high) / 2).sum(axis=-1, keepdims=True)
    return np.asarray(-np.expm1(-shape * np.log1p(table / scale)))


def _bump_below(lengths: Array) -> Array:
    with np.errstate(divide="ignore"):
        logs = np.log(lengths)
    return np.interp((logs[:, None] - _CENTRES) / _SPREADS, _NORMAL_SCORES, _NORMAL_BELOW, left=0.0)


def _broad(lengths: Array) -> Array:
    """Log-logistic with median 1: every order of magnitude is possible, and the density falls."""
    return np.asarray(lengths / (1 + lengths), dtype=np.float64)


def _safe_log(probabilities: Array) -> Array:
    return np.asarray(np.log(np.maximum(probabilities, 1e-300)), dtype=np.float64)


_TABLE_OF_BUMPS, _TABLE_OF_BROAD = _bump_below(_TABLE), _broad(_TABLE)
