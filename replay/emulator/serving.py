"""An emulator on a port of its own, which its deaths can close."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from replay.listening import stop_listening

from .emulator import Emulator

KEEP_ALIVE_SECONDS = 5.0
"""vLLM closes a connection that was idle for this long (VLLM_HTTP_TIMEOUT_KEEP_ALIVE)."""


class ListeningFront:
    """The listening socket and the connections of one served emulator."""

    def __init__(self, listener: asyncio.Server, server: web.Server, busy: set[asyncio.Transport]) -> None:
        """busy: the transports whose request is being answered, kept up to date by the caller."""
        self._listener = listener
        self._server = server
        self._busy = busy

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._listener.sockets[0].getsockname()[1])

    def refuse(self) -> None:
        """Close the port and idle connections; those with a request in flight stay."""
        self._listener.close()
        self._server.pre_shutdown()
        for connection in self._server.connections:
            if connection.transport is not None and connection.transport not in self._busy:
                connection.transport.close()

    def drop(self) -> None:
        """Cut every connection where it stands: no last chunk, no goodbye."""
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()


def _track_busy(busy: set[asyncio.Transport]) -> Middleware:
    @web.middleware
    async def track(request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            return await handler(request)
        busy.add(transport)
        try:
            return await handler(request)
        finally:
            busy.discard(transport)

    return track


@asynccontextmanager
async def serving(emulator: Emulator, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve an emulator while the context lasts; yields its base URL without a slash at the end.

    port 0 takes a free one. Raises OSError if the address cannot be bound.
    """
    app = emulator.app()
    busy: set[asyncio.Transport] = set()
    app.middlewares.append(_track_busy(busy))
    runner = web.AppRunner(
        app,
        handle_signals=False,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    server = runner.server
    if server is None:
        raise RuntimeError("aiohttp set up no server")
    try:
        listener = await asyncio.get_running_loop().create_server(server, host, port, backlog=1024)
        front = ListeningFront(listener, server, busy)
        emulator.on_air(front)
        try:
            yield f"http://{host}:{front.port}"
        finally:
            emulator.on_air(None)
            await stop_listening(listener)
            front.drop()
    finally:
        await runner.cleanup()
