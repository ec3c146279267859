"""Counting the content events of one stream, in constant memory."""

from __future__ import annotations

from math import floor, log2
from typing import Final

from detector.observation import Step

SAME_ARRIVAL_SECONDS: Final = 0.0002
"""Events closer than this came in one piece: no model verifies a step in a fifth of a millisecond."""
MOSTLY_TOGETHER: Final = 0.5
"""Above this share of events that came together with the one before, arrival times say nothing about the engine."""
MAX_STEP_TOKENS: Final = 256
"""Larger events are counted as of this size."""
INTERVAL_SHARE: Final = 0.9
"""From this share of events of one and the same size on, a ``stream_interval`` is suspected."""
STALLED_SHARE: Final = 0.1
"""From this share of long gaps on, events are suspected of holding more than one step: A may be off by as much."""
ENOUGH_EVENTS: Final = 8
"""Fewer events than this are no ground for suspicion."""

_BINS_PER_DOUBLING: Final = 8
_LONG_GAP_BINS: Final = 6
"""A gap is long from 1.54 to 1.83 times the median on: an event that swallowed another comes after twice the median."""


class StreamTally:
    """What is kept of a stream's content events: the first one holds the prefill's token, each other one a step."""

    __slots__ = (
        "events",
        "first_at",
        "first_tokens",
        "gaps",
        "last_at",
        "leading_events",
        "listed_events",
        "longest_gap",
        "sizes",
        "together",
        "uncounted_events",
    )

    def __init__(self) -> None:
        self.events = 0
        self.first_at = 0.0
        self.last_at = 0.0
        self.first_tokens: int | None = None
        self.longest_gap = 0.0
        self.together = 0
        """Events that came together with the one before."""
        self.leading_events = 0
        """Events of the first arrival: those that came together with the first one."""
        self.uncounted_events = 0
        """Events whose tokens are not known."""
        self.listed_events = 0
        """Events that list their token ids."""
        self.sizes: dict[int, int] = {}
        """Events by their tokens, the first event left out."""
        self.gaps: dict[int, int] = {}
        """Gaps between arrivals by their logarithm."""

    def add(self, step: Step) -> None:
        """One content event."""
        at, tokens, events = step.at, step.tokens, self.events
        if events == 0:
            self.first_at = self.last_at = at
            self.first_tokens = tokens
            self.events = self.leading_events = 1
            self.uncounted_events = int(tokens is None)
            return
        gap = at - self.last_at
        self.last_at = at
        self.events = events + 1
        if gap > self.longest_gap:
            self.longest_gap = gap
        if gap > SAME_ARRIVAL_SECONDS:
            length = floor(log2(gap) * _BINS_PER_DOUBLING)
            self.gaps[length] = self.gaps.get(length, 0) + 1
        else:
            self.together += 1
            if self.leading_events == events:
                self.leading_events = events + 1
        if tokens is None:
            self.uncounted_events += 1
        else:
            size = tokens if tokens < MAX_STEP_TOKENS else MAX_STEP_TOKENS
            self.sizes[size] = self.sizes.get(size, 0) + 1

    def merged_events(self, num_speculative_tokens: int | None) -> int:
        """Events that hold more than one step for certain.

        A step yields at most one token more than was drafted, and the prefill exactly one.
        """
        merged = int(self.first_tokens is not None and self.first_tokens > 1)
        if num_speculative_tokens is not None:
            merged += sum(n for size, n in self.sizes.items() if size > num_speculative_tokens + 1)
        return merged

    def interval_suspected(self, num_speculative_tokens: int | None) -> bool:
        """Nearly all events hold the same number of tokens, more than one, and full acceptance does not explain it."""
        counted = sum(self.sizes.values())
        if counted < ENOUGH_EVENTS:
            return False
        size = max(self.sizes, key=self.sizes.__getitem__)
        explained = num_speculative_tokens is not None and size == num_speculative_tokens + 1
        return size > 1 and not explained and self.sizes[size] >= INTERVAL_SHARE * counted

    def stalled(self) -> bool:
        """Many gaps are about two steps long: the engine was late with events, and may have merged them.

        Other requests' prefills look the same from here, so this is a suspicion. If most events are merged, the median
        is two steps itself and nothing is seen.
        """
        gaps = sum(self.gaps.values())
        if gaps < ENOUGH_EVENTS:
            return False
        seen, long_gap = 0, 0
        for length in sorted(self.gaps):
            seen += self.gaps[length]
            if 2 * seen >= gaps:
                long_gap = length + _LONG_GAP_BINS
                break
        return sum(n for length, n in self.gaps.items() if length >= long_gap) > STALLED_SHARE * gaps

    def bunched(self) -> bool:
        """Most events came together with the one before: something on the way collected them."""
        return self.events > 1 and self.together > MOSTLY_TOGETHER * (self.events - 1)

    def decode_seconds(self) -> float | None:
        """Time of the steps after the first event as the arrivals tell it, or None where they tell nothing.

        If several events arrived at first, the last of them was the one on time: the time from there on is scaled up to
        all steps.
        """
        timed = self.events - self.leading_events
        if timed < 2 or self.bunched():
            return None
        return (self.last_at - self.first_at) * (self.events - 1) / timed
