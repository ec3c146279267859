"""Where in its cycle the engine stands, and what that does to acceptance and step time."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from detector.verdict import Phase

from .scenario import CyclePart, Scenario, conditional_acceptance


class PartInForce(msgspec.Struct, frozen=True, gc=False):
    """What holds for one sequence in one step."""

    phase: Phase
    acceptance: tuple[float, ...]
    """Conditional acceptance by position; empty: no drafts."""
    step_factor: float


class Cycle:
    """The parts of a scenario, looked up by position on its clock; tests may override what the position says."""

    def __init__(self, scenario: Scenario) -> None:
        self._parts = scenario.cycle
        self._period = sum(part.length for part in scenario.cycle)
        self._k = scenario.num_speculative_tokens
        self._factors = {kind.name: kind.acceptance_factor for kind in scenario.content}
        self._known: dict[tuple[int, str], PartInForce] = {}
        self._forced: int | None = None
        self._acceptance: tuple[float, ...] | None = None

    @property
    def acceptance(self) -> tuple[float, ...] | None:
        """Conditional acceptance by position that replaces the scenario's, or None."""
        return self._acceptance

    def override_acceptance(self, acceptance: float | Sequence[float] | None) -> None:
        """Replace the scenario's conditional acceptance: one chance for all positions, or one for each; None: undo.

        Raises ValueError for a chance outside 0..1 or too few positions.
        """
        values = None if acceptance is None else self._positions(acceptance)
        self._acceptance = values
        self._known.clear()

    def _positions(self, acceptance: float | Sequence[float]) -> tuple[float, ...]:
        values = (acceptance,) * self._k if isinstance(acceptance, int | float) else tuple(acceptance)
        if len(values) < self._k or not all(0 <= value <= 1 for value in values):
            raise ValueError(f"acceptance must be one chance, or one for each of {self._k} positions, each from 0 to 1")
        return values[: self._k]

    def force(self, phase: Phase | None) -> None:
        """Hold the first part of that phase until undone with None. Raises ValueError if there is no such part."""
        if phase is None:
            self._forced = None
            return
        for index, part in enumerate(self._parts):
            if part.phase is phase:
                self._forced = index
                return
        raise ValueError(f"the scenario has no {phase} part")

    def at(self, position: float, content: str = "") -> PartInForce:
        """What holds at a position of the clock for a content class."""
        index = self._index(position) if self._forced is None else self._forced
        in_force = self._known.get((index, content))
        if in_force is None:
            in_force = self._known[index, content] = self._make(self._parts[index], content)
        return in_force

    def _index(self, position: float) -> int:
        rest = position % self._period
        for index, part in enumerate(self._parts):
            if rest < part.length:
                return index
            rest -= part.length
        return len(self._parts) - 1

    def _make(self, part: CyclePart, content: str) -> PartInForce:
        acceptance: tuple[float, ...] = ()
        if part.speculation:
            factor = self._factors.get(content, 1.0)
            base = self._acceptance or conditional_acceptance(part, self._k)
            acceptance = tuple(min(1.0, chance * factor) for chance in base)
        return PartInForce(part.phase, acceptance, part.step_factor)
