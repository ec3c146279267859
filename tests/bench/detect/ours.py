"""specbreaker's own detector on a series: its alarms, its cost, its memory. Settings are the documented defaults."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from detector.observation import Observation, Step
from detector.watch import Watch, WatchConfig
from tests.bench.detect.observations import observations_of
from tests.bench.detect.scoring import Score, score
from tests.bench.detect.series import Series

NAME = "specbreaker"
NAME_RATES = "specbreaker, told rates alone"
COST_STEPS = 50_000
MEAN_REQUESTS_BETWEEN_FALSE_ALARMS = 1000.0
"""The bar of DESIGN, told to the detector as an operator would: nothing is calibrated on any series here."""


class Watched(msgspec.Struct, kw_only=True):
    """What a watch said, answer by answer, and what that cost."""

    alarms: list[int]
    """Numbers of the answers with which it became degraded."""
    flagged: list[bool]
    """Whether it was degraded after each answer."""
    causes: list[str | None]
    """Cause named at each alarm."""
    seconds: float
    snapshot_bytes: int


def config() -> WatchConfig:
    """The setting under which the detector promises what it is measured against."""
    return WatchConfig(mean_requests_between_false_alarms=MEAN_REQUESTS_BETWEEN_FALSE_ALARMS)


def watch_answers(observations: Sequence[Observation]) -> Watched:
    """Put answers into a new watch in the order given."""
    watch = Watch(config())
    alarms, flagged, causes = [], [], []
    was_degraded = False
    begin = time.process_time()
    for number, observation in enumerate(observations):
        verdict = watch.update(observation)
        _ = watch.cycle_judgement  # the proxy asks for it after each answer
        flagged.append(verdict.degraded)
        if verdict.degraded and not was_degraded:
            alarms.append(number)
            causes.append(verdict.cause.value if verdict.cause else None)
        was_degraded = verdict.degraded
    seconds = time.process_time() - begin
    return Watched(alarms=alarms, flagged=flagged, causes=causes, seconds=seconds, snapshot_bytes=len(watch.snapshot()))


def score_series(series: Series) -> tuple[Score, Watched]:
    """The score of the watch on one series."""
    watched = watch_answers(observations_of(series.scenario, series.answers))
    degraded = [answer.degraded for answer in series.answers]
    workers = series.scenario.workload.workers
    return score(degraded, watched.alarms, watched.flagged, begin=series.begin, workers=workers), watched


def step_microseconds(observations: Sequence[Observation]) -> float:
    """CPU time of ``update_step`` per healthy step, in a watch that has seen these answers."""
    watch = Watch(config())
    for observation in observations:
        watch.update(observation)
    steps = [Step(at=number * 0.02, tokens=1 + number % 7) for number in range(COST_STEPS)]
    begin = time.process_time()
    for step in steps:
        watch.update_step("cost", step)
    return (time.process_time() - begin) / COST_STEPS * 1e6
