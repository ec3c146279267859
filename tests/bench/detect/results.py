"""What one run of the detection benchmark measured: written by run.py as JSON, read by table.py."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.bench.detect.scoring import Score


class Row(msgspec.Struct, kw_only=True):
    """One detector on one scenario, all seeds together."""

    detector: str
    scenario: str
    score: Score
    causes: dict[str, int] = {}
    """Alarms in true collapses by the cause they named (specbreaker only)."""


class Cost(msgspec.Struct, kw_only=True):
    """What a detector costs."""

    detector: str
    microseconds_per_request: float
    microseconds_per_healthy_request: float | None = None
    """While nothing collapses."""
    microseconds_per_step: float | None = None
    snapshot_bytes: int | None = None
    threshold: float | None = None
    calibrated_arl: float | None = None
    """Requests per false alarm on the series that set the threshold; None: nothing was calibrated."""


class Recorded(msgspec.Struct, kw_only=True):
    """specbreaker on one recorded series."""

    name: str
    requests: int
    true_onsets: list[int]
    """Answers in which a collapse began."""
    true_ends: list[int]
    """The last degraded answer of each."""
    episodes: list[dict[str, Any]]
    """As ``specbreaker detect --json`` prints them."""
    cycle_verdict: str
    cycle_known: bool
    """The series is long enough to show its cycle; False: a claim would be false."""

    @property
    def found(self) -> int:
        """Collapses with an alarm in one of their answers."""
        runs = list(zip(self.true_onsets, self.true_ends, strict=True))
        return sum(any(onset <= e["detected_request"] <= end for e in self.episodes) for onset, end in runs)

    @property
    def false_alarms(self) -> int:
        """Episodes detected outside of every collapse."""
        runs = list(zip(self.true_onsets, self.true_ends, strict=True))
        return sum(not any(onset <= e["detected_request"] <= end for onset, end in runs) for e in self.episodes)


class PeerResult(msgspec.Struct, kw_only=True):
    """What peer_run.py prints."""

    rows: list[Row]
    costs: list[Cost]


class Result(msgspec.Struct, kw_only=True):
    """One run."""

    date_utc: str
    command: str
    commit: str
    machine: dict[str, str]
    settings: dict[str, str]
    wall_seconds: float
    rows: list[Row]
    costs: list[Cost]
    recorded: list[Recorded]
    skipped: list[str] = []
    """What was left out, one line each with the reason."""
