"""The benchmark's client: one streamed answer at a time on a keep-alive connection, with little CPU per event.

It understands of HTTP only what a chunked stream needs, and of an event only the stub's time stamp.
"""

from __future__ import annotations

import asyncio
import re
import time
from types import TracebackType
from typing import Self, cast

import stub

STAMP = re.compile(rb"@(\d{19})")
ANSWER_TIMEOUT_SECONDS = 60.0
NANOSECONDS = 1e9


class TargetFailed(Exception):
    """A target refused, broke or falsified a stream; the text says what happened."""


class Answer:
    """One streamed answer as it arrives; times are ``time.monotonic_ns()``."""

    __slots__ = (
        "_received",
        "_unfinished_event",
        "arrived_ns",
        "complete",
        "connection_closes",
        "ended_ns",
        "first_byte_ns",
        "sent_ns",
        "started_ns",
        "status",
    )

    def __init__(self, started_ns: int) -> None:
        self.started_ns = started_ns
        self.first_byte_ns = 0
        self.ended_ns = 0
        self.sent_ns: list[int] = []
        """When the stub wrote each content event."""
        self.arrived_ns: list[int] = []
        """When the read that held each content event returned."""
        self.status = 0
        self.complete = False
        """``[DONE]`` was seen."""
        self.connection_closes = False
        self._received = b""
        """Bytes of an unfinished head or chunk."""
        self._unfinished_event = b""

    def feed(self, data: bytes, now_ns: int) -> bool:
        """Take received bytes; True once the body has ended. ValueError: the answer is not HTTP chunks."""
        if not self.status:
            self._received += data
            head, blank, data = self._received.partition(b"\r\n\r\n")
            if not blank:
                return False
            self._received = b""
            self.status = int(head[9:12])
            self.connection_closes = b"\r\nconnection: close" in head.lower()
        if data and not self.first_byte_ns:
            self.first_byte_ns = now_ns
        payload, ended = self._take_chunks(self._received + data if self._received else data)
        text = self._unfinished_event + payload
        # A proxy may end a chunk inside an event: its stamp waits for the rest.
        last_blank_line = text.rfind(b"\n\n")
        whole_events = last_blank_line + 2 if last_blank_line >= 0 else 0
        self._unfinished_event = text[whole_events:]
        for stamp in STAMP.findall(text, 0, whole_events):
            self.sent_ns.append(int(stamp))
            self.arrived_ns.append(now_ns)
        self.complete = self.complete or text.endswith(b"data: [DONE]\n\n")
        if ended:
            self.ended_ns = now_ns
        return ended

    def _take_chunks(self, received: bytes) -> tuple[bytes, bool]:
        """The payload of all whole chunks, and whether the last one was among them; the rest is kept."""
        payloads: list[bytes] = []
        start = 0
        while (size_end := received.find(b"\r\n", start)) >= 0:
            size = int(received[start:size_end], 16)
            chunk_end = size_end + 2 + size
            if len(received) < chunk_end + 2:
                break
            start = chunk_end + 2
            if size == 0:
                return b"".join(payloads), True
            payloads.append(received[size_end + 2 : chunk_end])
        self._received = received[start:]
        return b"".join(payloads), False

    @property
    def ttft_seconds(self) -> float:
        """From the request handed to the socket to the first byte of the body."""
        return (self.first_byte_ns - self.started_ns) / NANOSECONDS

    @property
    def total_seconds(self) -> float:
        """From the request handed to the socket to the end of the body."""
        return (self.ended_ns - self.started_ns) / NANOSECONDS

    def delays_seconds(self) -> list[float]:
        """One-way delay of each content event, stub to client."""
        return [(arrived - sent) / NANOSECONDS for sent, arrived in zip(self.sent_ns, self.arrived_ns, strict=True)]


class Connection(asyncio.Protocol):
    """A keep-alive connection to one target on loopback; it is opened again where the target closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._ended: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._ended and not self._ended.done():
            self._ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._ended is None or self._ended.done():
            return
        try:
            if self._answer.feed(data, time.monotonic_ns()):
                self._ended.set_result(None)
        except ValueError as error:
            self._ended.set_exception(TargetFailed(f"status {self._answer.status}, not a chunked stream: {error}"))
            self.close()

    def close(self) -> None:
        """Close the connection, if it is open."""
        if self._transport:
            self._transport.close()
            self._transport = None

    async def stream(self, request: bytes, events: int) -> Answer:
        """Send `request` and read its answer of `events` content events. Raises TargetFailed for anything else."""
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            try:
                await loop.create_connection(lambda: self, "127.0.0.1", self._port)
            except OSError as error:
                raise TargetFailed(f"no connection to port {self._port}: {error}") from error
        assert self._transport is not None
        self._ended = loop.create_future()
        self._transport.write(request)
        self._answer = answer = Answer(time.monotonic_ns())
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
                await self._ended
        except TimeoutError as error:
            self.close()
            raise TargetFailed(f"no whole answer within {ANSWER_TIMEOUT_SECONDS:g} s") from error
        if answer.status != 200 or not answer.complete or len(answer.sent_ns) != events:
            what = "a whole" if answer.complete else "an unfinished"
            raise TargetFailed(f"status {answer.status}, {len(answer.sent_ns)} of {events} events, {what} answer")
        if answer.connection_closes:
            self.close()
        return answer


def chat_request(events: int, prompt_bytes: int) -> bytes:
    """A streamed chat request for an answer of `events` events. Like most clients it does not ask for usage."""
    prompt = "a few words of a prompt, ".ljust(prompt_bytes, "x")
    body = (
        f'{{"model":"{stub.MODEL}","stream":true,"max_tokens":{events * stub.TOKENS_PER_EVENT},'
        f'"messages":[{{"role":"user","content":"{prompt}"}}]}}'
    )
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"accept: text/event-stream\r\nauthorization: Bearer sk-bench\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()
