"""What the hot path shares: settings, the current routing table, who is connected, and where facts go."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from detector.observation import Ending, RequestFacts
from detector.tap.request import SplicedBody, route_of
from proxy.config import Config
from proxy.continuation import Continuations, RunningAnswer
from proxy.events import Events, Unreachable
from proxy.forward import Exchange
from proxy.gate import Gate, Refusal
from proxy.holding import Holding
from proxy.measure import Measurement
from proxy.messages import Request
from proxy.metrics import Metrics
from proxy.routing import Routing
from proxy.server import ClientConnection
from proxy.sessions import Sessions
from proxy.upstream import Backend

SWEEP_SECONDS: Final = 0.25

log = logging.getLogger("specbreaker.forward")


class Gateway:
    """Context of every exchange. Reads snapshots; changes nothing but counters and sets of what is in flight."""

    def __init__(
        self,
        settings: Config,
        gate: Gate,
        backends: tuple[Backend, ...],
        measurement: Measurement,
        metrics: Metrics,
        events: Events,
    ) -> None:
        self.settings = settings
        self.backends = backends
        self.measurement = measurement
        self.routing = Routing((), {})
        self.sessions = Sessions(settings.policy.sessions_max if len(backends) > 1 else 0)
        self.continuations: Continuations | None = None
        """None: answers are not continued."""
        self.connections: set[ClientConnection] = set()
        self.holding = Holding(settings.effects.hold_requests, settings.effects.hold_seconds)
        self.draining = False
        self.drained = asyncio.Event()
        """Set when the last connection is gone while draining: every answer was delivered."""
        self._gate = gate
        self._session_header = settings.policy.session_header.lower().encode("latin-1", "replace")
        self._metrics = metrics
        self._events = events

    @property
    def has_own_keys(self) -> bool:
        """Clients prove themselves to the proxy, so their key is not the engine's."""
        return bool(self._gate.keys)

    def refusal(self, request: Request) -> Refusal | None:
        """Why a request may not pass, or None."""
        refusal = self._gate.refusal(request)
        if refusal is not None:
            self._metrics.refused(refusal[0])
        return refusal

    def measures(self, request: Request) -> bool:
        """Whether the answer to this request can be measured, so that its body is worth reading."""
        if request.method != b"POST" or route_of(request.path) == "other":
            return False
        return b"json" in (request.field(b"content-type") or b"").lower()

    def conversation(self, request: Request, body: bytes) -> bytes | None:
        """Key of the conversation that a request belongs to; None where it does not matter."""
        if len(self.routing.order) == 1:
            return None
        return self.sessions.key(request.field(self._session_header), body)

    def candidates(self, facts: RequestFacts | None, conversation: bytes | None) -> tuple[Backend, ...]:
        """Backends to try for a request, in order."""
        if facts is None:
            return self.routing.order
        last = self.sessions.last(conversation) if conversation is not None else None
        return self.routing.candidates(facts.model, last, facts.body_bytes)

    def may_continue(self, facts: RequestFacts, body: bytes, splice: SplicedBody | None) -> RunningAnswer | None:
        """What keeps the answer to this request for another backend; None where there is none to take it over."""
        order = self.routing.order
        if self.continuations is None or len(order) < 2 or not order[0].takes_token_ids:
            return None
        return self.continuations.begin(facts, body, splice.body if splice is not None else body)

    def refuses_token_ids(self, backend: Backend) -> None:
        """The engine takes a request only without ``return_token_ids``: it is not asked for it again."""
        if backend.takes_token_ids:
            backend.takes_token_ids = False
            log.warning("backend %s refuses return_token_ids: its answers cannot be continued elsewhere", backend.name)

    def continue_elsewhere(self, exchange: Exchange, reason: str) -> bool:
        """Move a running answer to the next backend of the routing table. False: it stays where it is.

        The answer is moved when the other backend is ready for it, and not at all if that cannot be.
        """
        running = exchange.running
        if running is None or exchange.over or not running.may_move():
            return False
        exchange.wait_for(running.move(exchange, reason))
        return True

    def move_running(self, name: str) -> None:
        """Move what can be moved of the answers that run on this backend."""
        for backend in self.backends:
            if backend.name == name:
                for exchange in tuple(backend.exchanges):
                    self.continue_elsewhere(exchange, "collapse")

    def unreachable(self, backend: Backend, error: Exception) -> None:
        """A connection failed."""
        self._metrics.connect_failed(backend.name)
        self._events.put(Unreachable(backend.name, f"cannot be reached: {error or type(error).__name__}"))

    def finished(self, exchange: Exchange, at: float, ending: Ending) -> None:
        """An exchange is over."""
        backend = exchange.backend.name if exchange.backend is not None else "none"
        status = exchange.head.status if exchange.head is not None else None
        if exchange.tap is not None:
            self.measurement.finish(exchange.tap, at, status, ending)
        else:
            self._metrics.request(backend, status, ending)
        if ending.failed:
            log.warning("request %s on %s: %s", exchange.request.request_id, backend, ending.replace("_", " "))

    def connection_ended(self) -> None:
        """A client's connection is gone."""
        if self.draining and not self.connections:
            self.drained.set()

    @property
    def in_flight(self) -> int:
        """Requests being answered."""
        return sum(connection.busy for connection in self.connections)

    async def sweep(self) -> None:
        """End what has been silent for too long, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for connection in tuple(self.connections):
                connection.sweep(now)
            for backend in self.backends:
                for exchange in tuple(backend.exchanges):
                    exchange.sweep(now)
                backend.close_idle(backend.settings.keep_alive_seconds)
            self.holding.sweep(now)
