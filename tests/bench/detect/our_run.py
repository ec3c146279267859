"""specbreaker's rows and cost: one scenario after the other, each in a process that may run beside others."""

from __future__ import annotations

from collections import Counter

from tests.bench.detect import ours
from tests.bench.detect.observations import observations_of
from tests.bench.detect.results import Cost, Row
from tests.bench.detect.scenarios import SCENARIOS
from tests.bench.detect.scoring import Score
from tests.bench.detect.series import QUICK, Series, Size, cold_series_of, series_of

COLD = ("deploy", "deploy_steptime", "blog")
"""Also met without a warm-up."""
COLD_SUFFIX = ":cold"


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
