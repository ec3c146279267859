"""A server in front of an engine that cuts connections after so many events of their answer, at any speed the same."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from tests.proxy.local_server import close, serving

_FINISHES = b'"finish_reason":"'


class Cutter:
    """Passes bytes both ways."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self.url = ""
        self.after = 0
        """Events that pass before the cut."""
        self.cuts_left = 0
        self.cuts = 0

    def cut(self, after: int, *, times: int = 1) -> None:
        """Cut the next answers after so many events, or before the one that finishes them: a busy engine puts many
        tokens into one event."""
        self.after, self.cuts_left = after, times

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the engine is gone, or the test is over
        finally:
            await close(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_connection(*self._address)
        up = asyncio.create_task(self._pass(reader, engine_writer))
        try:
            await self._pass_until_cut(engine_reader, writer)
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)
            engine_writer.transport.abort()
            await close(engine_writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async def _pass_until_cut(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        room = self.after
        while data := await reader.read(65536):
            head, *events = data.split(b"data: ")
            place = next((at for at, event in enumerate(events) if at >= room or _FINISHES in event), None)
            if self.cuts_left and place is not None:
                writer.write(b"data: ".join([head, *events[:place]]))
                self.cuts_left -= 1
                self.cuts += 1
                return
            room -= len(events)
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def cutting(url: str) -> AsyncIterator[Cutter]:
    """A cutter in front of an engine; it has a URL of its own."""
    cutter = Cutter(url)
    async with serving(cutter.serve) as cutter.url:
        yield cutter
