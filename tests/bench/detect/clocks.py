"""When a simulated engine is collapsed: runs of healthy and of collapsed state on one of four clocks."""

from __future__ import annotations

import bisect
import math
from typing import Protocol

import msgspec
import numpy as np

from detector.verdict import Phase
from tests.bench.detect.scenarios import (
    PUBLISHED_JITTER_COLLAPSED,
    PUBLISHED_JITTER_HEALTHY,
    PUBLISHED_REQUEST_TOKENS,
    Collapse,
)

_HEALTHY_A, _COLLAPSED_A = 4.5, 1.4
_UNITS = {
    "requests": (1.0, 1.0),
    "tokens": (PUBLISHED_REQUEST_TOKENS, PUBLISHED_REQUEST_TOKENS),
    "steps": (PUBLISHED_REQUEST_TOKENS / _HEALTHY_A, PUBLISHED_REQUEST_TOKENS / _COLLAPSED_A),
    "seconds": (PUBLISHED_REQUEST_TOKENS / 221, PUBLISHED_REQUEST_TOKENS / 60),
}
"""One published request on each clock, healthy and collapsed."""
_EDGE_SHARE = 0.05
"""An answer is in transition where between this share and the rest of its tokens are collapsed."""


class Pace(msgspec.Struct, frozen=True):
    """How fast one answer runs in either state."""

    started: float
    """Seconds at which its first token comes."""
    tokens: int
    healthy_tokens_per_second: float
    collapsed_tokens_per_second: float
    healthy_acceptance_length: float
    collapsed_acceptance_length: float

    def rate(self, clock: str, collapsed: bool) -> float:
        """Tokens per unit of the clock."""
        if clock == "tokens":
            return 1.0
        if clock == "steps":
            return self.collapsed_acceptance_length if collapsed else self.healthy_acceptance_length
        return self.collapsed_tokens_per_second if collapsed else self.healthy_tokens_per_second


class Part(msgspec.Struct, frozen=True):
    """What the clock does to one answer."""

    phase: Phase
    collapsed_share: float
    """Of its tokens."""


class Runs:
    """Lengths of healthy and collapsed runs, in units of the clock."""

    def __init__(self, collapse: Collapse, rng: np.random.Generator) -> None:
        self._collapse, self._rng = collapse, rng

    def draw(self, collapsed: bool) -> float:
        """Length of the next run of this state."""
        unit = _UNITS[self._collapse.clock][collapsed]
        if self._collapse.memoryless is not None:
            return unit * float(self._rng.geometric(1 / self._collapse.memoryless[collapsed]))
        law = PUBLISHED_JITTER_COLLAPSED if collapsed else PUBLISHED_JITTER_HEALTHY
        return unit * float(self._rng.choice(list(law), p=list(law.values())))

    def first(self, warm: bool) -> float:
        """The healthy run that is going on at the start: without a warm-up it began some time before."""
        length = self.draw(collapsed=False)
        if not warm and self._collapse.memoryless is None:
            length *= float(self._rng.uniform(0.3, 1.0))
        return length


class Clock(Protocol):
    """Gives each answer its part of the runs; answers come in the order in which they start."""

    def part(self, pace: Pace) -> Part:
        """The part of the next answer."""
        ...


class RequestClock:
    """Runs of whole requests; each collapse begins inside a request of its own, as the published one did."""

    def __init__(self, collapse: Collapse, runs: Runs, rng: np.random.Generator, warm: bool) -> None:
        self._runs, self._rng, self._recovery = runs, rng, collapse.recovery
        self._phase, self._left = Phase.HEALTHY, max(1, math.ceil(runs.first(warm)))

    def part(self, pace: Pace) -> Part:
        """See Clock."""
        phase, share = self._phase, 0.0
        if phase is Phase.TRANSITION:
            share = float(self._rng.uniform(0.2, 0.8))
        elif phase is Phase.COLLAPSED:
            share = 1.0
        self._left -= 1
        if self._left <= 0:
            self._phase, self._left = self._next(phase)
        return Part(phase, share)

    def _next(self, phase: Phase) -> tuple[Phase, int]:
        if phase is Phase.HEALTHY:
            return Phase.TRANSITION, 1
        if phase is Phase.TRANSITION:
            return Phase.COLLAPSED, int(self._runs.draw(collapsed=True))
        if phase is Phase.COLLAPSED and self._recovery:
            return Phase.RECOVERING, 1
        return Phase.HEALTHY, int(self._runs.draw(collapsed=False))


class WorkClock:
    """Runs of generated tokens or of verify steps: the clock stands still between answers."""

    def __init__(self, unit: str, runs: Runs, warm: bool) -> None:
        self._unit, self._runs = unit, runs
        self._collapsed, self._left = False, runs.first(warm)

    def part(self, pace: Pace) -> Part:
        """See Clock."""
        remaining, collapsed_tokens = float(pace.tokens), 0.0
        while remaining > 1e-9:
            rate = pace.rate(self._unit, self._collapsed)
            tokens = min(remaining, self._left * rate)
            remaining -= tokens
            self._left -= tokens / rate
            if self._collapsed:
                collapsed_tokens += tokens
            if self._left <= 1e-9:
                self._collapsed = not self._collapsed
                self._left = self._runs.draw(self._collapsed)
        return _part(collapsed_tokens / pace.tokens)


class WallClock:
    """Runs of seconds that go on between answers and are the same for all that run at once."""

    def __init__(self, runs: Runs, warm: bool, begin: float) -> None:
        self._runs = runs
        self._ends = [begin + runs.first(warm)]
        """Of the runs; those at even places are healthy."""

    def part(self, pace: Pace) -> Part:
        """See Clock."""
        now, remaining, collapsed_tokens = pace.started, float(pace.tokens), 0.0
        while remaining > 1e-9:
            run = self._run_at(now)
            rate = pace.rate("seconds", collapsed=bool(run % 2))
            tokens = min(remaining, (self._ends[run] - now) * rate)
            now = now + tokens / rate if tokens == remaining else self._ends[run]
            remaining -= tokens
            if run % 2:
                collapsed_tokens += tokens
        return _part(collapsed_tokens / pace.tokens)

    def _run_at(self, now: float) -> int:
        while self._ends[-1] <= now:
            self._ends.append(self._ends[-1] + self._runs.draw(collapsed=bool(len(self._ends) % 2)))
        return bisect.bisect_right(self._ends, now)


def clock_of(collapse: Collapse, rng: np.random.Generator, *, warm: bool, begin: float) -> Clock:
    """The clock of a collapse that may begin at ``begin`` seconds.

    warm: healthy traffic went before, so that the first run is a whole one.
    """
    runs = Runs(collapse, rng)
    if collapse.clock == "requests":
        return RequestClock(collapse, runs, rng, warm)
    if collapse.clock == "seconds":
        return WallClock(runs, warm, begin)
    return WorkClock(collapse.clock, runs, warm)


def _part(share: float) -> Part:
    if share < _EDGE_SHARE:
        return Part(Phase.HEALTHY, share)
    return Part(Phase.COLLAPSED if share > 1 - _EDGE_SHARE else Phase.TRANSITION, share)
