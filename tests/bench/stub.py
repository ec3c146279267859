"""A fast upstream for the overhead benchmark: vLLM's wire, no model, as little CPU per event as Python allows.

usage: stub.py --port PORT [--events N] [--gap-ms MS]

Every streamed answer is a role chunk, then N content events of about 250 bytes, one HTTP chunk each, then the usage
chunk where the request asked for it, then ``[DONE]``. Event i of a stream is due at ``start + i * gap``: a late event
does not move the next one. A gap of 0 writes one event per turn of the event loop. Each event holds ``@`` and the 19
digits of ``time.monotonic_ns()`` at which it was written, so that a client on this machine knows its one-way delay.

``max_tokens`` of a request sets its number of events (`TOKENS_PER_EVENT` tokens each). ``POST /stub`` with
``{"gap_seconds": x}`` sets the gap of the streams that start after it and answers with the counters.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import Callable
from typing import NamedTuple, cast

import msgspec
import uvloop

MODEL = "m"
TOKENS_PER_EVENT = 4
NUM_SPECULATIVE_TOKENS = 7
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
ROLE = b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
CONTENT_BEFORE_STAMP = b'"choices":[{"index":0,"delta":{"content":" token @'
CONTENT_AFTER_STAMP = b' of text"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
LAST_AFTER_STAMP = b' of text"},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]}\n\n'


class StreamOptions(msgspec.Struct):
    """The part of ``stream_options`` that changes the wire."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct):
    """The part of a chat or completions request that the stub obeys."""

    stream: bool = False
    max_tokens: int | None = None
    stream_options: StreamOptions | None = None


class SetGap(msgspec.Struct):
    """Body of ``POST /stub``."""

    gap_seconds: float


class Counters(msgspec.Struct):
    """How the stub is set and what it has done; the answer of ``POST /stub``."""

    gap_seconds: float
    default_events: int
    streams: int = 0
    events: int = 0


class Request(NamedTuple):
    """One HTTP request."""

    method: str
    path: str
    body: bytes


