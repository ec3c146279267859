"""The levels that engines may be run at. Nothing else ever reaches a command line, an environment or a patch."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from proxy.config_effects import AS_GIVEN, Level
from proxy.effects.protocol import EffectError


class Ladder:
    """The levels of the configuration, by name, the fastest first."""

    def __init__(self, levels: tuple[Level, ...]) -> None:
        self._levels = {level.name: level for level in levels}

    def __iter__(self) -> Iterator[Level]:
        return iter(self._levels.values())

    def get(self, name: str) -> Level:
        """The level of that name. Raises EffectError for a name that is not in the configuration."""
        try:
            return self._levels[name]
        except KeyError:
            known = ", ".join(self._levels) or "none ([[ladder]] of the configuration is empty)"
            raise EffectError(f'no level "{name}" in the ladder; there are: {known}') from None

    def named(self, name: str | None) -> Level | None:
        """The level, or None for the engine's own command line. Raises EffectError."""
        return None if name is None or name == AS_GIVEN else self.get(name)


def level_name(level: Level | None) -> str:
    """What metrics and logs call it."""
    return AS_GIVEN if level is None else level.name


def as_json(level: Level) -> str | None:
    """The level's speculative configuration as vLLM reads it; None for no speculation."""
    if level.speculative_config is None:
        return None
    return msgspec.json.encode(level.speculative_config).decode()
