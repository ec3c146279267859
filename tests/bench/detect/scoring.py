"""How good alarms are: against the truth of a simulated or recorded series of answers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

import msgspec

SHORT_REQUESTS = 2
"""Collapses of at most so many answers, the one of transition included, are also counted apart."""


class TrueEpisode(msgspec.Struct, frozen=True):
    """A run of degraded answers, by their numbers, both included."""

    onset: int
    end: int

    @property
    def short(self) -> bool:
        """There was hardly anything to find."""
        return self.end - self.onset + 1 <= SHORT_REQUESTS


class Score(msgspec.Struct, kw_only=True):
    """Counts over one or more series; ``+`` joins them."""

    requests: int = 0
    episodes: int = 0
    missed: int = 0
    short_episodes: int = 0
    short_missed: int = 0
    false_alarms: int = 0
    delays: list[int] = []
    """Answers from the first degraded one to the one with the alarm, of each collapse found."""
    degraded: int = 0
    degraded_flagged: int = 0
    """Of the degraded answers, those after which the backend was held to be degraded."""
    healthy_flagged: int = 0

    def __add__(self, other: Score) -> Score:
        pairs = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)
        return Score(**dict(zip(self.__struct_fields__, (a + b for a, b in pairs), strict=True)))

    @property
    def false_alarms_per_1000(self) -> float:
        """Per 1000 answers, the degraded ones included."""
        return 1000 * self.false_alarms / self.requests if self.requests else 0.0

    @property
    def missed_share(self) -> float | None:
        """Of all collapses, short ones included; None without collapses."""
        return self.missed / self.episodes if self.episodes else None

    @property
    def short_missed_share(self) -> float | None:
        """Of the short collapses."""
        return self.short_missed / self.short_episodes if self.short_episodes else None

    @property
    def long_missed_share(self) -> float | None:
        """Of the collapses that are not short."""
        long = self.episodes - self.short_episodes
        return (self.missed - self.short_missed) / long if long else None

    @property
    def mean_delay(self) -> float | None:
        """Answers after the first degraded one; None where nothing was found."""
        return mean(self.delays) if self.delays else None

    @property
    def median_delay(self) -> float | None:
        """Answers after the first degraded one; None where nothing was found."""
        return median(self.delays) if self.delays else None

    @property
    def recall(self) -> float | None:
        """Share of the degraded answers after which the backend was held to be degraded."""
        return self.degraded_flagged / self.degraded if self.degraded else None

    @property
    def healthy_flagged_share(self) -> float:
        """Share of the healthy answers after which the backend was held to be degraded."""
        healthy = self.requests - self.degraded
        return self.healthy_flagged / healthy if healthy else 0.0


def true_episodes(degraded: Sequence[bool], gap: int = 0) -> list[TrueEpisode]:
    """Runs of degraded answers; healthy stretches of up to ``gap`` answers do not end a run (answers side by side)."""
    episodes: list[TrueEpisode] = []
    for number, is_degraded in enumerate(degraded):
        if not is_degraded:
            continue
        if episodes and number - episodes[-1].end - 1 <= gap:
            episodes[-1] = TrueEpisode(episodes[-1].onset, number)
        else:
            episodes.append(TrueEpisode(number, number))
    return episodes


def score(
    degraded: Sequence[bool],
    alarms: Sequence[int],
    flagged: Sequence[bool] | None = None,
    *,
    begin: int = 0,
    workers: int = 1,
) -> Score:
    """Score the numbers of the answers at which an alarm was raised.

    A collapse is found by an alarm at one of its answers. The first ``workers`` answers after it may still alarm: a
    detector that needs one more answer is late, not wrong. Any other alarm is false. Nothing before ``begin`` counts;
    a collapse that began before it is left out, and so is one that the end of the series cuts short.
    flagged: after which answers the backend was held to be degraded.
    """
    last = len(degraded) - workers
    episodes = [e for e in true_episodes(degraded, workers - 1) if e.onset >= begin and e.end < last]
    counted = [alarm for alarm in alarms if alarm >= begin]
    result = Score(requests=max(0, len(degraded) - begin), episodes=len(episodes))
    excused: set[int] = set()
    for episode in true_episodes(degraded, workers - 1):
        excused.update(alarm for alarm in counted if episode.onset <= alarm <= episode.end + workers)
    for episode in episodes:
        found = [alarm for alarm in counted if episode.onset <= alarm <= episode.end]
        result.short_episodes += episode.short
        if found:
            result.delays.append(found[0] - episode.onset)
        else:
            result.missed += 1
            result.short_missed += episode.short
    result.false_alarms = sum(alarm not in excused for alarm in counted)
    result.degraded = sum(degraded[begin:])
    if flagged is not None:
        pairs = list(zip(degraded[begin:], flagged[begin:], strict=True))
        result.degraded_flagged = sum(truth and flag for truth, flag in pairs)
        result.healthy_flagged = sum(flag and not truth for truth, flag in pairs)
    return result
