"""What has become of a replay so far: counts, lateness, lengths of prompts; and whether the run may be believed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from detector.observation import Ending, Observation

MAX_FAILED_SHARE = 0.1
"""A run in which more answers failed than this is no replay of the session."""
MAX_PROMPT_ERROR = 0.05
"""Synthetic prompts whose median length is off by more are worth a note."""


class Tally(msgspec.Struct, kw_only=True):
    """Running totals."""

    total: int
    """Requests that are to be sent, those of an earlier part of a resumed run not included."""
    skipped: Counter[str] = msgspec.field(default_factory=Counter)
    """Requests that cannot be sent, by reason."""
    sent: int = 0
    answered: int = 0
    endings: Counter[str] = msgspec.field(default_factory=Counter)
    """Of the answers that failed or were broken off."""
    decode_tokens: float = 0.0
    decode_seconds: float = 0.0
    lateness_seconds: list[float] = []
    """Of each request: from when it was due to when its head was written."""
    prompt_errors: list[float] = []
    """Of each synthetic prompt whose tokens are known: (sent - recorded) / recorded."""

    def ended(self, observation: Observation, lateness_seconds: float | None, wanted_tokens: int | None) -> None:
        """Count one answer."""
        if lateness_seconds is not None:
            self.lateness_seconds.append(lateness_seconds)
        if observation.ending is not Ending.COMPLETE:
            self.endings[observation.ending.value] += 1
            return
        self.answered += 1
        rate, seconds = observation.decode_tokens_per_second, observation.rate_seconds
        if rate and seconds:
            self.decode_tokens += rate * seconds
            self.decode_seconds += seconds
        if wanted_tokens and observation.prompt_tokens is not None:
            self.prompt_errors.append((observation.prompt_tokens - wanted_tokens) / wanted_tokens)

    @property
    def failed(self) -> int:
        """Answers that failed, those that the end of the run broke off not included."""
        return sum(count for ending, count in self.endings.items() if Ending(ending).failed)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens / decode time of all answers."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else None

    def faults(self, max_lateness_seconds: float) -> list[str]:
        """Why the run is not a valid replay, one line each; none: it is."""
        faults = []
        late = percentile(self.lateness_seconds, 0.99)
        if late is not None and late > max_lateness_seconds:
            faults.append(
                f"requests were sent too late: p99 {late * 1000:.1f} ms, limit {max_lateness_seconds * 1000:g} ms; "
                "use a less busy machine, a smaller --time-scale, or raise --max-lateness-seconds"
            )
        if self.failed > MAX_FAILED_SHARE * max(1, self.sent):
            kinds = ", ".join(f"{count} {ending}" for ending, count in self.endings.most_common())
            faults.append(f"{self.failed} of {self.sent} answers failed ({kinds})")
        return faults

    def summary(self) -> dict[str, Any]:
        """The totals as JSON values."""
        error = percentile([abs(error) for error in self.prompt_errors], 0.5)
        return {
            "requests": self.total,
            "sent": self.sent,
            "answered": self.answered,
            "failed": self.failed,
            "endings": dict(self.endings),
            "skipped": dict(self.skipped),
            "time_weighted_tok_s": self.tokens_per_second,
            "lateness_seconds": {
                name: percentile(self.lateness_seconds, share)
                for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1))
            },
            "prompt_tokens_median_error": error,
        }


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that so large a share does not exceed; None without values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
