"""One side of a comparison: its answers cut into healthy and slow ones, with the figures of either."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from detector.observation import Observation, Step
from detector.stats.clocks import Clock, ClockReading
from detector.stats.cycle import CycleTest, CycleVerdict
from detector.stats.cycle_period import Period, period_of
from detector.stats.proportion import wilson_interval
from detector.stats.runs import Run, RunRecorder
from detector.summary import summarise
from detector.watch import WatchConfig
from replay.timeline import Cell, cells_of

RESAMPLES = 1000


class Interval(msgspec.Struct, frozen=True):
    """An estimate and where the true value lies with 90 (shares) or 95 (ratios) % confidence."""

    estimate: float
    low: float
    high: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of the answers of one phase: totals divided, never means of rates. None: not known."""

    requests: int
    tokens_per_second: float | None = None
    """S x A: tokens / decode seconds."""
    acceptance_length: float | None = None
    """A: tokens / verify steps."""
    steps_per_second: float | None = None
    """S: verify steps / decode seconds."""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in one recording."""

    requests: int
    """Answers that were judged: those of clients that did not fail."""
    slow_requests: int
    slow_share: Interval
    onsets: int
    collapsed: list[bool]
    """Of each judged answer, in the order of their ends: whether it lies in a collapse."""
    healthy: Figures
    slow: Figures
    """Without the answers in which a collapse began."""
    rate_ratio: Interval | None
    """Slow / healthy tokens per second; None without one of them."""
    cycle: CycleVerdict
    periods: dict[Clock, Period]
    """From onset to onset, whether that is a cycle or not; without a clock that has fewer than two."""
    runs: list[tuple[Run, bool]]
    """Complete runs in their order; True: slow."""
    first_healthy: Run | None
    """From the recording's beginning to the first collapse; None where it began slow, or shows none."""
    under_way: tuple[Run, bool] | None
    """The run that the recording's end cut off; None where no phase began before."""
    longest_healthy: Run | None
    """The longest healthy stretch, complete or not: how long one may have to wait for a collapse."""
    whole: Run | None
    """All answers as one stretch."""


def examine(observations: Sequence[Observation], steps: Sequence[Sequence[Step]] = ()) -> Side:
    """Judge the answers of one backend, in any order; ``steps`` as for ``summarise``."""
    order = judged(observations)
    answers = [observations[index] for index in order]
    its_steps = [steps[index] for index in order] if steps else []
    found = summarise(answers, WatchConfig(), its_steps)
    slow, onsets = _slow(found["episodes"], len(answers))
    healthy_answers = [answer for answer, is_slow in zip(answers, slow, strict=True) if not is_slow]
    slow_answers = [answers[index] for index, is_slow in enumerate(slow) if is_slow and index not in onsets]
    slow_answers = slow_answers or [answers[index] for index in sorted(onsets) if index < len(answers)]
    healthy_figures, slow_figures = figures(healthy_answers), figures(slow_answers)
    cells = cells_of(answers, slow, its_steps)
    runs, healthy_stretches, turns = _runs(cells)
    test = CycleTest()
    for run, degraded in runs:
        test.update(run, degraded=degraded)
    share = sum(slow) / len(slow) if slow else 0.0
    return Side(
        requests=len(answers),
        slow_requests=sum(slow),
        slow_share=Interval(share, *wilson_interval(share, len(slow))),
        onsets=len(onsets),
        collapsed=slow,
        healthy=healthy_figures,
        slow=slow_figures,
        rate_ratio=rate_ratio(slow_answers, healthy_answers),
        cycle=test.verdict,
        periods={clock: period for clock in Clock if (period := period_of(gaps_of(runs), clock)) is not None},
        runs=runs,
        first_healthy=_stretch(cells[: turns[0] + 1]) if turns and not cells[0].slow else None,
        under_way=_under_way(cells, turns[-1]) if turns else None,
        longest_healthy=max(healthy_stretches, key=_length, default=None),
        whole=_stretch(cells),
    )


def judged(observations: Sequence[Observation]) -> list[int]:
    """Indices of the answers that ``examine`` judges, in the order of their ends."""
    kept = [index for index, one in enumerate(observations) if not one.ending.failed and not one.canary]
    return sorted(kept, key=lambda index: observations[index].ended)


