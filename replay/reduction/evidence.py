"""How many trials of one candidate are enough: Wald's sequential probability ratio test (Ann. Math. Stat. 16, 1945)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from replay.reduction.ddmin import Outcome

FALSE_SHARE = 0.05
"""Chance that a trial which triggers nothing is called triggered: the detector's false alarms in some 50 answers."""
WRONGLY_TAKEN = 0.1
"""Chance that a candidate is taken which does not trigger: that would make the result untrue."""
WRONGLY_LEFT = 0.25
"""Chance that a candidate is left which does trigger: that only makes the result longer."""


def trigger_share(triggered: int, trials: int) -> float:
    """How often a sequence that triggers does so, from the trials of the whole one (Laplace's rule of succession)."""
    return max(2 * FALSE_SHARE, (triggered + 1) / (trials + 2))


def decide(outcomes: Sequence[Outcome], share: float, most: int) -> Outcome | None:
    """What these trials of one candidate say; None: another trial is needed.

    share: how often a candidate triggers that is as good as the whole sequence. most: after so many trials without a
    decision the candidate is unresolved.
    """
    nats = 0.0
    for outcome in outcomes:
        if outcome is Outcome.TRIGGERED:
            nats += math.log(share / FALSE_SHARE)
        elif outcome is Outcome.NOT_TRIGGERED:
            nats += math.log((1 - share) / (1 - FALSE_SHARE))
        if nats >= math.log((1 - WRONGLY_LEFT) / WRONGLY_TAKEN):
            return Outcome.TRIGGERED
        if nats <= math.log(WRONGLY_LEFT / (1 - WRONGLY_TAKEN)):
            return Outcome.NOT_TRIGGERED
    return Outcome.UNRESOLVED if len(outcomes) >= most else None
