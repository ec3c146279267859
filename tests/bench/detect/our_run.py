"""specbreaker's rows and cost: one scenario after the other, each in a process that may run beside others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from detector.observation import Observation
from tests.bench.detect import ours
from tests.bench.detect.observations import observations_of
from tests.bench.detect.results import Cost, Row
from tests.bench.detect.scenarios import CORE, SCENARIOS
from tests.bench.detect.scoring import Score
from tests.bench.detect.series import Series, Size, cold_series_of, series_of

COLD = ("deploy", "deploy_steptime", "blog")
"""Also met without a warm-up."""
COLD_SUFFIX = ":cold"
COST_RUNS = 15
RATES_SUFFIX = ":rates"
"""The detector is told rates alone, as the peers are."""


def our_row(name: str, size: Size) -> Row:
    """specbreaker on one scenario; a suffix says without a warm-up, or with rates alone."""
    scenario, detector = SCENARIOS[base_name(name)], ours.NAME
    if name.endswith(RATES_SUFFIX):
        measuring = replace(scenario.measuring, source="rate", gaps_known=False)
        scenario, detector = replace(scenario, measuring=measuring), ours.NAME_RATES
    total, causes = Score(), Counter[str]()
    every_series = cold_series_of(scenario, size) if name.endswith(COLD_SUFFIX) else series_of(scenario, size)
    for series in every_series:
        one, watched = ours.score_series(series)
        total += one
        causes.update(_true_causes(series, watched))
    return Row(detector=detector, scenario=name.removesuffix(RATES_SUFFIX), score=total, causes=dict(causes))


def base_name(name: str) -> str:
    """The scenario behind a name with a suffix."""
    return name.removesuffix(COLD_SUFFIX).removesuffix(RATES_SUFFIX)


def _true_causes(series: Series, watched: ours.Watched) -> list[str]:
    alarms = zip(watched.alarms, watched.causes, strict=True)
    return [str(cause) for number, cause in alarms if number >= series.begin and series.answers[number].degraded]


def our_cost(size: Size) -> Cost:
    """What specbreaker costs on the traffic of a deployment, with a collapse about every tenth answer and without: on
    the first series of each that is scored."""
    series, healthy = (next(series_of(SCENARIOS[name], size)) for name in ("deploy", "null_deploy"))
    observations = observations_of(series.scenario, series.answers)
    collapsing, snapshot_bytes = _cost_on(observations)
    return Cost(
        detector=ours.NAME,
        microseconds_per_request=collapsing,
        microseconds_per_healthy_request=_cost_on(observations_of(healthy.scenario, healthy.answers))[0],
        microseconds_per_step=ours.step_microseconds(observations[:150]),
        snapshot_bytes=snapshot_bytes,
    )


def _cost_on(observations: Sequence[Observation]) -> tuple[float, int]:
    """CPU microseconds of an answer, the least of some runs, since the machine is not ours alone; bytes of state."""
    runs = [ours.watch_answers(observations) for _ in range(COST_RUNS)]
    return min(run.seconds for run in runs) / len(observations) * 1e6, runs[0].snapshot_bytes


def scenario_names(chosen: str | None) -> list[str]:
    """The scenarios to run: all, cold starts, the core with rates alone; or those chosen.

    Raises:
        ValueError: there is none of that name.
    """
    if chosen is None:
        by_rates = [scenario.name + RATES_SUFFIX for scenario in CORE]
        return [*SCENARIOS, *(name + COLD_SUFFIX for name in COLD), *by_rates]
    names = chosen.split(",")
    for name in names:
        if base_name(name) not in SCENARIOS:
            raise ValueError(f"--scenarios: no scenario {name!r}; there are: {', '.join(SCENARIOS)}")
    return names