def chunk(payload: bytes) -> bytes:
    """`payload` as one HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def usage_json(prompt_tokens: int, completion_tokens: int) -> bytes:
    """The value of ``usage``."""
    total = prompt_tokens + completion_tokens
    return b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}' % (prompt_tokens, total, completion_tokens)


class Stream:
    """One streamed answer: writes each event at its deadline, then calls `on_end`. No `usage`: it was not asked for."""

    __slots__ = (
        "_after_stamp",
        "_before_stamp",
        "_counters",
        "_due",
        "_events",
        "_gap_seconds",
        "_loop",
        "_on_end",
        "_opening",
        "_sent",
        "_timer",
        "_transport",
        "_usage",
    )

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        counters: Counters,
        events: int,
        usage: bytes,
        on_end: Callable[[], None],
    ) -> None:
        counters.streams += 1
        self._transport = transport
        self._counters = counters
        self._events = events
        self._usage = usage
        self._on_end = on_end
        self._gap_seconds = counters.gap_seconds
        self._sent = 0
        self._loop = asyncio.get_running_loop()
        self._opening = b'data: {"id":"chatcmpl-%016x","object":"chat.completion.chunk","created":%d,"model":"%b",' % (
            counters.streams,
            int(time.time()),
            MODEL.encode(),
        )
        # All content events but the last have one length: writing one costs a concatenation and no JSON.
        size = len(self._opening) + len(CONTENT_BEFORE_STAMP) + 19 + len(CONTENT_AFTER_STAMP)
        self._before_stamp = b"%x\r\n%b%b" % (size, self._opening, CONTENT_BEFORE_STAMP)
        self._after_stamp = CONTENT_AFTER_STAMP + b"\r\n"
        transport.write(STREAM_HEAD + chunk(self._opening + ROLE))
        self._due = self._loop.time()
        self._timer = self._next_timer()

    def _next_timer(self) -> asyncio.Handle:
        self._due += self._gap_seconds
        wait_seconds = self._due - self._loop.time()
        if wait_seconds > 0:
            return self._loop.call_later(wait_seconds, self._write_event)
        return self._loop.call_soon(self._write_event)

    def _write_event(self) -> None:
        self._sent += 1
        self._counters.events += 1
        stamp = b"%019d" % time.monotonic_ns()
        if self._sent < self._events:
            self._transport.write(self._before_stamp + stamp + self._after_stamp)
            self._timer = self._next_timer()
            return
        self._transport.write(chunk(self._opening + CONTENT_BEFORE_STAMP + stamp + LAST_AFTER_STAMP))
        if self._usage:
            self._transport.write(chunk(self._opening + b'"choices":[],"usage":' + self._usage + b"}\n\n"))
        self._transport.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        self._on_end()

    def cancel(self) -> None:
        """Write no more: the client has gone."""
        self._timer.cancel()


class StubConnection(asyncio.Protocol):
    """One keep-alive connection: requests are answered one after another."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._received = bytearray()
        self._stream: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream:
            self._stream.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._answer_next()

    def _answer_next(self) -> None:
        while self._stream is None and (request := take_request(self._received)):
            self._answer(request)

    def _stream_ended(self) -> None:
        self._stream = None
        self._answer_next()

    def _answer(self, request: Request) -> None:
        if request.method == "POST" and request.path in ("/v1/chat/completions", "/v1/completions"):
            self._complete(request)
        elif request.method == "POST" and request.path == "/stub":
            self._counters.gap_seconds = msgspec.json.decode(request.body, type=SetGap).gap_seconds
            self._transport.write(plain_answer(msgspec.json.encode(self._counters)))
        else:
            self._transport.write(fixed_answer(request.path, self._counters))

    def _complete(self, request: Request) -> None:
        asked = msgspec.json.decode(request.body, type=ChatRequest)
        events = max(1, asked.max_tokens // TOKENS_PER_EVENT) if asked.max_tokens else self._counters.default_events
        usage = usage_json(len(request.body) // 4, events * TOKENS_PER_EVENT)
        if not asked.stream:
            choice = b'{"index":0,"message":{"role":"assistant","content":"text"},"finish_reason":"length"}'
            body = b'{"id":"chatcmpl-0","object":"chat.completion","created":%d,"model":"%b","choices":[%b],"usage":%b}'
            self._transport.write(plain_answer(body % (int(time.time()), MODEL.encode(), choice, usage)))
            return
        usage_asked = asked.stream_options is not None and asked.stream_options.include_usage
        self._stream = Stream(
            self._transport, self._counters, events, usage if usage_asked else b"", on_end=self._stream_ended
        )


def take_request(received: bytearray) -> Request | None:
    """Remove the first whole request from `received`; None while it is not whole. ValueError: not HTTP."""
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    lines = bytes(received[:head_end]).decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if "transfer-encoding" in headers:
        body = take_chunked_body(received, head_end + 4)
        if body is None:
            return None
    else:
        body_end = head_end + 4 + int(headers.get("content-length", 0))
        if len(received) < body_end:
            return None
        body = bytes(received[head_end + 4 : body_end])
        del received[:body_end]
    return Request(method, target.partition("?")[0], body)


def take_chunked_body(received: bytearray, start: int) -> bytes | None:
    """The chunked body that begins at `start`, removed together with all before it; None while it is not whole."""
    parts: list[bytes] = []
    while (size_end := received.find(b"\r\n", start)) >= 0:
        size = int(received[start:size_end].partition(b";")[0], 16)
        start = size_end + 2 + size + 2
        if len(received) < start:
            return None
        if size == 0:
            del received[:start]
            return b"".join(parts)
        parts.append(bytes(received[size_end + 2 : size_end + 2 + size]))
    return None


def plain_answer(body: bytes, content_type: str = "application/json", status: str = "200 OK") -> bytes:
    """A whole HTTP answer with a length."""
    head = (
        f"HTTP/1.1 {status}\r\nserver: uvicorn\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def fixed_answer(path: str, counters: Counters) -> bytes:
    """The routes that a proxy probes: health, models, version, counters; 404 for all others."""
    if path in ("/health", "/ping"):
        return plain_answer(b"")
    if path == "/version":
        return plain_answer(b'{"version":"0.32.0"}')
    if path == "/v1/models":
        return plain_answer(
            b'{"object":"list","data":[{"id":"%b","object":"model","created":1,"owned_by":"vllm"}]}' % MODEL.encode()
        )
    if path == "/metrics":
        return plain_answer(metrics_text(counters).encode(), "text/plain; version=0.0.4; charset=utf-8")
    return plain_answer(b'{"detail":"Not Found"}', status="404 Not Found")


def metrics_text(counters: Counters) -> str:
    """The counters that a proxy reads, with every event one verify step of `TOKENS_PER_EVENT` tokens."""
    accepted = TOKENS_PER_EVENT - 1
    values = {
        "spec_decode_num_drafts_total": counters.events,
        "spec_decode_num_draft_tokens_total": counters.events * NUM_SPECULATIVE_TOKENS,
        "spec_decode_num_accepted_tokens_total": counters.events * accepted,
        "generation_tokens_total": counters.events * TOKENS_PER_EVENT,
        "prompt_tokens_total": counters.streams * 500,
    }
    lines = []
    for name, value in values.items():
        lines += [f"# TYPE vllm:{name} counter", f'vllm:{name}{{engine="0",model_name="{MODEL}"}} {float(value)}']
    name = "spec_decode_num_accepted_tokens_per_pos_total"
    lines.append(f"# TYPE vllm:{name} counter")
    for position in range(NUM_SPECULATIVE_TOKENS):
        value = counters.events if position < accepted else 0
        lines.append(f'vllm:{name}{{engine="0",model_name="{MODEL}",position="{position}"}} {float(value)}')
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        lines += [f"# TYPE vllm:{name} gauge", f'vllm:{name}{{engine="0",model_name="{MODEL}"}} 0.0']
    return "\n".join(lines) + "\n"


async def serve(port: int, counters: Counters) -> None:
    """Listen on loopback until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: StubConnection(counters), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="A fast upstream that speaks vLLM's wire.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--events", type=int, default=200, help="content events of an answer without max_tokens")
    parser.add_argument("--gap-ms", type=float, default=4.0, help="time between two events of a stream; 0: no pause")
    options = parser.parse_args()
    gc.disable()  # A collection would look like a delay of the proxy in front; nothing makes cycles per event.
    uvloop.run(serve(options.port, Counters(options.gap_ms / 1000, options.events)))


if __name__ == "__main__":
    main()
