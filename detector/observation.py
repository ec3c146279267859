"""The facts of one answer and of one engine, as every other part of specbreaker reads them.

Times are seconds on one monotonic clock that the caller chooses, unless a field says ``unix``. A field that could not
be known is ``None``: nothing here is ever guessed, and ``*_source`` says where a number came from.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec


class Source(StrEnum):
    """Where the acceptance length of an Observation came from, best first."""

    ENGINE = "engine"
    """Counted by the engine for this request: vLLM ``metrics.speculative_decoding``, llama.cpp ``timings``, SGLang
    ``meta_info``."""
    CADENCE = "cadence"
    """Derived from the stream: one event per verify step, so (tokens - first) / (events - first)."""
    COUNTERS = "counters"
    """Difference of the engine's ``/metrics`` counters around this request, which ran alone."""


class Quality(StrEnum):
    """How far the acceptance length may be off."""

    EXACT = "exact"
    """The engine's own count, or a stream whose every event is proven to be one step."""
    TRIMMED = "trimmed"
    """Right but for the last step, which the engine cut at a stop or at max_tokens: off by at most K / steps."""
    UPPER_BOUND = "upper_bound"
    """Steps were merged or swallowed on the way: the true A is at most this."""


class Ending(StrEnum):
    """How an answer ended."""

    COMPLETE = "complete"
    CLIENT_GONE = "client_gone"
    CONNECT_FAILED = "connect_failed"
    """No connection to the backend: no byte of the request was sent."""
    UPSTREAM_CLOSED = "upstream_closed"
    """The backend closed before the answer was whole."""
    UPSTREAM_TIMEOUT = "upstream_timeout"
    """The backend was silent for longer than a documented time-out."""
    UPSTREAM_INVALID = "upstream_invalid"
    """What the backend sent was not HTTP."""
    ENGINE_ERROR = "engine_error"
    """HTTP 200, then an error event in the stream."""
    ENGINE_ABORT = "engine_abort"
    """HTTP 200 and ``finish_reason: "abort"``: the engine gave up and called it an answer."""

    @property
    def failed(self) -> bool:
        """True where the backend, not the client, is to blame."""
        return self not in (Ending.COMPLETE, Ending.CLIENT_GONE)


Route = Literal["chat", "completions", "responses", "messages", "generate", "other"]


class RequestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the request's own bytes say; no text is kept."""

    route: Route
    model: str | None = None
    stream: bool = False
    n: int = 1
    """Choices asked for (``n``, or ``best_of``, or prompts in a batch)."""
    max_tokens: int | None = None
    usage_asked: bool = False
    """The client itself set ``stream_options.include_usage``."""
    token_counts_asked: bool = False
    """The client itself set ``stream_options.continuous_usage_stats`` together with ``include_usage``."""
    parsers_possible: bool = False
    """Tools or a reasoning request: the engine's parsers may swallow events, so events are not certainly steps."""
    body_bytes: int = 0


class Step(msgspec.Struct, frozen=True, gc=False):
    """One content event of a stream: a verify step as the client saw it."""

    at: float
    tokens: int | None
    """Tokens of this event where the stream says so (per-event usage or token ids), else None."""


class SpeculationCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Speculation of one request, counted by the engine."""

    verify_steps: int
    accepted_tokens: int
    drafted_tokens: int | None = None
    num_speculative_tokens: int | None = None
    accepted_per_position: tuple[int, ...] | None = None
    """Steps in which draft position i was accepted; divided by verify_steps this is p_i."""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, measured. Rates are of the decode phase: tokens and seconds after the first event."""

    request_id: str
    backend: str
    generation: int = 0
    """Launch of the backend that this answer belongs to: after a restart it grows."""
    facts: RequestFacts
    started_unix: float
    """Wall clock when the request arrived, seconds since 1970."""
    started: float
    """Monotonic seconds when the request arrived."""
    sent: float | None = None
    """Monotonic seconds when the request went to the backend: later than ``started`` by connecting and waiting here."""
    ended: float
    status: int | None = None
    ending: Ending = Ending.COMPLETE
    canary: bool = False

    ttft_seconds: float | None = None
    """From the request's arrival to the first event that carries a token (streams), else None."""
    decode_seconds: float | None = None
    """From the first token's event to the last one's."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None

    verify_steps: int | None = None
    acceptance_length: float | None = None
    """A: mean tokens per verify step, bonus token included; 1..K+1."""
    acceptance_source: Source | None = None
    acceptance_quality: Quality | None = None
    position_acceptance: tuple[float, ...] | None = None
    """p_i, where the source gives them; p_0 is the health of the drafter."""
    num_speculative_tokens: int | None = None
    step_seconds: float | None = None
    """T = 1/S: decode seconds per verify step."""
    decode_tokens_per_second: float | None = None
    """S x A of this answer."""
    rate_source: Source | None = None
    """ENGINE: the engine's own generation time. CADENCE: the arrival times seen here. COUNTERS: the engine's sum of
    decode times."""

    longest_gap_seconds: float | None = None
    content_events: int | None = None
    merged_events: int = 0
    """Events proven to hold more than one step (more than K+1 tokens)."""
    client_paced: bool = False
    """The client read slower than the engine wrote: arrival times say nothing about the engine, and rates are None."""
    in_flight: int = 1
    """Most requests in flight on this backend while this one ran, itself included."""

    @property
    def rate_seconds(self) -> float | None:
        """Decode seconds by the clock that gave the rate; None: not known.

        ``decode_seconds`` is of the arrivals. It is no weight for a rate that the engine told: where the whole answer
        came in one piece it is 0, however long that took.
        """
        rate, tokens, arrivals = self.decode_tokens_per_second, self.completion_tokens, self.decode_seconds
        arrived = arrivals is not None and arrivals > 0
        if arrived and self.rate_source in (None, Source.CADENCE):
            return arrivals
        if rate is not None and rate > 0 and tokens is not None and tokens > 1:
            return (tokens - 1) / rate
        return arrivals if arrived else None


class EngineSample(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of an engine's ``/metrics``. A counter the engine does not export is None."""

    at: float
    process_started_unix: float | None = None
    """Changes when the engine was restarted (``process_start_time_seconds``, or the ``_created`` of a counter)."""
    num_speculative_tokens: int | None = None
    """Number of ``position`` labels; 0 where the engine exports no speculation counters."""
    drafts: float | None = None
    draft_tokens: float | None = None
    accepted_tokens: float | None = None
    accepted_per_position: tuple[float, ...] = ()
    generation_tokens: float | None = None
    prompt_tokens: float | None = None
    cached_prompt_tokens: float | None = None
    requests_running: float | None = None
    requests_waiting: float | None = None
    kv_cache_usage: float | None = None
    preemptions: float | None = None
    engine_steps: float | None = None
    """Sum over requests of their engine steps (``inter_token_latency_seconds_count``)."""
    decode_seconds: float | None = None
    """``request_decode_time_seconds_sum``."""
    awake: bool | None = None
