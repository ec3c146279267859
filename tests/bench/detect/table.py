"""docs/results/detection.md from the figures of run.py: every figure and every verdict is computed from them.

usage: python -m tests.bench.detect.table RESULT.json > PAGE
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from scipy.special import gammaincinv

from tests.bench.detect import ours
from tests.bench.detect.bars import bars, verdict_of
from tests.bench.detect.our_run import base_name
from tests.bench.detect.peers import PEERS
from tests.bench.detect.results import Cost, Recorded, Result, Row
from tests.bench.detect.scenarios import CORE, SCENARIOS
from tests.bench.detect.scoring import SHORT_REQUESTS, Score

DETECTORS = (ours.NAME, ours.NAME_RATES, *PEERS)
COLLAPSES = [scenario.name for scenario in CORE if scenario.collapse is not None]
NULLS = [scenario.name for scenario in CORE if scenario.collapse is None]


def markdown_table(lines: Iterable[Iterable[str]]) -> str:
    """A table whose first line is the header."""
    header, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([header, "|" + "---|" * (header.count("|") - 1), *body])


def number(value: float | None, places: int = 2) -> str:
    """With that many decimals; a dash where there is none."""
    return "-" if value is None else f"{value:.{places}f}"


def percent(share: float | None) -> str:
    """A share in percent: one decimal below ten."""
    if share is None:
        return "-"
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


def delay(score: Score) -> str:
    """Mean and median delay in answers."""
    return "-" if score.mean_delay is None else f"{score.mean_delay:.2f} / {score.median_delay:g}"


def collapse_cell(score: Score | None) -> str:
    """Mean delay, missed share, false alarms per 1000."""
    if score is None:
        return ""
    return f"{number(score.mean_delay)} · {percent(score.missed_share)} · {score.false_alarms_per_1000:.1f}"


def poisson_interval(count: int) -> tuple[float, float]:
    """The means, 95 % of them, under which a count this large, or this small, is not rare (Garwood 1936)."""
    low = gammaincinv(count, 0.025) if count else 0.0
    return float(low), float(gammaincinv(count + 1, 0.975))


def by_detector(rows: Sequence[Row]) -> dict[str, dict[str, Score]]:
    """Scores by detector and scenario."""
    found: dict[str, dict[str, Score]] = {}
    for row in rows:
        found.setdefault(row.detector, {})[row.scenario] = row.score
    return found


def peers_tables(result: Result) -> str:
    """All detectors on the core scenarios: collapses, then nulls."""
    scores = by_detector(result.rows)
    detectors = [name for name in DETECTORS if name in scores]
    collapses = [["", *COLLAPSES]]
    nulls = [["", *NULLS]]
    for name in detectors:
        mine = scores[name]
        collapses.append([name, *(collapse_cell(mine.get(scenario)) for scenario in COLLAPSES)])
        nulls.append([name, *(number(mine[n].false_alarms_per_1000) if n in mine else "" for n in NULLS)])
    return f"""Collapses: mean delay in answers (0: that in which it began) · missed · false alarms per 1000 answers.

{markdown_table(collapses)}

Nulls: false alarms per 1000 answers.

