"""A server of a test that leaves no connection behind, not even one that came in the moment of its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from replay.listening import stop_listening

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handle: Handler) -> AsyncIterator[str]:
    """Run the handler for each connection; yields http://HOST:PORT. At the end handlers are cancelled.

    A handler that was cancelled before its first step closes nothing, so connections are closed here.
    """
    tasks: set[asyncio.Future[None]] = set()
    writers: set[asyncio.StreamWriter] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        task = asyncio.ensure_future(handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(lambda _: writers.discard(writer))

    server = await asyncio.start_server(begin, "127.0.0.1", 0, backlog=1024)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await stop_listening(server)
        left = tuple(writers)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in left:
            writer.transport.abort()
        await asyncio.sleep(0)  # an aborted transport closes its socket in the next round


async def close(writer: asyncio.StreamWriter) -> None:
    """Close, and wait until it is closed; the other side may have been faster."""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
