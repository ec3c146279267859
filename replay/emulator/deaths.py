"""The ways in which a vLLM server dies in the middle of an answer, as seen on real servers.

What clients see of each:

==================  ==========================================================================================
engine_kill         error event, then ``[DONE]``, HTTP 200; bodies become 500; ``/health`` 503, then the port refuses
worker_kill         the same (a tensor-parallel worker takes the engine with it)
engine_assert       the same, but it takes the watchdog five seconds to close the port
engine_term         ``finish_reason: "abort"``, usage, ``[DONE]``; new requests end so at once; ``/health`` 200 for 8 s
api_term            streams stay open and silent for ever, the port refuses
api_term_drain      running answers complete; new requests are 500 while ``/health`` is 200; then the port refuses
api_kill            connections are cut without a last chunk, the port refuses
wedge               the engine never steps again; ``/health`` stays 200
sleep               running answers end with abort; new requests queue for ever; ``/health`` stays 200
==================  ==========================================================================================
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Protocol

from .runner import EngineRunner, EngineState

DRAIN_LIMIT_SECONDS = 20.0
"""--shutdown-timeout of the drained server."""


class Front(Protocol):
    """The network side of a served emulator."""

    def refuse(self) -> None:
        """Close the port and idle connections; those with a request in flight stay."""

    def drop(self) -> None:
        """Cut every connection where it stands."""


class Death(StrEnum):
    """A way to die; see the table of this module."""

    ENGINE_KILL = "engine_kill"
    WORKER_KILL = "worker_kill"
    ENGINE_ASSERT = "engine_assert"
    ENGINE_TERM = "engine_term"
    API_TERM = "api_term"
    API_TERM_DRAIN = "api_term_drain"
    API_KILL = "api_kill"
    WEDGE = "wedge"
    SLEEP = "sleep"


SECONDS_TO_UNHEALTHY = {Death.ENGINE_TERM: 8.0}
"""From the engine's death until ``/health`` says 503; where missing, at once."""
SECONDS_TO_EXIT = {
    Death.ENGINE_KILL: 0.2,
    Death.WORKER_KILL: 0.3,
    Death.ENGINE_ASSERT: 5.0,
    Death.ENGINE_TERM: 12.0,
}
"""From the engine's death until the port refuses."""


class Dying:
    """The deaths of one emulator, and what of them is still to come. Use it in the event loop that serves."""

    def __init__(self, runner: EngineRunner) -> None:
        self.front: Front | None = None
        self._runner = runner
        self._timers: list[asyncio.TimerHandle] = []
        self._drain: asyncio.Task[None] | None = None

    def die(self, death: Death, *, exit_after_seconds: float | None) -> None:
        """Die that way. exit_after_seconds: real seconds until the process is gone, where the table has a delay.

        Raises RuntimeError if the way needs the port and the emulator is not served by ``serving``.
        """
        runner = self._runner
        match death:
            case Death.WEDGE:
                runner.enter(EngineState.WEDGED)
            case Death.SLEEP:
                runner.sleep(1)
            case Death.API_TERM:
                front = self._served_front()
                runner.enter(EngineState.WEDGED)
                front.refuse()
            case Death.API_TERM_DRAIN:
                self._drain = asyncio.get_running_loop().create_task(self._drain_and_exit(self._served_front()))
            case Death.API_KILL:
                front = self._served_front()
                runner.enter(EngineState.WEDGED)
                self._exit(front)
            case _:
                self._kill_engine(death, self._served_front(), exit_after_seconds)

    def cancel(self) -> None:
        """Forget what is still to come."""
        for timer in self._timers:
            timer.cancel()
        if self._drain is not None:
            self._drain.cancel()

    def _served_front(self) -> Front:
        if self.front is None:
            raise RuntimeError("only an emulator that serving() serves can die this way")
        return self.front

    def _kill_engine(self, death: Death, front: Front, exit_after_seconds: float | None) -> None:
        runner = self._runner
        exit_after = SECONDS_TO_EXIT[death] if exit_after_seconds is None else exit_after_seconds
        unhealthy_after = min(SECONDS_TO_UNHEALTHY.get(death, 0.0), exit_after)
        loop = asyncio.get_running_loop()
        if death is Death.ENGINE_TERM:
            runner.enter(EngineState.ABORTING)
            self._timers.append(loop.call_later(unhealthy_after, runner.enter, EngineState.DEAD))
        else:
            runner.enter(EngineState.DEAD)
        self._timers.append(loop.call_later(exit_after, self._exit, front))

    async def _drain_and_exit(self, front: Front) -> None:
        self._runner.enter(EngineState.DRAINING)
        try:
            await asyncio.wait_for(self._runner.idle(), DRAIN_LIMIT_SECONDS)
        except TimeoutError:
            self._exit(front)
        else:
            front.refuse()

    @staticmethod
    def _exit(front: Front) -> None:
        front.refuse()
        front.drop()
