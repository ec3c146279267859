"""Series of answers for a scenario: how many, with which seeds, and from which answer on they count."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from tests.bench.detect.scenarios import Scenario
from tests.bench.detect.simulator import Answer, simulate

COLLAPSE_SEEDS, NULL_SEEDS, CALIBRATION_SEEDS = (1, 2, 3), (11, 12, 13, 14), (901, 902)
"""The calibration's seeds are its own: nothing is scored on a stream that set a threshold."""
CALIBRATION_SCENARIO = "null_deploy"
WARM_REQUESTS = 200
"""Healthy answers before the first collapse; nothing before them is scored."""
COLD_BEGIN = 60
"""Without a warm-up the scoring begins here: until then a detector may find out where it is."""


class Size(msgspec.Struct, frozen=True):
    """Answers per seed, and how many of the seeds are used."""

    collapse_requests: int
    null_requests: int
    seeds: int
    """At most: there are fewer seeds of collapses than of nulls."""


FULL = Size(collapse_requests=2000, null_requests=6000, seeds=4)
QUICK = Size(collapse_requests=600, null_requests=1500, seeds=1)


class Series(msgspec.Struct, frozen=True):
    """One simulated series, and from which answer on it is scored."""

    scenario: Scenario
    answers: list[Answer]
    begin: int
    seed: int


def series_of(scenario: Scenario, size: Size) -> Iterator[Series]:
    """The series of a scenario, one per seed."""
    if scenario.collapse is None:
        for seed in NULL_SEEDS[: size.seeds]:
            yield Series(scenario, simulate(scenario, size.null_requests, seed), 0, seed)
        return
    for seed in COLLAPSE_SEEDS[: size.seeds]:
        requests = size.collapse_requests + WARM_REQUESTS
        yield Series(scenario, simulate(scenario, requests, seed, warm=WARM_REQUESTS), WARM_REQUESTS, seed)


def cold_series_of(scenario: Scenario, size: Size) -> Iterator[Series]:
    """The same collapse met in its middle: no healthy traffic goes before."""
    for seed in COLLAPSE_SEEDS[: size.seeds]:
        yield Series(scenario, simulate(scenario, size.collapse_requests, seed), COLD_BEGIN, seed)
