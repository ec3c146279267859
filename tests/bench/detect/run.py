"""Measure the detector, and the peers, on simulated traffic and recordings.

usage: python -m tests.bench.detect.run [--quick] [--only ours|peers] [--scenarios NAME,...] [--jobs N] [--json FILE]

Prints a table; with --json the whole result goes to FILE, from which table.py writes docs/results/detection.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

from tests.bench.detect import ours
from tests.bench.detect.observations import observations_of
from tests.bench.detect.results import Cost, Row
from tests.bench.detect.scenarios import SCENARIOS
from tests.bench.detect.scoring import Score
from tests.bench.detect.series import FULL, QUICK, Series, Size, cold_series_of, series_of

COLD = ("deploy", "deploy_steptime", "blog")
"""Also met without a warm-up."""
COLD_SUFFIX = " (cold start)"


def our_row(name: str, size: Size) -> Row:
    """specbreaker on one scenario; a name with ``COLD_SUFFIX`` is the scenario without a warm-up."""
    scenario = SCENARIOS[name.removesuffix(COLD_SUFFIX)]
    total, causes = Score(), Counter[str]()
    every_series = cold_series_of(scenario, size) if name.endswith(COLD_SUFFIX) else series_of(scenario, size)
    for series in every_series:
        one, watched = ours.score_series(series)
        total += one
        causes.update(_true_causes(series, watched))
    return Row(detector=ours.NAME, scenario=name, score=total, causes=dict(causes))


def _true_causes(series: Series, watched: ours.Watched) -> list[str]:
    alarms = zip(watched.alarms, watched.causes, strict=True)
    return [str(cause) for number, cause in alarms if number >= series.begin and series.answers[number].degraded]


def our_cost() -> Cost:
    """What specbreaker costs on the traffic of a deployment that collapses."""
    series = next(series_of(SCENARIOS["deploy"], QUICK))
    observations = observations_of(series.scenario, series.answers)
    watched = ours.watch_answers(observations)
    return Cost(
        detector=ours.NAME,
        microseconds_per_request=watched.seconds / len(observations) * 1e6,
        microseconds_per_step=ours.step_microseconds(observations[:150]),
        snapshot_bytes=watched.snapshot_bytes,
    )


def scenario_names(chosen: str | None) -> list[str]:
    """The scenarios to run, cold starts included. ValueError: there is none of that name."""
    if chosen is None:
        return [*SCENARIOS, *(name + COLD_SUFFIX for name in COLD)]
    names = chosen.split(",")
    for name in names:
        if name.removesuffix(COLD_SUFFIX) not in SCENARIOS:
            raise ValueError(f"--scenarios: no scenario {name!r}; there are: {', '.join(SCENARIOS)}")
    return names


def text_line(row: Row) -> str:
    """One row for a terminal."""
    found, s = "", row.score
    if s.episodes:
        mean_delay = "-" if s.mean_delay is None else f"{s.mean_delay:.2f} / {s.median_delay:g}"
        short = "" if s.short_missed_share is None else f", short {100 * s.short_missed_share:.0f} %"
        found = f"delay {mean_delay:>9}  miss {100 * (s.missed_share or 0):5.1f} % of {s.episodes}{short}"
        found += f"  recall {s.recall:.2f}" if s.recall is not None else ""
    flagged = f"  healthy flagged {100 * s.healthy_flagged_share:.1f} %"
    return f"{row.scenario:32s} FA/1000 {s.false_alarms_per_1000:6.2f}{flagged}  {found}  {row.causes or ''}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.detect.run", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer answers and seeds: a minute instead of ten")
    parser.add_argument("--only", choices=("ours", "peers"))
    parser.add_argument("--scenarios", metavar="NAME,...", help="instead of all")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    return parser.parse_args()


def main() -> None:
    """Run what the command line asks for."""
    args = arguments()
    size = QUICK if args.quick else FULL
    try:
        names = scenario_names(args.scenarios)
    except ValueError as error:
        sys.exit(f"run.py: {error}")
    begin = time.monotonic()
    with ProcessPoolExecutor(args.jobs) as pool:
        for row in pool.map(our_row, names, repeat(size)):
            print(text_line(row), flush=True)
    cost = our_cost()
    print(
        f"{cost.microseconds_per_request:.0f} us a request, {cost.microseconds_per_step:.2f} us a step, "
        f"{cost.snapshot_bytes} bytes of snapshot; {time.monotonic() - begin:.0f} s"
    )


if __name__ == "__main__":
    main()
