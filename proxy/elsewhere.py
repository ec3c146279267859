"""What an Exchange does to leave one backend for another, after its request was sent.

Before the client has seen anything, the whole request may be sent again; in the middle of the answer, its rest is asked
for. Who decides that, and what the rest is, stands in ``continuation``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Final

from detector.observation import Ending
from detector.tap.http1 import ResponseHead
from detector.tap.request import SplicedBody, read_request
from proxy import messages
from proxy.answer import Answer, EventFilter
from proxy.continuation import Prepared, RunningAnswer, forget_errors
from proxy.upstream import Backend, UpstreamConnection

if TYPE_CHECKING:
    from proxy.gateway import Gateway
    from proxy.measure import Tap
    from proxy.server import ClientConnection

NEVER: Final = float("inf")


class Leaving:
    """The part of an Exchange that changes backends; what it shares with the rest is named here."""

    gateway: Gateway
    client: ClientConnection
    request: messages.Request
    backend: Backend | None
    tap: Tap | None
    body: bytes | None
    deadline: float
    running: RunningAnswer | None
    _answer: Answer | None
    _candidates: Iterator[Backend]
    _connecting: asyncio.Task[None] | None
    _connection: UpstreamConnection | None
    _head_bytes: bytes
    _idle_seconds: float
    _reading_paused_at: float | None
    _sent_body: bytes | None
    _splice: SplicedBody | None

    def __init__(self) -> None:
        self._broken_off: Answer | None = None
        """The answer between two backends: its second part has yet to begin."""
        self._second_part: EventFilter | None = None
        self._booked = False
        """The part on the last backend is over and counted."""
        self._sent_again: tuple[str, str] | None = None
        """(backend, ending): where the request was before, and how that ended."""
        self._asks_without = False
        """The engine had refused the request with what the proxy had added for continuation."""
        self._held = False
        """The answer is about to leave a backend that still answers: it is not read meanwhile."""

    # ---- the client has seen nothing yet -----------------------------------------------------------------------------

    def _ask_without_token_ids(self) -> None:
        """The engine refused the request, perhaps for the member that the proxy had added: send the client's own."""
        assert self.backend is not None
        assert self.body is not None
        self.running, self._asks_without = None, True
        self._sent_body = self._splice.body if self._splice is not None else self.body
        self.backend.exchanges.discard(self)
        self._hang_up()
        self._connection, self.deadline = None, NEVER
        self._connecting = asyncio.get_running_loop().create_task(self._connect(self.backend))

    def _send_again(self, now: float, ending: Ending) -> bool:
        """Send the whole request to the next backend, where that is wanted; the client has seen nothing yet."""
        wanted = self.gateway.settings.continuation.retry_whole_answers and self._sent_again is None
        facts = self.tap.facts if self.tap is not None else None
        if not wanted or facts is None or facts.route not in ("chat", "completions") or self.backend is None:
            return False
        others = [one for one in self._candidates if one is not self.backend]
        if not others:
            return False
        self._sent_again = (self.backend.name, ending.value)
        self._part_ended(now, ending)
        self._hang_up()
        self._connection, self._head_bytes, self._booked = None, b"", False
        part = messages.part_of(self.request, self.request.target, f"{self.request.request_id}.1")
        self.tap = self.gateway.measurement.begin(part, facts, None)
        self.deadline = NEVER
        self._candidates = iter(others)
        self._try_next(None)
        return True

    # ---- the answer goes on elsewhere --------------------------------------------------------------------------------

    def _gave_up(self, events: EventFilter) -> None:
        """The engine said in the stream that no more will come, or ended it without a reason."""
        assert events.failure is not None
        assert self.backend is not None
        message = f"backend {self.backend.name}: {events.failure.message}"
        self.fail(502, message, "BadGatewayError", events.failure.ending)

    def leave_backend(self, ending: Ending) -> None:
        """Nothing more comes from this backend; the answer waits for its next part."""
        self._broken_off, self._answer = self._broken_off or self._answer, None
        self._part_ended(time.monotonic(), ending)
        self._hang_up()
        self._connection, self.tap, self.deadline, self._held = None, None, NEVER, False

    def wait_for(self, work: Coroutine[None, None, None]) -> None:
        """Run what has to be waited for; the client's leaving ends it."""
        self._connecting = asyncio.get_running_loop().create_task(work)
        self._connecting.add_done_callback(forget_errors)

    def hold(self, held: bool) -> None:
        """Stop reading from the engine, or read again."""
        self._held = held
        if self._connection is None or self._reading_paused_at is not None:
            return
        transport = self._connection.transport
        if held:
            transport.pause_reading()
        elif not transport.is_closing():
            transport.resume_reading()

    def go_on(self, prepared: Prepared, target: bytes, body: bytes, events: EventFilter) -> None:
        """Send the continuation's request; what it answers is the rest of this answer."""
        self._connecting = None
        self._head_bytes, self._sent_body, self._second_part, self._booked = b"", body, events, False
        assert self.running is not None
        request_id = f"{self.request.request_id}.{self.running.times}"
        facts = read_request(target.decode("latin-1"), body)
        part = messages.part_of(self.request, target, request_id)
        self.tap = self.gateway.measurement.begin(part, facts, None)
        self._send(prepared.backend, prepared.connection, target)
        if self.client.unread:
            self.client_stalls(time.monotonic())

    def _read_second_head(self, head: ResponseHead, rest: bytes, now: float) -> None:
        assert self.backend is not None
        assert self._broken_off is not None
        assert self._second_part is not None
        if self.tap is not None:
            self.tap.head(now, head)
        if head.status != 200 or not head.event_stream:
            message = f"backend {self.backend.name} answered {head.status} to the continuation"
            self.fail(502, message, "BadGatewayError", Ending.UPSTREAM_INVALID)
            return
        answer, self._broken_off = self._broken_off, None
        answer.go_on(head, self._second_part)
        self._answer = answer
        self._idle_seconds = self.backend.settings.idle_timeout_seconds
        if rest:
            self._relay(answer, rest, now)

    def authorization_for(self, backend: Backend) -> bytes | None:
        """The key that a question of ours to this backend carries."""
        own = None if self.gateway.has_own_keys else self.request.field(b"authorization")
        return backend.authorization or own

    # ---- what the Exchange itself does -------------------------------------------------------------------------------

    def fail(
        self, status: int, message: str, kind: str, ending: Ending, *, retry_after_seconds: int | None = None
    ) -> None:
        """The backend failed this answer."""
        raise NotImplementedError

    def client_stalls(self, now: float) -> None:
        """The client does not read."""
        raise NotImplementedError

    def _try_next(self, failure: str | None) -> None:
        raise NotImplementedError

    async def _connect(self, backend: Backend) -> None:
        raise NotImplementedError

    def _send(self, backend: Backend, connection: UpstreamConnection, target: bytes | None = None) -> None:
        raise NotImplementedError

    def _relay(self, answer: Answer, data: bytes, now: float) -> None:
        raise NotImplementedError

    def _part_ended(self, now: float, ending: Ending) -> None:
        raise NotImplementedError

    def _hang_up(self) -> None:
        raise NotImplementedError
