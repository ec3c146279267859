"""Answers as a row of cells, each healthy or slow: what runs are measured on.

Where the events of the answers are known with their tokens, an answer is cut into segments of some verify steps: a
collapse then has a place inside an answer, and answers that ran side by side are put in order. Else each answer is one
cell. Which cells are slow is decided cell by cell, by a rule that knows no period (see ``detector.stats.cycle``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean, pvariance
from typing import Literal

import msgspec

from detector.observation import Observation, Step
from detector.stats.clocks import KV_BLOCK_TOKENS, Advance, BackendClocks, ClockReading

SEGMENT_STEPS = 32
"""Verify steps of a segment: few enough to place an onset, enough to tell the phases apart."""
MAX_ROUNDS = 50
"""Of 2-means, which usually settles in a few."""
CLEARER = 1.5
"""Tokens per step are taken instead of tokens per second where they tell the phases apart so many times better."""
LEAST_DEVIATION = 0.01
"""Of logarithms: less is taken for this, so that what is all equal is not infinitely well told apart."""
KNOWN_SHARE = 0.9
"""Segments are used where this share of the answers can be cut."""


class Cell(msgspec.Struct, frozen=True):
    """A part of an answer, or all of it."""

    advance: Advance
    slow: bool


class _Segment(msgspec.Struct, frozen=True, kw_only=True):
    arrived: float
    """When its request arrived."""
    started: float
    ended: float
    request_share: float
    tokens: float
    steps: float
    kv_blocks: float | None
    rate: float
    """Tokens per second of this stream."""
    tokens_per_step: float


class _Rule(msgspec.Struct, frozen=True):
    """What tells slow segments from healthy ones: a level on one scale, halfway between the two sides."""

    scale: Literal["rate", "tokens_per_step"]
    threshold: float
    separation: float
    """Distance of the two sides' means, in standard deviations of one side."""

    def slow(self, segment: _Segment) -> bool:
        level: float = getattr(segment, self.scale)
        return level < self.threshold


def cells_of(answers: Sequence[Observation], slow: Sequence[bool], steps: Sequence[Sequence[Step]]) -> list[Cell]:
    """The cells of one backend's answers, which come in the order of their ends.

    slow: which answers are. steps: the events of each answer; none at all where they are not known.
    """
    segments = [_segments(answer, its_steps) for answer, its_steps in zip(answers, steps, strict=False)]
    rule = _rule(segments, slow)
    if rule is None or sum(1 for its in segments if its) < KNOWN_SHARE * len(answers):
        clocks = BackendClocks()
        advances = [clocks.update(answer) for answer in answers]
        return [Cell(advance, its) for advance, its in zip(advances, slow, strict=True) if advance is not None]
    by_time = sorted((segment for its in segments for segment in its), key=lambda segment: segment.ended)
    by_arrival = sorted(by_time, key=lambda segment: (segment.arrived, segment.ended))
    ordered, phases = by_time, _phases(by_time, rule)
    # A collapse is of the engine: all that runs slows down at once. Where the phases change more seldom in the order of
    # arrival, each request has a phase of its own.
    if _changes(_phases(by_arrival, rule)) < _changes(phases):
        ordered, phases = by_arrival, _phases(by_arrival, rule)
    return [Cell(advance, its) for advance, its in zip(_advances(ordered), phases, strict=True)]


def _rule(segments: Sequence[Sequence[_Segment]], slow: Sequence[bool]) -> _Rule | None:
    """Tokens per second, in which every collapse shows, or tokens per step where seconds are too noisy.

    None without one of the two sides. From the events themselves: an engine's own rates need not agree with the times
    at which its events came.
    """
    rate, per_step = _two_means(segments, slow, "rate"), _two_means(segments, slow, "tokens_per_step")
    if rate is not None and per_step is not None and per_step.separation > CLEARER * rate.separation:
        return per_step
    return rate


