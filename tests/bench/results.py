"""What one run of the benchmark measured: written by load.py as JSON, read by table.py."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

DIRECT = "direct"
"""The row without a proxy: what the others are compared with."""


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0..1) of `values` do not exceed. ValueError: no values."""
    if not values:
        raise ValueError("no values to take a quantile of")
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 1)  # ceil
    return ordered[min(len(ordered), max(1, int(rank))) - 1]


class Distribution(msgspec.Struct, frozen=True):
    """Quantiles over all samples, and the median of each round: how far the machine drifted. Milliseconds."""

    samples: int
    p50_ms: float
    p99_ms: float
    round_p50_ms: list[float]


def distribution(rounds_seconds: Sequence[Sequence[float]]) -> Distribution:
    """The distribution of samples, given in seconds by round. ValueError: no samples."""
    samples = [sample for one_round in rounds_seconds for sample in one_round]
    return Distribution(
        samples=len(samples),
        p50_ms=quantile(samples, 0.5) * 1e3,
        p99_ms=quantile(samples, 0.99) * 1e3,
        round_p50_ms=[quantile(one_round, 0.5) * 1e3 for one_round in rounds_seconds if one_round],
    )


class Alone(msgspec.Struct, frozen=True):
    """One stream at a time, no pause between events."""

    ttft: Distribution
    """Of short streams."""
    total: Distribution
    """Of long streams, to the end of the body."""


class Paced(msgspec.Struct, frozen=True):
    """Streams side by side, one event per gap each."""

    ttft: Distribution
    event_delay: Distribution
    """One-way delay of an event from the stub to the client."""
    events: int
    cpu_seconds: float | None
    """User + system time of the target's processes; None where its PID is unknown (direct)."""

    @property
    def cpu_us_per_event(self) -> float | None:
        """Microseconds of CPU per content event, requests and idle work included."""
        return None if self.cpu_seconds is None else self.cpu_seconds / self.events * 1e6


class Memory(msgspec.Struct, frozen=True):
    """Resident set of the target's processes around many short streams."""

    streams: int
    """Fewer than asked for where the time limit came first."""
    rss_before_bytes: int
    rss_after_bytes: int


class HeldRate(msgspec.Struct, frozen=True):
    """The highest event rate that arrived on time."""

    events_per_second: float
    """0 where not even the lowest level held."""
    event_delay_p99_ms: float | None
    limited_by_harness: bool
    """The stub did not reach the next level itself: the target may hold more."""


class TargetResult(msgspec.Struct, kw_only=True):
    """One row: what was measured of one target, or why it was not."""

    name: str
    version: str
    failed: str | None = None
    alone: Alone | None = None
    paced: Paced | None = None
    memory: Memory | None = None
    held_rate: HeldRate | None = None


class Run(msgspec.Struct, kw_only=True):
    """One run over all targets; the first target is `direct`."""

    date_utc: str
    command: str
    machine: dict[str, str]
    settings: dict[str, float]
    wall_seconds: float
    targets: list[TargetResult]
