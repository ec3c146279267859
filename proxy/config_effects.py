"""Sections of the configuration that say what may be done to engines, and how."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from proxy.config_base import Bytes, ConfigError, PerSecond, Seconds, Section

AS_GIVEN = "as-given"
"""The level of an engine's own command line."""
COMMAND_PLACEHOLDERS = ("backend", "level", "speculative_config", "num_speculative_tokens")


class Level(Section, frozen=True):
    """A way to run an engine. The order of the file is the order of the ladder: the fastest first, the safest last."""

    name: str
    """What it is called in actions, metrics and logs."""
    speculative_config: dict[str, Any] | None = None
    """What --speculative-config says at this level, as a table. None: the engine runs without speculation."""
    tokens_per_second: PerSecond | None = None
    """Decode rate of one healthy stream at this level, where you know it. None: what is measured at it; until then the
    policy does not choose it."""


class Supervise(Section, frozen=True):
    """The engine that `specbreaker supervise` runs."""

    start_seconds: Seconds = 900.0
    """An engine that is not ready by then has failed to start."""
    stop_seconds: Seconds = 30.0
    """After SIGTERM, how long the engine may take to end before all its processes are killed."""
    backoff_seconds: Seconds = 1.0
    """Wait before an engine that ended by itself is started again; doubled by each further failure."""
    backoff_max_seconds: Seconds = 60.0
    """The wait grows no further."""
    hang_seconds: Annotated[float, msgspec.Meta(ge=0)] = 120.0
    """After an answer that ended in silence (backends.idle_timeout_seconds), how long the engine may take for one
    token, without any counter of its /metrics moving, before it is killed and started again. 0 switches that off."""
    output_lines: Annotated[int, msgspec.Meta(ge=0)] = 200
    """Last lines of the engine's output that /explain shows."""
    output_file: str | None = None
    """File that the engine's output is also written to. None: only to standard error."""
    output_file_max_bytes: Bytes = 16 * 1024 * 1024
    """The file is renamed to FILE.1 at this size; FILE.1 to FILE.3 are kept."""


class SleepEffect(Section, frozen=True):
    """Engines that share one GPU, of which one is awake (vLLM's --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1)."""

    backends: tuple[str, ...]
    """Their names. Waking one puts the others to sleep first, at level 1."""
    timeout_seconds: Seconds = 120.0
    """Longest wait for one call of /sleep or /wake_up."""


class DockerEffect(Section, frozen=True):
    """A container for each level, of which one runs; a restart stops one and starts the other."""

    backend: str
    """The backend that these containers serve, all on the same port."""
    containers: dict[str, str]
    """Name of the container by level; "as-given" is the one for a restart without a level."""
    socket: str = "/var/run/docker.sock"
    """The Docker Engine's socket. Who can write to it is root, so prefer a proxy that allows start and stop only."""
    stop_seconds: Seconds = 30.0
    """Docker kills a container that has not ended by then."""


class KubernetesEffect(Section, frozen=True):
    """A Deployment whose container gets other arguments; it must have the strategy Recreate."""

    backend: str
    """The backend that its Service leads to."""
    deployment: str
    """Name of the Deployment."""
    container: str
    """Name of the engine's container in it."""
    namespace: str | None = None
    """None: the one that specbreaker runs in."""
    api_url: str | None = None
    """None: the cluster's own, from inside it."""
    service_account_directory: str = "/var/run/secrets/kubernetes.io/serviceaccount"
    """Where token, ca.crt and namespace are."""


class LeaseEffect(Section, frozen=True):
    """A Lease of Kubernetes that whoever restarts an engine must hold: in a fleet one engine is restarted at a time."""

    name: str
    """Name of the Lease, the same for the whole fleet. It must exist (deploy/llm-d/restart-lease.yaml)."""
    namespace: str | None = None
    """None: the one that specbreaker runs in."""
    identity: str | None = None
    """Who we are, for people who look at it. None: the host's name, which is the pod's."""
    wait_seconds: Annotated[float, msgspec.Meta(ge=0)] = 900.0
    """How long a restart waits for its turn, while the engine keeps its traffic; then it has failed."""
    duration_seconds: Annotated[int, msgspec.Meta(ge=10)] = 60
    """It is renewed three times as often. A holder that has not renewed it for this long is gone."""
    api_url: str | None = None
    """None: the cluster's own, from inside it."""
    service_account_directory: str = "/var/run/secrets/kubernetes.io/serviceaccount"
    """Where token, ca.crt and namespace are."""


class SystemdEffect(Section, frozen=True):
    """A unit that reads its speculative arguments from an environment file."""

    backend: str
    """The backend that the unit runs."""
    unit: str
    """Name of the unit, such as "vllm.service"."""
    environment_file: str
    """Written whole before each restart: SPECULATIVE_ARGS and SPECULATIVE_LEVEL."""
    timeout_seconds: Seconds = 120.0
    """Longest wait for systemctl."""