def _two_means(
    segments: Sequence[Sequence[_Segment]], slow: Sequence[bool], scale: Literal["rate", "tokens_per_step"]
) -> _Rule | None:
    """Halfway, in logarithms, between the means of the two sides, begun where the answers' own phases put it."""
    sides: tuple[list[float], list[float]] = ([], [])
    for its, is_slow in zip(segments, slow, strict=False):
        levels = [getattr(segment, scale) for segment in its]
        sides[is_slow].extend(math.log(level) for level in levels if level > 0)
    rates = [*sides[False], *sides[True]]
    for _ in range(MAX_ROUNDS):
        if not sides[False] or not sides[True]:
            return None
        middle = (fmean(sides[False]) + fmean(sides[True])) / 2
        moved = ([rate for rate in rates if rate >= middle], [rate for rate in rates if rate < middle])
        if len(moved[True]) == len(sides[True]):
            break
        sides = moved
    if not sides[False] or not sides[True]:
        return None
    deviation = math.sqrt((pvariance(sides[False]) + pvariance(sides[True])) / 2)
    distance = fmean(sides[False]) - fmean(sides[True])
    return _Rule(scale, math.exp(middle), distance / max(deviation, LEAST_DEVIATION))


def _segments(answer: Observation, steps: Sequence[Step]) -> list[_Segment]:
    """An answer cut into segments; none where its tokens or times are not known."""
    if len(steps) < 2 or any(step.tokens is None for step in steps) or answer.client_paced:
        return []
    counts = [step.tokens or 0 for step in steps]
    total = sum(counts)
    cuts = list(range(0, len(steps) - 1, SEGMENT_STEPS))
    if len(cuts) > 1 and len(steps) - 1 - cuts[-1] < SEGMENT_STEPS / 2:
        cuts.pop()
    segments = []
    for begin, end in zip(cuts, [*cuts[1:], len(steps) - 1], strict=True):
        # The first event holds the prefill's token: its time is where the first segment begins.
        tokens = sum(counts[begin + 1 : end + 1])
        seconds = steps[end].at - steps[begin].at
        if seconds <= 0:
            return []
        first = begin == 0
        made = tokens + (counts[0] if first else 0)
        segments.append(
            _Segment(
                arrived=answer.started,
                started=answer.started if first else steps[begin].at,
                ended=steps[end].at,
                request_share=made / total,
                tokens=made,
                steps=end - begin,
                kv_blocks=_kv_blocks(answer, made, first),
                rate=tokens / seconds,
                tokens_per_step=tokens / (end - begin),
            )
        )
    return segments


def _kv_blocks(answer: Observation, tokens: float, first: bool) -> float | None:
    if answer.prompt_tokens is None:
        return None
    prompt = answer.prompt_tokens - (answer.cached_tokens or 0) if first else 0
    return max(0.0, prompt + tokens) / KV_BLOCK_TOKENS


def _phases(segments: Sequence[_Segment], rule: _Rule) -> list[bool]:
    """True where slow. The phase changes with the first of two segments in a row that say so."""
    slow = [rule.slow(segment) for segment in segments]
    phases, phase = [], slow[0]
    for index, one in enumerate(slow):
        following = slow[index + 1] if index + 1 < len(slow) else not one
        if one != phase and following == one:
            phase = one
        phases.append(phase)
    return phases


def _changes(phases: Sequence[bool]) -> int:
    return sum(1 for one, following in pairwise(phases) if one != following)


def _advances(segments: Iterable[_Segment]) -> list[Advance]:
    advances = []
    before: float | None = None
    for segment in segments:
        since = segment.started if before is None else before
        clocks = ClockReading(
            requests=segment.request_share,
            tokens=segment.tokens,
            steps=segment.steps,
            kv_blocks=segment.kv_blocks,
            seconds=max(0.0, segment.ended - since),
        )
        advances.append(Advance(clocks=clocks, idle_seconds=max(0.0, segment.started - since)))
        before = segment.ended
    return advances
