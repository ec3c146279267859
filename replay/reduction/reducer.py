"""Goes through the steps of a reduction, trial by trial, within its budgets, and keeps the best sequence on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from detector.verdict import Cause
from replay.reduction.ddmin import Outcome
from replay.reduction.evidence import decide, trigger_share
from replay.reduction.journal import Trial
from replay.reduction.judge import Answer, Judge, Onset, healthy_answers
from replay.reduction.plan import Candidate, Plan, steps
from replay.reduction.store import Store
from replay.reduction.trial import Laboratory, Tried

Ended = Literal["minimal", "budget", "not_triggered", "interrupted", "unreachable"]
"""not_triggered: the whole session did not make this target collapse."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """How much may be spent."""

    trials: int
    """Over all parts of a resumed reduction."""
    seconds: float
    """Of this part; a trial that has begun is finished."""
    whole_trials: int = 2
    """Trials of the whole session: how often it triggers."""
    repeats: int = 3
    """Most trials of one candidate."""
    max_lateness_seconds: float = 0.05


class Reduced(msgspec.Struct, frozen=True, kw_only=True):
    """What a reduction has found so far."""

    ended: Ended
    best: Candidate | None
    """The shortest sequence that triggered."""
    trials: int
    whole: Candidate
    whole_triggered: int
    whole_trials: int
    best_triggered: int = 0
    best_trials: int = 0
    onset: Onset | None = None
    """Where the collapse began in the latest trial of the best one that triggered."""
    restarted: bool | None = None
    """False: the reset left the engine's process running, in at least one trial."""


class _Spent(Exception):
    """The budget is used up."""


class Reducer:
    """One reduction, or what is left of it."""

    def __init__(
        self,
        laboratory: Laboratory,
        store: Store,
        plan: Plan,
        whole: Candidate,
        budget: Budget,
        *,
        say: Callable[[str], None],
    ) -> None:
        """say: takes a line about each trial."""
        self._laboratory, self._store, self._journal = laboratory, store, store.journal
        self._plan, self._whole, self._budget, self._say = plan, whole, budget, say
        self._began = time.monotonic()
        self._healthy: list[Answer] = []
        self._causes: frozenset[Cause] | None = None
        self._share = 0.5
        self._best: Candidate | None = None
        self._restarted: bool | None = None

    async def run(self) -> Reduced:
        """Reduce. Raises TargetUnreachable, TargetRefuses, JournalError and OSError; then ``so_far`` says what is."""
        try:
            enough = await self._try_whole()
            if enough is None:
                return self.so_far("not_triggered")
            search = steps(self._plan, enough)
            candidate = next(search)
            while True:
                candidate = search.send(await self._try(candidate))
        except StopIteration:
            return self.so_far("minimal" if await self._confirmed() else "budget")
        except _Spent:
            return self.so_far("budget")

    def so_far(self, ended: Ended) -> Reduced:
        """What was found until now."""
        whole = [trial.outcome for trial in self._journal.of(self._whole)]
        of_best = [] if self._best is None else self._journal.about(self._best)
        best = [trial.outcome for trial in of_best]
        onsets = [trial.onset for trial in of_best if trial.outcome is Outcome.TRIGGERED]
        return Reduced(
            ended=ended,
            best=self._best,
            trials=len(self._journal.trials),
            whole=self._whole,
            whole_triggered=whole.count(Outcome.TRIGGERED),
            whole_trials=len(whole),
            best_triggered=best.count(Outcome.TRIGGERED),
            best_trials=len(best),
            onset=onsets[-1] if onsets else None,
            restarted=self._restarted,
        )

    async def _try_whole(self) -> Candidate | None:
        """The beginning of the whole session that was enough to trigger; None: it never did."""
        while len(self._journal.of(self._whole)) < self._budget.whole_trials:
            tried = await self._run_one(self._whole)
            if tried.outcome is Outcome.TRIGGERED and self._causes is None:
                self._learn(tried.judge.answers)
        trials = self._journal.of(self._whole)
        found = [trial.enough for trial in trials if trial.enough is not None]
        if not found:
            return None
        if self._causes is None:
            self._learn(self._store.answers(found[0]))
        self._share = trigger_share(len(found), len(trials))
        return self._take(found[-1])

    def _learn(self, answers: Sequence[Answer]) -> None:
        """What healthy is, and which cause is looked for, from answers that collapsed."""
        self._healthy = healthy_answers(answers)
        judge = Judge()
        for answer in answers:
            judge.take(answer)
        self._causes = None if judge.onset is None else frozenset({judge.onset.cause})

    async def _try(self, candidate: Candidate) -> Candidate | None:
        """The beginning of a candidate that was enough to trigger, now the best one; None: it does not trigger."""
        while True:
            trials = self._journal.of(candidate)
            outcome = decide([trial.outcome for trial in trials], self._share, self._budget.repeats)
            if outcome is None:
                await self._run_one(candidate)
                continue
            found = [trial.enough for trial in trials if trial.enough is not None]
            return self._take(found[-1]) if outcome is Outcome.TRIGGERED else None

    def publish(self, reduced: Reduced) -> None:
        """Make the best sequence, and what is known of it, the result on disk. Raises JournalError and OSError."""
        if reduced.best is not None:
            self._store.publish(reduced.best, finding(reduced))

    def _take(self, candidate: Candidate) -> Candidate:
        self._best = candidate
        self.publish(self.so_far("interrupted"))
        return candidate

    async def _confirmed(self) -> bool:
        """Try the result as often as the whole session was, so that the two compare; False: the budget is used up."""
        try:
            while self._best is not None and len(self._journal.about(self._best)) < self._budget.whole_trials:
                await self._run_one(self._best)
        except _Spent:
            return False
        return True

    async def _run_one(self, candidate: Candidate) -> Tried:
        if len(self._journal.trials) >= self._budget.trials or time.monotonic() - self._began > self._budget.seconds:
            raise _Spent
        began = time.monotonic()
        judge = Judge(self._healthy, self._causes)
        tried = await self._laboratory.run(candidate, judge, self._budget.max_lateness_seconds)
        trial = Trial(
            number=len(self._journal.trials) + 1,
            requests=candidate.requests,
            timing=candidate.timing,
            outcome=tried.outcome,
            why=tried.why,
            onset=judge.onset,
            sent=tried.sent,
            seconds=time.monotonic() - began,
        )
        if trial.enough is not None:
            # Before the journal: what it says has triggered must be there.
            self._store.keep(trial.enough, tried.records, synthetic=self._laboratory.synthetic)
        self._journal.add(trial)
        if tried.restarted is not None:
            self._restarted = tried.restarted if self._restarted is None else self._restarted and tried.restarted
        said = trial.outcome.replace("_", " ")
        self._say(f"trial {trial.number}: {candidate}: {said} ({trial.why}), {trial.seconds:.1f} s")
        return tried


def finding(reduced: Reduced) -> dict[str, Any]:
    """What was found as JSON values: the fields of the last event of the reduced session, and of ``--json``."""
    best = reduced.best
    indices = [] if best is None else list(best.requests)
    return {
        "ended": reduced.ended,
        "trials": reduced.trials,
        "source_requests": len(reduced.whole.requests),
        "requests": len(indices),
        "source_indices": indices,
        "timing": None if best is None else best.timing.value,
        "one_prompt_repeated": best is not None and best.repeats_one,
        "triggered": [reduced.best_triggered, reduced.best_trials],
        "whole_triggered": [reduced.whole_triggered, reduced.whole_trials],
        "onset": msgspec.to_builtins(reduced.onset),
        "restarted": reduced.restarted,
    }
