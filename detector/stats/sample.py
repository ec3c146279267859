"""The numbers of one answer that the rules judge, taken from its Observation."""

from __future__ import annotations

import math
from bisect import bisect_right
from functools import lru_cache

import msgspec

from detector.observation import Ending, Observation, Quality, Source

MIN_JUDGED_TOKENS = 16
"""An answer that the client broke off before this many tokens is not judged."""
ROUNDING = 1e-7
"""Nearer to 1 than this, the sum of a chain's powers is known too badly."""
TABLE_INTERVALS = 64
LAST_NEWTON_STEP = 3e-4
"""A smaller step leaves a few times its square."""
MAX_NEWTON_STEPS = 50
"""Two are enough for any K in use."""
MAX_GAP_SHARE = 0.9
"""A single gap longer than this share of the decode time leaves too little to time the rest by."""
_INFINITY = math.inf


class Sample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of one answer. A number that is unknown, not finite or not positive is None."""

    started: float
    in_flight: int
    acceptance_length: float | None = None
    conditional_acceptance: float | None = None
    """Share of drafted positions accepted among those tried: p_0 where it is known, else from the acceptance length."""
    chain_length: int | None = None
    """Positions that ``conditional_acceptance`` covers: 1 for p_0, K for the acceptance length; None: K is unknown."""
    upper_bound: bool = False
    """The acceptance is at most what is given."""
    num_speculative_tokens: int | None = None
    drafts_counted: bool = False
    """The engine counted verify steps with drafts for this answer."""
    verify_steps: float | None = None
    step_seconds: float | None = None
    """Without the longest gap, so that one stall does not read as slow steps."""
    decode_tokens_per_second: float | None = None
    """Without the longest gap, too."""
    stall_removed: bool = False
    """The longest gap was known: no stall is part of these times."""
    tokens: float | None = None
    decode_seconds: float | None = None
    """Longest gap included."""
    ttft_seconds: float | None = None
    context_tokens: float = 0.0
    """Prompt and half of the answer: what a step had to attend to on average. Unknown counts as nothing."""


def sample_of(observation: Observation) -> Sample | None:
    """The judged numbers of an answer, or None where it says nothing about the health of the backend."""
    if observation.ending.failed or (observation.status is not None and observation.status >= 400):
        return None
    tokens = _positive(observation.completion_tokens)
    if observation.ending is Ending.CLIENT_GONE and (tokens or 0) < MIN_JUDGED_TOKENS:
        return None
    upper_bound = observation.acceptance_quality is Quality.UPPER_BOUND
    acceptance_length = _positive(observation.acceptance_length)
    rate = _positive(observation.decode_tokens_per_second)
    step_seconds = None if upper_bound else _positive(observation.step_seconds)
    if acceptance_length is None and observation.num_speculative_tokens == 0:
        # Without speculation every step gives one token.
        acceptance_length, step_seconds = 1.0, 1 / rate if rate is not None else None
    steps = _positive(observation.verify_steps)
    if steps is None and acceptance_length is not None and tokens is not None:
        steps = tokens / acceptance_length
    if acceptance_length is None and rate is None and step_seconds is None:
        return None
    conditional, chain_length = _conditional_acceptance(observation, acceptance_length)
    decode_seconds = _positive(observation.decode_seconds)
    if rate is not None and tokens is not None and (decode_seconds is None or observation.rate_source is Source.ENGINE):
        # The arrivals may have been collected on the way, the engine's own clock was not.
        decode_seconds = tokens / rate
    # The engine's own clock does not see a stall on the way here.
    gap = _positive(observation.longest_gap_seconds) if observation.rate_source is not Source.ENGINE else None
    moving = _moving_share(decode_seconds, gap)
    return Sample(
        started=observation.started,
        in_flight=max(1, observation.in_flight),
        acceptance_length=acceptance_length,
        conditional_acceptance=conditional,
        chain_length=chain_length,
        upper_bound=upper_bound,
        num_speculative_tokens=observation.num_speculative_tokens,
        drafts_counted=observation.acceptance_source in (Source.ENGINE, Source.COUNTERS),
        verify_steps=steps,
        step_seconds=None if step_seconds is None or moving is None else step_seconds * moving * _others(steps, gap),
        decode_tokens_per_second=None if rate is None or moving is None else rate / moving,
        stall_removed=gap is not None,
        tokens=tokens,
        decode_seconds=decode_seconds,
        ttft_seconds=_positive(observation.ttft_seconds),
        context_tokens=(_positive(observation.prompt_tokens) or 0.0) + (tokens or 0.0) / 2,
    )


def chain_acceptance(accepted_per_step: float, chain_length: int | None) -> float:
    """Conditional acceptance p of a chain of drafted positions that yields this many accepted tokens a step.

    p solves accepted = p + p^2 + ... + p^K = p (1 - p^K) / (1 - p), by Newton's method to 1e-6, from a table's chord.
    """
    if accepted_per_step <= 0:
        return 0.0
    if chain_length is None:
        return accepted_per_step / (1 + accepted_per_step)
    if accepted_per_step >= chain_length:
        return 1.0
    table = _accepted_by_acceptance(chain_length)
    above = bisect_right(table, accepted_per_step)
    p = (above - (table[above] - accepted_per_step) / (table[above] - table[above - 1])) / TABLE_INTERVALS
    for _ in range(MAX_NEWTON_STEPS):
        p = min(p, 1 - ROUNDING)
        full = p**chain_length
        off = p * (1 - full) / (1 - p) - accepted_per_step
        step = off * (1 - p) ** 2 / (1 - (chain_length + 1 - chain_length * p) * full)
        p -= step
        if abs(step) < LAST_NEWTON_STEP:
            break
    return min(1.0, p)


@lru_cache(maxsize=64)
def _accepted_by_acceptance(chain_length: int) -> list[float]:
    """Accepted tokens a step of a chain, at ``TABLE_INTERVALS`` + 1 acceptances from 0 to 1."""
    shares = [index / TABLE_INTERVALS for index in range(TABLE_INTERVALS)]
    return [*(share * (1 - share**chain_length) / (1 - share) for share in shares), float(chain_length)]


def _conditional_acceptance(
    observation: Observation, acceptance_length: float | None
) -> tuple[float | None, int | None]:
    positions = observation.position_acceptance
    if positions and math.isfinite(positions[0]):
        return min(1.0, max(0.0, positions[0])), 1
    if acceptance_length is None:
        return None, None
    depth = observation.num_speculative_tokens or None
    return chain_acceptance(acceptance_length - 1, depth), depth


def _moving_share(decode_seconds: float | None, longest_gap_seconds: float | None) -> float | None:
    """Share of the decode time outside the longest gap: 1 where the gap is unknown, None where too little is left."""
    if decode_seconds is None or longest_gap_seconds is None:
        return 1.0
    share = 1 - longest_gap_seconds / decode_seconds
    return share if share >= 1 - MAX_GAP_SHARE else None


def _others(steps: float | None, gap: float | None) -> float:
    """The longest gap held a step as well: without this, fewer steps would look faster."""
    return 1.0 if gap is None or steps is None or steps < 2 else steps / (steps - 1)


def _positive(number: float | None) -> float | None:
    return number + 0.0 if number is not None and 0 < number < _INFINITY else None
