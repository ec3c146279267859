"""The grid of conditional acceptances that laws are learned on, and the answers in which a collapse begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
GRID_STEP = 0.25
GRID = tuple(-4.0 + GRID_STEP * index for index in range(33))
"""Logits of the conditional acceptances that are told apart: 0.018 to 0.982."""
ACCEPTANCES = tuple(1 / (1 + math.exp(-logit)) for logit in GRID)
COLLAPSED_TOKEN_SHARES = (0.25, 0.35, 0.45, 0.55, 0.65, 0.75)
"""Share of the tokens after the onset, in an answer in which a collapse begins: anywhere, but not at its very ends."""


def logit(share: float) -> float:
    """Log odds of a share between 0.02 and 0.98; what lies beyond counts as these."""
    share = min(0.98, max(0.02, share))
    return math.log(share / (1 - share))


def accepted_per_step(share: float, positions: int | None) -> float:
    """Accepted tokens a step: p + p^2 + ... + p^K; K unknown: without end."""
    full = 0.0 if positions is None else share**positions
    return share * (1 - full) / (1 - share)


def begun(healthy: Array, collapsed: Array, depth: int | None) -> Array:
    """Acceptance of answers in which a collapse begins, from that before and after it: distributions over ``GRID``.

    A token costs 1/A steps, so an answer that has a share s of its tokens after the onset has
    1/A = (1 - s)/A_before + s/A_after.
    """
    mixed: Array = healthy @ (collapsed @ _mixed(depth)).reshape(len(GRID), len(GRID))
    return mixed


@lru_cache(maxsize=4)
def _mixed(depth: int | None) -> Array:
    """For each acceptance after the onset (rows), that before it (blocks of columns): the distribution in between."""
    after, before, share = np.ix_(*([_per_token(GRID, depth)] * 2), np.array(COLLAPSED_TOKEN_SHARES))
    per_token = (1 - share) * before + share * after
    between = _per_token([low + GRID_STEP / 2 for low in GRID[:-1]], depth)
    nearest = np.searchsorted(-between, -per_token)
    table: Array = np.eye(len(GRID))[nearest].mean(axis=2).reshape(len(GRID), -1)
    return table


def _per_token(logits: Sequence[float], depth: int | None) -> Array:
    """Verify steps for a token."""
    return np.array([1 / (1 + accepted_per_step(1 / (1 + math.exp(-one)), depth)) for one in logits])
