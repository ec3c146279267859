"""Puts the parts together, runs them, and takes them down in the right order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable

import aiohttp
import msgspec
from aiohttp import web
from prometheus_client.metrics_core import Metric

from proxy import metrics as series
from proxy.admin import Admin
from proxy.config import Config, ConfigError, parse_address
from proxy.continuation import Continuations
from proxy.control import Control
from proxy.events import Events
from proxy.gate import Gate
from proxy.gateway import Gateway
from proxy.measure import Measurement
from proxy.metrics import Metrics
from proxy.probes import Probe
from proxy.recording import Recording
from proxy.server import ClientConnection
from proxy.upstream import Backend

BACKLOG = 1024

log = logging.getLogger("specbreaker.serve")


class Proxy:
    """A running proxy: its addresses, and how to end it."""

    def __init__(self, gateway: Gateway, control: Control, url: str, admin_url: str, config: Config) -> None:
        self.gateway = gateway
        self.control = control
        self.url = url
        """http://HOST:PORT of the serving port."""
        self.admin_url = admin_url
        self._config = config
        self._server: asyncio.Server | None = None

    def listens_with(self, server: asyncio.Server) -> None:
        """Remember the listener, so that drain() can close it."""
        self._server = server

    async def drain(self) -> None:
        """Say not ready, wait for balancers to see it, take no new connection, let answers finish."""
        self.gateway.draining = True
        await asyncio.sleep(self._config.server.drain_delay_seconds)
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.gateway.connections):
            if not connection.busy:
                connection.close()
        if self.gateway.connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.server.drain_seconds):
                    await self.gateway.drained.wait()


@contextlib.asynccontextmanager
async def running(config: Config) -> AsyncIterator[Proxy]:
    """A proxy with that configuration, listening. Raises ConfigError where a port or a file cannot be used."""
    events, metrics = Events(), Metrics()
    gate = Gate(config.server.allow_control_routes, config.server.api_key_file)
    tls = _tls(config)
    backends = {settings.name: Backend(settings) for settings in config.backends}
    recording = Recording(config)
    measurement = Measurement(events, recording, metrics, config.measure.interval_seconds)
    gateway = Gateway(config, gate, tuple(backends.values()), measurement, metrics, events)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(recording.close)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(keepalive_timeout=4), auto_decompress=True)
        )
        gateway.continuations = Continuations(config, session, metrics, recording)
        control = Control(config, backends, events, gateway, metrics, recording, session)
        stack.push_async_callback(control.close)
        for name in backends:
            metrics.backend(name)
        metrics.add_collector(_counts(events, measurement, recording))
        probes = [
            Probe(backend, session, events, config.measure) for backend in backends.values() if backend.settings.metrics
        ]
        measurement.probes = {probe.backend.name: probe for probe in probes}
        tasks: list[asyncio.Task[None]] = []
        stack.push_async_callback(_stop, tasks)
        admin_url = await _listen_admin(stack, config, Admin(control, gateway, metrics, recording))
        server, url = await _listen(config, gateway, tls)
        proxy = Proxy(gateway, control, url, admin_url, config)
        proxy.listens_with(server)
        stack.push_async_callback(_close, server, gateway)
        for work in (control.run(), measurement.run(), gateway.sweep(), *(probe.run() for probe in probes)):
            tasks.append(asyncio.get_running_loop().create_task(work))
        yield proxy


async def _listen(config: Config, gateway: Gateway, tls: ssl.SSLContext | None) -> tuple[asyncio.Server, str]:
    host, port = parse_address(config.server.listen, "server.listen")
    try:
        server = await asyncio.get_running_loop().create_server(
            lambda: ClientConnection(gateway), host, port, ssl=tls, backlog=BACKLOG
        )
    except OSError as error:
        raise ConfigError(f"server.listen: {config.server.listen}: {_reason(error)}") from None
    return server, _url(server.sockets[0].getsockname(), "https" if tls else "http")


async def _listen_admin(stack: contextlib.AsyncExitStack, config: Config, admin: Admin) -> str:
    host, port = parse_address(config.server.admin, "server.admin")
    runner = web.AppRunner(admin.app(), access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as error:
        raise ConfigError(f"server.admin: {config.server.admin}: {_reason(error)}") from None
    return _url(runner.addresses[0], "http")


def _reason(error: OSError) -> str:
    """The system's own words; event loops put a whole sentence into strerror."""
    if isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno or 0)


def _url(address: tuple[object, ...], scheme: str) -> str:
    host, port = str(address[0]), address[1]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _tls(config: Config) -> ssl.SSLContext | None:
    certificate, key = config.server.tls_certificate_file, config.server.tls_key_file
    if certificate is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"server.tls_certificate_file: {certificate}: {error}") from None
    return context


async def _close(server: asyncio.Server, gateway: Gateway) -> None:
    server.close()
    for connection in tuple(gateway.connections):
        connection.abort()
    for backend in gateway.backends:
        backend.close_idle()
    # Aborted transports tell their protocols in the next round of the loop.
    await asyncio.sleep(0)
    await server.wait_closed()


async def _stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            log.error("a task had ended with an error", exc_info=result)


def _counts(events: Events, measurement: Measurement, recording: Recording) -> Callable[[], Iterable[Metric]]:
    def collect() -> Iterable[Metric]:
        yield series.counter("observations_dropped", "Facts that did not fit into the queue.", events.dropped)
        yield series.counter("measuring_failures", "Answers that could not be measured.", measurement.failures)
        counts = recording.counts()
        if counts is not None:
            yield series.counter("record_bytes", "Bytes written to session files.", counts.bytes_written)
            yield series.counter("record_dropped", "Records not written.", sum(counts.dropped.values()))
            yield series.gauge("record_queued", "Records waiting to be written.", counts.queued)

    return collect


async def serve(config: Config, ready: Callable[[Proxy], None]) -> None:
    """Run until SIGTERM or SIGINT, then drain; a second signal ends at once. Raises ConfigError."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    again = asyncio.Event()

    def on_signal() -> None:
        (again if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with running(config) as proxy:
        _settle_garbage_collection()
        ready(proxy)
        await asked.wait()
        log.info("draining: %d requests in flight", proxy.gateway.in_flight)
        draining = loop.create_task(proxy.drain())
        hurried = loop.create_task(again.wait())
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, hurried):
            task.cancel()
        await asyncio.gather(draining, hurried, return_exceptions=True)


def _settle_garbage_collection() -> None:
    """Keep the collector away from what was imported, and let it come less often: its pauses are tail latency."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


def describe(config: Config) -> str:
    """The configuration in force, as JSON."""
    return msgspec.json.format(msgspec.json.encode(config)).decode()
