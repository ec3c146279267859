"""Asking an engine directly, without a proxy, and keeping the pieces that came with the times at which they came."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from tests.engine.server import MODEL

PROMPT = "import os\nimport sys\n\n\ndef main(arguments):\n    "


def body(**fields: Any) -> bytes:
    """Bytes of a streaming request that runs to ``max_tokens``; ``fields`` come on top."""
    request = {"model": MODEL, "stream": True, "max_tokens": 200, "temperature": 0.8, "ignore_eos": True}
    return json.dumps(request | fields).encode()


async def stream(session: aiohttp.ClientSession, url: str, request: bytes) -> AsyncIterator[tuple[float, bytes]]:
    """Pieces of the answer as (monotonic seconds, bytes), as they arrive; raises where the engine refuses or breaks."""
    async with session.post(url, data=request, headers={"Content-Type": "application/json"}) as response:
        if response.status != 200:
            raise AssertionError(f"{url} answered {response.status}: {await response.text()}")
        async for piece in response.content.iter_any():
            yield time.monotonic(), piece


def events(payload: bytes) -> list[dict[str, Any]]:
    """JSON of every ``data:`` event but ``[DONE]``, of a whole answer in vLLM's own framing."""
    data = (event.removeprefix(b"data: ") for event in payload.split(b"\n\n") if event.startswith(b"data: "))
    return [json.loads(item) for item in data if item != b"[DONE]"]


def without_engine_metrics(payload: bytes) -> bytes:
    """The same stream as an engine sends it that reports nothing of its own: no ``metrics`` object in any event."""

    def plain(event: bytes) -> bytes:
        if b'"metrics":' not in event:
            return event
        content = json.loads(event.removeprefix(b"data: "))
        content.pop("metrics")
        return b"data: " + json.dumps(content).encode()

    return b"\n\n".join(map(plain, payload.split(b"\n\n")))
