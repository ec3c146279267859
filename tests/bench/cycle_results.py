"""The figures of the cycle benchmark, as written to its JSON."""

from __future__ import annotations

import msgspec

DIRECT = "direct"
SUBJECTS = ("specbreaker", "specbreaker, moving")
"""By default, and with ``continuation.on_collapse``."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One cycle of the primary beside one fallback."""

    name: str
    scenario: str
    fallback_tok_s: float
    requests: int = 60
    null: bool = False
    """There is no cycle: nothing may get worse."""
    peers: tuple[str, ...] = ()
    """Peers that are measured, too."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One target on one case. Rates are tokens per engine second."""

    case: str
    target: str
    failed: str | None = None
    """Why it was not measured."""
    requests: int = 0
    lost: int = 0
    """Answers that were not whole."""
    on_primary: int = 0
    on_fallback: int = 0
    tokens_per_second: float | None = None
    """All tokens over all decode time: the harmonic mean of the rates."""
    rates: list[float] = []
    time_scale: float = 1.0
    ttft_p99_ms: float | None = None
    canaries: int = 0
    canary_tokens: int = 0


class Run(msgspec.Struct, kw_only=True):
    """One run over all cases and targets."""

    date_utc: str
    command: str
    machine: str
    time_scale: float
    wall_seconds: float
    cases: list[Case]
    oracles: dict[str, float]
    """Perfect foresight, by case."""
    results: list[Result]
