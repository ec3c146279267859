"""What happens to the control task, the one writer of state: a bounded queue of facts."""

from __future__ import annotations

import asyncio
import time

import msgspec

from detector.observation import EngineSample, Observation, Step
from proxy.effects.protocol import Outcome
from proxy.tracing import TraceContext


class Measured(msgspec.Struct, frozen=True):
    """An answer ended and was measured."""

    observation: Observation
    trace: TraceContext | None = None
    """What the client said of the trace that it belongs to; only read where spans are made."""


class Stepped(msgspec.Struct, frozen=True):
    """Verify steps of an answer that still runs."""

    backend: str
    generation: int
    request_id: str
    started: float
    """Monotonic seconds when the request arrived."""
    steps: tuple[Step, ...]


class Sampled(msgspec.Struct, frozen=True):
    """An engine's /metrics were read."""

    backend: str
    sample: EngineSample
    version: str | None = None


class Unreachable(msgspec.Struct, frozen=True):
    """No connection to a backend."""

    backend: str
    reason: str


class Left(msgspec.Struct, frozen=True):
    """A backend gets no new request: it is started anew, put to sleep, or has ended."""

    backend: str
    reason: str
    """In words that clients may read."""
    back_at: float
    """Monotonic time at which it should be back; a guess."""


class Returned(msgspec.Struct, frozen=True):
    """A backend takes requests again."""

    backend: str
    level: str | None
    """The level that it runs at now; None: not known to have changed."""
    relaunched: bool
    """Its process is a new one."""


Event = Measured | Stepped | Sampled | Unreachable | Left | Returned | Outcome


class Events:
    """The queue. Putting never waits: what does not fit is counted, and the detector knows less."""

    def __init__(self, size: int = 10_000) -> None:
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self._size = size
        self.dropped = 0

    def put(self, event: Event, *, must: bool = False) -> None:
        """Add a fact, or count it as dropped. must: add it even to a full queue."""
        if self._queue.qsize() < self._size or must:
            self._queue.put_nowait(event)
        else:
            self.dropped += 1

    async def get(self, until: float | None) -> Event | None:
        """The next fact; None when the monotonic time ``until`` comes first."""
        if until is None:
            return await self._queue.get()
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                return await self._queue.get()
        except TimeoutError:
            return None
