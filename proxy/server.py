"""The client's side of the serving port: requests are parsed by llhttp, one after the other, and become Exchanges.

The parser (httptools) is the one that vLLM's own server uses, so proxy and engine read a request in the same way.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Final, cast

import httptools

from proxy import messages
from proxy.elsewhere import NEVER
from proxy.forward import Exchange
from proxy.upstream import WRITE_BUFFER_BYTES

if TYPE_CHECKING:
    from proxy.gateway import Gateway

MAX_PIPELINED: Final = 16
"""Requests that may wait behind the one being answered before the client is no longer read."""


LINGER_SECONDS: Final = 5.0
"""After an answer that came before the request's end, how long the rest of the request is read and thrown away."""


class ClientConnection(asyncio.Protocol):
    """One connection from a client."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.host = ""
        self.scheme = b"http"
        self.deadline = NEVER
        self.transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._incoming = messages.Request()
        self._head_bytes = 0
        self._in_head = True
        self._waiting: deque[messages.Request] = deque()
        self._current: messages.Request | None = None
        self._exchange: Exchange | None = None
        self._streaming = False
        self._tunnelling = False
        self._lingering = False
        """The answer is out and closed; what is left of the body is read and thrown away."""
        self._early_tunnel_bytes = b""
        self.fresh = True
        """No request has come yet."""
        self._unread = False
        """The client does not read what it was sent: no other answer is begun meanwhile."""
        self._closed = False

    # ---- the transport -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        peer = transport.get_extra_info("peername")
        self.host = peer[0] if isinstance(peer, tuple) else "unix"
        if transport.get_extra_info("sslcontext") is not None:
            self.scheme = b"https"
        self.deadline = time.monotonic() + self.gateway.settings.server.head_timeout_seconds
        self.gateway.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The client hung up: the engine must not go on for nobody."""
        self._closed = True
        self.gateway.connections.discard(self)
        self.gateway.connection_ended()
        self._waiting.clear()
        if self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            exchange.client_gone()

    def pause_writing(self) -> None:
        """The client reads slower than the engine writes."""
        self._unread = True
        if self._exchange is not None:
            self._exchange.client_stalls(time.monotonic())

    def resume_writing(self) -> None:
        """The client caught up."""
        self._unread = False
        if self._exchange is not None:
            self._exchange.client_reads(time.monotonic())
        else:
            self._start_waiting()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._lingering:
            return
        if self._tunnelling:
            if self._exchange is not None:
                self._exchange.tunnel_data(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if self._offers_another_protocol():
                # The parser takes the body for the other protocol; without the offer it reads it as a body.
                self._parser = httptools.HttpRequestParser(self)
                self.data_received(messages.head_without_upgrade(self._incoming) + rest)
                return
            self._early_tunnel_bytes += rest
        except httptools.HttpParserError as error:
            self._refuse_connection(400, f"the request is not HTTP/1.1: {error}", "BadRequestError")
            return
        if self._in_head:
            self._head_bytes += len(data)
        if self._head_bytes > self.gateway.settings.server.max_head_bytes:
            limit = self.gateway.settings.server.max_head_bytes
            self._refuse_connection(431, f"the request head is longer than {limit} bytes", "BadRequestError")

    def _refuse_connection(self, status: int, message: str, kind: str) -> None:
        nothing_begun = self._exchange is None and not self._waiting
        if nothing_begun and not self._closed:
            self.write(messages.error_response(status, message, kind, close=True))
        self.close()

    # ---- what llhttp calls -------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request line follows."""
        self._incoming = messages.Request()
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._incoming.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header field."""
        self._incoming.fields.append((name.lower(), name, value))

    def on_headers_complete(self) -> None:
        """The head is whole: the request may start."""
        request = self._incoming
        self._in_head = False
        self._head_bytes = 0
        request.method = self._parser.get_method()
        request.http_1_0 = self._parser.get_http_version() == "1.0"
        request.keep_alive = self._parser.should_keep_alive()
        request.finish_head()
        request.upgrade = self._parser.should_upgrade() and (request.field(b"upgrade") or b"").lower() == b"websocket"
        if self._offers_another_protocol():
            return
        if self._current is None and not self._waiting and not self._unread:
            self._start(request)
        else:
            self._waiting.append(request)
            if len(self._waiting) >= MAX_PIPELINED:
                self.transport.pause_reading()

    def _offers_another_protocol(self) -> bool:
        """The request being read offers to switch to h2c or the like: it is served as if it did not."""
        request = self._incoming
        return bool(self._parser.should_upgrade()) and not request.upgrade and request.method != b"CONNECT"

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        request = self._incoming
        request.size += len(data)
        if request is not self._current:
            self._hold(request, data)
        elif self._streaming:
            if self._exchange is not None:
                self._exchange.upload(data)
        elif self._exchange is None and not self._closed:
            request.parts.append(data)
            if request.size > self.gateway.settings.server.max_inspected_body_bytes:
                self._begin_streaming(request)

    def _hold(self, request: messages.Request, data: bytes) -> None:
        """A piece of the body of a request that waits for its turn; one that was refused needs none."""
        if request in self._waiting:
            request.parts.append(data)
            if request.size > WRITE_BUFFER_BYTES:
                self.transport.pause_reading()

    def on_message_complete(self) -> None:
        """The body is whole."""
        request = self._incoming
        request.complete = True
        if request is not self._current:
            return
        if not self._streaming:
            self._begin_whole(request)
        elif self._exchange is not None:
            self._exchange.upload_end()

    # ---- one request after the other ---------------------------------------------------------------------------------

    def _start(self, request: messages.Request) -> None:
        self.fresh = False
        self._current = request
        if not request.has_body:
            request.complete = True
        self.deadline = time.monotonic() + self.gateway.settings.server.client_stall_seconds
        refusal = self.gateway.refusal(request)
        if refusal is not None:
            self.respond(*refusal, close=request.has_body)
            return
        if request.expects_continue and not request.complete:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        small = (request.content_length or 0) <= self.gateway.settings.server.max_inspected_body_bytes
        self._streaming = False
        if request.upgrade or (request.has_body and not (small and self.gateway.measures(request))):
            self._begin_streaming(request)
        elif request.complete:
            self._begin_whole(request)

    def _begin_whole(self, request: messages.Request) -> None:
        if self._exchange is None and not self._closed:
            body = b"".join(request.parts)
            request.parts.clear()
            self.deadline = NEVER
            self._exchange = Exchange(self.gateway, self, request)
            self._exchange.begin(body if request.has_body else None)

    def _begin_streaming(self, request: messages.Request) -> None:
        self._streaming = True
        self.deadline = NEVER
        exchange = self._exchange = Exchange(self.gateway, self, request)
        exchange.begin(None)
        parts, request.parts = request.parts, []
        for part in parts:
            exchange.upload(part)
        if request.complete and request.has_body:
            exchange.upload_end()

    # ---- what an Exchange calls --------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes to the client."""
        self.transport.write(data)

    def pause_reading(self) -> None:
        """Stop taking the client's body."""
        if not self._closed:
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Take it again."""
        if not self._closed:
            self.transport.resume_reading()

    def may_keep_alive(self, request: messages.Request) -> bool:
        """Whether this connection may serve another request after this one."""
        return request.keep_alive and not self.gateway.draining and not request.upgrade

    def respond(
        self, status: int, message: str, kind: str, *, close: bool, retry_after_seconds: int | None = None
    ) -> None:
        """Answer the current request with an error of our own."""
        request = self._current
        assert request is not None
        close = close or not self.may_keep_alive(request)
        answer = messages.error_response(
            status,
            message,
            kind,
            request_id=request.request_id,
            close=close,
            retry_after_seconds=retry_after_seconds,
        )
        if request.method == b"HEAD":
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        self.write(answer)
        self.answered(close=close)

    def answered(self, *, close: bool) -> None:
        """The answer is whole: go on with the next request, or close."""
        request, self._current, self._exchange = self._current, None, None
        if request is not None and not request.complete:
            self._close_in_the_middle_of_a_body()
            return
        if close or request is None or not self.may_keep_alive(request):
            self.close()
            return
        self.deadline = time.monotonic() + self.gateway.settings.server.keep_alive_seconds
        if self._waiting:
            # Not from within the previous exchange's own call stack.
            asyncio.get_running_loop().call_soon(self._start_waiting)

    def _start_waiting(self) -> None:
        if self._waiting and self._current is None and not self._unread and not self._closed:
            self.transport.resume_reading()
            self._start(self._waiting.popleft())

    def tunnel(self, data: bytes) -> None:
        """The engine switched protocols: from here on bytes only."""
        self._tunnelling = True
        self.write(data)
        early, self._early_tunnel_bytes = self._early_tunnel_bytes, b""
        if early and self._exchange is not None:
            self._exchange.tunnel_data(early)

    def close(self) -> None:
        """Close after what was written has been sent; a client that does not read it is cut off in the end."""
        if not self._closed:
            self._closed = True
            self.deadline = time.monotonic() + self.gateway.settings.server.client_stall_seconds
            self.transport.close()

    def _close_in_the_middle_of_a_body(self) -> None:
        """Say all, then swallow the rest of the body for a while: closing over unread bytes would reset the
        connection, and the client might never see the answer (RFC 9112 section 9.6)."""
        if self._closed:
            return
        if not self.transport.can_write_eof():
            self.close()
            return
        self._lingering = True
        self.deadline = time.monotonic() + LINGER_SECONDS
        self.transport.write_eof()
        self.transport.resume_reading()

    def abort(self) -> None:
        """Close at once, so that a cut answer is seen as one."""
        self._closed = True
        self.transport.abort()

    @property
    def unread(self) -> bool:
        """The client does not read what it was sent."""
        return self._unread

    @property
    def busy(self) -> bool:
        """A request is being answered."""
        return self._current is not None

    def sweep(self, now: float) -> None:
        """Called a few times a second: close what has been idle, or slow to ask, for too long."""
        if now >= self.deadline and (self._exchange is None or self._closed):
            if self._lingering or self._closed:
                self.abort()
            elif self._current is not None or (self._in_head and self._head_bytes):
                self._refuse_connection(408, "the request did not arrive in time", "RequestTimeoutError")
            else:
                self.close()
