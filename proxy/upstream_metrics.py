"""Reads the engines' own ``/metrics`` for a scrape of ours, so that dashboards made for the engine keep working."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import aiohttp

from proxy.exposition import Families
from proxy.metrics import Metrics
from proxy.probes import MAX_METRICS_BYTES, read_all
from proxy.upstream import Backend

TIMEOUT_SECONDS: Final = 4.0
"""Less than Prometheus waits for a scrape by default (10 s): without the engine's metrics ours still arrive."""

log = logging.getLogger("specbreaker.upstream_metrics")


class UpstreamMetrics:
    """Asks all engines at once. One that does not answer is counted, and its metrics are missing from that scrape."""

    def __init__(self, backends: Sequence[Backend], session: aiohttp.ClientSession, metrics: Metrics) -> None:
        self._backends = tuple(backend for backend in backends if backend.settings.metrics)
        self._session = session
        self._metrics = metrics
        self._failing: set[str] = set()
        for backend in self._backends:
            metrics.upstream_scrape(backend.name)

    async def read(self) -> Families:
        """What the engines export now."""
        families = Families()
        texts = await asyncio.gather(*(self._read(backend) for backend in self._backends), return_exceptions=True)
        for backend, text in zip(self._backends, texts, strict=True):
            try:
                if isinstance(text, BaseException):
                    raise text
                for _ in families.add(backend.name, text):
                    await asyncio.sleep(0)  # streams go first
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                self._failed(backend.name, error)
            else:
                self._failing.discard(backend.name)
        return families

    async def _read(self, backend: Backend) -> str:
        headers = {"accept": "text/plain; version=0.0.4"}
        if backend.authorization is not None:
            headers["authorization"] = backend.authorization.decode("latin-1")
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        url = f"{backend.settings.url.rstrip('/')}/metrics"
        async with self._session.get(url, headers=headers, timeout=timeout) as answer:
            answer.raise_for_status()
            return (await read_all(answer, MAX_METRICS_BYTES)).decode()

    def _failed(self, name: str, error: Exception) -> None:
        """Counted each time, logged once until it works again."""
        self._metrics.upstream_scrape(name, failed=True)
        if name not in self._failing:
            self._failing.add(name)
            reason = str(error) or type(error).__name__
            log.warning("backend %s: its /metrics are missing from ours: %s", name, reason)
