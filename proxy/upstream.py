"""Connections to one engine: opened, kept for a few seconds, given to one exchange at a time."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from typing import TYPE_CHECKING, Final, NamedTuple, cast
from urllib.parse import urlsplit

from detector.tap.request import rename_model
from proxy import config

if TYPE_CHECKING:
    from proxy.forward import Exchange

WRITE_BUFFER_BYTES: Final = 256 * 1024
"""Above this much unsent data the other side is no longer read."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to one engine. Whoever holds ``exchange`` gets its bytes."""

    __slots__ = ("backend", "exchange", "idle_since", "reused", "transport")

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.exchange: Exchange | None = None
        self.idle_since = 0.0
        self.reused = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Hand the bytes to the exchange; an engine that speaks unasked is hung up on."""
        if self.exchange is not None:
            self.exchange.upstream_data(data)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the exchange, or leave the pool."""
        if self.exchange is not None:
            self.exchange.upstream_lost(exc)
        else:
            self.backend.forget(self)

    def pause_writing(self) -> None:
        """The engine reads slower than the client uploads."""
        if self.exchange is not None:
            self.exchange.upload_paused()

    def resume_writing(self) -> None:
        """The engine caught up."""
        if self.exchange is not None:
            self.exchange.upload_resumed()


class Away(NamedTuple):
    """Why an engine gets no request now."""

    reason: str
    """In words, for clients: "the engine is being restarted"."""
    back_at: float
    """Monotonic time at which it should be back; a guess."""


class Backend:
    """One engine: its settings, its idle connections, and how many requests are on it."""

    def __init__(self, settings: config.Backend) -> None:
        self.settings = settings
        self.name = settings.name
        parts = urlsplit(settings.url)
        assert parts.hostname is not None
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.netloc = parts.netloc.encode("latin-1")
        self.ssl = ssl.create_default_context() if parts.scheme == "https" else None
        key = os.environ.get(settings.api_key_env) if settings.api_key_env else None
        self.authorization = f"Bearer {key}".encode("latin-1") if key else None
        self.base_url = settings.url.rstrip("/")
        """A path is appended to it."""
        self.headers = {"authorization": self.authorization.decode("latin-1")} if self.authorization else {}
        """What a question of our own carries."""
        self.generation = 0
        """Launch of the engine; grows when /metrics show a new process."""
        self.away: Away | None = None
        """Not None: it gets no new request. Only control changes it."""
        self.exchanges: set[Exchange] = set()
        """Requests in flight."""
        self.begun = 0
        """Requests ever sent, canaries included: equal before and after means that nothing ran in between."""
        self.connect_failures = 0
        self.takes_token_ids = True
        """False once the engine refused a request for ``return_token_ids``, and took it without."""
        self._idle: list[UpstreamConnection] = []

    def serves(self, model: str) -> bool:
        """Whether requests for that model may come here."""
        return not self.settings.models or model in self.settings.models

    def own_name(self, model: str | None) -> str | None:
        """The engine's own name for the client's model."""
        return self.settings.models.get(model, model) if model is not None else None

    def named(self, body: bytes, model: str | None) -> bytes:
        """A request body with the engine's own name for the client's model."""
        own = self.own_name(model)
        return rename_model(body, own) if own is not None and own != model else body

    def acquire(self) -> UpstreamConnection | None:
        """An idle connection that the engine has not had time to close, or None."""
        limit = time.monotonic() - self.settings.keep_alive_seconds
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since > limit and not connection.transport.is_closing():
                connection.reused = True
                return connection
            connection.transport.abort()
        return None

    async def connect(self) -> UpstreamConnection:
        """A new connection. Raises OSError or TimeoutError (ssl.SSLError is an OSError)."""
        async with asyncio.timeout(self.settings.connect_timeout_seconds):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: UpstreamConnection(self), self.host, self.port, ssl=self.ssl
            )
        return connection

    def release(self, connection: UpstreamConnection) -> None:
        """Keep the connection for the next request."""
        connection.exchange = None
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """The engine closed an idle connection."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close_idle(self, older_than_seconds: float = -1.0) -> None:
        """Close idle connections of at least this age; all by default."""
        limit = time.monotonic() - older_than_seconds
        for connection in [one for one in self._idle if one.idle_since <= limit]:
            self._idle.remove(connection)
            connection.transport.abort()
