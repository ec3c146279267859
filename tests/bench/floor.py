"""The floor under any proxy in Python: each client connection is copied to one of its own, and nothing is read.

Usage: python tests/bench/floor.py --port PORT --upstream PORT. Its row in the table says how much of a proxy's figures
CPython, uvloop and this machine's kernel take before the proxy has done anything.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import cast

import uvloop


class Copy(asyncio.Protocol):
    """Writes what it receives to its other side; what comes before there is one waits."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.other: asyncio.Transport | None = None
        self.early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """The whole work."""
        if self.other is not None:
            self.other.write(data)
        else:
            self.early += data

    def connection_lost(self, exc: Exception | None) -> None:
        """One side closed: so does the other."""
        if self.other is not None:
            self.other.close()


class Client(Copy):
    """The client's side, which opens the other one."""

    def __init__(self, upstream_port: int) -> None:
        super().__init__()
        self.upstream_port = upstream_port
        self.connecting: asyncio.Task[None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        super().connection_made(transport)
        self.connecting = asyncio.get_running_loop().create_task(self.connect())

    async def connect(self) -> None:
        """Open the other side and hand on what came early."""
        _, upstream = await asyncio.get_running_loop().create_connection(Copy, "127.0.0.1", self.upstream_port)
        upstream.other, self.other = self.transport, upstream.transport
        if self.early:
            self.other.write(self.early)


async def serve(port: int, upstream_port: int) -> None:
    """Copy until cancelled."""
    server = await asyncio.get_running_loop().create_server(lambda: Client(upstream_port), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="Copies bytes between a client and an upstream.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", type=int, required=True)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.port, options.upstream))


if __name__ == "__main__":
    main()
