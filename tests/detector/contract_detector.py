"""What every detector with ``update`` must hold to; ``test_detector_contract.py`` applies it.

To add one, write an adapter: how to make it, how to feed it one thing, how to store and load it, and things to feed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import msgspec


class Adapter(msgspec.Struct, frozen=True):
    """One detector under test."""

    name: str
    make: Callable[[], Any]
    feed: Callable[[Any, Any], object]
    """Give it one thing; returns what it said."""
    snapshot: Callable[[Any], bytes]
    restore: Callable[[bytes], Any]
    """A detector that goes on where the snapshot was taken."""
    things: Callable[[int, int], Sequence[Any]]
    """(count, seed) -> ordinary things to feed: healthy, degraded and healthy again."""
    odd: Sequence[Any]
    """NaN, None, gaps, zeros: everything that may reach it when something else is broken."""
    settled_after: int
    """Things after which its memory no longer grows."""


def replay_gives_the_same(adapter: Adapter) -> None:
    """The same things again: the same words, the same bytes of state."""
    first, second = adapter.make(), adapter.make()
    things = adapter.things(200, 1)
    assert [repr(adapter.feed(first, thing)) for thing in things] == [
        repr(adapter.feed(second, thing)) for thing in things
    ]
    assert adapter.snapshot(first) == adapter.snapshot(second)


def a_snapshot_resumes_byte_for_byte(adapter: Adapter) -> None:
    """Stored and loaded at any point, it goes on as if it had never stopped."""
    things = adapter.things(200, 2)
    for cut in (0, 1, 30, 100, 199):
        kept = adapter.make()
        for thing in things[:cut]:
            adapter.feed(kept, thing)
        loaded = adapter.restore(adapter.snapshot(kept))
        assert adapter.snapshot(loaded) == adapter.snapshot(kept)
        for thing in things[cut:]:
            assert repr(adapter.feed(loaded, thing)) == repr(adapter.feed(kept, thing))
        assert adapter.snapshot(loaded) == adapter.snapshot(kept)


def memory_is_bounded(adapter: Adapter) -> None:
    """Once it has settled, the state is no larger however much it is fed."""
    detector, things = adapter.make(), adapter.things(3 * adapter.settled_after, 3)
    for thing in things[: adapter.settled_after]:
        adapter.feed(detector, thing)
    size = len(adapter.snapshot(detector))
    for thing in things[adapter.settled_after :]:
        adapter.feed(detector, thing)
    assert len(adapter.snapshot(detector)) <= 1.2 * size + 500


def odd_input_survives(adapter: Adapter) -> None:
    """What is broken changes nothing for what comes after, but for what it may truly have said."""
    detector = adapter.make()
    for thing in adapter.things(50, 5):
        adapter.feed(detector, thing)
        for odd in adapter.odd:
            adapter.feed(detector, odd)
    restored = adapter.restore(adapter.snapshot(detector))
    for thing in adapter.things(20, 6):
        assert repr(adapter.feed(restored, thing)) == repr(adapter.feed(detector, thing))
    assert b"nan" not in adapter.snapshot(detector)


def input_is_left_alone(adapter: Adapter) -> None:
    """No thing that is fed is changed."""
    detector = adapter.make()
    things = adapter.things(100, 7)
    before = copy.deepcopy(things)
    for thing in things:
        adapter.feed(detector, thing)
    assert things == before


CONTRACT = (
    replay_gives_the_same,
    a_snapshot_resumes_byte_for_byte,
    memory_is_bounded,
    odd_input_survives,
    input_is_left_alone,
)
