"""The parts that a law of run lengths is mixed from: bumps, exponential laws and a broad one.

Lengths are in units of the typical length of the runs (``run_law.typical_length``). A part is a column everywhere.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]
"""The last cell of a run on one clock: the phase ended somewhere in (low, high]."""

SPREADS = (0.05, 0.1, 0.2, 0.35)
"""Of the bumps, which are log-logistic: standard deviations of the log length."""
REACH = 1.4
"""Nats above and below the typical length in which a bump may have its centre (a factor of four)."""
EXPONENTIAL_MEDIANS = (0.5, 0.7, 1.0, 1.4, 2.0)
BUMP_SHARE, MEMORYLESS_SHARE, BROAD_SHARE = 0.88, 0.1, 0.02
"""Weights before anything was seen."""
CONTAMINATION = 0.05
"""Share of the broad law in every bump, where it is to explain past runs: onsets that were missed or invented."""


def _grid() -> tuple[Array, Array, Array]:
    centres: list[float] = []
    spreads: list[float] = []
    weights: list[float] = []
    for spread in SPREADS:
        at = np.arange(-REACH, REACH + 1e-9, spread)
        centres += at.tolist()
        spreads += [spread] * len(at)
        weights += [1 / len(SPREADS) / len(at)] * len(at)
    return np.array(centres), np.array(spreads), np.array(weights)


_CENTRES, _SPREADS, _WEIGHTS = _grid()
BUMPS = len(_WEIGHTS)
"""Columns of the bumps; then comes the broad law, then the exponential ones."""
_RATES: Array = math.log(2) / np.array(EXPONENTIAL_MEDIANS)
_MEMORYLESS: Array = np.full(len(_RATES), MEMORYLESS_SHARE / len(_RATES))
SHARES: Array = np.concatenate([BUMP_SHARE * _WEIGHTS, [BROAD_SHARE], _MEMORYLESS])
PARTS = len(SHARES)
# The broad law is log-logistic too, with median 1: every order of magnitude is possible, and the density falls.
_PER_NAT: Array = -np.append(math.pi / math.sqrt(3) / _SPREADS, 1.0)
_MIDDLES: Array = -np.append(_CENTRES, 0.0) * _PER_NAT


def parts_below(lengths: Array) -> Array:
    """Distribution function of each part at each length (rows)."""
    below = np.empty((len(lengths), PARTS))
    logistic = below[:, : BUMPS + 1]
    with np.errstate(divide="ignore", over="ignore"):
        np.multiply(np.log(lengths)[:, None], _PER_NAT, out=logistic)
        logistic += _MIDDLES
        np.exp(logistic, out=logistic)
    logistic += 1.0
    np.divide(1.0, logistic, out=logistic)
    below[:, BUMPS + 1 :] = 1.0 - np.exp(lengths[:, None] * -_RATES)
    return below


def part_cells(cells: Array, contamination: float = CONTAMINATION) -> Array:
    """Probability of each cell (rows: low, high) under each part, with so much of the broad law in every bump."""
    below = parts_below(cells.ravel())
    found = below[1::2] - below[::2]
    found[:, :BUMPS] *= 1 - contamination
    found[:, :BUMPS] += contamination * found[:, BUMPS : BUMPS + 1]
    return found


def safe_log(probabilities: Array) -> Array:
    """Log of what may be 0."""
    return np.asarray(np.log(np.maximum(probabilities, 1e-300)), dtype=np.float64)


def broad_below(lengths: Array) -> Array:
    """Distribution function of the broad law."""
    return np.asarray(lengths / (1 + lengths), dtype=np.float64)
