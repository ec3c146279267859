"""Asking an engine itself: is it ready; sleep, wake, forget the prefix cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import aiohttp
import msgspec

from proxy.effects.protocol import Action, Done, EffectError, PlannedEffect, ResetPrefixCache
from proxy.upstream import Backend

ASK_SECONDS: Final = 5.0
"""Longest wait for one answer to "are you ready?"."""
LOOK_SECONDS: Final = 0.25


class Engine:
    """One engine's HTTP API, beside the hot path."""

    def __init__(self, backend: Backend, session: aiohttp.ClientSession) -> None:
        self.backend = backend
        self._session = session
        self._base = backend.base_url
        self._headers = backend.headers

    async def ready(self) -> bool:
        """/health and /v1/models both answer: the engine lives, and its model is loaded.

        A 401 of /v1/models counts: the engine wants a key that only its clients have.
        """
        try:
            return await self._status("/health") == 200 and await self._status("/v1/models") in (200, 401)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def listens(self) -> bool:
        """Whether anybody accepts connections on the engine's port."""
        return await self._knocked() is None

    async def refuses(self) -> bool:
        """Whether nobody listens on the engine's port; a full queue of connections or a slow machine is no refusal."""
        return isinstance(await self._knocked(), ConnectionRefusedError)

    async def _knocked(self) -> Exception | None:
        """Why no connection to the engine's port could be made; None: one was."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                _, writer = await asyncio.open_connection(self.backend.host, self.backend.port)
        except (TimeoutError, OSError) as error:
            return error
        writer.close()
        return None

    async def _status(self, path: str) -> int:
        timeout = aiohttp.ClientTimeout(total=ASK_SECONDS)
        async with self._session.get(self._base + path, headers=self._headers, timeout=timeout) as answer:
            await answer.read()
            return answer.status

    async def get(self, path: str, seconds: float) -> bytes:
        """The body of a GET, whatever its status. Raises aiohttp.ClientError, OSError and TimeoutError."""
        timeout = aiohttp.ClientTimeout(total=max(0.001, seconds))
        async with self._session.get(self._base + path, headers=self._headers, timeout=timeout) as answer:
            return await answer.read()

    async def send(self, path: str, body: bytes, seconds: float) -> bytes:
        """The body of the answer to a POST of JSON, whatever its status. Raises as ``get`` does."""
        timeout = aiohttp.ClientTimeout(total=max(0.001, seconds))
        headers = self._headers | {"content-type": "application/json"}
        async with self._session.post(self._base + path, data=body, headers=headers, timeout=timeout) as answer:
            return await answer.read()

    async def until_ready(self, seconds: float, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Ask until the engine is ready; False where it is not in that time, or it was given up."""
        deadline = time.monotonic() + seconds
        while not given_up():
            if await self.ready():
                return True
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(LOOK_SECONDS)
        return False

    async def post(self, path: str, seconds: float) -> bytes:
        """POST without a body; the answer's body. Raises EffectError."""
        url = self._base + path
        try:
            timeout = aiohttp.ClientTimeout(total=seconds)
            async with self._session.post(url, headers=self._headers, timeout=timeout) as answer:
                body = await answer.read()
        except TimeoutError:
            raise EffectError(f"POST {url}: no answer within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise EffectError(f"POST {url}: {error}") from None
        if answer.status == 404:
            raise EffectError(f"POST {url}: 404: the engine needs VLLM_SERVER_DEV_MODE=1 in its environment")
        if answer.status != 200:
            raise EffectError(f"POST {url}: {answer.status}: {body[:200].decode(errors='replace')}")
        return body

    async def is_sleeping(self) -> bool | None:
        """What the engine says of itself; None where it cannot be asked."""
        try:
            timeout = aiohttp.ClientTimeout(total=ASK_SECONDS)
            url = f"{self._base}/is_sleeping"
            async with self._session.get(url, headers=self._headers, timeout=timeout) as answer:
                return bool((await answer.json())["is_sleeping"])
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, LookupError, TypeError):
            return None


class ResetEffect(PlannedEffect):
    """POST /reset_prefix_cache: the cheapest remedy for a drafter that lost its context."""

    name = "reset_prefix_cache"

    def __init__(self, engines: dict[str, Engine], seconds: float = 30.0) -> None:
        self._engines = engines
        self._seconds = seconds

    async def plan(self, action: Action) -> str:
        """See PlannedEffect."""
        return f"POST {self._engine(action).backend.settings.url}/reset_prefix_cache"

    async def carry_out(self, action: Action) -> Done:
        """See PlannedEffect. vLLM answers success: false while blocks are in use; before 0.25 it answers nothing."""
        engine = self._engine(action)
        body = await engine.post("/reset_prefix_cache", self._seconds)
        try:
            answer = msgspec.json.decode(body) if body else {}
        except msgspec.DecodeError:
            answer = {}
        if isinstance(answer, dict) and answer.get("success") is False:
            raise EffectError(f"{engine.backend.name} did not reset its prefix cache: requests are using it")
        return Done(f"{engine.backend.name}: prefix cache reset")

    def _engine(self, action: Action) -> Engine:
        assert isinstance(action, ResetPrefixCache)
        try:
            return self._engines[action.backend]
        except KeyError:
            raise EffectError(f'there is no backend "{action.backend}"') from None
