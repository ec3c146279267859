"""HAProxy's agent-check: a port that says one line to whoever connects, and closes (HAProxy manual, "agent-check").

A degraded proxy asks for a hundredth of its share and not for none: without answers nobody would see that its engine
is well again, and where every engine is degraded requests must still go somewhere.
"""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.control import Control
from proxy.gateway import Gateway

SERVE: Final = b"ready up 100%\n"
AVOID: Final = b"ready up 1%\n"
DRAIN: Final = b"drain\n"
DOWN: Final = b"down\n"


def advice(gateway: Gateway, control: Control) -> bytes:
    """What HAProxy should do with this proxy now.

    Degraded is the backend that serves: a proxy that has moved its requests to a healthy fallback serves well.
    """
    if gateway.draining:
        return DRAIN
    if not any(watched.reachable for watched in control.watched.values()):
        return DOWN
    return AVOID if serving_degraded(gateway, control) else SERVE


def serving_degraded(gateway: Gateway, control: Control) -> bool:
    """Whether the backend that gets new requests is degraded."""
    return control.watched[gateway.routing.order[0].name].watch.verdict.degraded


async def listen(host: str, port: int, gateway: Gateway, control: Control) -> asyncio.Server:
    """Answer on a port. Raises OSError where it cannot be had."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(advice(gateway, control))
        writer.close()

    return await asyncio.start_server(answer, host, port)
