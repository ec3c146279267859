"""specbreaker on series that were recorded: the published ten rates, and answers of a real engine on an H200.

The H200 captures are read whole where their folder is given (chunk logs, as `specbreaker detect` reads them); else the
copy in tests/data/watch, which has the same events without their times, is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detector.observation import Observation, Step
from detector.summary import summarise
from replay.readers import read_observations
from tests.bench.detect import ours
from tests.bench.detect.results import Recorded
from tests.detector import watch_traffic

PUBLISHED = Path(__file__).resolve().parents[2] / "data" / "watch" / "published_cycle.csv"
CYCLE_CAPTURE = "k8_cycle_by_request"
HEALTHY_CAPTURES = ("k0", "k2", "k12", "k15")
CAPTURES_VARIABLE = "SPECBREAKER_CAPTURES"
CYCLE_ONSETS = (5, 15, 25, 35)
"""Where acceptance was moved: 5 fast answers, 1 of transition, 3 collapsed, 1 recovering, four times."""


def recorded_rows(captures: Path | None) -> list[Recorded]:
    """All recorded series.

    captures: folder of the chunk logs, or None.

    Raises:
        replay.readers.ReadError: a log is missing or cannot be read.
    """
    rows = [
        _row("published, dflash_n8 (10 rates)", _published("dflash_n8"), (), [5], [8], cycle_known=False),
        _row("published, mtp_n3 (10 rates)", _published("mtp_n3"), (), [], [], cycle_known=False),
    ]
    ends = [onset + 3 for onset in CYCLE_ONSETS]
    for capture in (CYCLE_CAPTURE, *HEALTHY_CAPTURES):
        observations, steps = _capture(capture, captures)
        cyclic = capture == CYCLE_CAPTURE
        truth = (list(CYCLE_ONSETS), ends) if cyclic else ([], [])
        rows.append(_row(f"H200 {capture}, answers", observations, (), *truth, cycle_known=cyclic))
        if capture != "k0":
            rows.append(_row(f"H200 {capture}, steps", observations, steps, *truth, cycle_known=cyclic))
    return rows


def _row(
    name: str,
    observations: Sequence[Observation],
    steps: Sequence[Sequence[Step]],
    onsets: list[int],
    ends: list[int],
    *,
    cycle_known: bool,
) -> Recorded:
    summary = summarise(observations, ours.config(), steps)
    return Recorded(
        name=name,
        requests=summary["requests"],
        true_onsets=onsets,
        true_ends=ends,
        episodes=summary["episodes"],
        cycle_verdict=summary["cycle"]["verdict"],
        cycle_known=cycle_known,
    )


def _published(series: str) -> list[Observation]:
    return read_observations(PUBLISHED, series=series).observations


def _capture(name: str, folder: Path | None) -> tuple[list[Observation], list[list[Step]]]:
    if folder is not None:
        log = read_observations(folder / f"{name}.jsonl")
        return log.observations, log.steps
    answers = watch_traffic.h200(name)
    return [observation for observation, _ in answers], [steps for _, steps in answers]
