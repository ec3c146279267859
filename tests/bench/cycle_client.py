"""The client of the cycle benchmark: one streamed answer after the other, as an agent asks."""

from __future__ import annotations

import asyncio
import time

import msgspec

ANSWER_TIMEOUT_SECONDS = 120.0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. Seconds are real ones, not those of the engine."""

    whole: bool
    """HTTP 200, ``[DONE]`` at the end, and all tokens that were asked for."""
    status: int = 0
    ttft_seconds: float | None = None
    decode_seconds: float | None = None
    """From the first token to the last."""
    events: int = 0


def request_bytes(port: int, model: str, number: int, tokens: int, key: str | None) -> bytes:
    """A request on a connection of its own, as the peers' harness sends it."""
    body = msgspec.json.encode(
        {
            "model": model,
            "stream": True,
            "max_tokens": tokens,
            "ignore_eos": True,
            "messages": [{"role": "user", "content": f"request {number}"}],
        }
    )
    authorization = f"authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"{authorization}connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def ask(port: int, model: str, number: int, tokens: int, key: str | None = None) -> Answer:
    """Ask once and read to the end. What goes wrong is an answer that is not whole."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
            return await _ask(port, model, number, tokens, key)
    except (OSError, TimeoutError, ValueError):
        return Answer(whole=False)


async def _ask(port: int, model: str, number: int, tokens: int, key: str | None) -> Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        begun = time.monotonic()
        writer.write(request_bytes(port, model, number, tokens, key))
        status = int((await reader.readuntil(b"\r\n\r\n"))[9:12])
        first = last = 0.0
        events, tail = 0, b""
        while data := await reader.read(65536):
            now = time.monotonic()
            # An event may end in the next read: what is left of it goes before that.
            found = (tail + data).count(b'"content":"') - tail.count(b'"content":"')
            tail = (tail + data)[-512:]
            if found:
                events += found
                first, last = first or now, now
        done = b"data: [DONE]" in tail
    finally:
        writer.close()
    return Answer(
        whole=status == 200 and done and events > 1,
        status=status,
        ttft_seconds=first - begun if events else None,
        decode_seconds=last - first if events > 1 else None,
        events=events,
    )