def figures(answers: Sequence[Observation]) -> Figures:
    """Totals of these answers, each over those that know both of its parts."""
    tokens = _totals(answers, lambda one: (_tokens(one), _seconds(one)))
    accepted = _totals(answers, lambda one: (_steps(one) * (one.acceptance_length or math.nan), _steps(one)))
    steps = _totals(answers, lambda one: (_steps(one), _steps(one) * (one.step_seconds or math.nan)))
    return Figures(requests=len(answers), tokens_per_second=tokens, acceptance_length=accepted, steps_per_second=steps)


def rate_ratio(slow: Sequence[Observation], healthy: Sequence[Observation]) -> Interval | None:
    """Ratio of the two rates, with a bootstrap interval over answers; the same for the same answers."""
    pairs = [np.array([(_tokens(one), _seconds(one)) for one in side], dtype=float) for side in (slow, healthy)]
    pairs = [pair[np.isfinite(pair).all(axis=1)] if len(pair) else pair.reshape(0, 2) for pair in pairs]
    if any(len(pair) == 0 for pair in pairs):
        return None
    rng = np.random.default_rng(0)
    drawn = []
    for pair in pairs:
        totals = pair[rng.integers(len(pair), size=(RESAMPLES, len(pair)))].sum(axis=1)
        drawn.append(totals[:, 0] / totals[:, 1])
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    rates = [pair[:, 0].sum() / pair[:, 1].sum() for pair in pairs]
    return Interval(float(rates[0] / rates[1]), float(low), float(high))


def _slow(episodes: list[dict[str, Any]], requests: int) -> tuple[list[bool], set[int]]:
    """Which answers lie in an episode, and in which answers one began."""
    slow, onsets = [False] * requests, set()
    for episode in episodes:
        begin = min(episode["onset_request"], requests)
        end = requests if episode["end_request"] is None else episode["end_request"]
        slow[begin:end] = [True] * (min(end, requests) - begin)
        onsets.add(begin)
    return slow, onsets


def _runs(cells: Sequence[Cell]) -> tuple[list[tuple[Run, bool]], list[Run], list[int]]:
    """Complete runs, True where slow; all healthy stretches, those at either end included; where the phase changed."""
    recorder = RunRecorder()
    runs: list[tuple[Run, bool]] = []
    healthy: list[Run | None] = []
    turns: list[int] = []
    begin, phase = 0, bool(cells) and cells[0].slow
    for number, cell in enumerate(cells):
        recorder.add(number, cell.advance)
        if cell.slow != phase:
            if not phase:
                healthy.append(_stretch(cells[begin:number]))
            run = recorder.turn(number)
            if run is not None:
                runs.append((run, phase))
            begin, phase = number, cell.slow
            turns.append(number)
    if not phase:
        healthy.append(_stretch(cells[begin:]))
    return runs, [stretch for stretch in healthy if stretch is not None], turns


def _under_way(cells: Sequence[Cell], began: int) -> tuple[Run, bool] | None:
    """What came after the first cell of the last phase."""
    run = _stretch(cells[began + 1 :])
    return None if run is None else (run, cells[-1].slow)


def gaps_of(runs: Sequence[tuple[Run, bool]]) -> list[ClockReading]:
    """From the onset of each collapse to that of the next, on every clock."""
    return [
        before.actual.plus(after.actual)
        for (before, was_slow), (after, is_slow) in pairwise(runs)
        if was_slow and not is_slow
    ]


def _stretch(cells: Sequence[Cell]) -> Run | None:
    """These cells as one run."""
    recorder = RunRecorder(whole=True)
    for number, cell in enumerate(cells):
        recorder.add(number, cell.advance)
    return recorder.turn(len(cells)) if cells else None


def _length(run: Run) -> float:
    return run.actual.requests or 0.0


def _totals(answers: Sequence[Observation], parts: Any) -> float | None:
    above = below = 0.0
    for one in answers:
        over, under = parts(one)
        if math.isfinite(over) and math.isfinite(under):
            above, below = above + over, below + under
    return above / below if below > 0 else None


def _tokens(one: Observation) -> float:
    return (one.decode_tokens_per_second or math.nan) * _seconds(one)


def _seconds(one: Observation) -> float:
    """Decode seconds; one second where the length is not known."""
    return one.rate_seconds or 1.0


def _steps(one: Observation) -> float:
    if one.verify_steps:
        return float(one.verify_steps)
    if one.acceptance_length and one.completion_tokens:
        return one.completion_tokens / one.acceptance_length
    return 1.0 if one.acceptance_length else math.nan
