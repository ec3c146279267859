"""Large request bodies: nothing is held, nothing is changed."""

from __future__ import annotations

import asyncio
import hashlib

import psutil
import pytest
from served import served
from upstreams import BODY, Client, Peer, Seen, answer_of, answering, connected, opened, proxy_to, until, upstream

from proxy.upstream import WRITE_BUFFER_BYTES

MEGABYTE = 1024 * 1024
UPLOAD_HEAD = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: p\r\n"


def multipart(file_bytes: int) -> tuple[str, bytes, bytes]:
    """Header, and what stands before and after the file in a multipart body."""
    head = (
        b'--frontier\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
        b'--frontier\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    )
    tail = b"\r\n--frontier--\r\n"
    length = len(head) + file_bytes + len(tail)
    return f"Content-Type: multipart/form-data; boundary=frontier\r\nContent-Length: {length}\r\n\r\n", head, tail


async def test_200_megabytes_pass_equal_and_are_not_held() -> None:
    megabytes = 200
    piece = bytes(range(256)) * 4096
    fields, head, tail = multipart(megabytes * len(piece))
    arrived = hashlib.sha256()

    async def script(peer: Peer) -> None:
        seen = await peer.request(body=False)
        left = int(seen.field("content-length") or 0)
        while left:
            data = await peer.reader.read(min(left, MEGABYTE))
            arrived.update(data)
            left -= len(data)
        await peer.send(answer_of(b'{"text":"heard"}', "content-type: application/json"))

    sent = hashlib.sha256()
    async with upstream(script) as url:
        with served("--upstream", url) as proxy:
            process = psutil.Process(proxy.process.pid)
            before = peak = process.memory_info().rss
            async with opened(proxy.url) as client:
                await client.send(f"{UPLOAD_HEAD}{fields}".encode())
                for data in (head, *[piece] * megabytes, tail):
                    sent.update(data)
                    await client.send(data)
                    peak = max(peak, process.memory_info().rss)
                status, _, body = await client.answer()
    assert (status, body) == (200, b'{"text":"heard"}')
    assert arrived.hexdigest() == sent.hexdigest()
    assert (peak - before) / MEGABYTE < 30


async def test_an_engine_that_does_not_read_pauses_the_client() -> None:
    go = asyncio.Event()
    total = 64 * MEGABYTE
    arrived = 0

    async def script(peer: Peer) -> None:
        nonlocal arrived
        await peer.request(body=False)
        await go.wait()
        while arrived < total:
            arrived += len(await peer.reader.read(MEGABYTE))
        await peer.send(answer_of(b"ok"))

    async def send_all(client: Client) -> None:
        await client.send(f"{UPLOAD_HEAD}Content-Length: {total}\r\n\r\n".encode())
        for _ in range(64):
            await client.send(bytes(MEGABYTE))

    async with proxy_to(script) as proxy, connected(proxy) as client:
        sending = asyncio.create_task(send_all(client))
        backend = proxy.gateway.backends[0]
        await until(lambda: bool(backend.exchanges))
        (connection,) = proxy.gateway.connections
        (exchange,) = backend.exchanges
        await until(lambda: not connection.transport.is_reading())
        assert exchange._connection is not None
        assert exchange._connection.transport.get_write_buffer_size() < 4 * WRITE_BUFFER_BYTES
        assert not sending.done()
        go.set()
        await sending
        assert (await client.answer())[0] == 200
    assert arrived == total


async def test_an_engine_that_stops_reading_is_blamed_and_the_client_told() -> None:
    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        await asyncio.Event().wait()

    async def send_all(client: Client) -> None:
        while True:
            await client.send(bytes(MEGABYTE))

    async with proxy_to(script, server__client_stall_seconds=0.2) as proxy, connected(proxy) as client:
        await client.send(f"{UPLOAD_HEAD}Content-Length: {1024 * MEGABYTE}\r\n\r\n".encode())
        sending = asyncio.create_task(send_all(client))
        backend = proxy.gateway.backends[0]
        await until(lambda: any(exchange._upload_paused for exchange in backend.exchanges))
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        status, _, body = await client.answer()
    assert status == 504
    assert b"did not read the request for 0.2 s" in body


async def test_a_client_that_stops_in_the_middle_is_disconnected_and_so_is_the_engine() -> None:
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        await peer.closed()
        closed.set()

    async with proxy_to(script, server__client_stall_seconds=0.01) as proxy, connected(proxy) as client:
        await client.send(f"{UPLOAD_HEAD}Content-Length: 1000\r\n\r\nfirst".encode())
        assert await client.rest() == b""
        await closed.wait()


async def test_a_json_body_that_stops_in_the_middle_gets_408_and_is_not_forwarded() -> None:
    seen: list[Seen] = []
    async with (
        proxy_to(answering(seen), server__client_stall_seconds=0.01) as proxy,
        connected(proxy) as client,
    ):
        await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: p\r\nContent-Type: application/json\r\n")
        await client.send(b"Content-Length: 1000\r\n\r\n{")
        assert (await client.rest()).startswith(b"HTTP/1.1 408 ")
    assert seen == []


@pytest.mark.parametrize("chunked_body", [False, True])
@pytest.mark.parametrize(("excess", "inspected"), [(0, True), (1, False)])
async def test_a_json_body_over_the_limit_passes_unread(chunked_body: bool, excess: int, inspected: bool) -> None:
    limit = 100_000
    body = BODY[:-1] + b',"x":"' + b"y" * (limit + excess - len(BODY) - 7) + b'"}'
    assert len(body) == limit + excess
    seen: list[Seen] = []
    flags = {"server__max_inspected_body_bytes": limit}
    async with proxy_to(answering(seen), **flags) as proxy, connected(proxy) as client:
        framing = "Transfer-Encoding: chunked" if chunked_body else f"Content-Length: {len(body)}"
        fields = f"Host: p\r\nContent-Type: application/json\r\n{framing}"
        await client.send(f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n\r\n".encode())
        for start in range(0, len(body), 30_000):
            piece = body[start : start + 30_000]
            await client.send(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked_body else piece)
        await client.send(b"0\r\n\r\n" if chunked_body else b"")
        assert (await client.answer())[0] == 200
    assert (b"include_usage" in seen[0].body) is inspected
    assert (seen[0].body == body) is not inspected
