"""Everything that the detector of one backend remembers, in one struct that can be stored and restored."""

from __future__ import annotations

import math

import msgspec

from detector.episodes import Account, EpisodeLog
from detector.stats.baseline import Baseline
from detector.stats.sample import Sample
from detector.stats.stream import StreamRule
from detector.verdict import Verdict

SNAPSHOT_VERSION = 2


class WatchState(msgspec.Struct, kw_only=True):
    """Everything a watch remembers."""

    version: int = SNAPSHOT_VERSION
    generation: int = 0
    requests: int = 0
    verdict: Verdict = Verdict()
    baseline: Baseline = msgspec.field(default_factory=Baseline)
    log: EpisodeLog = msgspec.field(default_factory=EpisodeLog)
    nats: float = 0.0
    suspects: Account | None = None
    """The row of suspicious answers up to now."""
    detected_at: float = -math.inf
    """When the last episode was detected: answers begun before it cannot prove recovery."""
    recovered_at: float = -math.inf
    """When the last episode ended: answers begun before it cannot prove a new one."""
    degraded_answers: int = 0
    recent: list[Sample] = []
    """The last degraded answers, for a new reference."""
    step_rule: StreamRule = msgspec.field(default_factory=StreamRule)
    step_onset_request: int = 0
    """Index of the answer in which the evidence of ``step_rule`` left zero."""
    detected_in: str | None = None
    """Stream in which the open episode was detected; its request index is known when it ends."""
    onset_in: str | None = None
    num_speculative_tokens: int | None = None
