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
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from typing import Any

import aiohttp
import msgspec
from aiohttp import web
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from proxy import agent_check
from proxy import metrics as series
from proxy.actions import Actions
from proxy.activation import inherited_socket
from proxy.admin import Admin
from proxy.config import Config, ConfigError, parse_address
from proxy.continuation import Continuations
from proxy.control import Control
from proxy.effects.executor import Executor
from proxy.effects.setup import make_executor
from proxy.events import Events
from proxy.gate import Gate
from proxy.gateway import Gateway
from proxy.measure import Measurement
from proxy.metrics import Metrics
from proxy.probes import Probe
from proxy.recording import Recording
from proxy.reload import Reload
from proxy.server import ClientConnection
from proxy.tracing import Tracing
from proxy.upstream import Away, Backend
from proxy.upstream_metrics import UpstreamMetrics
from replay.listening import stop_listening

BACKLOG = 1024
FIRST_REQUEST_SECONDS = 1.0
"""How long a drain waits for the first request of a connection that was made just before."""

log = logging.getLogger("specbreaker.serve")


class Proxy:
    """A running proxy: its addresses, and how to end it."""

    def __init__(
        self,
        gateway: Gateway,
        control: Control,
        executor: Executor,
        admin: Admin,
        urls: tuple[str, str],
        config: Config,
        reload: Reload,
    ) -> None:
        self.executor = executor
        self.admin = admin
        self.gateway = gateway
        self.control = control
        self.url, self.admin_url = urls
        """http://HOST:PORT of the serving port and of the admin port."""
        self.reload = reload
        self._config = config
        self._server: asyncio.Server | None = None

    def listens_with(self, server: asyncio.Server) -> None:
        """Remember the listener, so that drain() can close it."""
        self._server = server

    async def drain(self) -> None:
        """Say not ready, wait for balancers to see it, take no new connection, let answers finish."""
        self.gateway.draining = True
        self.gateway.holding.close("the proxy is shutting down")
        await asyncio.sleep(self._config.server.drain_delay_seconds)
        if self._server is not None:
            await stop_listening(self._server)
        self._close_idle(but_fresh=True)
        if any(connection.fresh for connection in self.gateway.connections):
            await asyncio.sleep(FIRST_REQUEST_SECONDS)
            self._close_idle()
        if self.gateway.connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.server.drain_seconds):
                    await self.gateway.drained.wait()

    def _close_idle(self, *, but_fresh: bool = False) -> None:
        for connection in tuple(self.gateway.connections):
            if not connection.busy and not (but_fresh and connection.fresh):
                connection.close()


@contextlib.asynccontextmanager
async def running(config: Config, away: Mapping[str, Away] | None = None) -> AsyncIterator[Proxy]:
    """A proxy with that configuration, listening. Raises ConfigError where a port or a file cannot be used.

    away: backends that get no request yet.
    """
    events, metrics = Events(), Metrics()
    gate = Gate(config.server.allow_control_routes, config.server.api_key_file)
    tls = _tls(config)
    backends = {settings.name: Backend(settings) for settings in config.backends}
    for name, reason in (away or {}).items():
        backends[name].away = reason
    recording = Recording(config)
    tracing = Tracing(config.tracing)
    measurement = Measurement(events, recording, metrics, config.measure.interval_seconds, traced=tracing.on)
    gateway = Gateway(config, gate, tuple(backends.values()), measurement, metrics, events)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(recording.close)
        stack.push_async_callback(tracing.close)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(keepalive_timeout=4), auto_decompress=True)
        )
        gateway.continuations = Continuations(config, session, metrics, recording)
        control = Control(config, backends, events, gateway, metrics, recording, session, tracing)
        stack.push_async_callback(control.close)
        for name in backends:
            metrics.backend(name)
        executor = make_executor(config, backends, session, events)
        stack.push_async_callback(executor.close)
        control.begin, control.tell = executor.start, executor.tell
        metrics.add_collector(_counts(events, measurement, recording, gateway, executor, tracing))
        metrics.add_collector(_serving(gateway))
        probes = [
            Probe(backend, session, events, config.measure) for backend in backends.values() if backend.settings.metrics
        ]
        measurement.probes = {probe.backend.name: probe for probe in probes}
        tasks: list[asyncio.Task[None]] = []
        stack.push_async_callback(_stop, tasks)
        actions = Actions(executor, control.policy.primary, config.server.admin_token_file)
        admin = Admin(control, gateway, metrics, recording, executor, actions)
        if config.metrics.include_upstream:
            admin.upstream_metrics = UpstreamMetrics(tuple(backends.values()), session, metrics)
        admin_url = await _listen_admin(stack, config, admin)
        await _listen_agent(stack, config, gateway, control)
        server, url = await _listen(config, gateway, tls)
        reload = Reload(control, gateway, measurement, probes, metrics)
        proxy = Proxy(gateway, control, executor, admin, (url, admin_url), config, reload)
        proxy.listens_with(server)
        stack.push_async_callback(_close, server, gateway)
        for work in (control.run(), measurement.run(), gateway.sweep(), *(probe.run() for probe in probes)):
            tasks.append(asyncio.get_running_loop().create_task(work))
        yield proxy


