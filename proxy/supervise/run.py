"""`specbreaker supervise`: one engine, and the proxy in front of it, from the start of the one to the end of both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from proxy import processes
from proxy.config import Config, parse_address
from proxy.config_base import ConfigError
from proxy.config_effects import Supervise
from proxy.effects.ladder import level_name
from proxy.serve import Proxy, Signals, drained, running, settle_garbage_collection
from proxy.supervise.command import Command, check_levels, check_ports
from proxy.supervise.effect import RestartSupervised
from proxy.supervise.notify import notify
from proxy.supervise.output import EngineOutput, RotatedFile
from proxy.supervise.supervisor import Supervisor
from proxy.upstream import Away

EXTEND_SECONDS: Final = 10.0
"""How often systemd is told that the start goes on; each time it gives thrice as long."""

log = logging.getLogger("specbreaker.supervise")


async def supervise(config: Config, command: Command, ready: Callable[[Proxy], None]) -> None:
    """Run until SIGTERM or SIGINT, then drain and end the engine; a second signal ends both at once.

    Raises ConfigError, and StartFailed where the engine does not become ready the first time.
    """
    if not hasattr(os, "pidfd_open"):
        raise ConfigError("supervise needs Linux 5.3 or later")
    check_levels(command, config.ladder)
    check_ports(command, {f"server.{key}": parse_address(getattr(config.server, key)) for key in ("listen", "admin")})
    if command.everywhere:
        log.warning("the engine listens on all addresses: give it --host 127.0.0.1, or clients can go around the proxy")
    signals = Signals()
    # Its default would end the engine with us.
    text = "SIGHUP: the configuration is not read again under supervise; restart it"
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, log.warning, text)
    processes.become_subreaper()
    primary = next(backend.name for backend in config.backends if backend.role == "primary")
    starting = Away("the engine is starting", time.monotonic() + 120.0)
    with _output(config.supervise) as output:
        async with running(config, {primary: starting}) as proxy:
            log.info("listening on %s/v1, admin %s/; requests wait for the engine", proxy.url, proxy.admin_url)
            supervisor = _supervisor(proxy, primary, command, config, output)
            engine = asyncio.get_running_loop().create_task(supervisor.run())
            try:
                settle_garbage_collection()
                if await _until_ready(engine, supervisor, signals):
                    notify("READY=1")
                    ready(proxy)
                    await _first(engine, signals.asked.wait())
                notify("STOPPING=1")
                if not engine.done():
                    await signals.unless_hurried(drained(proxy))
            finally:
                await _end(engine, supervisor, signals)


def _supervisor(proxy: Proxy, primary: str, command: Command, config: Config, output: EngineOutput) -> Supervisor:
    executor = proxy.executor
    supervisor = Supervisor(
        config.supervise,
        command,
        executor.engines[primary],
        executor.ladder,
        executor.traffic,
        executor.budget,
        output,
        executor.report,
    )
    if primary in executor.restarts:
        raise ConfigError(f"effects: {primary} is the engine of supervise; nothing else may restart it")
    executor.restarts[primary] = RestartSupervised(supervisor, command, executor.ladder)
    proxy.control.failed = lambda backend, ending: supervisor.suspect(ending) if backend == primary else None

    def about() -> dict[str, Any]:
        return {
            "state": supervisor.state,
            "level": level_name(supervisor.level),
            "pid": supervisor.child.pid if supervisor.child is not None else None,
            "output": list(output.tail),
            "output_dropped": output.dropped,
        }

    proxy.admin.engine = about
    return supervisor


async def _until_ready(engine: asyncio.Task[None], supervisor: Supervisor, signals: Signals) -> bool:
    """Wait for the first start; False where it was called off. Raises StartFailed."""
    loop = asyncio.get_running_loop()
    ready, asked = loop.create_task(supervisor.ready.wait()), loop.create_task(signals.asked.wait())
    try:
        while not (ready.done() or asked.done() or engine.done()):
            notify(f"EXTEND_TIMEOUT_USEC={3 * EXTEND_SECONDS * 1e6:.0f}\nSTATUS=the engine is starting")
            await asyncio.wait({ready, asked, engine}, timeout=EXTEND_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ready.cancel()
        asked.cancel()
    if engine.done():
        engine.result()
    return supervisor.ready.is_set() and not signals.asked.is_set()


async def _first(engine: asyncio.Task[None], other: Any) -> None:
    """Wait for the engine's task, which only an error ends, or for something else."""
    waiting = asyncio.ensure_future(other)
    await asyncio.wait({engine, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _end(engine: asyncio.Task[None], supervisor: Supervisor, signals: Signals) -> None:
    """End the engine, in order or, after a second signal, at once. Raises what ended it before."""
    engine.cancel()
    await signals.unless_hurried(_waited_for(engine))
    if not engine.done():
        log.warning("a second signal: the engine is killed")
        engine.cancel()
        await _waited_for(engine)
        await supervisor.kill()
    if not engine.cancelled():
        engine.result()


async def _waited_for(task: asyncio.Task[None]) -> None:
    """Its end, without its result; to be cancelled here does not cancel it."""
    await asyncio.wait({task})


@contextlib.contextmanager
def _output(settings: Supervise) -> Iterator[EngineOutput]:
    """Raises ConfigError where the file cannot be written."""
    file = None
    if settings.output_file is not None:
        try:
            file = RotatedFile(settings.output_file, settings.output_file_max_bytes)
        except OSError as error:
            raise ConfigError(f"supervise.output_file: {settings.output_file}: {error.strerror}") from None
    output = EngineOutput(settings.output_lines, file)
    try:
        yield output
    finally:
        output.close()
