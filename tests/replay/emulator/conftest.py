import asyncio
import json
from contextlib import AsyncExitStack

import aiohttp
import pytest
from emulator_wire import read_raw

from replay.emulator import serving


class Client:
    """A client of one served emulator."""

    def __init__(self, base_url, session):
        self.base_url = base_url
        self.session = session

    async def request(self, method, path, **options):
        async with self.session.request(method, self.base_url + path, **options) as response:
            return response.status, await response.read()

    async def post(self, path, **body):
        return await self.request("POST", path, json=body)

    async def get(self, path):
        return await self.request("GET", path)

    async def complete(self, **options):
        status, body = await self.post("/v1/completions", **{"prompt": "hello there", "max_tokens": 20, **options})
        assert status == 200, body
        return json.loads(body)

    async def events(self, path="/v1/completions", **options):
        """JSON of the events of a stream, whose end mark is checked."""
        status, body = await self.post(path, **{"stream": True, "max_tokens": 20, **options})
        assert status == 200, body
        *events, done = [block.removeprefix(b"data: ") for block in body.split(b"\n\n") if block]
        assert done == b"[DONE]"
        return [json.loads(event) for event in events]

    async def raw(self, method, path, body=b"", **headers):
        """Status line, header names, and chunks as they came."""
        host, port = self.base_url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        fields = {"host": "emulator", "connection": "close", "content-length": str(len(body)), **headers}
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
        writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
        return read_raw(received)


@pytest.fixture
async def serve():
    """serve(emulator) -> a Client; the emulator is served until the test ends."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def start(emulator):
            return Client(await stack.enter_async_context(serving(emulator)), session)

        yield start
