"""What a reduction tries, in which order: a generator that yields candidates and is sent what was enough of them.

The big and cheap cuts come first, since each trial may need a restart of an engine: gaps and concurrency, then all
content (one prompt repeated). Only where the content matters is it worth to look for the requests that do, by delta
debugging. What comes after a collapse is never part of the result: a trial ends when the detector has seen enough.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from enum import StrEnum

import msgspec

from replay.reduction.ddmin import Subset, ddmin

SPARE_SHARE, SPARE_REQUESTS = 0.25, 2
"""So many more copies of one prompt than requests are tried, since the copies are not as long as what they replace."""


class Timing(StrEnum):
    """When the requests of a candidate go out."""

    RECORDED = "recorded"
    """First turns at their recorded times, later turns after the end of the turn before and the recorded pause."""
    BACK_TO_BACK = "back_to_back"
    """One at a time, each at the end of the one before."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence to try."""

    requests: Subset
    """Indices into the recorded session, in the order of sending; one that is repeated occurs several times."""
    timing: Timing

    @property
    def repeats_one(self) -> bool:
        """One prompt, several times."""
        return len(self.requests) > 1 and len(set(self.requests)) == 1

    def __str__(self) -> str:
        number = len(self.requests)
        what = f"one prompt {number} times" if self.repeats_one else f"{number} request{'s' * (number != 1)}"
        return f"{what}, {'one after the other' if self.timing is Timing.BACK_TO_BACK else 'as recorded in time'}"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the steps of a reduction need to know of the session."""

    close: Callable[[Subset], Subset]
    """Adds the turns that the requests of a subset go on with."""
    usual: Callable[[Subset], int]
    """The request of a subset whose answer is nearest to the mean length."""
    keep_content: bool = False
    """Do not try one prompt repeated."""


Steps = Generator[Candidate, Candidate | None, Candidate]
"""Is sent the beginning of the candidate that was enough to trigger, None where it did not."""


def steps(plan: Plan, best: Candidate) -> Steps:
    """Yield candidates, return the best one. best: known to trigger."""
    if best.timing is Timing.RECORDED:
        best = (yield Candidate(requests=best.requests, timing=Timing.BACK_TO_BACK)) or best
    if not plan.keep_content and len(best.requests) > 1:
        count = max(len(best.requests) + SPARE_REQUESTS, round(len(best.requests) * (1 + SPARE_SHARE)))
        repeated = yield _repeated(plan.usual(best.requests), count)
        if repeated is not None:
            return (yield from _fewest(repeated))
    return (yield from _least(best, plan))


def _fewest(repeated: Candidate) -> Steps:
    """The fewest copies that trigger, by bisection; one fewer was tried and did not, or was not resolved."""
    low = 0
    while len(repeated.requests) - low > 1:
        middle = (low + len(repeated.requests)) // 2
        enough = yield _repeated(repeated.requests[0], middle)
        if enough is not None:
            repeated = enough
        else:
            low = middle
    return repeated


def _least(best: Candidate, plan: Plan) -> Steps:
    search = ddmin(best.requests, plan.close)
    try:
        subset = next(search)
        while True:
            enough = yield Candidate(requests=subset, timing=best.timing)
            subset = search.send(None if enough is None else enough.requests)
    except StopIteration as end:
        return Candidate(requests=end.value, timing=best.timing)


def _repeated(index: int, count: int) -> Candidate:
    return Candidate(requests=(index,) * count, timing=Timing.BACK_TO_BACK)
