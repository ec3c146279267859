"""An engine that a command can restart, as ``--reset`` does with a real one."""

from __future__ import annotations

import shlex
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from replay.emulator import Emulator, serving


class Restartable:
    """An emulator on a port that stays, and a second port on which a GET starts it anew."""

    def __init__(self, make: Callable[[], Emulator]) -> None:
        self.emulator = make()
        self.starts = 1
        self.url = ""
        self.reset_command = ""
        self._make = make
        self._serving = AsyncExitStack()

    async def open(self) -> None:
        self.url = await self._serving.enter_async_context(serving(self.emulator))

    async def restart(self, _request: web.Request) -> web.Response:
        await self._serving.aclose()
        self.emulator = self._make()
        self.starts += 1
        port = int(self.url.rpartition(":")[2])
        await self._serving.enter_async_context(serving(self.emulator, port=port))
        return web.Response()

    async def close(self) -> None:
        await self._serving.aclose()


@asynccontextmanager
async def restartable(make: Callable[[], Emulator]) -> AsyncIterator[Restartable]:
    engine = Restartable(make)
    app = web.Application()
    app.router.add_get("/", engine.restart)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await engine.open()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        code = f"import urllib.request; urllib.request.urlopen('http://{host}:{port}/')"
        engine.reset_command = shlex.join([sys.executable, "-I", "-S", "-c", code])
        yield engine
    finally:
        await engine.close()
        await runner.cleanup()
