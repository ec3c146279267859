"""Reading an engine's /metrics: every few seconds, and around a request that ran alone."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final, NamedTuple

import aiohttp
import msgspec

from detector.observation import EngineSample, SpeculationCounts
from detector.tap.promtext import difference, parse, speculation_between
from proxy.config import Measure
from proxy.events import Events, Sampled, Unreachable
from proxy.upstream import Backend

SCRAPE_TIMEOUT_SECONDS = 5.0
MAX_METRICS_BYTES = 16 * 1024 * 1024
MAX_VERSION_BYTES = 64 * 1024

log = logging.getLogger("specbreaker.probes")


class Counted(NamedTuple):
    """What an engine's counters say of one request that ran alone."""

    speculation: SpeculationCounts | None
    decode_seconds: float | None


NOTHING_COUNTED: Final = Counted(None, None)


class Probe:
    """One engine's counters, and which request they can be blamed on."""

    def __init__(self, backend: Backend, session: aiohttp.ClientSession, events: Events, measure: Measure) -> None:
        self.backend = backend
        self.num_speculative_tokens: int | None = None
        self.failures = 0
        self._session = session
        self._events = events
        self._measure = measure
        self._read_at = 0.0
        self._quiet: tuple[int, EngineSample] | None = None
        """(requests begun so far, counters) of a moment at which none was in flight."""
        self._lock = asyncio.Lock()
        self._version: str | None = None

    def configure(self, settings: Measure) -> None:
        """Go on with other settings; the next reading is still made when it was due."""
        self._measure = settings

    async def run(self) -> None:
        """Read the counters until cancelled."""
        while True:
            await self.scrape()
            await asyncio.sleep(self._measure.scrape_seconds)

    async def scrape(self) -> EngineSample | None:
        """Read the counters once; None, counted, where that fails."""
        async with self._lock:
            begun, idle = self.backend.begun, not self.backend.exchanges
            self._read_at = time.monotonic()
            try:
                sample = await self._read()
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                self._failed(error)
                return None
            if idle and self.backend.begun == begun:
                self._quiet = (begun, sample)
        self.num_speculative_tokens = sample.num_speculative_tokens
        self._events.put(Sampled(self.backend.name, sample, self._version))
        return sample

    async def _read(self) -> EngineSample:
        headers = {"authorization": self.backend.authorization.decode()} if self.backend.authorization else {}
        timeout = aiohttp.ClientTimeout(total=SCRAPE_TIMEOUT_SECONDS)
        base = self.backend.settings.url.rstrip("/")
        if self._version is None:
            async with self._session.get(f"{base}/version", headers=headers, timeout=timeout) as answer:
                self._version = _version(await read_all(answer, MAX_VERSION_BYTES)) if answer.status == 200 else ""
        async with self._session.get(f"{base}/metrics", headers=headers, timeout=timeout) as answer:
            answer.raise_for_status()
            return parse(await read_all(answer, MAX_METRICS_BYTES), time.monotonic())

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self._quiet = None
        if isinstance(error, aiohttp.ClientConnectorError):
            self._version = None
            self._events.put(Unreachable(self.backend.name, str(error)))
        if self.failures == 1:
            log.warning("backend %s: /metrics cannot be read: %s", self.backend.name, error)

    def may_count(self) -> bool:
        """Whether a request that has just ended may be measured by the counters now."""
        return not self.backend.exchanges and time.monotonic() - self._read_at >= self._measure.counting_gap_seconds

    def ran_alone(self, begun_number: int) -> bool:
        """Whether the request with that number ran between two quiet readings, if the second comes now."""
        before = self._quiet
        alone = self.backend.begun == begun_number and not self.backend.exchanges
        return alone and before is not None and before[0] == begun_number - 1

    async def counters_of(self, begun_number: int, completion_tokens: int | None) -> Counted:
        """What the counters say of a request that ran alone; nothing where they say nothing certain."""
        before = self._quiet
        if before is None or completion_tokens is None or not self.ran_alone(begun_number):
            await self.scrape()
            return NOTHING_COUNTED
        after = await self.scrape()
        if after is None or self.backend.begun != begun_number:
            return NOTHING_COUNTED
        change = difference(before[1], after)
        if change is None or change.generation_tokens != completion_tokens:
            return NOTHING_COUNTED
        return Counted(speculation_between(before[1], after, completion_tokens), change.decode_seconds)


async def read_all(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    """A whole body. Raises ValueError where it is longer than the limit."""
    text = bytearray()
    async for piece in answer.content.iter_any():
        text += piece
        if len(text) > limit:
            raise ValueError(f"{answer.url.path} is longer than {limit} bytes")
    return bytes(text)


def _version(body: bytes) -> str:
    """What ``/version`` says; empty where it says nothing of the kind."""
    try:
        said = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return str(said.get("version", ""))
