"""What a backend gave at one K (``num_speculative_tokens``): what the cost model (``nspec``) builds on.

Rates and times are tokens and seconds over many answers, never means of rates. Their intervals are of 95 %, from the
spread of the answers (ratio estimator with Student's t; Cochran 1977, section 2.11), so they hold what content did.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from detector.nspec import Acceptance, Estimate, LevelCost
from detector.observation import Observation, Step
from detector.stats.cycle_period import T_QUANTILES

MIN_ANSWERS: Final = 3
"""Fewer answers tell nothing of their spread."""
MAX_DEPTH: Final = 64
"""The largest K that is believed: a file may say anything."""
_LEAST, _MOST = 1e-6, 1e9
"""Seconds, tokens per second and tokens per step are within; a file may hold other numbers."""


class PositionSource(StrEnum):
    """Where the acceptance by draft position came from, best first."""

    ENGINE = "engine"
    """Counted by the engine for each answer."""
    EVENTS = "events"
    """Tokens of each event of the stream: one more than were accepted."""
    EQUAL = "equal"
    """Only A is known: every position is taken to be accepted alike."""


class Answer(msgspec.Struct, frozen=True):
    """One answer with the content events that are known of it."""

    observation: Observation
    steps: Sequence[Step] = ()


class Positions(msgspec.Struct, frozen=True):
    """How many verify steps there were, and in how many each draft position was accepted, those before it included."""

    steps: float
    accepted: tuple[float, ...]
    source: PositionSource


class MeasuredLevel(msgspec.Struct, frozen=True, kw_only=True):
    """The answers of one K, added up."""

    num_speculative_tokens: int
    answers: int
    in_flight: int
    """Requests in flight at which all of them were measured."""
    tokens_per_second: Estimate
    """Of one stream."""
    acceptance_length: Estimate | None
    step_seconds: Estimate | None
    positions: Positions | None
    """None at K=0, and where A is not known."""

    @property
    def cost(self) -> LevelCost | None:
        """Its step time, as the cost model takes it; None where it is not known."""
        step = self.step_seconds
        if step is None:
            return None
        error = 1.0 if step.low is None or step.low <= 0 else min(1.0, math.log(step.expected / step.low))
        return LevelCost(
            num_speculative_tokens=self.num_speculative_tokens, step_seconds=step.expected, step_log_error=error
        )


def measure_level(answers: Iterable[Answer], num_speculative_tokens: int) -> MeasuredLevel | None:
    """Add up the answers of one K; None with fewer than ``MIN_ANSWERS`` whose rate is known.

    Counted are those at the most usual number of requests in flight, since a step of more requests takes longer. Failed
    answers, canaries, and clients that read slowly say nothing of the engine's speed.
    """
    known = [one for one in answers if _usable(one.observation)]
    if not known:
        return None
    loads = Counter(one.observation.in_flight for one in known)
    in_flight = max(loads, key=lambda load: (loads[load], -load))
    chosen = [one for one in known if one.observation.in_flight == in_flight]
    if len(chosen) < MIN_ANSWERS:
        return None
    observations = [one.observation for one in chosen]
    times = [_seconds(one) for one in observations]
    tokens = [(_rate(one) or 0.0) * seconds for one, seconds in zip(observations, times, strict=True)]
    counted = [(one, seconds) for one, seconds in zip(observations, times, strict=True) if one.acceptance_length]
    steps = [_verify_steps(one, seconds) for one, seconds in counted]
    enough = len(counted) >= MIN_ANSWERS
    lengths = [(one.acceptance_length or 0.0) * count for (one, _), count in zip(counted, steps, strict=True)]
    return MeasuredLevel(
        num_speculative_tokens=num_speculative_tokens,
        answers=len(chosen),
        in_flight=in_flight,
        tokens_per_second=_ratio(tokens, times),
        acceptance_length=_ratio(lengths, steps) if enough else None,
        step_seconds=_ratio([seconds for _, seconds in counted], steps) if enough else None,
        positions=_positions(chosen, num_speculative_tokens) if enough else None,
    )


def pooled_acceptance(levels: Iterable[MeasuredLevel]) -> Acceptance:
    """How the drafter is accepted, over all levels: each position over the levels that draft it.

    The number of steps that goes with it is the least that any position was measured over, its chain undone.
    """
    drafting = [level.positions for level in levels if level.positions is not None]
    conditional: list[float] = []
    verify_steps, chain = math.inf, 1.0
    while True:
        position = len(conditional)
        its = [one for one in drafting if len(one.accepted) > position]
        reached = sum(one.accepted[position - 1] if position else one.steps for one in its)
        if not reached > 0:
            break
        share = min(1.0, sum(one.accepted[position] for one in its) / reached)
        verify_steps = min(verify_steps, reached / chain)
        conditional.append(share)
        chain *= share
        if not chain > 0:
            break
    return Acceptance(conditional=tuple(conditional), verify_steps=None if math.isinf(verify_steps) else verify_steps)


def _usable(observation: Observation) -> bool:
    skip = observation.client_paced or observation.canary or observation.ending.failed
    told = (_seconds(observation), observation.acceptance_length)
    known = [value for value in told if value is not None]
    return _rate(observation) is not None and not skip and all(_LEAST < value < _MOST for value in known)


def _rate(observation: Observation) -> float | None:
    rate = observation.decode_tokens_per_second
    return rate if rate is not None and _LEAST < rate < _MOST else None


def _seconds(observation: Observation) -> float:
    """Decode time; of answers of unknown length each counts as one second."""
    return observation.rate_seconds or 1.0


def _verify_steps(observation: Observation, seconds: float) -> float:
    """Steps of the decode time; by S = tok/s / A, so that tok/s, A and T of a level agree exactly."""
    return (_rate(observation) or 0.0) * seconds / (observation.acceptance_length or 1.0)


def _ratio(tops: Sequence[float], bottoms: Sequence[float]) -> Estimate:
    """Sum of tops / sum of bottoms, with its interval."""
    number, bottom = len(tops), sum(bottoms)
    ratio = sum(tops) / bottom
    residuals = [top - ratio * its for top, its in zip(tops, bottoms, strict=True)]
    variance = number / (number - 1) * sum(one * one for one in residuals) / bottom**2
    half = T_QUANTILES[min(number - 1, len(T_QUANTILES)) - 1] * math.sqrt(variance)
    return Estimate(expected=ratio, low=max(0.0, ratio - half), high=ratio + half)


def _positions(answers: Sequence[Answer], depth: int) -> Positions | None:
    """Acceptance by position, of the best source that any answer has."""
    if depth == 0:
        return None
    counted = [found for one in answers if (found := _by_engine(one.observation, depth)) is not None]
    source = PositionSource.ENGINE
    if not counted:
        counted = [found for one in answers if (found := _by_events(one, depth)) is not None]
        source = PositionSource.EVENTS
    if not counted:
        counted = [found for one in answers if (found := _by_length(one.observation, depth)) is not None]
        source = PositionSource.EQUAL
    steps = sum(count for count, _ in counted)
    if not steps > 0:
        return None
    return Positions(steps, tuple(sum(its[i] for _, its in counted) for i in range(depth)), source)


_Counted = tuple[float, list[float]]
"""Steps, and those of them in which each position was accepted."""


def _by_engine(observation: Observation, depth: int) -> _Counted | None:
    shares, steps = observation.position_acceptance, observation.verify_steps
    if not shares or not steps or not all(0 <= share <= 1 for share in shares):
        return None
    padded = [*shares[:depth], *[0.0] * (depth - len(shares))]
    return float(steps), [share * steps for share in padded]


def _by_events(answer: Answer, depth: int) -> _Counted | None:
    """Without the first event, which is the prefill's, and the last one, which may have been cut."""
    counts = [step.tokens for step in answer.steps[1:-1] if step.tokens is not None]
    if not counts or len(counts) < len(answer.steps) - 2 or not all(1 <= count <= depth + 1 for count in counts):
        return None
    return float(len(counts)), [float(sum(count >= position + 2 for count in counts)) for position in range(depth)]


def _by_length(observation: Observation, depth: int) -> _Counted | None:
    length = observation.acceptance_length
    if length is None:
        return None
    steps = _verify_steps(observation, _seconds(observation))
    share = equal_acceptance(length, depth)
    return steps, [steps * share ** (position + 1) for position in range(depth)]


def equal_acceptance(acceptance_length: float, num_speculative_tokens: int) -> float:
    """The acceptance c that gives this A where every position has the same: 1 + c + ... + c^K = A, by bisection.

    0..1; an A out of 1..K+1 gives the nearer end.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum(middle**power for power in range(num_speculative_tokens + 1)) < acceptance_length:
            low = middle
        else:
            high = middle
    return (low + high) / 2
