"""What a backend's detector says of it, and what has happened to it so far."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Phase(StrEnum):
    """Phase of a backend."""

    HEALTHY = "healthy"
    TRANSITION = "transition"
    COLLAPSED = "collapsed"
    RECOVERING = "recovering"


class Cause(StrEnum):
    """What a degradation is blamed on."""

    ACCEPTANCE_COLLAPSE = "acceptance_collapse"
    SPECULATION_OFF = "speculation_off"
    STEP_INFLATION = "step_inflation"
    QUEUEING = "queueing"
    LONG_CONTEXT = "long_context"
    CONTENT = "content"
    DEGENERATE_OUTPUT = "degenerate_output"
    ARTEFACT = "artefact"
    UNKNOWN = "unknown"


class Episode(msgspec.Struct, kw_only=True):
    """One collapse of one backend, in the units of ``specbreaker detect --json``. Request indices count from 0."""

    onset_request: int
    onset_step: int | None = None
    """Verify step within the onset request at which the collapse began."""
    detected_request: int
    detected_step: int | None = None
    """Verify step within the detecting request at which the alarm fired; None: at its end."""
    end_request: int | None = None
    """First request that was healthy again; None while the episode lasts."""
    cause: Cause = Cause.UNKNOWN
    acceptance_length: float | None = None
    """Tokens per verify step over the episode."""
    step_seconds: float | None = None
    tokens_lost: float | None = None
    """Tokens that the healthy rate would have produced in the episode's decode time and the episode did not."""


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What a learned cycle says of the next request. A probability is 0..1, None while it is unknown."""

    next_request_probability: float | None = None
    """That the next request to this backend is slow, all of it or from somewhere inside."""
    clock: str | None = None
    """What moves the cycle (requests, tokens, steps, blocks, seconds); None: it cannot be told yet."""


class LongForecast(Forecast, frozen=True, kw_only=True):
    """The same, and what lies beyond the next request."""

    within_tokens: float | None = None
    """That a collapse begins within the next ``tokens`` generated tokens."""
    tokens: float | None = None
    within_seconds: float | None = None
    """That a collapse begins within the next ``seconds`` seconds."""
    seconds: float | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one backend after one update."""

    phase: Phase = Phase.HEALTHY
    cause: Cause | None = None
    degraded: bool = False
    """The next request should not go here if there is anywhere better."""
    since: float | None = None
    """Monotonic seconds at which this phase began."""
    why: str = ""
    """The diagnosis in a sentence; empty where there is none."""
    remedies: tuple[str, ...] = ()
    """What may help against the cause (``stats.cause_table.Remedy``), the most useful first."""
    forecast: Forecast | None = None
    """None while nothing is forecast."""
    evidence: dict[str, float] = {}
    """The numbers that decided, by name with unit (``acceptance_length``, ``reference_acceptance_length``, ...)."""