class CommandEffect(Section, frozen=True):
    """A command of your own that restarts an engine and returns when the old one is gone."""

    backend: str
    """The backend that it restarts."""
    argv: tuple[str, ...]
    """Program and arguments; no shell. {backend}, {level}, {speculative_config} (JSON, empty for none) and
    {num_speculative_tokens} (0 for none) are filled in."""
    timeout_seconds: Seconds = 300.0
    """It is killed after this."""


class WebhookEffect(Section, frozen=True):
    """Notices and outcomes as JSON, POSTed."""

    url: str
    """http(s)://... that gets them."""
    secret_env: str | None = None
    """Environment variable with the key of the HMAC-SHA256 signature. None: not signed."""
    timeout_seconds: Seconds = 10.0
    """Longest wait for one answer."""
    attempts: Annotated[int, msgspec.Meta(ge=1, le=10)] = 3
    """How often it is tried; the waits between are 1, 2, 4, ... seconds."""


class Effects(Section, frozen=True):
    """What may be done to engines, and how. Each table below switches one effect on."""

    dry_run: bool = False
    """Only say what would be done."""
    restarts_max_per_hour: Annotated[int, msgspec.Meta(ge=0)] = 6
    """Restarts in any hour, those after a crash included."""
    drain_seconds: Annotated[float, msgspec.Meta(ge=0)] = 120.0
    """Before an engine is restarted or put to sleep, how long running answers may take to finish."""
    ready_seconds: Seconds = 900.0
    """An engine restarted by something else than supervise must be ready by then."""
    hold_requests: Annotated[int, msgspec.Meta(ge=0)] = 64
    """Requests that may wait for an engine to come back where no other can serve them; the next one gets 503."""
    hold_seconds: Annotated[float, msgspec.Meta(ge=0)] = 180.0
    """How long each may wait; then it gets 503 with Retry-After."""
    sleep: SleepEffect | None = None
    docker: DockerEffect | None = None
    kubernetes: KubernetesEffect | None = None
    systemd: SystemdEffect | None = None
    command: CommandEffect | None = None
    lease: LeaseEffect | None = None
    webhook: WebhookEffect | None = None


def check_effects(effects: Effects, ladder: tuple[Level, ...], backends: set[str], origin: str) -> None:
    """What the types do not say: names that must exist, or must not come twice. Raises ConfigError."""
    levels = _check_ladder(ladder, origin)
    _check_restarts(effects, backends, origin)
    for name in effects.sleep.backends if effects.sleep is not None else ():
        if name not in backends:
            raise ConfigError(f'{origin}: effects.sleep.backends: there is no backend "{name}"')
    for name in effects.docker.containers if effects.docker is not None else ():
        if name not in levels | {AS_GIVEN}:
            raise ConfigError(f'{origin}: effects.docker.containers: there is no level "{name}" in the ladder')
    if effects.command is not None:
        _check_command(effects.command, f"{origin}: effects.command.argv")
    if effects.webhook is not None:
        _check_webhook(effects.webhook, f"{origin}: effects.webhook")


def _check_ladder(ladder: tuple[Level, ...], origin: str) -> set[str]:
    levels: set[str] = set()
    for index, level in enumerate(ladder):
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", level.name) or level.name == AS_GIVEN:
            raise ConfigError(
                f'{origin}: ladder[{index}].name: "{level.name}": use letters, digits, ".", "_" and "-", '
                f'and not "{AS_GIVEN}"'
            )
        if level.name in levels:
            raise ConfigError(f'{origin}: ladder[{index}].name: "{level.name}" is used twice')
        levels.add(level.name)
    return levels


def _check_restarts(effects: Effects, backends: set[str], origin: str) -> None:
    restarts: dict[str, str] = {}
    for kind in ("docker", "kubernetes", "systemd", "command"):
        settings = getattr(effects, kind)
        if settings is None:
            continue
        if settings.backend not in backends:
            raise ConfigError(f'{origin}: effects.{kind}.backend: there is no backend "{settings.backend}"')
        if settings.backend in restarts:
            other = restarts[settings.backend]
            raise ConfigError(f"{origin}: effects.{kind}.backend: {settings.backend} is restarted by {other} already")
        restarts[settings.backend] = kind


def _check_command(settings: CommandEffect, place: str) -> None:
    if not settings.argv:
        raise ConfigError(f"{place}: no program in it")
    for argument in settings.argv:
        for name in re.findall(r"\{([a-z_]+)\}", argument):
            if name not in COMMAND_PLACEHOLDERS:
                known = ", ".join(f"{{{placeholder}}}" for placeholder in COMMAND_PLACEHOLDERS)
                raise ConfigError(f"{place}: {{{name}}} is not filled in; there are {known}")


def _check_webhook(settings: WebhookEffect, place: str) -> None:
    parts = urlsplit(settings.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f'{place}.url: not a URL: "{settings.url}" (write https://HOST/PATH)')
    if settings.secret_env is not None and not os.environ.get(settings.secret_env):
        raise ConfigError(f"{place}.secret_env: the variable {settings.secret_env} is not set")
