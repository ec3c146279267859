"""TLS on both sides: a proxy that serves it, and one whose engine speaks it."""

from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp
import pytest
from upstreams import BODY, Peer, chunked, event, settings, upstream

from proxy.serve import running

DATA = Path(__file__).parent.parent / "data" / "tls"
CERTIFICATE = str(DATA / "certificate.pem")
EVENTS = [event(f'{{"n":{number}}}') for number in range(3)]


async def streaming(peer: Peer) -> None:
    await peer.request()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    await peer.send(head + chunked(*EVENTS))


async def test_a_stream_passes_over_tls_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", CERTIFICATE)
    tls = {"server__tls_certificate_file": CERTIFICATE, "server__tls_key_file": str(DATA / "key.pem")}
    trusting = ssl.create_default_context(cafile=CERTIFICATE)
    async with upstream(streaming) as url, running(settings(url, **tls)) as engine_side:
        assert engine_side.url.startswith("https://")
        async with (
            running(settings(engine_side.url, **tls)) as proxy,
            aiohttp.ClientSession() as session,
            session.post(f"{proxy.url}/v1/other", data=BODY, ssl=trusting) as answer,
        ):
            assert answer.status == 200
            assert await answer.read() == b"".join(EVENTS)


async def test_an_engine_with_an_untrusted_certificate_is_unreachable() -> None:
    tls = {"server__tls_certificate_file": CERTIFICATE, "server__tls_key_file": str(DATA / "key.pem")}
    async with (
        upstream(streaming) as url,
        running(settings(url, **tls)) as engine_side,
        running(settings(engine_side.url)) as proxy,
        aiohttp.ClientSession() as session,
        session.post(f"{proxy.url}/v1/other", data=BODY) as answer,
    ):
        assert answer.status == 502
        assert "certificate" in (await answer.json())["error"]["message"].lower()
