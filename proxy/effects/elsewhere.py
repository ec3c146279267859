"""Restarting an engine that is not our child: traffic off, the runtime's own way to restart, ready, traffic back."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from proxy.config_effects import Level
from proxy.effects.engine import Engine
from proxy.effects.ladder import Ladder, level_name
from proxy.effects.protocol import Action, Done, EffectError, PlannedEffect, Restart
from proxy.effects.traffic import Traffic


class Runtime(ABC):
    """A way to restart an engine: Docker, Kubernetes, systemd, a command. Raises EffectError."""

    name: str

    @abstractmethod
    async def plan(self, level: Level | None) -> str:
        """Exactly what restart() would do, as a verb phrase. Changes nothing."""

    @abstractmethod
    async def restart(self, level: Level | None) -> None:
        """Restart at the level (None: the engine's own command line); returns when the old engine is gone."""


class RestartElsewhere(PlannedEffect):
    """A restart through a runtime."""

    def __init__(
        self, runtime: Runtime, engine: Engine, ladder: Ladder, traffic: Traffic, ready_seconds: float
    ) -> None:
        self.name = f"restart_{runtime.name}"
        self._runtime = runtime
        self._engine = engine
        self._ladder = ladder
        self._traffic = traffic
        self._ready_seconds = ready_seconds
        self._expected_seconds = 120.0
        """How long the last restart took; before the first one a guess."""
        self._level: Level | None = None

    async def plan(self, action: Action) -> str:
        """See PlannedEffect."""
        steps = await self._runtime.plan(self._wanted(action))
        name = self._engine.backend.name
        return f"take traffic off {name}, {steps}, wait until it is ready, give it traffic"

    async def carry_out(self, action: Action) -> Done:
        """See PlannedEffect. An engine that is ready after a failure gets its traffic back."""
        level = self._wanted(action)
        name = self._engine.backend.name
        drain = await self._traffic.leave(name, f"the engine {name} is being restarted", self._expected_seconds)
        started = time.monotonic()
        try:
            await self._runtime.restart(level)
        except EffectError:
            if await self._engine.ready():
                self._traffic.back(name, None, relaunched=False)
            raise
        stopped = time.monotonic()
        if not await self._engine.until_ready(self._ready_seconds):
            raise EffectError(f"{name} was restarted, and is not ready after {self._ready_seconds:g} s")
        self._expected_seconds = time.monotonic() - started
        self._level = level
        self._traffic.back(name, level_name(level), relaunched=True)
        phases = {"drain": drain, "stop": stopped - started, "start": time.monotonic() - stopped}
        return Done(f"{name} was restarted at {level_name(level)}", phases)

    def _wanted(self, action: Action) -> Level | None:
        assert isinstance(action, Restart)
        return self._level if action.level is None else self._ladder.named(action.level)
