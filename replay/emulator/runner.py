"""The engine at work: steps one after the other in engine time, news to the collectors, and the states it can be in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import Enum

from .clock import EngineClock
from .engine import Engine, EngineRequest, StepPlan
from .log import EngineLog
from .metrics import EngineMetrics
from .output import ChoiceStream, EngineDeadError, EngineUnavailableError


class EngineState(Enum):
    """What the engine does with requests."""

    RUNNING = "running"
    WEDGED = "wedged"
    """It takes requests and never steps again; nothing tells."""
    ABORTING = "aborting"
    """It was told to go: every request ends at once with finish_reason abort."""
    DRAINING = "draining"
    """What runs completes; new requests are refused."""
    DEAD = "dead"
    """Its process is gone, and the server knows."""


class EngineRunner:
    """One engine's loop. ``start`` it in the event loop that serves, ``stop`` it there."""

    def __init__(self, engine: Engine, clock: EngineClock, metrics: EngineMetrics, log: EngineLog) -> None:
        self.engine = engine
        self.clock = clock
        self.state = EngineState.RUNNING
        self.sleep_level: int | None = None
        """Not None: the engine sleeps; requests queue until it wakes."""
        self._metrics = metrics
        self._log = log
        self._streams: dict[EngineRequest, ChoiceStream] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    def start(self) -> None:
        """Begin stepping."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="emulated-engine")

    async def stop(self) -> None:
        """Stop stepping; requests in flight get nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def submit(self, streams: Sequence[ChoiceStream], content: str) -> None:
        """Take requests. Raises EngineUnavailableError."""
        if self.state is EngineState.DEAD:
            raise EngineDeadError
        if self.state is EngineState.DRAINING:
            raise EngineUnavailableError("cannot schedule new futures after shutdown")
        for stream in streams:
            self.engine.add(stream.request, self.clock.now(), content=content)
            self._streams[stream.request] = stream
            self._idle.clear()
            if self.state is EngineState.ABORTING:
                self._abort(stream)
        self._wake.set()

    def cancel(self, streams: Sequence[ChoiceStream]) -> None:
        """Drop requests whose client is gone; the ones that have ended are left alone."""
        for stream in streams:
            stream.collector.closed = True
            if stream.request in self._streams:
                self.engine.abort(stream.request)
                self._forget(stream.request)

    def enter(self, state: EngineState) -> None:
        """Change the state, with what that does to the requests in flight."""
        self.state = state
        self._wake.set()
        if state is EngineState.ABORTING:
            for stream in list(self._streams.values()):
                self._abort(stream)
        elif state is EngineState.DEAD:
            for stream in list(self._streams.values()):
                stream.collector.fail(EngineDeadError())
                self.engine.abort(stream.request)
                self._forget(stream.request)

    def sleep(self, level: int) -> None:
        """Put the engine to sleep, aborting what runs, as vLLM does by default."""
        for stream in list(self._streams.values()):
            self._abort(stream)
        self.sleep_level = level

    def wake_up(self) -> None:
        """Wake it; what queued meanwhile runs."""
        self.sleep_level = None
        self._wake.set()

    def _abort(self, stream: ChoiceStream) -> None:
        self.engine.abort(stream.request)
        stream.abort()
        self._forget(stream.request)

    def _forget(self, request: EngineRequest) -> None:
        self._streams.pop(request)
        self._log.add(request, self.clock.now())
        if not self._streams:
            self._idle.set()

    async def idle(self) -> None:
        """Return when no request is in flight."""
        await self._idle.wait()

    async def _run(self) -> None:
        engine_time = self.clock.now()
        while True:
            if not self._can_step():
                self._wake.clear()
                await self._wake.wait()
                engine_time = self.clock.now()
                continue
            plan = self.engine.plan_step(engine_time)
            engine_time += plan.seconds
            await self.clock.sleep_until(engine_time)
            while self.state is EngineState.WEDGED:
                self._wake.clear()
                await self._wake.wait()
            await self._deliver(plan, engine_time)

    def _can_step(self) -> bool:
        working = self.state in (EngineState.RUNNING, EngineState.DRAINING)
        return self.engine.has_work and working and self.sleep_level is None

    async def _deliver(self, plan: StepPlan, now: float) -> None:
        steps = self.engine.finish_step(plan, now)
        self._metrics.observe_step(plan, steps)
        collectors = []
        for step in steps:
            stream = self._streams[step.request]
            collectors.append(stream.collector)
            stop = stream.deliver(step.tokens)
            if stop is not None:
                self.engine.stop(step.request, stop)
            if step.request.finish_reason is not None:
                self._metrics.observe_finished(step.request, now)
                self._forget(step.request)
        # Whether a consumer is held up by its client shows only between two turns of the event loop: no event tells.
        while self.clock.lockstep and any(collector.untaken for collector in collectors):  # noqa: ASYNC110
            await asyncio.sleep(0)
