"""The acceptance of an answer of which only the rate is known, told by its pace.

A rate is acceptance length / step time. Where the law of the step time is known, or at least how load and context move
the rate, what is left of the rate is acceptance, and can be judged by what content there is: a law of rates alone would
have to take all content for noise.
"""

from __future__ import annotations

import math

from detector.stats.acceptance import Acceptance
from detector.stats.sample import chain_acceptance
from detector.stats.timing import Compared

USUAL_LENGTH = 4.0
"""Acceptance length that the usual rate is taken for where step times were never known: a scale, not a claim."""
STEP_VARIANCE = 2.0
"""Of the log acceptance length of one verify step, counting how alike the steps of an answer are."""
MAX_SPREAD = 0.15
"""Nats; where the step time is less certain than this, it tells no acceptance."""
LINE_SPREAD = 0.04
"""What a line of rates is off by at the least."""


def by_step_time(step: Compared, tokens: float, depth: int) -> Acceptance | None:
    """The acceptance, were the steps as long as they are expected to be; slow steps look like a dead drafter.

    step: a time per *token* beside the law of the time per step. tokens: of the answer. depth: K.
    """
    if step.spread > MAX_SPREAD:
        return None
    return _acceptance(math.exp(-step.slower), step.spread, tokens, depth)


def by_rate(token: Compared, tokens: float) -> Acceptance:
    """The acceptance, if the usual rate at this load and context belongs to ``USUAL_LENGTH``; K is unknown.

    token: a time per token beside its own law, of which only the line counts: its noise is content.
    """
    line = math.sqrt(max(0.0, token.spread**2 - token.noise))
    return _acceptance(USUAL_LENGTH * math.exp(-token.slower), math.hypot(line, LINE_SPREAD), tokens, None)


def _acceptance(length: float, spread: float, tokens: float, depth: int | None) -> Acceptance:
    """What the length may be off by, ``spread`` in nats, blurs it as fewer steps would."""
    steps = tokens / max(length, 1.0)
    seen = tokens / (1 + steps * spread * spread / STEP_VARIANCE)
    return Acceptance(chain_acceptance(length - 1, depth), depth, seen, depth)
