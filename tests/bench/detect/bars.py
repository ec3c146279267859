"""The limits that the detector must keep on this traffic, and whether a run kept them."""

from __future__ import annotations

import msgspec

from tests.bench.detect import ours
from tests.bench.detect.our_run import base_name
from tests.bench.detect.results import Recorded, Result, Row
from tests.bench.detect.scenarios import SCENARIOS

MAX_FALSE_ALARMS_PER_1000 = 1.0
MAX_MEAN_DELAY = 1.0
MAX_MISSED_SHARE = 0.01
"""Of the collapses that are longer than ``SHORT_REQUESTS`` answers."""
MAX_MICROSECONDS_PER_REQUEST = 100.0
MAX_MICROSECONDS_PER_STEP = 2.0
PUBLISHED_ALARM = 5
"""The sixth of the ten published rates."""


class Bar(msgspec.Struct, frozen=True):
    """One limit and what was measured; None: it was not."""

    name: str
    measured: str | None
    limit: str
    kept: bool

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """A line of a table."""
        return self.name, self.measured or "-", self.limit, _word(self.kept) if self.measured else "not measured"


def _word(kept: bool) -> str:
    return "pass" if kept else "FAIL"


def is_null(row: Row) -> bool:
    """There is no collapse in it."""
    return SCENARIOS[base_name(row.scenario)].collapse is None


def verdict_of(row: Row) -> str:
    """``pass`` or ``FAIL``: false alarms of a null; delay and missed share of a scenario that collapses."""
    return _word(_kept(row))


def _kept(row: Row) -> bool:
    score = row.score
    if is_null(row):
        return score.false_alarms_per_1000 <= MAX_FALSE_ALARMS_PER_1000
    return (
        score.mean_delay is not None
        and score.mean_delay <= MAX_MEAN_DELAY
        and (score.long_missed_share or 0.0) <= MAX_MISSED_SHARE
    )


def bars(result: Result) -> list[Bar]:
    """All limits, in the order of the page."""
    mine = [row for row in result.rows if row.detector == ours.NAME]
    return [*_traffic_bars(mine), *_cost_bars(result), *_recorded_bars(result.recorded)]


def _traffic_bars(rows: list[Row]) -> list[Bar]:
    nulls, collapses = [row for row in rows if is_null(row)], [row for row in rows if not is_null(row)]
    bars = []
    for name, some, limit in (
        ("nulls kept", nulls, f"each ≤ {MAX_FALSE_ALARMS_PER_1000:g} false alarm per 1000"),
        (
            "collapsing scenarios kept",
            collapses,
            f"each: mean delay ≤ {MAX_MEAN_DELAY:g} answers, ≤ {100 * MAX_MISSED_SHARE:g} % of the longer ones missed",
        ),
    ):
        kept = sum(_kept(row) for row in some)
        bars.append(Bar(name, f"{kept} of {len(some)}" if some else None, limit, kept == len(some)))
    worst = max(nulls, key=lambda row: row.score.false_alarms_per_1000, default=None)
    if worst is not None:
        rate = worst.score.false_alarms_per_1000
        measured = f"{rate:.2f} per 1000 ({worst.scenario})"
        bars.insert(
            1, Bar("worst null", measured, f"≤ {MAX_FALSE_ALARMS_PER_1000:g}", rate <= MAX_FALSE_ALARMS_PER_1000)
        )
    return bars


def _cost_bars(result: Result) -> list[Bar]:
    cost = next((cost for cost in result.costs if cost.detector == ours.NAME), None)
    bars = []
    for name, value, limit in (
        ("CPU per request", cost and cost.microseconds_per_request, MAX_MICROSECONDS_PER_REQUEST),
        (
            "CPU per request while nothing collapses",
            cost and cost.microseconds_per_healthy_request,
            MAX_MICROSECONDS_PER_REQUEST,
        ),
        ("CPU per step", cost and cost.microseconds_per_step, MAX_MICROSECONDS_PER_STEP),
    ):
        measured = None if value is None else f"{value:.2f} µs"
        bars.append(Bar(name, measured, f"≤ {limit:g} µs", value is not None and value <= limit))
    return bars


def _recorded_bars(recorded: list[Recorded]) -> list[Bar]:
    by_name = {one.name: one for one in recorded}
    published = by_name.get("published, dflash_n8 (10 rates)")
    at = None if published is None else [episode["detected_request"] for episode in published.episodes]
    captures = [one for one in recorded if one is not published]
    found, collapses = sum(one.found for one in captures), sum(len(one.true_onsets) for one in captures)
    false = sum(one.false_alarms for one in captures)
    claims = [one.name for one in recorded if not one.cycle_known and one.cycle_verdict == "cyclic"]
    return [
        Bar(
            "published rates: alarm at",
            None if at is None else f"{at}",
            f"[{PUBLISHED_ALARM}]",
            at == [PUBLISHED_ALARM],
        ),
        Bar(
            "other recordings: collapses found",
            f"{found} of {collapses}, {false} false" if captures else None,
            "all, none false",
            found == collapses and false == 0,
        ),
        Bar("cycle claimed on too little", f"{len(claims)} times" if recorded else None, "never", not claims),
    ]
