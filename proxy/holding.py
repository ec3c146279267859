"""Requests that wait because the only engine that could serve them is away for a moment: few, and not for long."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from detector.observation import Ending
from proxy.upstream import Away

if TYPE_CHECKING:
    from proxy.forward import Exchange


class Holding:
    """The waiting room of the hot path, bounded in number and time. Who does not fit is told when to try again."""

    def __init__(self, max_requests: int, max_seconds: float) -> None:
        self._max_requests = max_requests
        self._max_seconds = max_seconds
        self._waiting: dict[Exchange, tuple[float, Away]] = {}
        """Monotonic limit of each, and what it waits for; in order of arrival."""
        self._closed: str | None = None

    def __len__(self) -> int:
        self._forget_those_that_left()
        return len(self._waiting)

    def hold(self, exchange: Exchange, away: Away) -> None:
        """Let a request wait, or refuse it."""
        if self._closed is not None:
            _refuse(exchange, self._closed, away)
        elif not exchange.request.has_body:
            # /health, /metrics and the like ask how it is now, and would take the places of those who have work.
            _refuse(exchange, away.reason, away)
        elif len(self) >= self._max_requests:
            _refuse(exchange, f"{away.reason}, and {self._max_requests} requests wait for it already", away)
        else:
            self._waiting[exchange] = (time.monotonic() + self._max_seconds, away)

    def release(self) -> None:
        """An engine is back: all choose again, those that came first first."""
        self._forget_those_that_left()
        waiting, self._waiting = self._waiting, {}
        for exchange in waiting:
            exchange.choose()

    def sweep(self, now: float) -> None:
        """Called a few times a second: refuse those that have waited long enough."""
        self._forget_those_that_left()
        for exchange, (limit, away) in tuple(self._waiting.items()):
            if now >= limit:
                del self._waiting[exchange]
                _refuse(exchange, f"{away.reason}; it was waited for {self._max_seconds:g} s", away)

    def close(self, reason: str) -> None:
        """Refuse all that wait, and from now on everybody."""
        self._closed = reason
        self._forget_those_that_left()
        waiting, self._waiting = self._waiting, {}
        for exchange, (_, away) in waiting.items():
            _refuse(exchange, reason, away)

    def _forget_those_that_left(self) -> None:
        for exchange in [one for one in self._waiting if one.over]:
            del self._waiting[exchange]


def _refuse(exchange: Exchange, message: str, away: Away) -> None:
    seconds = max(1, math.ceil(away.back_at - time.monotonic()))
    exchange.fail(503, message, "ServiceUnavailableError", Ending.CONNECT_FAILED, retry_after_seconds=seconds)
