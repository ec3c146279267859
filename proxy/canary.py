"""One request of our own to a backend that had collapsed: it moves the engine's clock, and its answer is nobody's."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

import aiohttp
import msgspec

from detector.observation import Ending, Observation
from detector.tap.meter import Meter
from detector.tap.request import read_request
from proxy import config
from proxy.upstream import Backend

PATH = "/v1/chat/completions"
_numbers = itertools.count(1)


class Canary:
    """The one canary that may be out; outside the hot path, in a task of its own."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        ended: Callable[[Observation], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """ended: gets what was measured, failures of the engine included. failed: a fault of ours."""
        self._session, self._ended, self._failed = session, ended, failed
        self._task: asyncio.Task[None] | None = None

    @property
    def is_out(self) -> bool:
        """Whether its answer has not ended."""
        return self._task is not None and not self._task.done()

    def begin(self, backend: Backend, policy: config.Policy, model: str | None, tokens: int, depth: int | None) -> None:
        """Send one. model: a name that clients use; None: no client has named one, the engine's first is taken."""
        self._task = asyncio.get_running_loop().create_task(self._send(backend, policy, model, tokens, depth))
        self._task.add_done_callback(self._done)

    async def close(self) -> None:
        """Stop one that is out."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _send(
        self, backend: Backend, policy: config.Policy, model: str | None, tokens: int, depth: int | None
    ) -> None:
        named = model or await _first_model(backend, self._session)
        self._ended(await send_canary(backend, self._session, policy, named, tokens, depth))

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)


async def _first_model(backend: Backend, session: aiohttp.ClientSession) -> str:
    try:
        async with session.get(f"{backend.base_url}/v1/models", headers=backend.headers) as answer:
            return str((await answer.json())["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, LookupError, TypeError):
        return ""


async def send_canary(
    backend: Backend, session: aiohttp.ClientSession, policy: config.Policy, model: str, tokens: int, depth: int | None
) -> Observation:
    """Ask, read, measure. Raises nothing: a canary that gets no whole answer is an Observation that failed.

    model: a name that clients use. tokens: what it asks for. depth: num_speculative_tokens of the backend, where
    it is known.
    """
    body = _body(policy, backend.settings.models.get(model, model), tokens)
    started = time.monotonic()
    meter = Meter(
        read_request(PATH, body),
        request_id=f"specbreaker-canary-{next(_numbers)}",
        backend=backend.name,
        generation=backend.generation,
        started=started,
        started_unix=time.time(),
        canary=True,
        num_speculative_tokens=depth,
    )
    meter.sent(started)
    backend.begun += 1
    try:
        ending = await _ask(backend, session, policy, body, meter)
    except TimeoutError:
        ending = Ending.UPSTREAM_TIMEOUT
    except aiohttp.ClientConnectorError:
        ending = Ending.CONNECT_FAILED
    except (aiohttp.ClientError, OSError):
        ending = Ending.UPSTREAM_CLOSED
    return meter.finish(time.monotonic(), ending)


def _body(policy: config.Policy, model: str, tokens: int) -> bytes:
    return msgspec.json.encode(
        {
            "model": model,
            "messages": [{"role": "user", "content": policy.canary_prompt}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
    )


async def _ask(
    backend: Backend, session: aiohttp.ClientSession, policy: config.Policy, body: bytes, meter: Meter
) -> Ending:
    headers = backend.headers | {"content-type": "application/json"}
    timeout = aiohttp.ClientTimeout(
        total=policy.canary_timeout_seconds, sock_connect=backend.settings.connect_timeout_seconds
    )
    async with session.post(backend.base_url + PATH, data=body, headers=headers, timeout=timeout) as answer:
        meter.head(
            time.monotonic(),
            answer.status,
            answer.headers.get("content-type", ""),
            answer.headers.get("content-encoding", ""),
        )
        async for piece in answer.content.iter_any():
            meter.feed(time.monotonic(), piece)
        return Ending.COMPLETE if answer.status == 200 else Ending.ENGINE_ERROR
