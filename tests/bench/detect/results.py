"""What one run of the detection benchmark measured: written by run.py as JSON, read by table.py."""

from __future__ import annotations

import msgspec

from tests.bench.detect.scoring import Score


class Row(msgspec.Struct, kw_only=True):
    """One detector on one scenario, all seeds together."""

    detector: str
    scenario: str
    score: Score
    causes: dict[str, int] = {}
    """Alarms on true collapses by the cause they named (specbreaker only)."""


class Cost(msgspec.Struct, kw_only=True):
    """What a detector costs."""

    detector: str
    microseconds_per_request: float
    microseconds_per_step: float | None = None
    snapshot_bytes: int | None = None
    threshold: float | None = None
    calibrated_arl: float | None = None
    """Requests between false alarms on the series that set the threshold; None: nothing was calibrated."""


class Recorded(msgspec.Struct, kw_only=True):
    """The detector on one recorded series."""

    name: str
    requests: int
    true_onsets: list[int]
    alarms: list[int]
    causes: list[str | None]
    cycle_verdict: str
    note: str = ""


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
