"""Everything that the rules for the phase of one backend remember, in one struct that can be stored and restored."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import msgspec

from detector.episodes import Account, Boundary, EpisodeLog
from detector.stats.baseline import WINDOW, Baseline
from detector.stats.cause import Diagnosis
from detector.stats.collapse import EDetector
from detector.stats.sample import Sample
from detector.stats.stream import StreamRule
from detector.verdict import Verdict

BoundaryKind = Literal["opened", "closed", "resumed", "rebased"]
MAX_RECOVERY_NATS = 3.0
"""No more evidence than this stands against a relapse: a collapse may come back at once."""
MAX_BOUNDARIES = 64
"""Boundaries kept for a caller that never takes them; the oldest go first."""


T = TypeVar("T")
MAX_LEVELS = 8
"""Other levels of which something is remembered; a ladder is shorter."""


def remember_level(levels: dict[int, T], num_speculative_tokens: int, learned: T) -> None:
    """Keep what was learned at a level that is left; the oldest of too many goes."""
    levels[num_speculative_tokens] = learned
    if len(levels) > MAX_LEVELS:
        del levels[next(iter(levels))]


class PhasesState(msgspec.Struct, kw_only=True):
    """Everything the rules remember."""

    generation: int = 0
    requests: int = 0
    answers: int = 0
    """All that ended, canaries included: the number of the next one."""
    verdict: Verdict = Verdict()
    baseline: Baseline = msgspec.field(default_factory=Baseline)
    log: EpisodeLog = msgspec.field(default_factory=EpisodeLog)
    detector: EDetector = msgspec.field(default_factory=EDetector)
    held: list[Sample] = []
    """Answers that are neither clearly healthy nor an alarm: learned once they prove harmless, else dropped."""
    evidence_nats: float = 0.0
    """Log likelihood ratio, degraded against healthy, of the last answer; 0 where it says nothing."""
    diagnosis: Diagnosis | None = None
    """Of the open episode, where the table names its cause."""
    recovery_nats: float = 0.0
    """Evidence that the last episode is over, added up from its last contradiction on."""
    boundaries: list[Boundary] = []
    """Not yet taken by the caller."""
    suspects: Account | None = None
    """The row of suspicious answers up to now."""
    rebases: int = 0
    """How often the reference was given up for what had been called degraded."""
    detected_at: float = -math.inf
    """When the last episode was detected: answers begun before it cannot prove recovery."""
    recovered_at: float = -math.inf
    """When the last episode ended: answers begun before it cannot prove a new one."""
    degraded_answers: int = 0
    recent: list[Sample] = []
    """The last degraded answers, for a new reference."""
    step_rule: StreamRule = msgspec.field(default_factory=StreamRule)
    step_onset_request: int = 0
    """Request in which the evidence of ``step_rule`` left zero."""
    step_onset_answer: int = 0
    """The same by the count of all answers."""
    detected_in: str | None = None
    """Stream in which the open episode was detected; its request index is known when it ends."""
    onset_in: str | None = None
    num_speculative_tokens: int | None = None
    reference_depth: int | None = None
    """num_speculative_tokens of the engine that ``baseline`` was learned on."""
    other_baselines: dict[int, Baseline] = {}
    """References of the levels that it was launched at before, by their num_speculative_tokens."""
    relaunched: bool = False
    """It was launched anew, and its level is not known yet."""

    def launched_at(self, depth: int | None) -> None:
        """The level of this launch is known; None: the engine does not tell. Another level has a reference of its own:
        an engine that somebody started without speculation is not a collapsed one."""
        before = self.reference_depth
        if before is None:
            self.reference_depth = depth
        elif self.relaunched and depth is not None and depth != before:
            remember_level(self.other_baselines, before, self.baseline)
            self.baseline = self.other_baselines.pop(depth) if depth in self.other_baselines else Baseline()
            self.reference_depth = depth
        self.relaunched = False
        if depth is not None:
            self.num_speculative_tokens = depth

    def note(self, kind: BoundaryKind, number: int) -> None:
        """A beginning or an end of an episode, at this answer."""
        self.boundaries = [*self.boundaries, Boundary(kind, number)][-MAX_BOUNDARIES:]

    def begin_episode(self, at: float) -> None:
        """An episode was detected."""
        self.detected_at, self.recovery_nats = at, 0.0
        self.degraded_answers, self.recent = 0, []
        self.suspects, self.held = None, []

    def resume_episode(self, number: int) -> None:
        """The last episode was not over, as this answer shows."""
        self.log.resume()
        self.note("resumed", number)

    def relapses(self, evidence_nats: float) -> bool:
        """Whether an answer, by its evidence for a collapse, uses up the evidence that the last one was over."""
        self.recovery_nats = min(self.recovery_nats, MAX_RECOVERY_NATS) - evidence_nats
        return self.recovery_nats <= 0

    def count_degraded(self, sample: Sample) -> None:
        """One more answer of an episode; the last of them may become the reference."""
        self.degraded_answers += 1
        self.recent.append(sample)
        del self.recent[:-WINDOW]

    def end_suspicion(self, at: float) -> None:
        """The backend counts as healthy from here on."""
        self.detector = EDetector(acceptance_share=self.log.acceptance_share())
        self.step_rule.recovered()
        self.suspects, self.held, self.diagnosis = None, [], None
        self.degraded_answers, self.recent, self.recovered_at = 0, [], at
