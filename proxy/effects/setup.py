"""The executor with the effects that the configuration switches on."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp

from proxy.config import Config
from proxy.effects.command import Command
from proxy.effects.docker import Docker
from proxy.effects.elsewhere import RestartElsewhere, Runtime
from proxy.effects.engine import Engine, ResetEffect
from proxy.effects.executor import Executor
from proxy.effects.kubernetes import Kubernetes
from proxy.effects.ladder import Ladder
from proxy.effects.lease import Lease
from proxy.effects.sleep import SleepAndWake
from proxy.effects.systemd import Systemd
from proxy.effects.traffic import Traffic
from proxy.effects.webhook import Webhook
from proxy.events import Events
from proxy.upstream import Backend


def make_executor(
    config: Config, backends: Mapping[str, Backend], session: aiohttp.ClientSession, events: Events
) -> Executor:
    """What can be done to these backends. `supervise` adds the restart of its own engine."""
    settings = config.effects
    engines = {name: Engine(backend, session) for name, backend in backends.items()}
    traffic = Traffic(backends, events, settings.drain_seconds)
    executor = Executor(settings, Ladder(config.ladder), engines, traffic, events)
    executor.reset = ResetEffect(engines)
    for backend, runtime in _runtimes(config):
        executor.restarts[backend] = RestartElsewhere(
            runtime, engines[backend], executor.ladder, traffic, settings.ready_seconds
        )
    if settings.sleep is not None:
        executor.sleepers = frozenset(settings.sleep.backends)
        sharing = {name: engines[name] for name in settings.sleep.backends}
        executor.sleep = SleepAndWake(sharing, traffic, settings.sleep.timeout_seconds)
    if settings.lease is not None:
        executor.lease = Lease(settings.lease)
    if settings.webhook is not None:
        executor.webhook = Webhook(settings.webhook, session)
    return executor


def _runtimes(config: Config) -> list[tuple[str, Runtime]]:
    settings = config.effects
    found: list[tuple[str, Runtime]] = []
    if settings.docker is not None:
        found.append((settings.docker.backend, Docker(settings.docker)))
    if settings.kubernetes is not None:
        found.append((settings.kubernetes.backend, Kubernetes(settings.kubernetes, settings.ready_seconds)))
    if settings.systemd is not None:
        found.append((settings.systemd.backend, Systemd(settings.systemd)))
    if settings.command is not None:
        found.append((settings.command.backend, Command(settings.command)))
    return found
