"""The engine's command line, read for what must be known before it is started."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from proxy.config_base import ConfigError
from proxy.config_effects import Level
from proxy.effects.arguments import at_level, option_value

DEFAULT_PORT: Final = 8000
ALL_ADDRESSES: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - compared with, not listened on
_SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh", "ash", "ksh"})


class Command(msgspec.Struct, frozen=True):
    """A command that serves an OpenAI API."""

    argv: tuple[str, ...]
    host: str
    """Address to reach it at."""
    port: int
    everywhere: bool
    """It listens on all addresses, past the proxy."""

    @property
    def url(self) -> str:
        """http://HOST:PORT of the engine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def at(self, level: Level | None) -> list[str]:
        """The command line at a level; None: as it was given."""
        return list(self.argv) if level is None else at_level(self.argv, level)


def read_command(argv: Sequence[str]) -> Command:
    """Find out where the engine will listen. Raises ConfigError."""
    if not argv:
        raise ConfigError('no engine: write it after "--": specbreaker supervise -- vllm serve MODEL')
    if shutil.which(argv[0]) is None:
        raise ConfigError(f"{argv[0]}: no such program")
    if option_value(argv, "--uds") is not None:
        raise ConfigError("--uds: the engine must listen on a port")
    if option_value(argv, "--ssl-certfile") is not None:
        raise ConfigError("--ssl-certfile: let specbreaker speak TLS to clients (server.tls_certificate_file) instead")
    text = option_value(argv, "--port")
    if text is not None and not (text.isdigit() and 0 < int(text) < 65536):
        raise ConfigError(f'--port: not a port: "{text}" (the proxy must know it before the engine starts)')
    host = option_value(argv, "--host") or ""
    reachable = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return Command(tuple(argv), reachable, int(text or DEFAULT_PORT), host in ALL_ADDRESSES)


def check_levels(command: Command, levels: Sequence[Level]) -> None:
    """Refuse a ladder that could not be climbed with this command line. Raises ConfigError."""
    if not levels:
        return
    if os.path.basename(command.argv[0]) in _SHELLS and "-c" in command.argv:
        raise ConfigError("ladder: the levels cannot be put into a shell's -c: give the engine's command itself")
    file = option_value(command.argv, "--config")
    if file is not None and any(level.speculative_config is None for level in levels):
        try:
            text = Path(file).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigError(f"--config {file}: {error.strerror}") from None
        if _speculates(text):
            raise ConfigError(f"--config {file}: move speculative-config to the command line, or no level can drop it")


def _speculates(text: str) -> bool:
    keys = (line.partition(":")[0].strip().replace("_", "-") for line in text.splitlines())
    return any(key in ("speculative-config", "spec-method", "spec-model", "spec-tokens") for key in keys)


def check_ports(command: Command, addresses: dict[str, tuple[str, int]]) -> None:
    """Refuse a proxy that would listen where the engine does. addresses: by their key. Raises ConfigError."""
    for key, (host, port) in addresses.items():
        same_host = command.everywhere or host in ALL_ADDRESSES or host == command.host
        if port and port == command.port and same_host:
            raise ConfigError(
                f"{key}: the engine listens on port {port} already: give it another --port, "
                "and clients the one of specbreaker"
            )
