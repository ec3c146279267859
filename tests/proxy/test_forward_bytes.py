"""The client gets what the engine sent."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upstreams import BODY, STREAM_HEAD, Peer, Seen, answer_of, chunked, connected, event, proxy_to

from proxy.serve import Proxy

CONTENT = '{"id":"c","choices":[{"index":0,"delta":{"content":"ab"},"finish_reason":null}]}'
LAST = '{"id":"c","choices":[{"index":0,"delta":{"content":"c"},"finish_reason":"stop"}]}'
USAGE = '{"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9,"total_tokens":12}}'


async def exchange(proxy: Proxy, body: bytes = BODY, *fields: str) -> tuple[int, dict[str, str], bytes]:
    async with connected(proxy) as client:
        await client.post(body, *fields)
        return await client.answer()


async def test_a_stream_arrives_as_it_was_sent_and_without_the_chunk_nobody_asked_for() -> None:
    async def script(peer: Peer) -> None:
        seen = await peer.request()
        assert b'"stream_options":{"include_usage":true}' in seen.body
        for payload in (event(CONTENT), event(CONTENT), event(LAST), event(USAGE), event("[DONE]")):
            await peer.send(
                STREAM_HEAD if payload == event(CONTENT) and not peer.writer.is_closing() and not sent else b""
            )
            sent.append(payload)
            await peer.send(chunked(payload, end=False))
        await peer.send(b"0\r\n\r\n")

    sent: list[bytes] = []
    async with proxy_to(script) as proxy:
        status, fields, body = await exchange(proxy)
    assert status == 200
    assert body == b"".join((event(CONTENT), event(CONTENT), event(LAST), event("[DONE]")))
    assert fields["server"] == "uvicorn"
    assert fields["content-type"] == "text/event-stream; charset=utf-8"
    assert fields["x-specbreaker-backend"] == "primary"
    assert fields["x-specbreaker-phase"] == "healthy"


async def test_a_client_that_asked_for_usage_gets_it_and_its_body_is_not_touched() -> None:
    asked = b'{"model":"m", "stream":true,"stream_options":{"include_usage":true},"messages":[]}'
    bodies: list[bytes] = []

    async def script(peer: Peer) -> None:
        bodies.append((await peer.request()).body)
        await peer.send(STREAM_HEAD + chunked(event(CONTENT), event(USAGE), event("[DONE]")))

    async with proxy_to(script) as proxy:
        _, _, body = await exchange(proxy, asked)
    assert bodies == [asked]
    assert body == event(CONTENT) + event(USAGE) + event("[DONE]")


async def test_without_asking_every_byte_of_the_request_and_the_chunk_framing_stay() -> None:
    raw = b"5;extension=1\r\nhello\r\n1\r\n!\r\n0\r\nTrailer: x\r\n\r\n"
    bodies: list[bytes] = []

    async def script(peer: Peer) -> None:
        bodies.append((await peer.request()).body)
        await peer.send(STREAM_HEAD + raw)

    async with proxy_to(script, measure__ask_usage=False) as proxy, connected(proxy) as client:
        await client.post(BODY)
        await client.head()
        assert await client.reader.readexactly(len(raw)) == raw
    assert bodies == [BODY]


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
async def test_content_encoding_is_left_alone(encoding: str) -> None:
    payload = b"\x1f\x8b\x00 not really compressed \x00\xff"

    async def script(peer: Peer) -> None:
        await peer.request()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: {encoding}\r\n"
        await peer.send(f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload)

    async with proxy_to(script) as proxy:
        _, fields, body = await exchange(proxy, BODY, f"Accept-Encoding: {encoding}")
    assert (fields["content-encoding"], body) == (encoding, payload)


async def test_a_body_that_ends_with_the_connection_becomes_chunked() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\n", b"to the ", b"end")

    async with proxy_to(script) as proxy:
        _, fields, body = await exchange(proxy)
    assert fields["transfer-encoding"] == "chunked"
    assert body == b"to the end"


async def test_an_http_1_0_client_gets_the_payload_without_chunks() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD + chunked(event(CONTENT), event("[DONE]")))

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.send(b"POST /v1/chat/completions HTTP/1.0\r\ncontent-type: application/json\r\n")
        await client.send(b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
        _, fields = await client.head()
        assert "transfer-encoding" not in fields
        assert await client.rest() == event(CONTENT) + event("[DONE]")


async def test_fields_that_the_engines_connection_names_stay_on_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer_of(b"ok", "Connection: keep-alive, X-Hop", "X-Hop: 1", "X-End: 2"))

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.post()
        _, fields, _ = await client.answer()
    assert "x-hop" not in fields
    assert fields["x-end"] == "2"


async def test_head_requests_and_204_have_no_body_and_keep_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 53\r\n\r\n")
        await peer.request()
        await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.send(b"HEAD /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await client.head())[1]["content-length"] == "53"
        await client.send(b"DELETE /v1/files/1 HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await client.head())[0] == 204


async def test_interim_responses_are_not_taken_for_the_answer() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with proxy_to(script) as proxy:
        status, _, body = await exchange(proxy)
    assert (status, body) == (200, b"ok")


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def script(peer: Peer) -> None:
        while True:
            seen = await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(seen.target), seen.target))

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.send(b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number for number in range(40)))
        assert [(await client.answer())[2] for _ in range(40)] == [b"/%d" % number for number in range(40)]


async def test_one_byte_at_a_time_in_both_directions() -> None:
    answer = STREAM_HEAD + chunked(event(CONTENT), event(LAST), event(USAGE), event("[DONE]"))

    async def script(peer: Peer) -> None:
        await peer.request()
        for index in range(len(answer)):
            peer.writer.write(answer[index : index + 1])
            if index % 16 == 0:
                await asyncio.sleep(0)

    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: p\r\nContent-Type: application/json\r\n"
    request += b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    async with proxy_to(script) as proxy, connected(proxy) as client:
        for index in range(len(request)):
            await client.send(request[index : index + 1])
        _, _, body = await client.answer()
    assert body == event(CONTENT) + event(LAST) + event("[DONE]")


# ---- 1,000 generated streams -----------------------------------------------------------------------------------------

text = st.binary(min_size=0, max_size=60).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b""))
line_end = st.sampled_from([b"\n", b"\r\n"])
generated_event = st.one_of(
    st.builds(lambda data, end: b"data: " + data + end + end, text, line_end),
    st.builds(lambda data, end: b": " + data + end + end, text, line_end),
    st.builds(
        lambda one, two, end: b"event: x" + end + b"data: " + one + end + b"data:" + two + end * 2, text, text, line_end
    ),
    st.just(event(CONTENT)),
    st.just(event(LAST)),
    st.just(event('{"choices":[{"delta":{"content":"\\"choices\\":[],\\"usage\\":{}"}}]}')),
    st.just(event("[DONE]")),
    st.just(b"data: " + b"x" * 40_000 + b"\n\n"),
    text,
)


@given(
    events=st.lists(generated_event, max_size=12),
    cuts=st.lists(st.integers(0, 45_000), max_size=12),
    chunk_cuts=st.lists(st.integers(0, 45_000), max_size=12),
)
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_generated_streams_arrive_as_sent(
    loop_proxy, events: list[bytes], cuts: list[int], chunk_cuts: list[int]
) -> None:
    payload = b"".join(events)
    wire = chunked(*pieces(payload, chunk_cuts))
    got = loop_proxy(STREAM_HEAD + wire, cuts)
    assert got == payload


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut data at the given places."""
    places = sorted({cut for cut in cuts if 0 < cut < len(data)})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True) if end > start]


@pytest.fixture
def loop_proxy():
    """One proxy for all examples: a function (wire bytes, cuts) -> payload that the client got."""
    with asyncio.Runner() as runner:
        wires: list[tuple[bytes, list[int]]] = []

        async def script(peer: Peer) -> None:
            while True:
                await peer.request()
                wire, cuts = wires[-1]
                await peer.send(*pieces(wire, cuts))

        context = proxy_to(script)
        proxy = runner.run(context.__aenter__())
        client_context = connected(proxy)
        client = runner.run(client_context.__aenter__())

        async def once(wire: bytes, cuts: list[int]) -> bytes:
            wires.append((wire, cuts))
            await client.post(BODY)
            return (await client.answer())[2]

        yield lambda wire, cuts: runner.run(once(wire, cuts))
        runner.run(client_context.__aexit__(None, None, None))
        runner.run(context.__aexit__(None, None, None))


def test_the_harness_reads_requests() -> None:
    assert Seen(b"GET", b"/", [(b"A", b"1")], b"").field("a") == "1"
