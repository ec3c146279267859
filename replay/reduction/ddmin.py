"""Delta debugging: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2), 2002.

A generator, so that it knows nothing of engines and clocks: it yields a subset and is sent what of it was enough to
trigger, None where the test did not trigger or was not resolved.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from enum import StrEnum
from itertools import pairwise

Subset = tuple[int, ...]


class Outcome(StrEnum):
    """What a test of a subset says."""

    TRIGGERED = "triggered"
    """The failure is there (the paper's FAIL)."""
    NOT_TRIGGERED = "not_triggered"
    """It is not (PASS)."""
    UNRESOLVED = "unresolved"
    """Nobody can tell (?); the subset is not taken."""


def ddmin(items: Subset, close: Callable[[Subset], Subset]) -> Generator[Subset, Subset | None, Subset]:
    """Yield subsets to be tested, return one from which nothing can be left out.

    items: known to trigger. close: adds to a subset what its members cannot be without. Section 3.2 of the paper: try
    the parts of a partition, then their complements, then a finer partition. The result is 1-minimal as far as every
    test was resolved: leaving out any one member, and what depends on it, does not trigger.
    """
    current, parts = items, 2
    while len(current) >= 2:
        for kept, next_parts in _smaller(current, parts):
            candidate = close(kept)
            enough = (yield candidate) if len(candidate) < len(current) else None
            if enough is not None:
                current, parts = enough, max(2, min(next_parts, len(enough)))
                break
        else:
            if parts >= len(current):
                break
            parts = min(len(current), 2 * parts)
    return current


def _smaller(items: Subset, parts: int) -> Iterator[tuple[Subset, int]]:
    """(subset, number of parts to go on with if it triggers): the parts, then what is left without each."""
    cuts = [len(items) * number // parts for number in range(parts + 1)]
    bounds = list(pairwise(cuts))
    for begin, end in bounds:
        yield items[begin:end], 2
    if parts > 2:  # of two parts each is the other's complement
        for begin, end in bounds:
            yield items[:begin] + items[end:], parts - 1
