"""Sends one request to the target and measures its answer as the proxy would."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import msgspec

from detector.observation import Ending, RequestFacts, Step
from detector.tap.meter import Meter
from detector.tap.request import read_request
from replay.session.schema import ResponseRecord, chunks_of

BACKEND: Final = "target"
"""Name of the backend in the session that a replay writes."""
KEEP_ALIVE_SECONDS: Final = 4.0
"""vLLM closes connections that were idle for five."""
MAX_KEPT_STEPS: Final = 8192
"""Events of one answer that are written; the rest is counted."""


class Sent(msgspec.Struct):
    """When the head of a request was written to its connection."""

    at: float | None = None


class TargetClient:
    """A client of one target. Use it within its context."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_seconds: float = 600.0) -> None:
        """url: with or without ``/v1`` at the end. timeout_seconds: longest silence inside an answer."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self.num_speculative_tokens: int | None = None
        """K of the target, where it is known."""
        self._headers = {"content-type": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._running: set[Meter] = set()

    async def __aenter__(self) -> TargetClient:
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_note_sent)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            timeout=self._timeout,
            trace_configs=[trace],
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def fetch(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body of a small request of our own. Raises aiohttp.ClientError, OSError, TimeoutError."""
        assert self._session is not None, "used outside of its context"
        data = None if body is None else msgspec.json.encode(body)
        async with self._session.request(method, self.url + path, data=data, headers=self._headers) as answer:
            return answer.status, await answer.read()

    async def ask(self, request_id: str, path: str, body: bytes, sent: Sent) -> ResponseRecord:
        """Send, read, measure. Raises nothing: a request that gets no whole answer has an Observation that failed.

        Cancelled, it ends as ``client_gone`` and does not raise either: the caller looks at the ending.
        """
        started = time.monotonic()
        reading = _Reading(read_request(path, body), request_id, started, self.num_speculative_tokens)
        self._running.add(reading.meter)
        for meter in self._running:
            meter.concurrency(len(self._running))
        try:
            ending = await self._read(path, body, sent, reading)
        except asyncio.CancelledError:
            ending = Ending.CLIENT_GONE
        except TimeoutError:
            ending = Ending.UPSTREAM_TIMEOUT if sent.at is not None else Ending.CONNECT_FAILED
        except aiohttp.ClientConnectorError:
            ending = Ending.CONNECT_FAILED
        except (aiohttp.ClientError, OSError):
            ending = Ending.UPSTREAM_CLOSED
        finally:
            self._running.discard(reading.meter)
        if sent.at is not None:
            reading.meter.sent(sent.at)
        return reading.record(time.monotonic(), ending, self.num_speculative_tokens)

    async def _read(self, path: str, body: bytes, sent: Sent, reading: _Reading) -> Ending:
        assert self._session is not None, "used outside of its context"
        async with self._session.post(
            self.url + path, data=body, headers=self._headers, trace_request_ctx=sent
        ) as answer:
            headers = answer.headers
            reading.meter.head(
                time.monotonic(), answer.status, headers.get("content-type", ""), headers.get("content-encoding", "")
            )
            async for piece in answer.content.iter_any():
                reading.feed(time.monotonic(), piece)
            return Ending.COMPLETE if answer.status == 200 else Ending.ENGINE_ERROR


class _Reading:
    """One answer while it is read."""

    def __init__(self, facts: RequestFacts, request_id: str, started: float, depth: int | None) -> None:
        self.meter = Meter(
            facts,
            request_id=request_id,
            backend=BACKEND,
            generation=0,
            started=started,
            started_unix=time.time(),
            num_speculative_tokens=depth,
        )
        self._steps: list[Step] = []
        self._omitted = 0
        self._bytes = 0

    def feed(self, at: float, piece: bytes) -> None:
        self._bytes += len(piece)
        self.meter.feed(at, piece)
        self._keep_steps()

    def record(self, at: float, ending: Ending, depth: int | None) -> ResponseRecord:
        self.meter.end()
        self._keep_steps()
        observation = self.meter.finish(at, ending, num_speculative_tokens=depth)
        chunk_us, chunk_tokens = chunks_of(observation.started, self._steps)
        return ResponseRecord(
            request_id=observation.request_id,
            observation=observation,
            chunk_us=chunk_us,
            chunk_tokens=chunk_tokens,
            chunks_omitted=self._omitted,
            response_bytes=self._bytes,
        )

    def _keep_steps(self) -> None:
        steps = self.meter.drain_steps()
        room = MAX_KEPT_STEPS - len(self._steps)
        self._steps += steps[:room]
        self._omitted += max(0, len(steps) - room)


async def _note_sent(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _parameters: aiohttp.TraceRequestHeadersSentParams
) -> None:
    sent = getattr(context, "trace_request_ctx", None)
    if isinstance(sent, Sent):
        sent.at = time.monotonic()
