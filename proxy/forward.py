"""The hot path: one request through one backend, bytes as they are.

An Exchange is driven by callbacks of two connections and holds no task while it runs. It never waits for the detector:
it leaves (time, bytes) with its Tap and goes on. What the bytes of the answer become for the client, its Answer says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from detector.observation import Ending, RequestFacts
from detector.tap.http1 import LAST_CHUNK, MAX_HEAD_BYTES, InvalidHTTP, ResponseHead, chunk, parse_response_head
from detector.tap.request import SplicedBody, ask_usage, read_request
from proxy import messages
from proxy.answer import Answer
from proxy.continuation import Broken, RunningAnswer
from proxy.elsewhere import NEVER, Leaving
from proxy.upstream import Away, Backend, UpstreamConnection

if TYPE_CHECKING:
    from proxy.gateway import Gateway
    from proxy.measure import Tap
    from proxy.server import ClientConnection

IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})


class Exchange(Leaving):
    """One request, the connection it is on, and how far its answer has come."""

    def __init__(self, gateway: Gateway, client: ClientConnection, request: messages.Request) -> None:
        super().__init__()
        self.gateway = gateway
        self.client = client
        self.request = request
        self.backend: Backend | None = None
        self.tap: Tap | None = None
        self.deadline = NEVER
        self.over = False
        self.head: ResponseHead | None = None
        self.body: bytes | None = None
        self._facts: RequestFacts | None = None
        self._model: str | None = None
        self._conversation: bytes | None = None
        self.running: RunningAnswer | None = None
        """The answer may go on elsewhere."""
        self._sent_body: bytes | None = None
        self._splice: SplicedBody | None = None
        self._candidates: Iterator[Backend] = iter(())
        self._away: Away | None = None
        """A backend that was passed over because it will be back."""
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._upload: list[bytes] = []
        self._retried = False
        self._reading_paused_at: float | None = None
        self._upload_paused = False
        self._head_bytes = b""
        self._answer: Answer | None = None
        self._idle_seconds = NEVER

    # ---- the request -------------------------------------------------------------------------------------------------

    def begin(self, body: bytes | None) -> None:
        """Choose a backend and send. body None: it follows through upload()."""
        self.body = self._sent_body = body
        facts: RequestFacts | None = None
        if body is not None and self.gateway.measures(self.request):
            facts = read_request(self.request.path, body)
            measure = self.gateway.settings.measure
            if measure.ask_usage:
                self._splice = ask_usage(body, facts, token_counts=measure.ask_token_counts)
            self.running = self.gateway.may_continue(facts, body, self._splice)
            self._sent_body = self._splice.body if self._splice is not None else body
            if self.running is not None:
                self._sent_body = self.running.sent_body
            self.tap = self.gateway.measurement.begin(self.request, facts, body)
            self._model = facts.model
            self._conversation = self.gateway.conversation(self.request, body)
        self._facts = facts
        self.choose()

    def choose(self) -> None:
        """Choose a backend, now or once more after waiting for one."""
        self._away = None
        self._candidates = iter(self.gateway.candidates(self._facts, self._conversation))
        self._try_next(None)

    def upload(self, data: bytes) -> None:
        """A piece of a streamed request body."""
        if self.over:
            return
        piece = chunk(data) if self.request.transfer_encoded else data
        if self._connection is None:
            self._upload.append(piece)
            self.client.pause_reading()
        else:
            self._connection.transport.write(piece)
            self.deadline = time.monotonic() + self.gateway.settings.server.client_stall_seconds

    def upload_end(self) -> None:
        """The whole streamed request body has arrived."""
        if self.over:
            return
        if self.request.transfer_encoded:
            if self._connection is None:
                self._upload.append(LAST_CHUNK)
            else:
                self._connection.transport.write(LAST_CHUNK)
        if self._connection is not None:
            self._await_first_byte(self._connection.backend)

    def upload_paused(self) -> None:
        """The engine reads slower than the client sends."""
        self._upload_paused = True
        self.client.pause_reading()

    def upload_resumed(self) -> None:
        """The engine reads again."""
        self._upload_paused = False
        self.client.resume_reading()

    def _try_next(self, failure: str | None) -> None:
        for backend in self._candidates:
            if backend.away is not None:
                self._away = self._away or backend.away
                continue
            connection = backend.acquire()
            if connection is not None:
                self._send(backend, connection)
            else:
                self._connecting = asyncio.get_running_loop().create_task(self._connect(backend))
            return
        if self._away is not None:
            self.gateway.holding.hold(self, self._away)
            return
        message = failure or "no backend is configured for this request"
        self.fail(502, message, "BadGatewayError", Ending.CONNECT_FAILED)

    async def _connect(self, backend: Backend) -> None:
        try:
            connection = await backend.connect()
        except (OSError, TimeoutError) as error:
            # Nothing of the request was sent, so the next backend may have it.
            self.gateway.unreachable(backend, error)
            reason = str(error) or f"no connection within {backend.settings.connect_timeout_seconds:g} s"
            self._away = self._away or backend.away
            self._try_next(f"backend {backend.name} cannot be reached: {reason}")
        else:
            if backend.away is None:
                self._send(backend, connection)
            else:
                # It is being emptied since: one more request would be cut off with it.
                connection.transport.abort()
                self._away = backend.away
                self._try_next(None)

    def _send(self, backend: Backend, connection: UpstreamConnection, target: bytes | None = None) -> None:
        self.backend = backend
        self._connection = connection
        connection.exchange = self
        body = self._sent_body
        if body is not None:
            body = backend.named(body, self._model)
        if self._conversation is not None:
            self.gateway.sessions.served(self._conversation, backend.name)
        head = messages.request_head(
            self.request,
            target=target,
            netloc=backend.netloc,
            authorization=backend.authorization,
            keep_authorization=not self.gateway.has_own_keys,
            client_host=self.client.host,
            scheme=self.client.scheme,
            body_length=len(body) if body is not None else None,
        )
        backend.exchanges.add(self)
        backend.begun += 1
        if self._sent_again is not None and self.gateway.continuations is not None:
            self.gateway.continuations.book_sent_again(*self._sent_again, backend.name)
        if self.tap is not None:
            self.tap.sent(backend)
        if body is not None:
            connection.transport.write(head + body if len(body) < 65536 else head)
            if len(body) >= 65536:
                connection.transport.write(body)
            self._await_first_byte(backend)
            return
        connection.transport.write(head)
        for piece in self._upload:
            connection.transport.write(piece)
        self._upload.clear()
        if not self._upload_paused:
            self.client.resume_reading()
        if self.request.complete:
            self._await_first_byte(backend)
        else:
            self.deadline = time.monotonic() + self.gateway.settings.server.client_stall_seconds

    def _await_first_byte(self, backend: Backend) -> None:
        self.deadline = time.monotonic() + backend.settings.first_byte_timeout_seconds

    def _await_more(self, now: float, backend: Backend) -> None:
        """Both ends of a tunnel may be silent for as long as they like."""
        tunnel = self.head is not None and self.head.status == 101
        self.deadline = NEVER if tunnel else now + backend.settings.idle_timeout_seconds

    # ---- the answer --------------------------------------------------------------------------------------------------

    def upstream_data(self, data: bytes) -> None:
        """Bytes from the engine."""
        now = time.monotonic()
        if self._answer is not None:
            payload = self._answer.unchanged(data)
            if payload is not None:
                self._pass(data, payload, now)
                return
        assert self.backend is not None
        self._await_more(now, self.backend)
        try:
            if self._answer is not None:
                self._relay(self._answer, data, now)
            elif self.head is None or self._broken_off is not None:
                self._read_head(data, now)
            else:
                self.client.write(data)  # a tunnel
        except InvalidHTTP as error:
            self.fail(502, f"backend {self.backend.name}: {error}", "BadGatewayError", Ending.UPSTREAM_INVALID)

    def _read_head(self, data: bytes, now: float) -> None:
        self._head_bytes += data
        end = self._head_bytes.find(b"\r\n\r\n")
        if end < 0:
            if len(self._head_bytes) > MAX_HEAD_BYTES:
                raise InvalidHTTP("a response head without an end")
            return
        rest = self._head_bytes[end + 4 :]
        head = parse_response_head(self._head_bytes[:end], self.request.method)
        self._head_bytes = b""
        if head.status == 101 and self.request.upgrade:
            self.head = head
            self.deadline = NEVER
            self.client.tunnel(messages.switching_head(head) + rest)
            return
        if head.status < 200:
            if rest:
                self._read_head(rest, now)
            return
        if self._broken_off is not None:
            self._read_second_head(head, rest, now)
            return
        if head.status in (400, 422) and self.running is not None and self.running.asks_token_ids:
            self._ask_without_token_ids()
            return
        if self._asks_without and head.status < 400 and self.backend is not None:
            self.gateway.refuses_token_ids(self.backend)
        if head.status >= 500 and self._send_again(now, Ending.ENGINE_ERROR):
            return
        events = self.running.keeper if self.running is not None else None
        answer = self._answer = Answer(head, self._splice, http_1_0=self.request.http_1_0, events=events)
        client_head = self._start_answer(answer, now)
        payload = answer.unchanged(rest) if rest else None
        if payload is not None:
            self._pass(client_head + rest, payload, now)
            return
        self.client.write(client_head)
        if answer.empty:
            self._complete(answer, now, excess=bool(rest))
        elif rest:
            self._relay(answer, rest, now)

    def _pass(self, data: bytes, payload: bytes, now: float) -> None:
        """Send bytes as they are; note when their payload came."""
        self.client.transport.write(data)
        self.deadline = now + self._idle_seconds
        if self.tap is not None:
            self.tap.mark(now, payload)

    def _start_answer(self, answer: Answer, now: float) -> bytes:
        """Settle how the answer goes on; returns the head for the client."""
        assert self.backend is not None
        self.head = head = answer.head
        if self.tap is not None:
            self.tap.head(now, head)
        self._idle_seconds = self.backend.settings.idle_timeout_seconds
        return messages.response_head(
            head,
            backend=self.backend.name,
            phase=self.gateway.routing.phase(self.backend),
            request_id=self.request.request_id,
            chunked=answer.chunked_out,
            close=answer.until_close or not self.client.may_keep_alive(self.request),
        )

    def _relay(self, answer: Answer, data: bytes, now: float) -> None:
        """Pass on what belongs to the body, mark it for the measurement, see its end."""
        part = answer.feed(data)
        if part.out:
            self.client.write(part.out)
        if part.payload and self.tap is not None:
            self.tap.mark(now, part.payload)
        if answer.events is not None and answer.events.failure is not None:
            self._gave_up(answer.events)
        elif part.ended or (answer.events is not None and answer.events.whole):
            self._complete(answer, now, excess=part.excess or not part.ended)

    def _complete(self, answer: Answer, now: float, *, excess: bool) -> None:
        connection = self._connection
        assert connection is not None
        self._finish(now, Ending.COMPLETE)
        if answer.head.keep_alive and not excess and self.request.complete:
            connection.backend.release(connection)
        else:
            connection.transport.abort()
        self.client.answered(close=answer.until_close or not self.request.complete)

    # ---- what goes wrong ---------------------------------------------------------------------------------------------

    def upstream_lost(self, error: Exception | None) -> None:
        """The engine closed the connection."""
        assert self._connection is not None
        assert self.backend is not None
        head, answer = self.head, self._answer
        last = answer.end_of_connection() if answer is not None and error is None else None
        if answer is not None and last is not None and answer.events is not None and answer.events.failure is not None:
            self._gave_up(answer.events)
        elif head is not None and answer is None and self._broken_off is None:  # a tunnel
            self._finish(time.monotonic(), Ending.COMPLETE)
            self.client.close()
        elif answer is not None and last is not None:
            self.client.write(last)
            self._complete(answer, time.monotonic(), excess=True)
        elif head is None and not self._head_bytes and self._may_send_again():
            self._retried = True
            self.backend.exchanges.discard(self)
            self._connecting = asyncio.get_running_loop().create_task(self._connect(self.backend))
        else:
            where = "in the middle of the answer" if answer is not None else "before answering"
            again = "" if answer is not None else "; not sent again, because it may have been acted on"
            message = f"backend {self.backend.name} closed the connection {where}{again}"
            self.fail(502, message, "BadGatewayError", Ending.UPSTREAM_CLOSED)

    def _may_send_again(self) -> bool:
        """A kept connection that was closed under a request without side effects: the engine never saw it."""
        assert self._connection is not None
        idempotent = self.request.method in IDEMPOTENT and not self.request.has_body
        return self._connection.reused and idempotent and not self._retried

    def sweep(self, now: float) -> None:
        """Called a few times a second: end what has been silent for too long."""
        if now < self.deadline:
            return
        uploading = self.backend is not None and not self.request.complete
        if self.backend is not None and uploading and self._upload_paused:
            seconds = self.gateway.settings.server.client_stall_seconds
            message = f"backend {self.backend.name} did not read the request for {seconds:g} s"
            self.fail(504, message, "GatewayTimeoutError", Ending.UPSTREAM_TIMEOUT)
            return
        if self._reading_paused_at is not None or uploading:
            self._finish(now, Ending.CLIENT_GONE)
            self._hang_up()
            self.client.abort()
            return
        assert self.backend is not None
        settings = self.backend.settings
        if self._answer is None:
            what = f"did not answer within {settings.first_byte_timeout_seconds:g} s"
        else:
            what = f"was silent for {settings.idle_timeout_seconds:g} s in the middle of the answer"
        self.fail(504, f"backend {self.backend.name} {what}", "GatewayTimeoutError", Ending.UPSTREAM_TIMEOUT)

    def fail(
        self, status: int, message: str, kind: str, ending: Ending, *, retry_after_seconds: int | None = None
    ) -> None:
        """The backend failed this answer: go on elsewhere if that can be done, else say so to the client."""
        if self.over:
            return
        broken = Broken(status, message, kind, ending, retry_after_seconds=retry_after_seconds)
        answer = self._broken_off or self._answer
        if self.running is not None and answer is not None and answer.events is not None:
            self.running.take_over(self, broken)
        elif self.head is not None or ending is Ending.CONNECT_FAILED or not self._send_again(time.monotonic(), ending):
            self.end_with(broken)

    def end_with(self, broken: Broken) -> None:
        """End the answer with a clear error, in the way that is left to us."""
        if self.over:
            return
        answer = self._broken_off or self._answer
        self._finish(time.monotonic(), broken.ending)
        self._hang_up()
        if self.head is None:
            self.client.respond(
                broken.status,
                broken.message,
                broken.kind,
                close=not self.request.complete,
                retry_after_seconds=broken.retry_after_seconds,
            )
            return
        event = messages.error_event(broken.status, broken.message, broken.kind, code=broken.code)
        last = answer.broken_off(event) if answer is not None else None
        if answer is None or last is None:
            self.client.abort()
        else:
            self.client.write(last)
            # Framed to its end: a client may ask again on this connection, and many do before they see it close.
            self.client.answered(close=answer.until_close)

    def client_gone(self) -> None:
        """The client hung up: so do we, and the engine stops working for nobody."""
        if not self.over:
            self._finish(time.monotonic(), Ending.CLIENT_GONE)
            self._hang_up()

    def _hang_up(self) -> None:
        if self._connecting is not None and self._connecting is not asyncio.current_task():
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.exchange = None
            self._connection.transport.abort()

    def _finish(self, now: float, ending: Ending) -> None:
        self.over = True
        self.deadline = NEVER
        self._part_ended(now, ending)
        if self.running is not None:
            self.running.ended(ending)

    def _part_ended(self, now: float, ending: Ending) -> None:
        """The answer, or its part on this backend, is over."""
        if self._connection is not None:
            self._connection.exchange = None
        if self.backend is not None:
            self.backend.exchanges.discard(self)
        if self._reading_paused_at is not None:
            self.client_reads(now)
        if not self._booked:
            self._booked = True
            self.gateway.finished(self, now, ending)

    # ---- a client that reads slowly ----------------------------------------------------------------------------------

    def client_stalls(self, now: float) -> None:
        """The client's buffer is full: stop reading from the engine, so that memory stays bounded."""
        if self._connection is not None and not self.over:
            self._reading_paused_at = now
            self._connection.transport.pause_reading()
            self.deadline = now + self.gateway.settings.server.client_stall_seconds

    def client_reads(self, now: float) -> None:
        """The client took what was waiting."""
        if self._reading_paused_at is None or self._connection is None:
            return
        if self.tap is not None:
            self.tap.paused(self._reading_paused_at, now)
        self._reading_paused_at = None
        if not self._connection.transport.is_closing() and not self._held:
            self._connection.transport.resume_reading()
        if not self.over and self.backend is not None:
            self._await_more(now, self.backend)

    # ---- a tunnel (WebSocket) ----------------------------------------------------------------------------------------

    def tunnel_data(self, data: bytes) -> None:
        """Bytes from the client after the engine switched protocols."""
        if self._connection is not None:
            self._connection.transport.write(data)
