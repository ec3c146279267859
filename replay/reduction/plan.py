"""What a reduction tries, in which order: a generator that yields candidates and is sent what became of them.

The big and cheap cuts come first, since each trial may need a restart of an engine: what came after the collapse, then
gaps and concurrency, then all content (one prompt repeated). Only where the content matters is it worth to look for the
requests that do, by delta debugging.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from enum import StrEnum

import msgspec

from replay.reduction.ddmin import Outcome, Subset, ddmin

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


Steps = Generator[Candidate, Outcome, Candidate]


def steps(plan: Plan, whole: Candidate, seen: Sequence[int]) -> Steps:
    """Yield candidates, return the best one.

    whole: known to trigger. seen: how many of its requests had been sent when the detector said so, in each trial.
    """
    begun = [plan.close(whole.requests[:count]) for count in seen]
    best = yield from _first_of(whole, [msgspec.structs.replace(whole, requests=requests) for requests in begun])
    best = yield from _first_of(best, [Candidate(requests=best.requests, timing=Timing.BACK_TO_BACK)])
    if not plan.keep_content and len(best.requests) > 1:
        count = max(len(best.requests) + SPARE_REQUESTS, round(len(best.requests) * (1 + SPARE_SHARE)))
        repeated = _repeated(plan.usual(best.requests), count)
        if (yield repeated) is Outcome.TRIGGERED:
            return (yield from _fewest(repeated))
    kept = yield from _least(best, plan)
    return msgspec.structs.replace(best, requests=kept)


def _first_of(best: Candidate, simpler: list[Candidate]) -> Steps:
    """The first of the simpler ones that triggers, else the one that was."""
    for candidate in simpler:
        if candidate != best and (yield candidate) is Outcome.TRIGGERED:
            return candidate
    return best


def _fewest(repeated: Candidate) -> Steps:
    """The fewest copies that trigger, by bisection; one fewer was tried and did not, or was not resolved."""
    index, low, high = repeated.requests[0], 0, len(repeated.requests)
    while high - low > 1:
        middle = (low + high) // 2
        if (yield _repeated(index, middle)) is Outcome.TRIGGERED:
            high = middle
        else:
            low = middle
    return _repeated(index, high)


def _least(best: Candidate, plan: Plan) -> Generator[Candidate, Outcome, Subset]:
    search = ddmin(best.requests, plan.close)
    try:
        subset = next(search)
        while True:
            outcome = yield msgspec.structs.replace(best, requests=subset)
            subset = search.send(outcome)
    except StopIteration as end:
        kept: Subset = end.value
        return kept


def _repeated(index: int, count: int) -> Candidate:
    return Candidate(requests=(index,) * count, timing=Timing.BACK_TO_BACK)
