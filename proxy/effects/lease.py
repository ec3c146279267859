"""One restart at a time in a fleet: a Lease of Kubernetes (coordination.k8s.io/v1) that whoever restarts must hold.

A holder renews it while it restarts. Clocks of other machines are not trusted: a holder is taken for gone when its
Lease has not changed for as long as it lasts, by our own clock since we first saw it so, as client-go does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp

from proxy.config_effects import LeaseEffect
from proxy.effects.cluster import Cluster, Refused
from proxy.effects.protocol import EffectError

LOOK_SECONDS: Final = 2.0
CONFLICT: Final = 409

log = logging.getLogger("specbreaker.effects")


class Lease:
    """The Lease. Needs get and update of that one object."""

    def __init__(self, settings: LeaseEffect, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._settings = settings
        self._cluster = Cluster(settings, "effects.lease")
        self._identity = settings.identity or socket.gethostname()
        self._look_seconds = look_seconds
        self._seen: tuple[str, float] | None = None
        """Version of the Lease, and the monotonic time at which it was first seen so."""

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Wait for it, hold it, give it back. Raises EffectError where it does not come within ``wait_seconds``."""
        async with self._cluster.session() as session:
            await self._acquire(session)
            renewing = asyncio.get_running_loop().create_task(self._renew(session))
            try:
                yield
            finally:
                renewing.cancel()
                await asyncio.gather(renewing, return_exceptions=True)
                await self._release(session)

    async def _acquire(self, session: aiohttp.ClientSession) -> None:
        deadline = time.monotonic() + self._settings.wait_seconds
        while True:
            lease = await self._get(session)
            holder = self._holder(lease)
            if holder is None and await self._put(session, lease, self._identity):
                return
            if time.monotonic() >= deadline:
                name = self._settings.name
                waited = f"waited {self._settings.wait_seconds:g} s for its turn"
                raise EffectError(f"lease {name}: {waited}: {holder or 'another one'} is restarting an engine")
            await asyncio.sleep(self._look_seconds)

    def _holder(self, lease: dict[str, Any]) -> str | None:
        """Who holds it, if that is another one and still there."""
        spec = lease.get("spec") or {}
        holder, version = spec.get("holderIdentity"), lease["metadata"]["resourceVersion"]
        now = time.monotonic()
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, now)
        if not holder or holder == self._identity:
            return None
        lasts = spec.get("leaseDurationSeconds") or self._settings.duration_seconds
        return None if now - self._seen[1] > lasts else str(holder)

    async def _renew(self, session: aiohttp.ClientSession) -> None:
        """Until cancelled. A restart that has begun is not broken off because this fails."""
        while True:
            await asyncio.sleep(self._settings.duration_seconds / 3)
            try:
                await self._put(session, await self._get(session), self._identity)
            except EffectError as error:
                log.warning("the restart's lease could not be renewed: %s", error)

    async def _release(self, session: aiohttp.ClientSession) -> None:
        try:
            lease = await self._get(session)
            if lease["spec"].get("holderIdentity") == self._identity:
                await self._put(session, lease, "")
        except EffectError as error:
            log.warning("the restart's lease is not given back and runs out by itself: %s", error)

    async def _get(self, session: aiohttp.ClientSession) -> dict[str, Any]:
        lease = await self._cluster.call(session, "GET", self._url())
        if not isinstance(lease.get("metadata"), dict) or "resourceVersion" not in lease["metadata"]:
            raise EffectError(f"GET {self._url()}: the answer is not a Lease")
        return lease

    async def _put(self, session: aiohttp.ClientSession, lease: dict[str, Any], holder: str) -> bool:
        """Write it as seen, with another holder; False where somebody else was faster."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict(lease.get("spec") or {})
        if spec.get("holderIdentity") != holder:
            spec |= {"holderIdentity": holder, "acquireTime": now}
            spec["leaseTransitions"] = spec.get("leaseTransitions", 0) + bool(holder)
        spec |= {"leaseDurationSeconds": self._settings.duration_seconds, "renewTime": now}
        try:
            await self._cluster.call(session, "PUT", self._url(), {**lease, "spec": spec})
        except Refused as error:
            if error.status == CONFLICT:
                return False
            raise
        return True

    def _url(self) -> str:
        return self._cluster.url("coordination.k8s.io/v1", f"leases/{self._settings.name}")
