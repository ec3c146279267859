"""Carries out actions, one at a time: picks the effect, keeps the budget, reports the outcome as a fact."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Final

from proxy.config_effects import Effects
from proxy.effects.budget import RestartBudget
from proxy.effects.engine import Engine
from proxy.effects.ladder import Ladder
from proxy.effects.lease import Lease
from proxy.effects.protocol import (
    Action,
    Effect,
    EffectError,
    Notify,
    Outcome,
    ResetPrefixCache,
    Restart,
    Sleep,
    Wake,
)
from proxy.effects.traffic import Traffic
from proxy.events import Events

MAX_PENDING: Final = 100
"""Notices on their way at a time."""

log = logging.getLogger("specbreaker.effects")


class Busy(EffectError):
    """Another action is being carried out."""


class BudgetSpent(EffectError):
    """No restart may be made now."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Executor:
    """The one who runs effects. Tasks of its own; what comes of them goes through the queue of the control task."""

    def __init__(
        self, settings: Effects, ladder: Ladder, engines: dict[str, Engine], traffic: Traffic, events: Events
    ) -> None:
        self.ladder = ladder
        self.budget = RestartBudget(settings.restarts_max_per_hour)
        self.dry_run = settings.dry_run
        """Nothing is carried out, whatever the caller says."""
        self.running: Action | None = None
        """The action that is being carried out, notices aside."""
        self.restarts: dict[str, Effect] = {}
        """By backend."""
        self.sleep: Effect | None = None
        self.sleepers: frozenset[str] = frozenset()
        """Backends that can be put to sleep."""
        self.reset: Effect | None = None
        self.webhook: Effect | None = None
        self.lease: Lease | None = None
        """Held while an engine is restarted. None: nobody else is asked."""
        self.engines = engines
        """By backend."""
        self.traffic = traffic
        self._events = events
        self._tasks: set[asyncio.Task[Outcome]] = set()

    def start(self, action: Action, *, dry_run: bool = False) -> asyncio.Task[Outcome]:
        """Begin an action. Raises EffectError where it cannot be begun: Busy, BudgetSpent, nothing that can do it."""
        dry_run = dry_run or self.dry_run
        effect = self._effect(action)
        if not isinstance(action, Notify):
            if self.running is not None:
                raise Busy(f"{_words(self.running)} is under way; one action at a time")
            if isinstance(action, Restart) and not dry_run:
                self._spend(time.monotonic())
            self.running = action
        task = asyncio.get_running_loop().create_task(self._run(effect, action, dry_run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def tell(self, notice: Notify) -> None:
        """Send a notice, where somebody wants them; one too many is dropped and counted as failed."""
        if self.webhook is None:
            return
        if len(self._tasks) < MAX_PENDING:
            self.start(notice)
            return
        dropped = f"dropped: {MAX_PENDING} notices are on their way already"
        name = self.webhook.name
        self.report(Outcome(effect=name, action=notice, succeeded=False, detail=dropped, seconds=0.0))

    def _effect(self, action: Action) -> Effect:
        match action:
            case Restart(backend, level):
                self.ladder.named(level)
                if backend in self.restarts:
                    return self.restarts[backend]
                raise EffectError(
                    f'backend "{backend}" cannot be restarted: run it with specbreaker supervise, or see [effects]'
                )
            case Sleep(backend) | Wake(backend):
                if self.sleep is not None and backend in self.sleepers:
                    return self.sleep
                raise EffectError(f'backend "{backend}" cannot be put to sleep: name it in effects.sleep.backends')
            case ResetPrefixCache():
                if self.reset is not None:
                    return self.reset
            case Notify():
                if self.webhook is not None:
                    return self.webhook
        raise EffectError(f"nothing is configured for {_words(action)}")

    def _spend(self, now: float) -> None:
        wait = self.budget.seconds_until_next(now)
        if wait > 0:
            raise BudgetSpent(
                f"{self.budget.max_per_hour} restarts in an hour are used up (effects.restarts_max_per_hour)", wait
            )
        self.budget.spend(now)

    async def _run(self, effect: Effect, action: Action, dry_run: bool) -> Outcome:
        try:
            async with self._turn(action, dry_run):
                outcome = await effect.run(action, dry_run=dry_run)
        except EffectError as error:
            outcome = Outcome(effect=effect.name, action=action, succeeded=False, detail=str(error), seconds=0.0)
        except Exception as error:
            # A fault in an effect is an outcome too: nobody may wait for one that never comes.
            log.exception("%s could not be carried out", _words(action))
            outcome = Outcome(effect=effect.name, action=action, succeeded=False, detail=repr(error), seconds=0.0)
        finally:
            if not isinstance(action, Notify):
                self.running = None
        self.report(outcome)
        return outcome

    def _turn(self, action: Action, dry_run: bool) -> contextlib.AbstractAsyncContextManager[None]:
        """The fleet's permission to restart; raises EffectError where it does not come in time."""
        if self.lease is None or dry_run or not isinstance(action, Restart):
            return contextlib.nullcontext()
        return self.lease.held()

    def report(self, outcome: Outcome) -> None:
        """Tell control what came of an action."""
        self._events.put(outcome, must=True)

    async def close(self) -> None:
        """Stop what is under way."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _words(action: Action) -> str:
    match action:
        case Restart(backend, level):
            return f"a restart of {backend}" + (f" at {level}" if level else "")
        case Sleep(backend):
            return f"putting {backend} to sleep"
        case Wake(backend):
            return f"waking {backend}"
        case ResetPrefixCache(backend):
            return f"resetting the prefix cache of {backend}"
        case Notify():
            return "a notice"
