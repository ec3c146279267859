"""Kubernetes: other arguments for one container of one Deployment, and the roll-out watched to its end.

Needs get and patch on that one Deployment. Only the arguments are changed, only their speculative configuration, and
only to a level of the ladder.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import aiohttp
import msgspec

from proxy.config_effects import AS_GIVEN, KubernetesEffect, Level
from proxy.effects.arguments import at_level, without_keys
from proxy.effects.cluster import PATCH, Cluster
from proxy.effects.elsewhere import Runtime
from proxy.effects.ladder import level_name
from proxy.effects.protocol import EffectError

ANNOTATION: Final = "specbreaker/level"
RESTARTED: Final = "specbreaker/restarted-at"
_LOOK_SECONDS: Final = 1.0


class Kubernetes(Runtime):
    """The API server, as the pod's service account."""

    name = "kubernetes"

    def __init__(
        self, settings: KubernetesEffect, rollout_seconds: float, *, look_seconds: float = _LOOK_SECONDS
    ) -> None:
        self._settings = settings
        self._cluster = Cluster(settings, "effects.kubernetes")
        self._rollout_seconds = rollout_seconds
        self._look_seconds = look_seconds
        self._given: dict[str, list[str]] | None = None
        """Command and arguments before the first change: the level "as-given"."""

    async def plan(self, level: Level | None) -> str:
        """See Runtime. Reads the Deployment, so that a refusal shows in the dry run too."""
        async with self._cluster.session() as session:
            deployment = await self._call(session, "GET")
        patch = self._patch(deployment, level)
        (container,) = patch["spec"]["template"]["spec"]["containers"]
        for key in ("command", "args"):
            if key in container:
                container[key] = without_keys(container[key])
        return f"PATCH {self._url()} with {msgspec.json.encode(patch).decode()}"

    async def restart(self, level: Level | None) -> None:
        """See Runtime."""
        async with self._cluster.session() as session:
            deployment = await self._call(session, "GET")
            patched = await self._call(session, "PATCH", self._patch(deployment, level))
            await self._rolled_out(session, patched["metadata"]["generation"])

    async def _rolled_out(self, session: aiohttp.ClientSession, generation: int) -> None:
        deadline = time.monotonic() + self._rollout_seconds
        while True:
            deployment = await self._call(session, "GET")
            wanted = deployment["spec"].get("replicas", 1)
            status = deployment.get("status", {})
            counts = [status.get(name, 0) for name in ("updatedReplicas", "replicas", "availableReplicas")]
            if status.get("observedGeneration", 0) >= generation and counts == [wanted] * 3:
                return
            if time.monotonic() >= deadline:
                raise EffectError(
                    f"deployment {self._settings.deployment}: not rolled out after {self._rollout_seconds:g} s"
                )
            await asyncio.sleep(self._look_seconds)

    def _patch(self, deployment: dict[str, Any], level: Level | None) -> dict[str, Any]:
        """The strategic-merge patch; lists of containers merge by name, arguments are replaced whole."""
        place = f"deployment {self._settings.deployment}"
        if deployment["spec"].get("strategy", {}).get("type") != "Recreate":
            raise EffectError(f"{place}: its strategy must be Recreate: a second engine would not fit on the GPU")
        pod = deployment["spec"]["template"]["spec"]
        container = next((one for one in pod["containers"] if one["name"] == self._settings.container), None)
        if container is None:
            raise EffectError(f'{place}: there is no container "{self._settings.container}"')
        current = {key: list(container[key]) for key in ("command", "args") if container.get(key)}
        if self._given is None and ANNOTATION not in (
            deployment["spec"]["template"]["metadata"].get("annotations", {})
        ):
            self._given = current
        change = self._changed(current, level)
        annotations = {ANNOTATION: level_name(level), RESTARTED: str(int(time.time()))}
        return {
            "metadata": {"resourceVersion": deployment["metadata"]["resourceVersion"]},
            "spec": {
                "template": {
                    "metadata": {"annotations": annotations},
                    "spec": {"containers": [{"name": self._settings.container, **change}]},
                }
            },
        }

    def _changed(self, current: dict[str, list[str]], level: Level | None) -> dict[str, list[str]]:
        if level is None:
            if self._given is None:
                raise EffectError(f'"{AS_GIVEN}" is not known: the deployment was at another level before we started')
            return self._given
        key = "args" if "args" in current else "command"
        if key not in current:
            raise EffectError(f"the container {self._settings.container} has neither args nor command")
        rest = [argument for other in current if other != key for argument in current[other]]
        if at_level(rest, level)[: len(rest)] != rest:
            raise EffectError("the speculative configuration is in command, and there are args: put it into args")
        # Kubernetes would take $(NAME) for a variable.
        return {key: [_escaped(one, current[key]) for one in at_level(current[key], level)]}

    def _url(self) -> str:
        return self._cluster.url("apps/v1", f"deployments/{self._settings.deployment}")

    async def _call(
        self, session: aiohttp.ClientSession, method: str, patch: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return await self._cluster.call(session, method, self._url(), patch, PATCH)


def _escaped(argument: str, before: list[str]) -> str:
    """Arguments of ours are escaped; those that were there are already as they should be."""
    return argument if argument in before else argument.replace("$(", "$$(")
