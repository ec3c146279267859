"""A command of the operator's own. Its arguments are the configuration's; only values of the ladder are filled in."""

from __future__ import annotations

import re

from proxy import processes
from proxy.config_effects import COMMAND_PLACEHOLDERS, CommandEffect, Level
from proxy.effects.arguments import in_words
from proxy.effects.elsewhere import Runtime
from proxy.effects.ladder import as_json, level_name
from proxy.effects.protocol import EffectError

_PLACEHOLDER = re.compile(r"\{(" + "|".join(COMMAND_PLACEHOLDERS) + r")\}")


class Command(Runtime):
    """An argument list, never a shell."""

    name = "command"

    def __init__(self, settings: CommandEffect) -> None:
        self._settings = settings

    async def plan(self, level: Level | None) -> str:
        """See Runtime."""
        return f"run {in_words(self.argv(level))}"

    async def restart(self, level: Level | None) -> None:
        """See Runtime."""
        argv = self.argv(level)
        try:
            done = await processes.run(argv, self._settings.timeout_seconds)
        except TimeoutError:
            raise EffectError(f"{argv[0]} was not done within {self._settings.timeout_seconds:g} s") from None
        except OSError as error:
            raise EffectError(f"{argv[0]}: {error.strerror}") from None
        if done.status != 0:
            raise EffectError(f"{argv[0]} {processes.describe_status(done.status)}: {done.output}")

    def argv(self, level: Level | None) -> list[str]:
        """The command with its placeholders filled; what was filled in is not looked at again."""
        config = level.speculative_config if level is not None else None
        values = {
            "backend": self._settings.backend,
            "level": level_name(level),
            "speculative_config": (as_json(level) or "") if level is not None else "",
            "num_speculative_tokens": str((config or {}).get("num_speculative_tokens", 0)),
        }
        return [_PLACEHOLDER.sub(lambda found: values[found[1]], argument) for argument in self._settings.argv]
