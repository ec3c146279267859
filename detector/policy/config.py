"""Settings of the policy, with units, ranges and defaults."""

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


class Level(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to run the primary, as far as the policy cares. How it is started is the business of the effect."""

    name: str
    num_speculative_tokens: int
    """K; 0: speculation off."""
    tokens_per_second: float | None = None
    """Decode rate to expect of one healthy stream at this level; None: what was measured at it, else not considered."""


class PolicyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the policy.

    Raises:
        ValueError: a setting is out of its range.
    """

    mode: Mode = Mode.OBSERVE
    primary: str = "primary"
    fallbacks: tuple[str, ...] = ()
    """In order of preference; empty: there is nowhere else to go, the primary always serves."""

    dwell_seconds: float = 2.0
    """Least time between two changes of route, and the wait before the first canary; > 0."""
    min_gain_share: float = 0.05
    """The route changes only for a backend whose expected cost is lower by more than this share; 0..1."""
    switch_seconds: float = 0.5
    """What a conversation pays when it moves: its prompt is read again where no prefix of it is cached; >= 0."""
    verdict_valid_seconds: float = 120.0
    """What was last seen of a backend counts for this long, then the backend is presumed good; > 0."""

    canary_tokens: int = 64
    """Tokens that the first canaries ask for; >= 1."""
    canary_max_tokens: int = 1024
    """Tokens that the largest canary asks for; >= canary_tokens."""
    canaries_before_growth: int = 6
    """After so many canaries without a return each next one asks for twice as many tokens; >= 1."""
    canary_interval_seconds: float = 1.0
    """Wait between canaries; > 0."""
    canary_backoff: float = 1.25
    """Growth of the wait with each canary after ``canaries_before_growth``; 1..10."""
    canary_max_interval_seconds: float = 60.0
    """The wait grows no further; >= canary_interval_seconds and dwell_seconds."""
    jitter_share: float = 0.1
    """Largest lengthening of a wait by jitter, as a share of it; 0..1."""
    canaries_to_return: int = 1
    """Healthy canaries in a row before the primary serves again; >= 1."""
    canary_max_share: float = 0.8
    """Largest share of the time that canaries may keep the primary busy: after a canary of d seconds the next one
    waits at least d (1 / share - 1); above 0, at most 1."""
    canary_burst_tokens: float = 2048.0
    """Tokens that canaries may ask for without any traffic: the size of their budget; >= canary_tokens."""
    canary_traffic_share: float = 0.6
    """The budget grows by this share of the tokens that clients get; 0..1. Without it only the smallest canary is
    sent, at the longest wait."""

    ladder: tuple[Level, ...] = ()
    """Levels of the primary, the preferred first; empty: the policy never restarts it."""
    restart_seconds: float = 120.0
    """How long a restart keeps the primary away, until one was measured; > 0."""
    restart_after_seconds: float = 300.0
    """Decode time of clients' answers that must have been measured before a restart is judged; >= 0."""
    restart_timeout_seconds: float = 1200.0
    """A restart that nobody reports on for so long has failed; > 0."""
    restart_horizon_seconds: float = 3600.0
    """A restart must have paid back by then; > 0."""
    restarts_max: int = 3
    """Restarts in any ``restarts_window_seconds``; >= 0."""
    restarts_window_seconds: float = 21600.0
    climb_after_seconds: float = 3600.0
    """Healthy time at a lower level before the one above is tried again; doubles with each relapse; > 0."""

    def __post_init__(self) -> None:
        checks = {
            "fallbacks must not name the primary or one backend twice": (
                len({self.primary, *self.fallbacks}) == 1 + len(self.fallbacks)
            ),
            "dwell_seconds must be above 0": self.dwell_seconds > 0,
            "min_gain_share must be 0..1": 0 <= self.min_gain_share <= 1,
            "switch_seconds must not be negative": self.switch_seconds >= 0,
            "verdict_valid_seconds must be above 0": self.verdict_valid_seconds > 0,
            "canary_tokens must be at least 1": self.canary_tokens >= 1,
            "canary_max_tokens must be at least canary_tokens": self.canary_max_tokens >= self.canary_tokens,
            "canaries_before_growth must be at least 1": self.canaries_before_growth >= 1,
            "canary_interval_seconds must be above 0": self.canary_interval_seconds > 0,
            "canary_backoff must be 1..10": 1 <= self.canary_backoff <= 10,
            "canary_max_interval_seconds must be at least canary_interval_seconds and dwell_seconds": (
                self.canary_max_interval_seconds >= max(self.canary_interval_seconds, self.dwell_seconds)
            ),
            "jitter_share must be 0..1": 0 <= self.jitter_share <= 1,
            "canaries_to_return must be at least 1": self.canaries_to_return >= 1,
            "canary_max_share must be above 0 and at most 1": 0 < self.canary_max_share <= 1,
            "canary_burst_tokens must be at least canary_tokens": self.canary_burst_tokens >= self.canary_tokens,
            "canary_traffic_share must be 0..1": 0 <= self.canary_traffic_share <= 1,
            "ladder must not name a level twice": len({level.name for level in self.ladder}) == len(self.ladder),
            "restart_seconds must be above 0": self.restart_seconds > 0,
            "restart_after_seconds must not be negative": self.restart_after_seconds >= 0,
            "restart_timeout_seconds must be above 0": self.restart_timeout_seconds > 0,
            "restart_horizon_seconds must be above 0": self.restart_horizon_seconds > 0,
            "restarts_max must not be negative": self.restarts_max >= 0,
            "restarts_window_seconds must be above 0": self.restarts_window_seconds > 0,
            "climb_after_seconds must be above 0": self.climb_after_seconds > 0,
        }
        for demand, met in checks.items():
            if not met:
                raise ValueError(f"policy: {demand}")
