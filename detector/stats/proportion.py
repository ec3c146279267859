"""How well a share of verify steps is known: the confidence interval that diagnosis and the cost model of K share."""

from __future__ import annotations

import math
from typing import Final

Z: Final = 1.645
"""One-sided 95 %: every bound of an interval is wrong in at most one of twenty cases."""
OVERDISPERSION: Final = 5.0
"""Steps of one answer are not independent: content makes so many of them worth one."""


def wilson_interval(share: float, trials: float) -> tuple[float, float]:
    """Where the true share lies, if ``share`` of ``trials`` verify steps showed it; both bounds in 0..1.

    The score interval (Wilson, JASA 22, 1927) on ``trials / OVERDISPERSION`` independent trials. ``share`` is taken
    into 0..1, and no trials give the whole of 0..1.
    """
    share = min(1.0, max(0.0, share))
    count = max(0.0, trials) / OVERDISPERSION
    denominator = count + Z * Z
    middle = (share * count + Z * Z / 2) / denominator
    half = Z * math.sqrt(share * (1 - share) * count + Z * Z / 4) / denominator
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
