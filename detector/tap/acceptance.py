"""From the counts of one answer to its acceptance length A and its step time T.

A of an engine's own count is ``1 + accepted / steps``; A of the cadence is ``(tokens - tokens of the first event) /
(events - 1)``, because vLLM sends one event per verify step with the accepted tokens and one more (measured: events
equal steps on every request of the H200 captures). Rates: T = decode seconds / steps, tok/s = tokens after the first
event / decode seconds, so that tok/s = A / T but for what the last step lost.

Where steps were merged on the way (UPPER_BOUND), the steps counted are too few, so A and T are both upper bounds; tok/s
is right all the same.
"""

from __future__ import annotations

from typing import Any

import msgspec

from detector.observation import Quality, RequestFacts, Source, SpeculationCounts
from detector.tap.tally import StreamTally


class Answer(msgspec.Struct, kw_only=True):
    """All that is known of one answer when its figures are worked out."""

    facts: RequestFacts
    tally: StreamTally
    completion_tokens: int | None = None
    several_choices: bool = False
    parsed: bool = False
    """A parser of the engine was seen at work."""
    oversized_events: int = 0
    paused_seconds: float = 0.0
    """For how long the stream was not read because the client did not."""
    speculation: SpeculationCounts | None = None
    speculation_trimmed: bool = False
    generation_seconds: float | None = None
    counters: SpeculationCounts | None = None
    counted_decode_seconds: float | None = None
    """Decode time of this answer by the engine's counters."""
    num_speculative_tokens: int | None = None

    @property
    def client_paced(self) -> bool:
        """The pauses are more than a twentieth of the decode phase, so rates would be off by as much."""
        return self.paused_seconds > 0.05 * (self.tally.last_at - self.tally.first_at)


class Acceptance(msgspec.Struct, frozen=True):
    """A of one answer."""

    verify_steps: int
    length: float
    source: Source
    quality: Quality


class Rates(msgspec.Struct, frozen=True):
    """T and tok/s of one answer."""

    step_seconds: float | None
    tokens_per_second: float
    source: Source


def draft_length(answer: Answer) -> int | None:
    """K, from the source closest to the request."""
    said = answer.speculation.num_speculative_tokens if answer.speculation is not None else None
    counted = answer.counters.num_speculative_tokens if answer.counters is not None else None
    known = (value for value in (said, answer.num_speculative_tokens, counted) if value is not None)
    return next(known, None)


def acceptance(answer: Answer) -> Acceptance | None:
    """A from the best source: the engine, a cadence without merges, the counters, a cadence with merges."""
    quality = Quality.TRIMMED if answer.speculation_trimmed else Quality.EXACT
    said = None if answer.several_choices else _from_counts(answer.speculation, Source.ENGINE, quality)
    seen = _from_cadence(answer)
    if said is not None:
        return said
    if seen is not None and seen.quality is not Quality.UPPER_BOUND:
        return seen
    return _from_counts(answer.counters, Source.COUNTERS, Quality.EXACT) or seen


def rates(answer: Answer, measured: Acceptance | None) -> Rates | None:
    """T and tok/s from the best clock: the engine's for this answer, the arrivals, the engine's sum."""
    tokens, tally = answer.completion_tokens, answer.tally
    if tokens is None or answer.several_choices:
        return None
    arrivals = None if answer.client_paced else tally.decode_seconds()
    clocks = (
        (Source.ENGINE, answer.generation_seconds, 1),
        (Source.CADENCE, arrivals, 1 if tally.first_tokens is None else tally.first_tokens),
        (Source.COUNTERS, answer.counted_decode_seconds, 1),
    )
    for source, seconds, first_tokens in clocks:
        if seconds is not None and seconds > 0 and tokens > first_tokens:
            steps = _decode_steps(answer, measured)
            return Rates(seconds / steps if steps else None, (tokens - first_tokens) / seconds, source)
    return None


def position_acceptance(answer: Answer) -> tuple[float, ...] | None:
    """p_i from the engine's counts or the counters."""
    for counts in (answer.speculation, answer.counters):
        if counts is not None and counts.accepted_per_position and counts.verify_steps > 0:
            return tuple(accepted / counts.verify_steps for accepted in counts.accepted_per_position)
    return None


def _from_counts(counts: SpeculationCounts | None, source: Source, quality: Quality) -> Acceptance | None:
    if counts is None or counts.verify_steps <= 0:
        return None
    return Acceptance(counts.verify_steps, 1 + counts.accepted_tokens / counts.verify_steps, source, quality)


def _from_cadence(answer: Answer) -> Acceptance | None:
    """None where the stream does not show steps: several choices, no token count, too few events, or too many."""
    tally, tokens = answer.tally, answer.completion_tokens
    if answer.several_choices or tokens is None or tally.events < 3:
        return None
    steps = tally.events - 1
    length = (tokens - (tally.first_tokens or 1)) / steps
    if length < 1:
        return None
    draft = draft_length(answer)
    if _may_be_merged(answer, length, draft):
        return Acceptance(steps, length, Source.CADENCE, Quality.UPPER_BOUND)
    return Acceptance(steps, length, Source.CADENCE, Quality.EXACT if draft == 0 else Quality.TRIMMED)


def _may_be_merged(answer: Answer, length: float, draft: int | None) -> bool:
    """Steps were merged or swallowed for certain, or the way they came gives good ground to think so."""
    tally, route = answer.tally, answer.facts.route
    swallowed = route in ("responses", "messages") or answer.facts.parsers_possible or answer.parsed
    every_step_listed = tally.listed_events == tally.events
    counted = tally.uncounted_events == 0
    return (
        tally.merged_events(draft) > 0
        or (draft is not None and length > draft + 1)
        or tally.interval_suspected(draft)
        or tally.stalled()
        or answer.oversized_events > 0
        or answer.client_paced
        or (swallowed and not every_step_listed)
        or (tally.bunched() and not counted)
    )


def _decode_steps(answer: Answer, measured: Acceptance | None) -> int | None:
    """Engine steps after the prefill. One without a draft (ngram finds none) is no verify step but takes time too."""
    if measured is None:
        return None
    if measured.source is Source.CADENCE or answer.completion_tokens is None:
        return measured.verify_steps
    counts = answer.speculation if measured.source is Source.ENGINE else answer.counters
    accepted = counts.accepted_tokens if counts is not None else 0
    return max(measured.verify_steps, answer.completion_tokens - 1 - accepted)


def figures(answer: Answer) -> dict[str, Any]:
    """What was worked out of an answer, by the names that an Observation has for it."""
    measured, draft = acceptance(answer), draft_length(answer)
    timed, tally = rates(answer, measured), answer.tally
    return {
        "completion_tokens": answer.completion_tokens,
        "verify_steps": measured.verify_steps if measured else None,
        "acceptance_length": measured.length if measured else None,
        "acceptance_source": measured.source if measured else None,
        "acceptance_quality": measured.quality if measured else None,
        "position_acceptance": position_acceptance(answer),
        "num_speculative_tokens": draft,
        "step_seconds": timed.step_seconds if timed else None,
        "decode_tokens_per_second": timed.tokens_per_second if timed else None,
        "rate_source": timed.source if timed else None,
        "longest_gap_seconds": tally.longest_gap if tally.events > 1 else None,
        "merged_events": tally.merged_events(draft),
    }
