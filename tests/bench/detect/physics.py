"""What one verify step gives and costs: a chain of drafted positions, and step times fitted to the published cycle."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

PUBLISHED_K = 8
"""``num_speculative_tokens`` of the published cycle. Mean accepted tokens are given for this K everywhere; another K
keeps the conditional acceptance, since that belongs to content and drafter."""
PLAIN_STEP_SECONDS = 1 / 136
"""A step without speculation: the published machine decodes 136 tokens per second with K = 0."""
PUBLISHED_STEP_SECONDS = 4.5 / 221
"""A verify step at K = 8: 3.5 accepted tokens and one more make the published 221 tokens per second."""
_TABLE_SIZE = 20_001


def mean_accepted(acceptance: float, depth: int) -> float:
    """Mean accepted tokens of a step: ``depth`` positions, each accepted with this chance, until the first fails.

    E[a] = sum over j = 1..depth of P(a >= j) = sum of acceptance^j.
    """
    return float(sum(acceptance**j for j in range(1, depth + 1)))


def variance_accepted(acceptance: float, depth: int) -> float:
    """Variance of the accepted tokens of one such step: E[a^2] = sum of (2j - 1) P(a >= j)."""
    second = sum((2 * j - 1) * acceptance**j for j in range(1, depth + 1))
    return float(second - mean_accepted(acceptance, depth) ** 2)


def conditional_acceptance(accepted: float, depth: int) -> float:
    """The chance per position that gives this mean of accepted tokens, by a table with steps of 5e-5."""
    means, chances = _table(depth)
    return float(np.interp(accepted, means, chances))


@lru_cache(maxsize=32)
def _table(depth: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    chances = np.linspace(0.0, 1.0, _TABLE_SIZE)
    powers: NDArray[np.float64] = np.zeros(_TABLE_SIZE)
    for j in range(1, depth + 1):
        powers += chances**j
    return powers, chances


def step_seconds(depth: int) -> float:
    """Time of a verify step of one stream with short context: linear in K through the two published points."""
    return PLAIN_STEP_SECONDS + (PUBLISHED_STEP_SECONDS - PLAIN_STEP_SECONDS) * depth / PUBLISHED_K
