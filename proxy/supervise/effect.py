"""The restart of our own child, as an effect."""

from __future__ import annotations

from proxy.config_effects import Level
from proxy.effects.arguments import in_words
from proxy.effects.ladder import Ladder, level_name
from proxy.effects.protocol import Action, Done, PlannedEffect, Restart
from proxy.supervise.command import Command
from proxy.supervise.supervisor import Supervisor


class RestartSupervised(PlannedEffect):
    """The restart of our own child."""

    name = "restart_supervise"

    def __init__(self, supervisor: Supervisor, command: Command, ladder: Ladder) -> None:
        self._supervisor = supervisor
        self._command = command
        self._ladder = ladder

    async def plan(self, action: Action) -> str:
        """See PlannedEffect."""
        argv = in_words(self._command.at(self._level(action)))
        assert isinstance(action, Restart)
        return f"take traffic off {action.backend}, end the engine and all its processes, start: {argv}"

    async def carry_out(self, action: Action) -> Done:
        """See PlannedEffect."""
        level = self._level(action)
        phases = await self._supervisor.restart(level)
        assert isinstance(action, Restart)
        return Done(f"{action.backend} was restarted at {level_name(level)}", phases)

    def _level(self, action: Action) -> Level | None:
        assert isinstance(action, Restart)
        return self._supervisor.level if action.level is None else self._ladder.named(action.level)
