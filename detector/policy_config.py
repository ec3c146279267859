"""Settings of the routing policy, with units, ranges and defaults."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Mode(StrEnum):
    """How far the policy may go."""

    OBSERVE = "observe"
    """Changes nothing; says what it would do, at level info."""
    ADVISE = "advise"
    """Changes nothing; says what it would do, at level warning."""
    ACT = "act"


class PolicyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the policy.

    Raises:
        ValueError: a setting is out of its range.
    """

    mode: Mode = Mode.OBSERVE
    primary: str = "primary"
    fallback: str | None = None
    """None: there is nowhere else to go, the primary always serves."""
    dwell_seconds: float = 2.0
    """Wait before the first canary, and the least time between two changes of route; > 0."""
    dwell_factor: float = 1.5
    """Growth of the wait after each failed canary; 1..10."""
    dwell_max_seconds: float = 60.0
    """The wait grows no further; >= dwell_seconds."""
    dwell_jitter_share: float = 0.1
    """Largest lengthening of a wait by jitter, as a share of it; 0..1."""
    canaries_to_return: int = 1
    """Healthy canaries in a row before the primary serves again; >= 1."""
    canary_max_share: float = 0.5
    """Largest share of the time that canaries may keep the primary busy: after a canary of d seconds the next one
    waits at least d (1 / share - 1); above 0, at most 1."""
    verdict_valid_seconds: float = 120.0
    """What was last seen of a backend counts for this long, then the backend is presumed good; > 0."""

    def __post_init__(self) -> None:
        checks = {
            "primary must differ from fallback": self.primary != self.fallback,
            "dwell_seconds must be above 0": self.dwell_seconds > 0,
            "dwell_factor must be 1..10": 1 <= self.dwell_factor <= 10,
            "dwell_max_seconds must be at least dwell_seconds": self.dwell_max_seconds >= self.dwell_seconds,
            "dwell_jitter_share must be 0..1": 0 <= self.dwell_jitter_share <= 1,
            "canaries_to_return must be at least 1": self.canaries_to_return >= 1,
            "canary_max_share must be above 0 and at most 1": 0 < self.canary_max_share <= 1,
            "verdict_valid_seconds must be above 0": self.verdict_valid_seconds > 0,
        }
        for demand, met in checks.items():
            if not met:
                raise ValueError(f"policy: {demand}")
