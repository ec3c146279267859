"""Notices to a URL, as JSON, signed where a key is given."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import secrets
import time
from typing import Final

import aiohttp
import msgspec

from proxy.config_effects import WebhookEffect
from proxy.effects.protocol import Action, Done, EffectError, Notify, PlannedEffect

FIRST_WAIT_SECONDS: Final = 1.0
_WORTH_ANOTHER_TRY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class Webhook(PlannedEffect):
    """POST with bounded retries. The body never holds a prompt: notices are made of names and numbers."""

    name = "webhook"

    def __init__(
        self, settings: WebhookEffect, session: aiohttp.ClientSession, *, first_wait_seconds: float = FIRST_WAIT_SECONDS
    ) -> None:
        self._settings = settings
        self._session = session
        self._first_wait_seconds = first_wait_seconds
        key = os.environ.get(settings.secret_env) if settings.secret_env else None
        self._key = key.encode() if key else None

    async def plan(self, action: Action) -> str:
        """See PlannedEffect."""
        return f"POST {self._settings.url}: {_body(action).decode()}"

    async def carry_out(self, action: Action) -> Done:
        """See PlannedEffect."""
        body = _body(action)
        headers = {"content-type": "application/json", "x-specbreaker-delivery": secrets.token_hex(8)}
        if self._key is not None:
            stamp = str(int(time.time()))
            headers |= {"x-specbreaker-timestamp": stamp, "x-specbreaker-signature": signature(self._key, stamp, body)}
        reason = ""
        for attempt in range(self._settings.attempts):
            if attempt:
                await asyncio.sleep(self._first_wait_seconds * 2 ** (attempt - 1))
            status, reason = await self._post(body, headers)
            if status is not None and status < 300:
                return Done(f"told {self._settings.url}")
            if status is not None and status not in _WORTH_ANOTHER_TRY:
                break
        raise EffectError(f"{self._settings.url}: {reason}")

    async def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int | None, str]:
        try:
            timeout = aiohttp.ClientTimeout(total=self._settings.timeout_seconds)
            async with self._session.post(
                self._settings.url, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                await answer.read()
                return answer.status, f"answered {answer.status}"
        except TimeoutError:
            return None, f"no answer within {self._settings.timeout_seconds:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return None, str(error)


def signature(key: bytes, timestamp: str, body: bytes) -> str:
    """``sha256=`` and the HMAC of "TIMESTAMP.BODY" in hex; the time keeps a recorded notice from being sent again."""
    return "sha256=" + hmac.new(key, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _body(action: Action) -> bytes:
    assert isinstance(action, Notify)
    fields = {"event": action.event, "text": action.text, "backend": action.backend, "fields": action.fields}
    return msgspec.json.encode(fields)