async def _listen(config: Config, gateway: Gateway, tls: ssl.SSLContext | None) -> tuple[asyncio.Server, str]:
    loop = asyncio.get_running_loop()
    inherited = inherited_socket(os.environ)
    if inherited is not None:
        server = await loop.create_server(lambda: ClientConnection(gateway), sock=inherited, ssl=tls, backlog=BACKLOG)
    else:
        host, port = parse_address(config.server.listen, "server.listen")
        try:
            server = await loop.create_server(lambda: ClientConnection(gateway), host, port, ssl=tls, backlog=BACKLOG)
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


async def _listen_agent(stack: contextlib.AsyncExitStack, config: Config, gateway: Gateway, control: Control) -> None:
    if config.server.agent is None:
        return
    host, port = parse_address(config.server.agent, "server.agent")
    try:
        stack.callback((await agent_check.listen(host, port, gateway, control)).close)
    except OSError as error:
        raise ConfigError(f"server.agent: {config.server.agent}: {_reason(error)}") from None


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
    await stop_listening(server)
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


def _counts(
    events: Events,
    measurement: Measurement,
    recording: Recording,
    gateway: Gateway,
    executor: Executor,
    tracing: Tracing,
) -> Callable[[], Iterable[Metric]]:
    def collect() -> Iterable[Metric]:
        yield series.counter("observations_dropped", "Facts that did not fit into the queue.", events.dropped)
        yield series.counter("measuring_failures", "Answers that could not be measured.", measurement.failures)
        yield series.gauge("requests_held", "Requests that wait for an engine to come back.", len(gateway.holding))
        remaining = executor.budget.remaining(time.monotonic())
        yield series.gauge("restart_budget_remaining", "Restarts that may be made now.", remaining)
        yield series.counter("spans_sent", "Spans that the collector took.", tracing.sent)
        yield series.counter("spans_dropped", "Spans that it did not get.", tracing.dropped)
        counts = recording.counts()
        if counts is not None:
            yield series.counter("record_bytes", "Bytes written to session files.", counts.bytes_written)
            yield series.counter("record_dropped", "Records not written.", sum(counts.dropped.values()))
            yield series.gauge("record_queued", "Records waiting to be written.", counts.queued)

    return collect


def _serving(gateway: Gateway) -> Callable[[], Iterable[Metric]]:
    def collect() -> Iterable[Metric]:
        text = "1 while new requests go to this fallback."
        family = GaugeMetricFamily("specbreaker_fallback_serving", text, labels=["backend"])
        for backend in gateway.backends:
            if backend.settings.role == "fallback":
                family.add_metric([backend.name], float(backend is gateway.routing.order[0]))
        yield family

    return collect


async def serve(config: Config, ready: Callable[[Proxy], None], read: Callable[[], Config]) -> None:
    """Run until SIGTERM or SIGINT, then drain; a second signal ends at once. SIGHUP: reload what ``read`` gives.

    Raises ConfigError.
    """
    signals = Signals()
    async with running(config) as proxy:
        settle_garbage_collection()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, proxy.reload, read)
        ready(proxy)
        await signals.asked.wait()
        await signals.unless_hurried(drained(proxy))


class Signals:
    """SIGTERM and SIGINT: the first one asks for an end in order, the second one for an end at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.again = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._received)

    def _received(self) -> None:
        (self.again if self.asked.is_set() else self.asked).set()

    async def unless_hurried(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something to its end, or to the second signal; an error of it is raised here."""
        loop = asyncio.get_running_loop()
        tasks = loop.create_task(work), loop.create_task(self.again.wait())
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


async def drained(proxy: Proxy) -> None:
    """Drain, and say so."""
    log.info("draining: %d requests in flight", proxy.gateway.in_flight)
    await proxy.drain()


def settle_garbage_collection() -> None:
    """Keep the collector away from what was imported, and let it come less often: its pauses are tail latency."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


def describe(config: Config) -> str:
    """The configuration in force, as JSON."""
    return msgspec.json.format(msgspec.json.encode(config)).decode()
