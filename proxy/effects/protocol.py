"""Actions, the effects that carry them out, and what came of it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

import msgspec


class Restart(msgspec.Struct, frozen=True, tag=True):
    """Start this engine anew."""

    backend: str
    level: str | None = None
    """Name of a level of the ladder; None: the one that it runs at."""
    reason: str = ""


class Sleep(msgspec.Struct, frozen=True, tag=True):
    """Let this engine give back its GPU memory and keep its process."""

    backend: str
    level: int = 1
    """vLLM's sleep level; only 1 is carried out."""


class Wake(msgspec.Struct, frozen=True, tag=True):
    """Wake this engine, after putting to sleep those that it shares the GPU with."""

    backend: str


class ResetPrefixCache(msgspec.Struct, frozen=True, tag=True):
    """Let this engine forget its prefix cache."""

    backend: str


class Notify(msgspec.Struct, frozen=True, tag=True):
    """Tell somebody outside."""

    text: str
    event: str = "notice"
    backend: str | None = None
    fields: dict[str, Any] = {}


Action = Restart | Sleep | Wake | ResetPrefixCache | Notify


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an action; a fact for the control task like any other."""

    effect: str
    """Name of the effect."""
    action: Action
    succeeded: bool
    detail: str
    """What was done, or why it failed; of a dry run what would be done."""
    seconds: float
    """How long it took, all in all."""
    phases: dict[str, float] = {}
    """Seconds of its parts: drain, stop, start."""
    dry_run: bool = False


class EffectError(Exception):
    """An action cannot be carried out; the message says why, in one line."""


class Done(NamedTuple):
    """What an effect did."""

    detail: str
    phases: dict[str, float] = {}  # noqa: RUF012 - a NamedTuple's default, never changed


class Effect(Protocol):
    """Carries out one kind of action. It never raises: a failure is an Outcome."""

    @property
    def name(self) -> str:
        """What the effect is called in metrics and logs."""

    async def run(self, action: Action, *, dry_run: bool) -> Outcome:
        """Do it; or, in a dry run, only find out and say what would be done."""


class PlannedEffect(ABC):
    """An effect that can say what it would do: ``plan`` for the dry run, ``carry_out`` for the rest.

    Both raise EffectError where the action cannot be carried out.
    """

    name: str

    async def run(self, action: Action, *, dry_run: bool) -> Outcome:
        """Plan or carry out, and turn EffectError into an Outcome."""
        started = time.monotonic()
        try:
            plan = await self.plan(action)
            done = Done(f"would {plan}") if dry_run else await self.carry_out(action)
        except EffectError as error:
            done, succeeded = Done(str(error)), False
        else:
            succeeded = True
        return Outcome(
            effect=self.name,
            action=action,
            succeeded=succeeded,
            detail=done.detail,
            seconds=time.monotonic() - started,
            phases=done.phases,
            dry_run=dry_run,
        )

    @abstractmethod
    async def plan(self, action: Action) -> str:
        """Exactly what would be done, as a verb phrase. Changes nothing."""

    @abstractmethod
    async def carry_out(self, action: Action) -> Done:
        """Do it."""
