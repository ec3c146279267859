"""The clocks on which a cycle may run: what an engine went through, answer by answer.

From outside nobody knows what drives a collapse: requests served, tokens generated, verify steps, KV blocks turned
over, or time. So every answer advances five clocks, and what cannot be known of an answer is None on that clock.
"""

from __future__ import annotations

import math
from enum import StrEnum

import msgspec

from detector.observation import Ending, Observation, Quality

KV_BLOCK_TOKENS = 16
"""Tokens of a KV block in vLLM's default; another size only scales the clock."""
MEAN_WEIGHT = 0.05
"""Weight of the newest answer in the running mean of advances: the mean spans about 20 answers."""


class Clock(StrEnum):
    """What a cycle may be counted in."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    """Generated tokens."""
    STEPS = "steps"
    """Verify steps."""
    KV_BLOCKS = "kv_blocks"
    """Blocks filled anew: prompt tokens that were not cached and generated tokens, by blocks of 16."""
    SECONDS = "seconds"


class ClockReading(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One value for each clock: totals since some start, or the advance between two points. None: unknown."""

    requests: float | None = None
    tokens: float | None = None
    steps: float | None = None
    kv_blocks: float | None = None
    seconds: float | None = None

    def on(self, clock: Clock) -> float | None:
        """The value on one clock."""
        value: float | None = getattr(self, clock)
        return value

    def plus(self, other: ClockReading) -> ClockReading:
        """The sum, unknown wherever one of the two is."""
        return ClockReading(
            requests=None if self.requests is None or other.requests is None else self.requests + other.requests,
            tokens=None if self.tokens is None or other.tokens is None else self.tokens + other.tokens,
            steps=None if self.steps is None or other.steps is None else self.steps + other.steps,
            kv_blocks=None if self.kv_blocks is None or other.kv_blocks is None else self.kv_blocks + other.kv_blocks,
            seconds=None if self.seconds is None or other.seconds is None else self.seconds + other.seconds,
        )

    def times(self, factor: float) -> ClockReading:
        """All known values multiplied."""
        return ClockReading(
            requests=_product(self.requests, factor),
            tokens=_product(self.tokens, factor),
            steps=_product(self.steps, factor),
            kv_blocks=_product(self.kv_blocks, factor),
            seconds=_product(self.seconds, factor),
        )

    def moved_to(self, other: ClockReading) -> ClockReading:
        """A running mean, one value later."""
        return ClockReading(
            requests=_moved(self.requests, other.requests),
            tokens=_moved(self.tokens, other.tokens),
            steps=_moved(self.steps, other.steps),
            kv_blocks=_moved(self.kv_blocks, other.kv_blocks),
            seconds=_moved(self.seconds, other.seconds),
        )


ZERO = ClockReading(requests=0.0, tokens=0.0, steps=0.0, kv_blocks=0.0, seconds=0.0)
UNKNOWN = ClockReading()


class Advance(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """What one answer added to the clocks."""

    clocks: ClockReading
    """Its seconds go from the end of the answer before to its own end: the seconds of all answers add up to time."""
    idle_seconds: float = 0.0
    """Part of the seconds in which the backend had nothing to do before this answer."""

    def plus(self, other: Advance) -> Advance:
        """Of both together."""
        return Advance(clocks=self.clocks.plus(other.clocks), idle_seconds=self.idle_seconds + other.idle_seconds)

    def since(self, moment: float, observation: Observation) -> Advance:
        """What of it came after ``moment``, where the answer began before: no request, of the rest its share of the
        answer's time. Its own seconds never reach back beyond the end of the answer before."""
        if observation.started >= moment:
            return self
        lasted = observation.ended - observation.started
        share = min(1.0, max(0.0, (observation.ended - moment) / lasted)) if lasted > 0 else 0.0
        clocks = msgspec.structs.replace(self.clocks.times(share), requests=0.0, seconds=self.clocks.seconds)
        return Advance(clocks=clocks, idle_seconds=self.idle_seconds)


class BackendClocks(msgspec.Struct, kw_only=True):
    """The clocks of one backend since its launch."""

    mean: ClockReading = UNKNOWN
    """Running mean of one answer's advance: what the next answer probably adds."""
    last_ended: float | None = None

    def update(self, observation: Observation) -> Advance | None:
        """Advance by one ended answer, canaries included; None where no byte of it reached the backend.

        Answers come in the order of their ends. One that ends before its predecessor takes no time of its own.
        """
        if observation.ending is Ending.CONNECT_FAILED:
            return None
        seconds = idle = 0.0
        if self.last_ended is None:
            seconds = max(0.0, observation.ended - observation.started)
        else:
            seconds = max(0.0, observation.ended - self.last_ended)
            idle = min(seconds, max(0.0, observation.started - self.last_ended))
        self.last_ended = max(observation.ended, self.last_ended or observation.ended)
        clocks = ClockReading(
            requests=1.0,
            tokens=_known(observation.completion_tokens),
            steps=_known(_steps(observation)),
            kv_blocks=_known(_kv_blocks(observation)),
            seconds=seconds,
        )
        self.mean = self.mean.moved_to(clocks)
        return Advance(clocks=clocks, idle_seconds=idle)

    def advance_for(self, clock: Clock, amount: float) -> ClockReading | None:
        """What the other clocks probably do while one of them advances by ``amount``; None where it never moved."""
        mean = self.mean.on(clock)
        return self.mean.times(amount / mean) if mean else None


def _known(amount: float | None) -> float | None:
    """None for what cannot be an amount."""
    return float(amount) if amount is not None and 0 <= amount < math.inf else None


def _steps(observation: Observation) -> float | None:
    if observation.acceptance_quality is Quality.UPPER_BOUND:
        return None
    if observation.verify_steps is not None:
        return observation.verify_steps
    if observation.acceptance_length and observation.completion_tokens is not None:
        return observation.completion_tokens / observation.acceptance_length
    return observation.completion_tokens if observation.num_speculative_tokens == 0 else None


def _kv_blocks(observation: Observation) -> float | None:
    if observation.prompt_tokens is None or observation.completion_tokens is None:
        return None
    filled = observation.prompt_tokens - (observation.cached_tokens or 0) + observation.completion_tokens
    return max(0, filled) / KV_BLOCK_TOKENS


def _product(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _moved(mean: float | None, new: float | None) -> float | None:
    if new is None or mean is None:
        return mean if new is None else new
    return mean + MEAN_WEIGHT * (new - mean)
