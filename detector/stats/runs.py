"""Runs: how long a backend stayed in one phase, on every clock, answer by answer.

A run begins after the first answer of a phase and ends with the first answer of the next one. It is a row of cells,
one for each answer in it, the one that ended it included; so the end of the phase is known to lie in the last cell.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import msgspec

from detector.stats.clocks import ZERO, Advance, Clock, ClockReading

MAX_CELLS = 256
"""Cells of one run. Beyond it the older half is kept at half the resolution, so a run of any length fits."""


class Run(msgspec.Struct, frozen=True):
    """One complete run, of at least one cell."""

    cells: list[ClockReading]
    """Advance of each cell; that of the last without what the new phase did to it."""
    actual: ClockReading
    """What the clocks really did from the first answer of this phase to the first of the next."""

    def ends(self, clock: Clock) -> list[float] | None:
        """Where each cell ends on this clock, counted from the run's beginning; None where a cell is unknown."""
        return self.all_ends().get(clock)

    def all_ends(self) -> dict[Clock, list[float]]:
        """``ends`` on every clock that knows all cells."""
        columns = zip(*[msgspec.structs.astuple(cell) for cell in self.cells], strict=True)
        return {
            clock: list(accumulate(column)) for clock, column in zip(Clock, columns, strict=True) if None not in column
        }


class Cell(msgspec.Struct, kw_only=True, array_like=True):
    """One answer, or some neighbours that were put together."""

    request: int
    """Number of the (last) request."""
    advance: Advance


class RunRecorder(msgspec.Struct, kw_only=True):
    """Cuts the answers of one backend into runs.

    Tell it of every answer with ``add``, and with ``turn`` of every change of phase, as soon as it is known: the
    change may lie some answers back. Phases must come from a memoryless rule (see ``stats.cycle``).
    """

    cells: list[Cell] = []
    """Answers since the first answer of this phase, that one not included."""
    whole: bool = False
    """The beginning of this run was seen: it began with a change of phase, not with the watch or a launch."""
    remainder: Advance | None = None
    """Of answers that began before this run: no cell of its own, it belongs to the next one."""

    def add(self, request: int, advance: Advance) -> None:
        """Note one ended answer; answers are numbered upwards. An advance without a request is what is left of an
        answer that began before this run."""
        if self.remainder is not None:
            advance, self.remainder = self.remainder.plus(advance), None
        if advance.clocks.requests == 0:
            self.remainder = advance
            return
        self.cells.append(Cell(request=request, advance=advance))
        if len(self.cells) <= MAX_CELLS:
            return
        if not self.whole:
            del self.cells[0]  # it will be no run; a change of phase lies a few answers back at most
        else:
            old, young = self.cells[: MAX_CELLS // 2], self.cells[MAX_CELLS // 2 :]
            self.cells = [_joined(*old[at : at + 2]) for at in range(0, len(old), 2)] + young

    @property
    def elapsed(self) -> ClockReading:
        """What the clocks did since the first answer of this phase."""
        return _total(cell.advance for cell in self.cells)

    def turn(self, first_request: int) -> Run | None:
        """Close the run at the first answer of a new phase, and begin the next one after it.

        Returns the run; None where its beginning was not seen, or where no answer lies between the two changes.
        """
        if self.cells and first_request < self.cells[0].request and self.whole:
            return None
        index = next((at for at, cell in enumerate(self.cells) if cell.request >= first_request), len(self.cells) - 1)
        done, self.cells = self.cells[: index + 1], self.cells[index + 1 :]
        whole, self.whole = self.whole, True
        return _run([cell.advance for cell in done]) if whole and done else None

    def drop(self) -> None:
        """Forget the run under way: the backend was launched anew, or the last change of phase proved to be a lull."""
        self.cells, self.whole, self.remainder = [], False, None


def _run(advances: list[Advance]) -> Run:
    return Run(_undistorted(advances), _total(advances))


def _total(advances: Iterable[Advance]) -> ClockReading:
    columns = zip(*[msgspec.structs.astuple(advance.clocks) for advance in advances], strict=True)
    sums = [None if None in column else sum(column, 0.0) for column in columns]
    return ClockReading(**dict(zip(ClockReading.__struct_fields__, sums, strict=True))) if sums else ZERO


def _joined(one: Cell, other: Cell) -> Cell:
    return Cell(request=other.request, advance=one.advance.plus(other.advance))


def _undistorted(advances: list[Advance]) -> list[ClockReading]:
    """The cells, the last with the steps and the seconds that it would have had in the phase it ended.

    An answer in which a collapse begins takes more steps and more time because of it. How likely a collapse was to
    fall into that answer has to do with its length before, so the length comes from its tokens, at the ratio of the
    cells before it.
    """
    *before, last = advances
    cells = [advance.clocks for advance in advances]
    if before:
        share = _relative_length(before, last)
        steps = _sum([advance.clocks.steps for advance in before])
        seconds = _sum([advance.clocks.seconds for advance in before])
        busy = None if seconds is None else seconds - sum(advance.idle_seconds for advance in before)
        cells[-1] = msgspec.structs.replace(
            last.clocks,
            steps=None if steps is None or last.clocks.steps is None else steps * share,
            seconds=None if busy is None else last.idle_seconds + busy * share,
        )
    return cells


def _relative_length(before: list[Advance], last: Advance) -> float:
    """Length of the last answer as a share of all before it, in tokens or else in requests."""
    tokens = _sum([advance.clocks.tokens for advance in before])
    if tokens and last.clocks.tokens is not None:
        return last.clocks.tokens / tokens
    requests = _sum([advance.clocks.requests for advance in before]) or float(len(before))
    return (last.clocks.requests or 1.0) / requests


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
