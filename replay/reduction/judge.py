"""What a trial shows: the detector's own episodes, found in the answers as they end.

A short sequence is over before a detector has learned what healthy is. So it is first told the healthy answers of the
whole sequence, as the first trial measured them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import msgspec

from detector.observation import Ending, Observation, Step
from detector.verdict import Cause, Episode
from detector.watch import Watch, WatchConfig
from replay.reduction.ddmin import Outcome

MIN_HEALTHY_STEPS = 32
"""A collapse that begins earlier in the first answer was there before the trial."""
MAX_HEALTHY_ANSWERS = 64
"""As many answers as a detector needs to know an engine well."""
_PAUSE_SECONDS = 1.0


class Onset(msgspec.Struct, frozen=True, kw_only=True):
    """Where a collapse began, counted from the beginning of the trial."""

    requests: float
    """Answers that had ended, and the share of the one in which it began, if that is known."""
    tokens: float
    steps: float
    seconds: float
    cause: Cause


class Answer(msgspec.Struct, frozen=True):
    """An answer with its content events."""

    observation: Observation
    steps: list[Step]


class Judge:
    """Judges the answers of one trial as they end."""

    def __init__(self, healthy: Sequence[Answer] = (), causes: frozenset[Cause] | None = None) -> None:
        """healthy: what the detector is told first. causes: an episode of any other is not what is looked for."""
        self.answers: list[Answer] = []
        self.onset: Onset | None = None
        self.outcome = Outcome.NOT_TRIGGERED
        self.why = "no collapse was seen"
        self._causes = causes
        self._watch = Watch(WatchConfig())
        self._told = len(healthy)
        self._shift = -max((one.observation.ended for one in healthy), default=0.0) - _PAUSE_SECONDS
        for answer in healthy:
            self._tell(answer)
        self._episodes = self._watch.episodes_total
        self._shift = 0.0

    def take(self, answer: Answer) -> bool:
        """The next answer that has ended; True: the trial is decided. Answers that failed are left out."""
        if answer.observation.ending is not Ending.COMPLETE:
            return False
        if not self.answers:
            self._shift = -answer.observation.started
        self.answers.append(answer)
        self._tell(answer)
        if self._watch.episodes_total == self._episodes:
            return False
        self._decide(self._watch.episodes[-1])
        return True

    def nothing_measured(self) -> bool:
        """No answer told its speed: silence would prove nothing."""
        return all(one.observation.decode_tokens_per_second is None for one in self.answers)

    def _tell(self, answer: Answer) -> None:
        """Times are moved so that a trial begins at 0 and what is known before it lies before it."""
        one = answer.observation
        for step in answer.steps:
            if step.tokens is not None:
                self._watch.update_step(one.request_id, Step(step.at + self._shift, step.tokens))
        moved = {name: getattr(one, name) for name in ("started", "sent", "ended")}
        self._watch.update(
            msgspec.structs.replace(
                one, **{name: None if at is None else at + self._shift for name, at in moved.items()}
            )
        )

    def _decide(self, episode: Episode) -> None:
        first = max(0, min(episode.onset_request - self._told, len(self.answers) - 1))
        self.onset = _onset(self.answers, first, episode)
        if episode.onset_request <= self._told and (episode.onset_step or 0) < MIN_HEALTHY_STEPS:
            self.outcome, self.why = (
                Outcome.UNRESOLVED,
                "slow from its first step on: nothing in it can have triggered that",
            )
        elif self._causes is not None and episode.cause not in self._causes:
            wanted = ", ".join(sorted(self._causes))
            self.outcome, self.why = Outcome.UNRESOLVED, f"an episode of another cause: {episode.cause}, not {wanted}"
        else:
            at = self.onset
            self.outcome = Outcome.TRIGGERED
            self.why = f"{episode.cause} after {at.requests:.3g} requests, {at.tokens:.0f} tokens"


def healthy_answers(answers: Sequence[Answer]) -> list[Answer]:
    """Those of a collapsed sequence that came before its onset and were fast, the latest of them.

    A detector that had to learn from this very sequence may have missed a collapse in its first answers: what is
    nearer to the slowest answer than to the usual one is left out.
    """
    rates = [one.observation.decode_tokens_per_second or math.nan for one in answers]
    known = [rate for rate in rates if rate > 0]
    if not known:
        return []
    fast = [rate for rate in known if rate >= math.sqrt(max(known) * min(known))]
    least = math.sqrt(median(fast) * min(known))
    return [one for one, rate in zip(answers, rates, strict=True) if rate >= least][-MAX_HEALTHY_ANSWERS:]


def _onset(answers: Sequence[Answer], first: int, episode: Episode) -> Onset:
    """Where the collapse began that began in answer ``first``."""
    before = [one.observation for one in answers[:first]]
    inside = answers[first]
    step = min(episode.onset_step or 0, max(0, len(inside.steps) - 1))
    tokens = sum(one.tokens or 0 for one in inside.steps[:step])
    total = inside.observation.completion_tokens
    at = inside.steps[step].at if inside.steps else inside.observation.started
    return Onset(
        requests=first + (min(1.0, tokens / total) if total else 0.0),
        tokens=sum(one.completion_tokens or 0 for one in before) + tokens,
        steps=sum(one.verify_steps or 0 for one in before) + step,
        seconds=max(0.0, at - answers[0].observation.started),
        cause=episode.cause,
    )
