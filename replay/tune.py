"""From recordings to measured levels: what ``specbreaker tune`` and ``report`` tell the cost model of K."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from detector.judgement import JudgedAnswer, judge
from detector.levels import MAX_DEPTH, MIN_ANSWERS, Answer, MeasuredLevel, measure_level
from detector.tap.chunklog import speculative_config
from detector.watch import WatchConfig
from replay.readers import ObservationFile, ReadError, read_observations
from replay.recorded import read_recorded

Scalar = str | int | float | bool


class Healthy(msgspec.Struct, frozen=True, kw_only=True):
    """Answers outside of any collapse, by K, and what else the file says."""

    answers: dict[int, list[Answer]]
    speculative_config: dict[str, Scalar] = {}
    """Of the command that served, its plain values; empty where the file has no command."""
    notes: tuple[str, ...] = ()


def read_healthy(path: Path, *, series: str | None = None, depth: int | None = None) -> Healthy:
    """The answers of a file by the K that they were made with, collapses left out.

    depth: the K of all its answers; None: as the file says. Raises ReadError, also where no K is known.
    """
    read = read_observations(path, series=series)
    judgement = judge(read.observations, WatchConfig(), read.steps)
    outside = [answer for answer in judgement.answers if not judgement.in_episode(answer)]
    found = by_depth(outside, depths_of(path, read) if depth is None else {}, depth)
    if not found:
        raise ReadError(f"{path}: the file does not say K (num_speculative_tokens): give it with --k {path}=K")
    notes = [*read.notes]
    collapsed = len(judgement.answers) - len(outside)
    if collapsed:
        notes.append(f"{path}: {collapsed} of {len(judgement.answers)} answers are of a collapse and left out")
    backends = {answer.observation.backend for answer in outside}
    if len(backends) > 1:
        notes.append(f"{path}: holds {len(backends)} backends, taken for one engine (--series chooses one)")
    return Healthy(answers=found, speculative_config=served_config(path, read), notes=tuple(notes))


def by_depth(
    answers: Iterable[JudgedAnswer], of_backend: dict[str, int], depth: int | None = None
) -> dict[int, list[Answer]]:
    """Answers by K: the given one, their own, or that of their backend; those without any are left out."""
    found: defaultdict[int, list[Answer]] = defaultdict(list)
    for answer in answers:
        observation = answer.observation
        own = depth if depth is not None else observation.num_speculative_tokens
        known = of_backend.get(observation.backend) if own is None else own
        if known is not None and 0 <= known <= MAX_DEPTH:
            found[known].append(Answer(observation, answer.steps))
    return dict(found)


def depths_of(path: Path, read: ObservationFile) -> dict[str, int]:
    """K by backend, from a session's readings of the engines; a backend that ran at several has none."""
    if read.kind != "session":
        return {}
    depths: defaultdict[str, set[int]] = defaultdict(set)
    for record in read_recorded(path).engine:
        if record.sample.num_speculative_tokens is not None:
            depths[record.backend].add(record.sample.num_speculative_tokens)
    return {backend: min(its) for backend, its in depths.items() if len(its) == 1}


def served_config(path: Path, read: ObservationFile) -> dict[str, Scalar]:
    """The plain values of the speculative config that a chunk log was served with."""
    if read.kind != "chunk_log":
        return {}
    with path.open("rb") as file:
        header = msgspec.json.decode(file.readline(), type=dict[str, Any])
    return {name: value for name, value in speculative_config(header).items() if isinstance(value, Scalar)}


def measure(answers: dict[int, list[Answer]]) -> tuple[list[MeasuredLevel], list[str]]:
    """The levels that can be measured, the smallest K first, and a line for each that cannot."""
    levels, notes = [], []
    for depth in sorted(answers):
        level = measure_level(answers[depth], depth)
        if level is None:
            few = len(answers[depth])
            notes.append(f"K={depth}: {few} answers, of which fewer than {MIN_ANSWERS} are usable at one load")
        else:
            levels.append(level)
    return levels, notes


def merged(parts: Sequence[dict[int, list[Answer]]]) -> dict[int, list[Answer]]:
    """The answers of several files by K."""
    together: defaultdict[int, list[Answer]] = defaultdict(list)
    for part in parts:
        for depth, answers in part.items():
            together[depth] += answers
    return dict(together)
