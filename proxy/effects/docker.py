"""Docker: one container for each level, made by the operator; a restart stops one and starts the other.

Docker cannot change the command of a container. Making new ones would need the right to make any container, which is
root on the host; stop and start of containers that exist need no more than these two calls.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import aiohttp

from proxy.config_effects import DockerEffect, Level
from proxy.effects.elsewhere import Runtime
from proxy.effects.ladder import level_name
from proxy.effects.protocol import EffectError

API: Final = "http://docker/v1.41"
"""1.41 is Docker 20.10; newer ones still speak it."""


class Docker(Runtime):
    """The Docker Engine API over its socket."""

    name = "docker"

    def __init__(self, settings: DockerEffect) -> None:
        self._settings = settings

    async def plan(self, level: Level | None) -> str:
        """See Runtime."""
        wanted = self._container(level)
        stop = ", ".join(self._stopped_for())
        return f"stop the containers {stop} and start {wanted} over {self._settings.socket}"

    async def restart(self, level: Level | None) -> None:
        """See Runtime."""
        wanted = self._container(level)
        connector = aiohttp.UnixConnector(path=self._settings.socket)
        timeout = aiohttp.ClientTimeout(total=self._settings.stop_seconds + 30)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            for container in self._stopped_for():
                await self._post(session, f"/containers/{quote(container)}/stop?t={self._settings.stop_seconds:.0f}")
            await self._post(session, f"/containers/{quote(wanted)}/start")

    def _container(self, level: Level | None) -> str:
        try:
            return self._settings.containers[level_name(level)]
        except KeyError:
            raise EffectError(f'effects.docker.containers has no container for "{level_name(level)}"') from None

    def _stopped_for(self) -> list[str]:
        """All of them, the wanted one too: a restart at the same level is one as well."""
        return sorted(set(self._settings.containers.values()))

    async def _post(self, session: aiohttp.ClientSession, path: str) -> None:
        try:
            async with session.post(API + path) as answer:
                text = await answer.text()
        except TimeoutError:
            raise EffectError(f"Docker did not answer POST {path} in time") from None
        except (aiohttp.ClientError, OSError) as error:
            raise EffectError(f"{self._settings.socket}: {error}") from None
        if answer.status not in (204, 304):  # 304: it was so already
            raise EffectError(f"Docker: POST {path}: {answer.status}: {text[:200].strip()}")
