"""Bookkeeping of episodes: when each collapse began, was seen and ended, and what it cost."""

from __future__ import annotations

from typing import Literal

import msgspec

from detector.stats.sample import Sample
from detector.verdict import Cause, Episode

MAX_EPISODES = 256
"""Episodes that are kept; the oldest go first."""
FACTOR_EPISODES = 20
"""Episodes that tell which factor is likely to be the next one's."""
_OF_DRAFTER = (Cause.ACCEPTANCE_COLLAPSE, Cause.SPECULATION_OFF)


class Boundary(msgspec.Struct, frozen=True):
    """A change of phase that the rules without memory saw: what a test for a cycle, and a log, want to know."""

    kind: Literal["opened", "closed", "resumed", "rebased"]
    answer: int
    """First collapsed answer (opened), first healthy one (closed), or the one that decided. Canaries count here."""


class Account(msgspec.Struct, kw_only=True):
    """Running totals of a row of suspicious answers, which may become an episode or go on with one."""

    onset_request: int
    onset_step: int | None = None
    onset_answer: int = 0
    """The onset by the count of all answers, canaries included."""
    answers: int = 0
    tokens: float = 0.0
    verify_steps: float = 0.0
    timed_steps: float = 0.0
    step_time_seconds: float = 0.0
    tokens_lost: float | None = None

    def add(self, sample: Sample, healthy_rate: float | None) -> None:
        """Count one answer.

        healthy_rate: tokens per second that the healthy backend would have given at this load. Tokens lost are decode
        seconds x (healthy rate - actual rate); an answer that was faster than healthy lost none.
        """
        self.answers += 1
        # Answers of unknown length weigh alike.
        steps = sample.verify_steps if sample.verify_steps is not None else 1.0
        if sample.acceptance_length is not None:
            self.tokens += sample.acceptance_length * steps
            self.verify_steps += steps
        if sample.step_seconds is not None:
            self.step_time_seconds += sample.step_seconds * steps
            self.timed_steps += steps
        if healthy_rate is not None and sample.decode_seconds is not None and sample.tokens is not None:
            lost = max(0.0, sample.decode_seconds * healthy_rate - sample.tokens)
            self.tokens_lost = lost + (self.tokens_lost or 0.0)

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per verify step over all answers."""
        return self.tokens / self.verify_steps if self.verify_steps else None

    @property
    def step_seconds(self) -> float | None:
        """Seconds per verify step over all answers."""
        return self.step_time_seconds / self.timed_steps if self.timed_steps else None


class EpisodeLog(msgspec.Struct, kw_only=True):
    """The episodes of one backend, the oldest first. At most the last one is open."""

    episodes: list[Episode] = []
    account: Account | None = None
    """Totals of the last episode; kept after its end in case it resumes."""
    count: int = 0
    """Episodes ever opened, those no longer kept included."""

    def open(self, account: Account, detected_request: int, detected_step: int | None, cause: Cause) -> None:
        """Begin an episode whose first answers were already counted."""
        self.account = account
        self.count += 1
        self.episodes.append(
            Episode(
                onset_request=account.onset_request,
                onset_step=account.onset_step,
                detected_request=detected_request,
                detected_step=detected_step,
                cause=cause,
            )
        )
        del self.episodes[:-MAX_EPISODES]
        self._settle(account)

    def grow(self, sample: Sample, healthy_rate: float | None) -> None:
        """Count one more answer of the last episode."""
        if self.account is not None:
            self.account.add(sample, healthy_rate)
            self._settle(self.account)

    def close(self, end_request: int) -> None:
        """End the last episode at the first request that was healthy again."""
        self.episodes[-1].end_request = end_request

    def resume(self) -> None:
        """The end was a lull: the last episode goes on."""
        self.episodes[-1].end_request = None

    def acceptance_share(self) -> float:
        """Of the last episodes, the share whose drafter failed; one of each kind is added to them (Laplace)."""
        last = self.episodes[-FACTOR_EPISODES:]
        failed = sum(episode.cause in _OF_DRAFTER for episode in last)
        known = sum(episode.cause is not None and episode.cause is not Cause.UNKNOWN for episode in last)
        return (failed + 1) / (known + 2)

    def _settle(self, account: Account) -> None:
        last = self.episodes[-1]
        last.acceptance_length = account.acceptance_length
        last.step_seconds = account.step_seconds
        last.tokens_lost = account.tokens_lost
