"""Taking traffic off an engine before something is done to it, and giving it back afterwards."""

from __future__ import annotations

import time
from collections.abc import Mapping

from detector.observation import Ending
from proxy import processes
from proxy.events import Events, Left, Returned
from proxy.upstream import Backend


class Traffic:
    """Asks control to route around an engine, and waits until it is empty."""

    def __init__(self, backends: Mapping[str, Backend], events: Events, drain_seconds: float) -> None:
        self.backends = backends
        self.drain_seconds = drain_seconds
        self._events = events

    async def leave(self, name: str, reason: str, expected_seconds: float) -> float:
        """Give the engine no new request, and let running answers finish; returns the seconds that took.

        What still runs after ``drain_seconds`` gets a clear error.
        """
        started = time.monotonic()
        backend = self.backends[name]
        self.gone(name, reason, expected_seconds)
        # Control is the one who turns traffic away; only after that does an empty engine stay empty.
        await processes.wait_until(lambda: backend.away is not None, None)
        await processes.wait_until(lambda: not backend.exchanges, self.drain_seconds)
        self.cut_off(name, f"{reason}, and this answer took longer than {self.drain_seconds:g} s to finish")
        backend.close_idle()
        return time.monotonic() - started

    def cut_off(self, name: str, reason: str) -> None:
        """End what still runs on an engine with a clear error."""
        for exchange in tuple(self.backends[name].exchanges):
            exchange.fail(503, reason, "ServiceUnavailableError", Ending.UPSTREAM_CLOSED)

    def gone(self, name: str, reason: str, expected_seconds: float) -> None:
        """The engine takes no new request from now on; it should be back after that many seconds."""
        self._events.put(Left(name, reason, time.monotonic() + expected_seconds), must=True)

    def back(self, name: str, level: str | None, *, relaunched: bool) -> None:
        """The engine takes requests again. relaunched: its process is a new one."""
        self._events.put(Returned(name, level, relaunched), must=True)
