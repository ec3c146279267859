"""Delta debugging and the order of the steps, on engines that are functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.reduction.ddmin import Outcome, Subset, ddmin
from replay.reduction.evidence import decide, trigger_share
from replay.reduction.plan import Candidate, Plan, Timing, steps

Engine = Callable[[Candidate], Outcome]


def same(subset: Subset) -> Subset:
    return subset


def minimal(
    items: Subset, triggers: Callable[[Subset], Outcome], close: Callable[[Subset], Subset] = same
) -> tuple[Subset, int]:
    """The result of ddmin and how many subsets were tested."""
    search, tests = ddmin(items, close), 0
    try:
        subset = next(search)
        while True:
            tests += 1
            subset = search.send(subset if triggers(subset) is Outcome.TRIGGERED else None)
    except StopIteration as end:
        return end.value, tests


def outcome(triggered: bool) -> Outcome:
    return Outcome.TRIGGERED if triggered else Outcome.NOT_TRIGGERED


@given(count=st.integers(1, 40), data=st.data())
def test_ddmin_finds_exactly_the_requests_that_are_needed(count: int, data: st.DataObject) -> None:
    needed = frozenset(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    kept, tests = minimal(tuple(range(count)), lambda subset: outcome(needed <= set(subset)))
    assert set(kept) == needed
    # Zeller and Hildebrandt: |c|^2 + 3 |c| at worst.
    assert tests <= count**2 + 3 * count


@given(count=st.integers(1, 30), needed=st.integers(1, 30))
def test_ddmin_keeps_as_many_as_are_needed_where_it_matters_only_how_many(count: int, needed: int) -> None:
    needed = min(needed, count)
    kept, _ = minimal(tuple(range(count)), lambda subset: outcome(len(subset) >= needed))
    assert len(kept) == needed
    assert list(kept) == sorted(kept)


def test_the_example_of_the_paper() -> None:
    """Section 3: circumstances 1 to 8, of which 1, 7 and 8 are needed together."""
    kept, _ = minimal(tuple(range(1, 9)), lambda subset: outcome({1, 7, 8} <= set(subset)))
    assert kept == (1, 7, 8)


@given(data=st.data())
def test_what_is_unresolved_is_never_taken(data: st.DataObject) -> None:
    needed = frozenset({3, 11})
    unresolved = data.draw(st.sets(st.integers(0, 2**16), max_size=30))

    def triggers(subset: Subset) -> Outcome:
        if hash(subset) % 2**16 in unresolved:
            return Outcome.UNRESOLVED
        return outcome(needed <= set(subset))

    kept, _ = minimal(tuple(range(16)), triggers)
    assert needed <= set(kept)


def test_a_turn_keeps_the_turns_it_goes_on_with() -> None:
    before = {5: 4, 4: 1, 7: 6}
    tested: list[Subset] = []

    def close(subset: Subset) -> Subset:
        kept = set(subset)
        for index in sorted(subset, reverse=True):
            turn = before.get(index)
            while turn is not None:
                kept.add(turn)
                turn = before.get(turn)
        return tuple(sorted(kept))

    def triggers(subset: Subset) -> Outcome:
        tested.append(subset)
        return outcome(5 in subset)

    kept, _ = minimal(tuple(range(8)), triggers, close)
    assert kept == (1, 4, 5)
    assert all(close(subset) == subset for subset in tested)


# ---- the steps -------------------------------------------------------------------------------------------------------


def reduce(engine: Engine, count: int = 40, **plan: bool) -> tuple[Candidate, int]:
    """What the steps end with, and after how many candidates."""
    whole = Candidate(requests=tuple(range(count)), timing=Timing.RECORDED)
    search = steps(Plan(close=same, usual=lambda subset: subset[len(subset) // 2], **plan), whole)
    tried = 0
    try:
        candidate = next(search)
        while True:
            tried += 1
            candidate = search.send(candidate if engine(candidate) is Outcome.TRIGGERED else None)
    except StopIteration as end:
        return end.value, tried


def test_an_engine_that_counts_requests_needs_one_prompt_and_its_count() -> None:
    best, tried = reduce(lambda candidate: outcome(len(candidate.requests) >= 7), count=7)
    assert best.repeats_one
    assert len(best.requests) == 7
    assert tried <= 8
    assert str(best) == "one prompt 7 times, one after the other"


def test_what_was_not_sent_any_more_is_left_out_without_a_trial() -> None:
    tried: list[int] = []

    def enough(subset: Subset) -> Subset | None:
        tried.append(len(subset))
        return subset[: subset.index(9) + 1] if 9 in subset else None

    search = ddmin(tuple(range(40)), same)
    subset = next(search)
    assert len(subset) == 20
    assert len(search.send(enough(subset))) == 5, "half of the ten that were sent"
    assert tried == [20]


def test_where_content_matters_the_requests_are_found() -> None:
    def engine(candidate: Candidate) -> Outcome:
        return outcome({2, 19} <= set(candidate.requests))

    best, _ = reduce(engine)
    assert best == Candidate(requests=(2, 19), timing=Timing.BACK_TO_BACK)
    assert str(best) == "2 requests, one after the other"


def test_where_time_matters_the_recorded_times_are_kept() -> None:
    def engine(candidate: Candidate) -> Outcome:
        return outcome(candidate.timing is Timing.RECORDED and 19 in candidate.requests)

    assert reduce(engine)[0] == Candidate(requests=(19,), timing=Timing.RECORDED)


def test_content_is_kept_if_asked() -> None:
    best, _ = reduce(lambda candidate: outcome(len(candidate.requests) >= 3), keep_content=True)
    assert len(set(best.requests)) == 3


# ---- how many trials -------------------------------------------------------------------------------------------------

T, N, U = Outcome.TRIGGERED, Outcome.NOT_TRIGGERED, Outcome.UNRESOLVED


@pytest.mark.parametrize(
    ("whole", "trials", "said"),
    [
        ((2, 2), [T], T),
        ((2, 2), [N], N),
        ((2, 2), [], None),
        ((2, 2), [U], None),
        ((2, 2), [U, U, U], U),
        ((2, 2), [U, T], T),
        ((1, 3), [N], None),
        ((1, 3), [N, N, N], N),
        ((1, 3), [T], T),
        ((1, 8), [T], None),
        ((1, 8), [T, T], T),
    ],
)
def test_one_trial_decides_only_where_the_whole_triggers_reliably(
    whole: tuple[int, int], trials: list[Outcome], said: Outcome | None
) -> None:
    assert decide(trials, trigger_share(*whole), most=3) is said
