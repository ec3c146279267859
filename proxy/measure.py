"""Measuring beside the hot path: exchanges leave bytes with their times, this task reads them a few times a second.

Nothing here can disturb an answer: a failure of measuring is counted, logged once, and the answer goes on unmeasured.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from detector.observation import Ending, RequestFacts, Step
from detector.tap.http1 import ResponseHead
from detector.tap.meter import Meter
from proxy import config
from proxy.events import Events, Measured, Stepped
from proxy.metrics import Metrics
from proxy.probes import NOTHING_COUNTED, Counted, Probe
from proxy.recording import Recording
from proxy.tracing import TraceContext, trace_context

if TYPE_CHECKING:
    from proxy.messages import Request
    from proxy.upstream import Backend

MAX_HELD_BYTES: Final = 4 * 1024 * 1024
"""An answer that brings more than this between two reads is read at once."""
FINISH_DELAY_SECONDS: Final = 0.002
"""How long after its end an answer is measured."""
MAX_WAITING_ANSWERS: Final = 32
"""Ended answers that may wait to be measured while streams go first; beyond it they are measured without a pause, so
that a saturated proxy does not collect them."""
UNHURRIED_SECONDS: Final = 0.25
"""How often an answer is read whose events carry no token counts: until its end they tell the detector nothing."""
MAX_RECORDED_STEPS: Final = 8192
"""Steps of one answer that are kept for the session file; the rest is counted."""

log = logging.getLogger("specbreaker.measure")


class Tap:
    """What one exchange leaves for the measurement. On the hot path it only takes notes."""

    trace: TraceContext | None = None
    """Set beside the hot path, and only where spans are made."""

    def __init__(self, measurement: Measurement, request: Request, facts: RequestFacts, body: bytes | None) -> None:
        self.request_id = request.request_id
        self.facts = facts
        self.unrecorded: tuple[Request, bytes | None] | None = (request, body)
        """What the session file has yet to be told."""
        self.started = time.monotonic()
        self.started_unix = time.time()
        self.backend: Backend | None = None
        self.begun_number = 0
        self.generation = 0
        self.sent_at = 0.0
        self.peak_in_flight = 1
        self.meter: Meter | None = None
        self.steps: list[Step] = []
        self.steps_omitted = 0
        self.response_bytes = 0
        self.broken = False
        self._measurement = measurement
        self._head: tuple[float, ResponseHead] | None = None
        self.read_next = 0.0
        """Monotonic seconds from which on it is worth being read again."""
        self._pauses: list[tuple[float, float]] = []
        self._marks: list[tuple[float, bytes]] = []
        self._held = 0

    def sent(self, backend: Backend) -> None:
        """The request went to this backend (again, after a failed connection)."""
        self.backend = backend
        self.begun_number = backend.begun
        self.generation = backend.generation
        self.sent_at = time.monotonic()
        self.meter = None
        in_flight = len(backend.exchanges)
        for exchange in backend.exchanges:
            if exchange.tap is not None and exchange.tap.peak_in_flight < in_flight:
                exchange.tap.peak_in_flight = in_flight

    def head(self, at: float, head: ResponseHead) -> None:
        """The response head arrived."""
        self._head = (at, head)

    def mark(self, at: float, payload: bytes) -> None:
        """A piece of the body, as the engine sent it, and when."""
        self._marks.append((at, payload))
        self._held += len(payload)
        if self._held > MAX_HELD_BYTES:
            self._measurement.read(self)

    def paused(self, start: float, end: float) -> None:
        """The engine was not read in between, because the client was slow."""
        self._pauses.append((start, end))

    def _begin_meter(self, backend: Backend) -> Meter:
        probe = self._measurement.probes.get(backend.name)
        meter = Meter(
            self.facts,
            request_id=self.request_id,
            backend=backend.name,
            generation=self.generation,
            started=self.started,
            started_unix=self.started_unix,
            num_speculative_tokens=probe.num_speculative_tokens if probe is not None else None,
        )
        meter.sent(self.sent_at)
        return meter

    def feed_meter(self, *, ended: bool) -> list[Step]:
        """Give the meter what has arrived; return the new steps. ended: nothing more will."""
        self.response_bytes += self._held
        marks, self._marks, self._held = self._marks, [], 0
        pauses, self._pauses = self._pauses, []
        begun, self._head = self._head, None
        if self.backend is None:
            return []
        meter = self.meter = self.meter or self._begin_meter(self.backend)
        if begun is not None:
            at, head = begun
            content_type = head.content_type.decode("latin-1")
            meter.head(at, head.status, content_type, head.content_encoding.decode("latin-1"))
        for start, end in pauses:
            meter.paused(start, end)
        meter.feed_pieces(marks)
        if ended:
            meter.concurrency(self.peak_in_flight)
            meter.end()
        steps = meter.drain_steps()
        room = MAX_RECORDED_STEPS - len(self.steps)
        self.steps.extend(steps[:room])
        self.steps_omitted += max(0, len(steps) - room)
        return steps


class Measurement:
    """Reads all taps, and turns finished ones into Observations."""

    def __init__(
        self,
        events: Events,
        recording: Recording,
        metrics: Metrics,
        interval_seconds: float,
        *,
        traced: bool = False,
    ) -> None:
        """traced: spans are made of the answers."""
        self._traced = traced
        self._events = events
        self._metrics = metrics
        self._recording = recording
        self._interval_seconds = interval_seconds
        self._running: set[Tap] = set()
        self._finished: deque[tuple[Tap, float, int | None, Ending]] = deque()
        self._wake = asyncio.Event()
        self._counting: set[asyncio.Task[None]] = set()
        self.probes: dict[str, Probe] = {}
        self.failures = 0

    def begin(self, request: Request, facts: RequestFacts, body: bytes | None) -> Tap:
        """Called by the hot path when a measurable request has arrived, or the rest of one goes to another backend.

        body: for the session file, as far as its content mode keeps it.
        """
        tap = Tap(self, request, facts, body)
        self._running.add(tap)
        if len(self._running) == 1:
            self._wake_soon()
        return tap

    def configure(self, settings: config.Measure) -> None:
        """Go on with other settings."""
        self._interval_seconds = settings.interval_seconds

    def finish(self, tap: Tap, at: float, status: int | None, ending: Ending) -> None:
        """Called by the hot path when the answer has ended, in whatever way."""
        self._running.discard(tap)
        self._finished.append((tap, at, status, ending))
        if len(self._finished) == 1:
            self._wake_soon()

    def _wake_soon(self) -> None:
        """Not at once: requests that come and go are served first."""
        asyncio.get_running_loop().call_later(FINISH_DELAY_SECONDS, self._wake.set)

    async def run(self) -> None:
        """Read taps until cancelled."""
        next_read = 0.0
        while True:
            try:
                async with asyncio.timeout(self._interval_seconds if self._running else None):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            now = time.monotonic()
            if now >= next_read:
                next_read = now + self._interval_seconds
                for tap in [tap for tap in self._running if tap.read_next <= now]:
                    self.read(tap)
                    await asyncio.sleep(0)  # streams go first: no event waits for more than one answer's reading
            while self._finished:
                tap, at, status, ending = self._finished.popleft()
                if not self._finish(tap, at, ending):
                    self._count(tap, status, ending)
                if len(self._finished) <= MAX_WAITING_ANSWERS:
                    await asyncio.sleep(0)

    def read(self, tap: Tap, *, ended: bool = False) -> None:
        """Read what has arrived of one answer."""
        if tap.unrecorded is not None:
            (request, body), tap.unrecorded = tap.unrecorded, None
            self._recording.request(request, tap.facts, tap.started, body)
            if self._traced:
                tap.trace = trace_context(request)
        if tap.broken:
            return
        try:
            steps = tap.feed_meter(ended=ended)
        except Exception as error:  # noqa: BLE001 - measuring must never disturb an answer
            self._broken(tap, error)
            return
        if not steps or tap.backend is None:
            return
        if all(step.tokens is None for step in steps):
            tap.read_next = time.monotonic() + UNHURRIED_SECONDS
        else:
            self._events.put(
                Stepped(tap.backend.name, tap.backend.generation, tap.request_id, tap.started, tuple(steps))
            )

    def _finish(self, tap: Tap, at: float, ending: Ending) -> bool:
        """Measure an answer that has ended; False where that cannot be done."""
        self.read(tap, ended=True)
        if tap.broken or tap.meter is None:
            return False
        probe = self.probes.get(tap.backend.name) if tap.backend is not None else None
        if probe is not None and tap.meter.needs_counters and probe.may_count():
            task = asyncio.get_running_loop().create_task(self._finish_with_counters(tap, at, ending, probe))
            self._counting.add(task)
            task.add_done_callback(self._counting.discard)
        else:
            self._emit(tap, at, ending, NOTHING_COUNTED)
        return True

    async def _finish_with_counters(self, tap: Tap, at: float, ending: Ending, probe: Probe) -> None:
        assert tap.meter is not None
        counted = await probe.counters_of(tap.begun_number, tap.meter.completion_tokens)
        self._emit(tap, at, ending, counted)

    def _emit(self, tap: Tap, at: float, ending: Ending, counted: Counted) -> None:
        assert tap.meter is not None
        probe = self.probes.get(tap.backend.name) if tap.backend is not None else None
        depth = probe.num_speculative_tokens if probe is not None else None
        try:
            observation = tap.meter.finish(
                at,
                ending,
                counters=counted.speculation,
                counted_decode_seconds=counted.decode_seconds,
                num_speculative_tokens=depth,
            )
        except Exception as error:  # noqa: BLE001 - measuring must never disturb an answer
            self._broken(tap, error)
            self._count(tap, None, ending)
            return
        self._count(tap, observation.status, observation.ending)
        self._events.put(Measured(observation, tap.trace))
        self._recording.response(observation, tap.steps, tap.steps_omitted, tap.response_bytes)

    def _count(self, tap: Tap, status: int | None, ending: Ending) -> None:
        self._metrics.request(tap.backend.name if tap.backend is not None else "none", status, ending)

    def _broken(self, tap: Tap, error: Exception) -> None:
        tap.broken = True
        self.failures += 1
        if self.failures == 1:
            log.exception("measuring failed for request %s; it goes on unmeasured", tap.request_id, exc_info=error)
