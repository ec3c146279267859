"""How a server stops listening without losing whoever came in that very moment; the proxy and the emulator both do."""

from __future__ import annotations

import asyncio
from typing import Final

ROUNDS_OF_AN_ACCEPT: Final = 3
"""Rounds of asyncio's loop from accepting a client to its connection being known."""


async def stop_listening(server: asyncio.Server) -> None:
    """Accept no more, let what was accepted get its connection, then close.

    asyncio before Python 3.12 loses a client that it accepts in the very round of its loop in which the server closes:
    its socket stays open until the garbage collector finds it. uvloop does not.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, asyncio.SelectorEventLoop):
        for listener in server.sockets:
            loop.remove_reader(listener.fileno())
        for _ in range(ROUNDS_OF_AN_ACCEPT):
            await asyncio.sleep(0)
    server.close()
