"""systemd: write the unit's environment file, restart the unit. The environment is read again at every start."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from proxy import processes
from proxy.config_effects import Level, SystemdEffect
from proxy.effects.arguments import dotted
from proxy.effects.elsewhere import Runtime
from proxy.effects.ladder import level_name
from proxy.effects.protocol import EffectError


class Systemd(Runtime):
    """A unit with ``EnvironmentFile=`` and ``ExecStart=... $SPECULATIVE_ARGS``."""

    name = "systemd"

    def __init__(self, settings: SystemdEffect) -> None:
        self._settings = settings

    async def plan(self, level: Level | None) -> str:
        """See Runtime."""
        text = environment_of(level).strip().replace("\n", "; ")
        return f"write {self._settings.environment_file} ({text}) and run {' '.join(self._argv())}"

    async def restart(self, level: Level | None) -> None:
        """See Runtime."""
        try:
            replace_file(Path(self._settings.environment_file), environment_of(level))
        except OSError as error:
            raise EffectError(f"{self._settings.environment_file}: cannot be written: {error.strerror}") from None
        try:
            done = await processes.run(self._argv(), self._settings.timeout_seconds)
        except TimeoutError:
            raise EffectError(f"systemctl was not done within {self._settings.timeout_seconds:g} s") from None
        except OSError as error:
            raise EffectError(f"systemctl: {error.strerror}") from None
        if done.status != 0:
            raise EffectError(f"{' '.join(self._argv())} {processes.describe_status(done.status)}: {done.output}")

    def _argv(self) -> list[str]:
        return ["systemctl", "restart", "--", self._settings.unit]


def environment_of(level: Level | None) -> str:
    """The environment file. systemd splits an unbraced $SPECULATIVE_ARGS at blanks, so the words hold no quotes."""
    words = dotted(level) if level is not None else ""
    return f"SPECULATIVE_ARGS={words}\nSPECULATIVE_LEVEL={level_name(level)}\n"


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by its owner and group. Raises OSError."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o640)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
