"""What is done to the engine, and when: a cycle of phases on one of the engine's clocks. Pure.

A schedule is TOML or JSON, in a file, or JSON in the variable itself::

    clock = "requests"
    warm_up = 2                     # the first phase holds for two requests more

    [[cycle]]
    length = 5
    acceptance = 0.85

    [[cycle]]
    length = 3
    acceptance = 0.05
    step_delay_seconds = 0.008
"""

from __future__ import annotations

import bisect
import itertools
import tomllib
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

VARIABLE = "SPECBREAKER_FAULTS"

Clock = Literal["requests", "tokens", "steps", "kv_blocks", "seconds"]
CLOCKS: tuple[Clock, ...] = get_args(Clock)
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class ScheduleError(ValueError):
    """A schedule that does not exist or is not valid; the message is one line that says what to change."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done to every engine step. The default leaves the engine alone."""

    acceptance: Share | None = None
    """Chance that a draft is accepted if all before it were, whatever was drafted; None: the drafter's own.

    The text is garbage then, as with ``rejection_sample_method: synthetic``.
    """
    corrupt_drafts: Share = 0.0
    """Share of drafts that are replaced by the least likely token before they are judged: acceptance can only fall,
    and the text stays the target model's own."""
    step_delay_seconds: NonNegative = 0.0
    """What is added to each step."""

    def __post_init__(self) -> None:
        if self.acceptance is not None and self.corrupt_drafts:
            raise ValueError("give acceptance or corrupt_drafts, not both")

    def __str__(self) -> str:
        parts = []
        if self.acceptance is not None:
            parts.append(f"acceptance {self.acceptance:g}")
        if self.corrupt_drafts:
            parts.append(f"{self.corrupt_drafts:.3g} of the drafts corrupted")
        if self.step_delay_seconds:
            parts.append(f"{self.step_delay_seconds * 1000:g} ms added to each step")
        return ", ".join(parts) or "none"


class Phase(Fault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fault that holds for a while."""

    length: Positive
    """In units of the schedule's clock."""

    @property
    def fault(self) -> Fault:
        """What is done, without how long."""
        return Fault(
            acceptance=self.acceptance,
            corrupt_drafts=self.corrupt_drafts,
            step_delay_seconds=self.step_delay_seconds,
        )


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cycle of phases, repeated for ever."""

    clock: Clock
    """What the phases' lengths count; `clock.py` says how."""
    cycle: Annotated[tuple[Phase, ...], msgspec.Meta(min_length=1)]
    warm_up: NonNegative = 0.0
    """Units of the clock before the cycle begins; the first phase holds there, too."""

    def at(self, position: float) -> Fault:
        """What is done at a position of the clock, counted from 0: the first request is at 0."""
        within = max(0.0, position - self.warm_up) % sum(phase.length for phase in self.cycle)
        ends = list(itertools.accumulate(phase.length for phase in self.cycle))
        return self.cycle[min(bisect.bisect_right(ends, within), len(ends) - 1)].fault


def load(value: str) -> Schedule:
    """The schedule that the variable names or is: the path of a file, or the text itself. Raises ScheduleError."""
    if value.lstrip().startswith("{"):
        return parse(value, VARIABLE)
    path = Path(value)
    try:
        return parse(path.read_text(), f"{VARIABLE}: {path}")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise ScheduleError(f"{VARIABLE}: {path}: {reason}; give the path of a schedule, or one as JSON") from error


def parse(text: str, source: str) -> Schedule:
    """A schedule from TOML, or JSON, which begins with a brace; source names it in errors. Raises ScheduleError."""
    try:
        if text.lstrip().startswith("{"):
            return msgspec.json.decode(text, type=Schedule)
        return msgspec.convert(tomllib.loads(text), Schedule)
    except (tomllib.TOMLDecodeError, msgspec.DecodeError) as error:
        raise ScheduleError(f"{source}: {error}") from error