{markdown_table(nulls)}"""


def cost_table(costs: Sequence[Cost]) -> str:
    """What each detector costs, and where its threshold came from."""
    lines = [["", "µs per request", "µs per step", "snapshot, bytes", "threshold", "requests per false alarm there"]]
    for cost in sorted(costs, key=lambda cost: DETECTORS.index(cost.detector)):
        size = "-" if cost.snapshot_bytes is None else f"{cost.snapshot_bytes:,}"
        arl = "not calibrated" if cost.calibrated_arl is None else f"{cost.calibrated_arl:,.0f}"
        threshold = "documented setting" if cost.threshold is None else f"{cost.threshold:.3g}"
        times = [number(cost.microseconds_per_request, 1), number(cost.microseconds_per_step)]
        lines.append([cost.detector, *times, size, threshold, arl])
    return markdown_table(lines)


def own_collapse_table(rows: Sequence[Row]) -> str:
    """specbreaker on every scenario that collapses."""
    header = ["scenario", "collapses", "delay, mean / median", "missed", f"missed, > {SHORT_REQUESTS} answers"]
    lines = [[*header, "false alarms / 1000", "healthy answers held degraded", "causes named", "bar"]]
    for row in rows:
        s = row.score
        if row.detector == ours.NAME and SCENARIOS[base_name(row.scenario)].collapse is not None:
            causes = ", ".join(f"{cause} {count}" for cause, count in sorted(row.causes.items(), key=lambda c: -c[1]))
            shares = [percent(s.missed_share), percent(s.long_missed_share)]
            false = [f"{s.false_alarms_per_1000:.2f}", percent(s.healthy_flagged_share)]
            lines.append([row.scenario, str(s.episodes), delay(s), *shares, *false, causes, verdict_of(row)])
    return markdown_table(lines)


def own_null_table(rows: Sequence[Row]) -> str:
    """specbreaker on every scenario without a collapse."""
    lines = [["null", "answers", "false alarms", "per 1000 (95 % interval)", "healthy answers held degraded", "bar"]]
    for row in rows:
        s = row.score
        if row.detector == ours.NAME and SCENARIOS[base_name(row.scenario)].collapse is None:
            low, high = (1000 * bound / s.requests for bound in poisson_interval(s.false_alarms))
            rate = f"{s.false_alarms_per_1000:.2f} ({low:.2f} to {high:.2f})"
            counts = [f"{s.requests:,}", str(s.false_alarms), rate]
            lines.append([row.scenario, *counts, percent(s.healthy_flagged_share), verdict_of(row)])
    return markdown_table(lines)


def recorded_table(recorded: Sequence[Recorded]) -> str:
    """specbreaker on recordings."""
    lines = [["series", "answers", "collapses", "found", "false alarms", "alarm at (answer:step)", "causes", "cycle"]]
    for one in recorded:
        at = ", ".join(
            str(e["detected_request"]) + (f":{e['detected_step']}" if e["detected_step"] is not None else "")
            for e in one.episodes
        )
        causes = ", ".join(dict.fromkeys(str(e["cause"]) for e in one.episodes))
        counts = [str(one.requests), str(len(one.true_onsets)), str(one.found), str(one.false_alarms)]
        lines.append([one.name, *counts, at or "none", causes or "-", one.cycle_verdict])
    return markdown_table(lines)


def page(result: Result) -> str:
    """The whole page."""
    machine = "; ".join(f"{name} {value}" for name, value in result.machine.items())
    settings = "; ".join(f"{name}: {value}" for name, value in result.settings.items())
    bar_lines = [("bar", "measured", "limit", ""), *(bar.cells for bar in bars(result))]
    skipped = "\n".join(f"- {line}" for line in result.skipped) or "- nothing"
    return f"""# Detection beside the peers

Written by `make bench-detect` ({result.date_utc} UTC, {result.wall_seconds:.0f} s, tree {result.commit}): do not edit.
What is simulated, how it is scored, and the traps: [tests/bench/detect/README.md](../../tests/bench/detect/README.md).
What a detector would reach that knows the true laws: [detection-oracle.md](detection-oracle.md).

Machine: {machine}. Command: `{result.command}`.
Settings: {settings}.

{markdown_table(bar_lines)}

## Beside the peers

The peers' thresholds were searched so that each has one false alarm per 1000 answers on `null_deploy` of other seeds;
specbreaker has its documented setting and nothing else. The peers see tokens per second, as they would in Prometheus;
specbreaker also sees what it measures of the stream.

{peers_tables(result)}

{cost_table(result.costs)}

## specbreaker on every scenario

{own_collapse_table(result.rows)}

{own_null_table(result.rows)}

## Recordings

{recorded_table(result.recorded)}

Left out:

{skipped}
"""


def text_line(row: Row) -> str:
    """One row for a terminal."""
    s, text = row.score, ""
    if s.episodes:
        short = "" if s.short_missed_share is None else f" (short {percent(s.short_missed_share)})"
        text = f"delay {delay(s):>9}  missed {percent(s.missed_share):>6} of {s.episodes}{short}  "
        text += " ".join(f"{cause} {count}" for cause, count in row.causes.items())
    flagged = f"held degraded {percent(s.healthy_flagged_share):>5}"
    name = row.scenario + (", rates" if row.detector == ours.NAME_RATES else "")
    return f"{name:30s} {verdict_of(row):4s}  FA/1000 {s.false_alarms_per_1000:5.2f}  {flagged}  {text}"


def text_summary(result: Result) -> str:
    """What a terminal shows after the rows: recordings, bars, costs."""
    lines = [" | ".join(bar.cells) for bar in bars(result)]
    lines += [
        f"{cost.detector}: {cost.microseconds_per_request:.1f} us a request"
        + ("" if cost.microseconds_per_step is None else f", {cost.microseconds_per_step:.2f} us a step")
        for cost in result.costs
    ]
    lines += [f"left out: {line}" for line in result.skipped]
    return "\n".join([*lines, f"{result.wall_seconds:.0f} s"])


def main() -> None:
    """Print the page of a stored result."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.bench.detect.table RESULT.json > PAGE")
    print(page(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Result)), end="")


if __name__ == "__main__":
    main()
