"""Runs one engine: starts it, takes it down, starts it at another level, and again when it ends by itself.

One task does all of that, so no two launches can ever overlap: a request for a restart is put into its inbox. The
engine's processes are all gone before the next launch begins, because a GPU that is still held fails the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from detector.observation import Ending
from proxy import processes
from proxy.config_effects import Level, Supervise
from proxy.effects.arguments import in_words, level_of
from proxy.effects.budget import RestartBudget
from proxy.effects.engine import Engine
from proxy.effects.ladder import Ladder, level_name
from proxy.effects.protocol import EffectError, Outcome, Restart
from proxy.effects.traffic import Traffic
from proxy.supervise.command import Command
from proxy.supervise.hang import hangs
from proxy.supervise.output import EngineOutput

KILL_SECONDS: Final = 30.0
"""Processes that outlive SIGKILL for this long hang in a driver; nothing helps but to say so."""
STEADY_SECONDS: Final = 300.0
"""An engine that ran this long before it ended has not failed to start: the waits begin anew."""
SHOWN_LINES: Final = 15
LAST_WORDS_SECONDS: Final = 2.0
REAP_SECONDS: Final = 1.0

log = logging.getLogger("specbreaker.supervise")


class StartFailed(EffectError):
    """The engine did not become ready; the message says why, with its last lines."""


class Gone(NamedTuple):
    """Why an engine has to be started again, though nobody asked for it."""

    told: str
    """To the clients that ask meanwhile."""
    cut_off: str
    """To those whose answers ran."""
    reason: str
    """In the outcome."""


ENDED: Final = Gone(
    "the engine ended and is being started again", "the engine ended in the middle of the answer", "it had ended"
)
HUNG: Final = Gone(
    "the engine hung and is being started again", "the engine hung in the middle of the answer", "it hung"
)
CLOSED: Final = Gone(
    "the engine takes no connections and is being started again",
    "the engine took no connections any more, and this answer did not finish in time",
    "it took no connections",
)


class _Wish(asyncio.Future[dict[str, float]]):
    """A restart that somebody waits for; its result is the seconds of each phase."""

    def __init__(self, level: Level | None) -> None:
        super().__init__()
        self.level = level


class Supervisor:
    """One engine and its launches."""

    def __init__(
        self,
        settings: Supervise,
        command: Command,
        engine: Engine,
        ladder: Ladder,
        traffic: Traffic,
        budget: RestartBudget,
        output: EngineOutput,
        recovered: Callable[[Outcome], None],
    ) -> None:
        """recovered: told of every restart that nobody asked for."""
        self.output = output
        self.level = level_of(command.argv, ladder)
        """What the engine runs at, or will; None: its own command line, which is no level of the ladder."""
        self.state = "starting"
        """starting, ready, draining, stopping, waiting or stopped."""
        self.child: processes.Child | None = None
        self.ready = asyncio.Event()
        """Set while the engine serves."""
        self._settings = settings
        self._command = command
        self._engine = engine
        self._name = engine.backend.name
        self._ladder = ladder
        self._traffic = traffic
        self._budget = budget
        self._recovered = recovered
        self._inbox: asyncio.Queue[_Wish] = asyncio.Queue()
        self._start_seconds = 120.0
        """How long the last start took; before the first one a guess, for Retry-After."""
        self._ready_at = 0.0
        """Monotonic time of the last start that succeeded."""
        self._failures = 0
        """Starts again since the engine last ran for long."""
        self._output_ended = asyncio.Event()
        self._suspected = asyncio.Event()
        """The engine was silent, or took no connection, since it was last seen to be alive."""
        self._silent = False
        """An answer ended in silence since then."""

    # ---- what others ask for -----------------------------------------------------------------------------------------

    async def restart(self, level: Level | None) -> dict[str, float]:
        """Start the engine anew at this level; the seconds of drain, stop and start. Raises EffectError."""
        wish = _Wish(level)
        self._inbox.put_nowait(wish)
        return await wish

    def suspect(self, ending: Ending) -> None:
        """An answer failed: see whether the engine still listens and, after a silence, whether it gives a token."""
        self._silent = self._silent or ending is Ending.UPSTREAM_TIMEOUT
        self._suspected.set()

    async def run(self) -> None:
        """Run the engine until cancelled; then no process of it is left. Raises StartFailed for the first start."""
        reaper = asyncio.get_running_loop().create_task(_reap())
        try:
            await self._launch(self.level)
            while True:
                match await self._next():
                    case _Wish() as wish:
                        await self._replace(wish)
                    case Gone() as gone:
                        await self._recover(gone)
        finally:
            reaper.cancel()
            await self._stop()
            self.state = "stopped"

    async def kill(self) -> None:
        """End everything at once; run() is to be cancelled before."""
        if self.child is not None:
            await processes.kill_all(self.child, KILL_SECONDS)

    # ---- one launch --------------------------------------------------------------------------------------------------

    async def _launch(self, level: Level | None) -> float:
        """Start and wait until ready; the seconds that took. Raises StartFailed, with nothing left running."""
        argv = self._command.at(level)
        log.info("starting the engine at level %s: %s", level_name(level), in_words(argv))
        self.state, started = "starting", time.monotonic()
        if await self._engine.listens():
            raise StartFailed(f"something else listens on {self._command.url} already")
        child = await self._spawn(argv)
        ready = await self._engine.until_ready(self._settings.start_seconds, child.exited.is_set)
        exited = child.exited.is_set()
        if exited or not ready:
            await self._stop(0.0)
            raise StartFailed(await self._why_not_started(child, exited, time.monotonic() - started))
        self.level = level
        self._ready_at = time.monotonic()
        self._start_seconds = self._ready_at - started
        self.state = "ready"
        log.info("the engine is ready at level %s after %.1f s", level_name(level), self._start_seconds)
        self.ready.set()
        self._traffic.back(self._name, level_name(level), relaunched=True)
        return self._start_seconds

    async def _spawn(self, argv: list[str]) -> processes.Child:
        environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        writing, self._output_ended = await self.output.pipe()
        try:
            self.child = processes.start(argv, output=writing, environment=environment, ends_with_parent=True)
        except OSError as error:
            raise StartFailed(f"{argv[0]}: {error.strerror}") from None
        finally:
            os.close(writing)
        return self.child

    async def _why_not_started(self, child: processes.Child, exited: bool, seconds: float) -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await self._output_ended.wait()
        if exited:
            what = f"it {processes.describe_status(child.status)} after {seconds:.1f} s"
        else:
            what = f"it was not ready after {self._settings.start_seconds:g} s (supervise.start_seconds)"
        lines = list(self.output.tail)[-SHOWN_LINES:]
        return what + ("; its last lines:\n  " + "\n  ".join(lines) if lines else "")

    async def _stop(self, grace_seconds: float | None = None) -> float:
        """SIGTERM to the engine, time to end, then SIGKILL for all that is left of it; the seconds that took.

        Raises EffectError where a process outlives SIGKILL: the next launch would find its GPU taken.
        """
        started = time.monotonic()
        child = self.child
        self.ready.clear()
        if child is None:
            return 0.0
        self.state = "stopping"
        grace = self._settings.stop_seconds if grace_seconds is None else grace_seconds
        # Only the API server gets SIGTERM: it ends the others, and some must be alive to be ended in order.
        child.send_signal(signal.SIGTERM)
        if not await processes.wait_until(lambda: not processes.begun_by(child), grace):
            left = processes.begun_by(child)
            if grace:
                log.warning("%d processes of the engine are left after %g s; killing them", len(left), grace)
        stubborn = await processes.kill_all(child, KILL_SECONDS)
        if stubborn:
            raise EffectError(f"processes {sorted(stubborn)} of the engine outlived SIGKILL for {KILL_SECONDS:g} s")
        await child.exited.wait()
        self.child = None
        return time.monotonic() - started

    # ---- from one launch to the next ---------------------------------------------------------------------------------

    async def _next(self) -> _Wish | Gone:
        """The next restart that is asked for, or why there must be one."""
        assert self.child is not None
        wish = asyncio.ensure_future(self._inbox.get())
        ended = asyncio.ensure_future(self.child.exited.wait())
        lost = asyncio.ensure_future(self._until_lost(self.child))
        try:
            await asyncio.wait({wish, ended, lost}, return_when=asyncio.FIRST_COMPLETED)
            if wish.done():
                return wish.result()
            return ENDED if ended.done() else lost.result()
        finally:
            for task in (wish, ended, lost):
                task.cancel()

    async def _until_lost(self, child: processes.Child) -> Gone:
        """Why an engine that has not ended has to be started again, once it is found to be so."""
        while True:
            self._suspected.clear()
            self._silent = False
            await self._suspected.wait()
            if await self._engine.refuses():
                return await self._closed(child)
            if self._silent and await self._hung():
                return HUNG

    async def _closed(self, child: processes.Child) -> Gone:
        """It takes no connections any more: it is ending, or should. A process that is killed closes its port first."""
        seconds = self._settings.stop_seconds
        log.warning("the engine takes no connections: waiting up to %g s for its end (supervise.stop_seconds)", seconds)
        self._traffic.gone(self._name, CLOSED.told, self._start_seconds)
        await processes.wait_until(child.exited.is_set, seconds)
        return ENDED if child.exited.is_set() else CLOSED

    async def _hung(self) -> bool:
        seconds = self._settings.hang_seconds
        if not seconds:
            return False
        log.warning("an answer ended in silence: asking the engine for one token within %g s", seconds)
        if await hangs(self._engine, seconds):
            log.error("the engine hangs: no token and no progress within %g s (supervise.hang_seconds)", seconds)
            return True
        log.info("the engine is alive")
        return False

    async def _replace(self, wish: _Wish) -> None:
        """Take the engine down and start it at the level that is asked for, or where that fails at the one before."""
        before, phases = self.level, {}
        try:
            self.state = "draining"
            reason = f"the engine {self._name} is being restarted"
            phases["drain"] = await self._traffic.leave(self._name, reason, self._start_seconds)
            phases["stop"] = await self._stop()
            phases["start"] = await self._launch(wish.level)
        except EffectError as error:
            wish_failed = EffectError(f"level {level_name(wish.level)} did not start: {error}")
            if not wish.done():
                wish.set_exception(wish_failed)
            self.level = before
            await self._recover(ENDED, at_once=True)
        else:
            if not wish.done():
                wish.set_result(phases)

    async def _recover(self, gone: Gone, *, at_once: bool = False) -> None:
        """Start the engine again at its level, however often that takes, with growing waits and within the budget.

        at_once: the first start needs no wait and no budget, because it undoes a restart that has paid.
        """
        self._traffic.gone(self._name, gone.told, self._start_seconds)
        if self.child is not None and self.child.exited.is_set():
            log.error("the engine %s", processes.describe_status(self.child.status))
        # What it left behind must not hold the GPU while we wait.
        await self._clear_away(gone)
        if time.monotonic() - self._ready_at >= STEADY_SECONDS:
            self._failures = 0
        while True:
            wish = None if at_once else await self._wait()
            at_once = False
            level = wish.level if wish is not None else self.level
            started, phases = time.monotonic(), {}
            try:
                phases["stop"] = await self._stop(0.0)
                phases["start"] = await self._launch(level)
            except EffectError as error:
                self._report(gone, level, started, phases, error)
                if wish is not None and not wish.done():
                    wish.set_exception(error)
                continue
            self._report(gone, level, started, phases, None)
            if wish is not None and not wish.done():
                wish.set_result(phases)
            return

    async def _clear_away(self, gone: Gone) -> None:
        try:
            await self._stop(0.0)
        except EffectError as error:
            log.error("%s", error)
        self._traffic.cut_off(self._name, gone.cut_off)

    async def _wait(self) -> _Wish | None:
        """Wait before the next launch; a restart that is asked for meanwhile ends the wait and is returned."""
        self.state = "waiting"
        grown = self._settings.backoff_seconds * 2 ** min(self._failures, 30)
        self._failures += 1
        seconds = min(self._settings.backoff_max_seconds, grown) * random.uniform(0.5, 1.0)
        budget = self._budget.seconds_until_next(time.monotonic())
        if budget > seconds:
            log.error("the restarts of this hour are used up: the engine stays down for %.0f s", budget)
            self._traffic.gone(self._name, "the engine ended too often and is left alone for a while", budget)
            seconds = budget
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds if seconds < float("inf") else None):
                return await self._inbox.get()
        self._budget.spend(time.monotonic())
        return None

    def _report(
        self, gone: Gone, level: Level | None, started: float, phases: dict[str, float], error: EffectError | None
    ) -> None:
        if error is None:
            detail = f"{self._name} was started again at {level_name(level)}"
        else:
            detail = f"{self._name} did not start again: {error}"
        self._recovered(
            Outcome(
                effect="recover",
                action=Restart(self._name, level_name(level), gone.reason),
                succeeded=error is None,
                detail=detail,
                seconds=time.monotonic() - started,
                phases=phases,
            )
        )


async def _reap() -> None:
    """Ask for the status of orphans that have ended, as PID 1 must, until cancelled."""
    while True:
        await asyncio.sleep(REAP_SECONDS)
        processes.reap_orphans()
