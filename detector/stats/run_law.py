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
from typing import NamedTuple

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


class Points(NamedTuple):
    """Lengths at which a law is tabulated: for many looks at once, and for one."""

    array: Array
    values: list[float]


class RunLaw:
    """Distribution of a run's length on one clock, as a table: linear between its points, ~1/x beyond the last."""

    def __init__(self, points: Points, cumulative: Array, log_evidence: float = 0.0) -> None:
        """``log_evidence``: log probability that its parts gave to the past runs, weighted by ``FORGETTING``."""
        self.points, self.cumulative, self.log_evidence = points, cumulative, log_evidence
        self._values: list[float] | None = None

    def below(self, length: float) -> float:
        """Probability that the run is at most this long."""
        if length <= 0:
            return 0.0
        if self._values is None:
            self._values = self.cumulative.tolist()
        lengths, cumulative = self.points.values, self._values
        if length >= lengths[-1]:
            return 1 - (1 - cumulative[-1]) * lengths[-1] / length
        at = bisect_right(lengths, length)
        left, low = lengths[at - 1], cumulative[at - 1]
        return low + (cumulative[at] - low) * (length - left) / (lengths[at] - left)

    def below_all(self, lengths: Array) -> Array:
        """``below`` for many lengths, ascending."""
        inside, last = np.interp(lengths, self.points.array, self.cumulative), self.points.values[-1]
        if lengths[-1] <= last:
            return inside
        return np.where(lengths <= last, inside, 1 - (1 - inside) * last / np.maximum(lengths, last))

    def between(self, low: float, high: float) -> float:
        """Probability of (low, high], at least 1e-12."""
        return max(1e-12, self.below(high) - self.below(low))


class RunWindow:
    """The last cells of past runs on one clock, and their log probabilities under each bump, ready for ``learn_laws``.

    Rows are written behind each other, and the last ``WINDOW`` of them are the window.
    """

    def __init__(self, runs: Sequence[Interval]) -> None:
        """``runs``: the oldest first; at least one, of positive length."""
        self._cells, self._log_bumps = np.empty((2 * WINDOW, 2)), np.empty((2 * WINDOW, len(_CENTRES)))
        self._begin(runs)

    def follow(self, runs: Sequence[Interval]) -> None:
        """There is one more run: the last of these."""
        if typical_length(runs) != self.scale or self._end == 2 * WINDOW:
            self._begin(runs)
        else:
            self._append(runs[-1])

    @property
    def cells(self) -> Array:
        """(low, high] in units of ``scale``, a row for each run."""
        return self._cells[max(0, self._end - WINDOW) : self._end]

    @property
    def log_bumps(self) -> Array:
        """A row for each run, a column for each bump."""
        return self._log_bumps[max(0, self._end - WINDOW) : self._end]

    def _begin(self, runs: Sequence[Interval]) -> None:
        self.scale, self._end = typical_length(runs), 0
        for run in runs[-WINDOW:]:
            self._append(run)

    def _append(self, run: Interval) -> None:
        low, high = run[0] / self.scale, run[1] / self.scale
        self._cells[self._end] = low, high
        self._log_bumps[self._end] = _log_bumps(low, high)
        self._end += 1


def learn_law(runs: Sequence[Interval], signature: dict[float, float] | None = None) -> RunLaw:
    """The law of the next run after these, the oldest first; at least one, of positive length.

    signature: distribution function of a law known from elsewhere, in the units of the runs.
    """
    law = learn_laws([RunWindow(runs)])[0]
    return law if signature is None else with_signature(law, runs, signature)


def learn_laws(windows: Sequence[RunWindow]) -> list[RunLaw]:
    """``learn_law`` for several clocks; those that know equally many runs are worked out together."""
    found: dict[int, RunLaw] = {}
    for count in {len(window.cells) for window in windows}:
        alike = [window for window in windows if len(window.cells) == count]
        found.update(zip(map(id, alike), _learned(alike), strict=True))
    return [found[id(window)] for window in windows]


def _learned(windows: Sequence[RunWindow]) -> list[RunLaw]:
    """A law for each window (rows of all arrays), of equally many runs (columns)."""
    cells = np.array([window.cells for window in windows])
    low, high = cells[:, :, 0], cells[:, :, 1]
    ages = _AGE_WEIGHTS[WINDOW - low.shape[1] :]
    memoryless = memoryless_log_cells(low, high)
    logs = np.empty((len(windows), len(_CENTRES) + 2))
    logs[:, :-2] = [ages @ window.log_bumps for window in windows]
    logs[:, :-2] += _LOG_BUMP_SHARES
    logs[:, -2] = math.log(MEMORYLESS_SHARE) + memoryless @ ages
    logs[:, -1] = math.log(BROAD_SHARE) + _safe_log(_broad(high) - _broad(low)) @ ages
    best = logs.max(axis=1)
    weights = np.exp(logs - best[:, None])
    totals = weights.sum(axis=1)
    weights /= totals[:, None]
    cumulative = weights[:, :-2] @ _TABLE_OF_BUMPS.T
    cumulative += weights[:, -2, None] * _memoryless_below(_TABLE, low, high) + weights[:, -1, None] * _TABLE_OF_BROAD
    evidence = (best + np.log(totals)).tolist()
    points = [_points(window.scale) for window in windows]
    return [RunLaw(*one) for one in zip(points, _rising(cumulative), evidence, strict=True)]


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
    return RunLaw(law.points, _rising(cumulative), total)


def _rising(cumulative: Array) -> Array:
    """Rounding must not make a distribution function fall."""
    return np.asarray(np.minimum(1.0, np.maximum.accumulate(cumulative, axis=-1)))


@lru_cache(_CACHED_SCALES)
def _points(scale: float) -> Points:
    lengths = _TABLE * scale
    return Points(lengths, lengths.tolist())


def prior_law(mean: float, signature: dict[float, float], share: float = SIGNATURE_SHARE) -> RunLaw:
    """The law before any run was seen: the published cycle by ``share``, else any length around ``mean``."""
    table = np.concatenate([[0.0], np.geomspace(1 / 32, 64 * mean, _POINTS)])
    known = np.interp(table, list(signature), list(signature.values()))
    cumulative = share * known + (1 - share) * _broad(table / mean)
    return RunLaw(Points(table, table.tolist()), cumulative)


def typical_length(runs: Sequence[Interval]) -> float:
    """Median of the middles of the last cells, rounded to a quarter of a nat."""
    doubled = sorted([low + high for low, high in runs[-WINDOW:]])
    middle = (doubled[len(doubled) // 2] + doubled[(len(doubled) - 1) // 2]) / 4
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
    before = np.cumsum(middles[..., :-1], axis=-1)  # the last cell may be open, (low, inf)
    scale = 1.0 + np.concatenate([np.zeros_like(low[..., :1]), before], axis=-1)
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
