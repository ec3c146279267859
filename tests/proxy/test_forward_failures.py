"""What the client is told when the engine fails, and what the engine is told when the client leaves."""

from __future__ import annotations

import asyncio
import json

import pytest
from upstreams import BODY, STREAM_HEAD, Peer, Script, chunked, connected, event, proxy_to, settings, upstream

from proxy.serve import running

CONTENT = event('{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}')


def error_of(body: bytes) -> dict[str, object]:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def sending(answer: bytes) -> Script:
    """Answers one request with these bytes, and closes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)

    return script


def in_turn(first: Script, later: Script) -> Script:
    """The first connection runs one script, every later one the other."""
    waiting = [first]

    async def script(peer: Peer) -> None:
        await (waiting.pop() if waiting else later)(peer)

    return script


async def refusing_url() -> str:
    """A port that nobody listens on."""
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    server.close()
    await server.wait_closed()
    return f"http://{host}:{port}"


async def test_an_engine_that_refuses_gives_502_in_openais_shape() -> None:
    async with running(settings(await refusing_url())) as proxy, connected(proxy) as client:
        await client.post()
        status, fields, body = await client.answer()
        assert (status, fields["content-type"]) == (502, "application/json")
        assert "backend primary cannot be reached" in str(error_of(body)["message"])
        await client.post()
        assert (await client.answer())[0] == 502


async def test_in_act_mode_an_unsent_request_goes_to_the_fallback() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with upstream(script) as good:
        config = settings(await refusing_url(), good, policy__mode="act")
        async with running(config) as proxy, connected(proxy) as client:
            await client.post()
            status, fields, _ = await client.answer()
    assert (status, fields["x-specbreaker-backend"]) == (200, "fallback1")


async def test_in_observe_mode_nothing_goes_to_the_fallback() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        raise AssertionError("the fallback was asked")

    async with (
        upstream(script) as good,
        running(settings(await refusing_url(), good)) as proxy,
        connected(proxy) as client,
    ):
        await client.post()
        assert (await client.answer())[0] == 502


async def test_a_request_that_may_have_been_acted_on_is_not_sent_again() -> None:
    requests = 0

    async def script(peer: Peer) -> None:
        nonlocal requests
        await peer.request()
        requests += 1

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.post()
        status, _, body = await client.answer()
    assert status == 502
    assert "not sent again" in str(error_of(body)["message"])
    assert requests == 1


async def test_a_get_on_a_kept_connection_that_was_just_closed_is_sent_again() -> None:
    async def first(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1")
        await peer.request()  # the engine gives up the kept connection just as it is used again

    script = in_turn(first, sending(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n2"))
    async with proxy_to(script) as proxy, connected(proxy) as client:
        for expected in (b"1", b"2"):
            await client.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await client.answer())[2] == expected


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(b"", id="between events"),
        pytest.param(b"19\r\ndata: {", id="in a chunk"),
    ],
)
async def test_a_stream_that_breaks_off_ends_with_an_error_event_and_no_done(ending: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD + chunked(CONTENT, end=False) + ending)

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.post()
        _, _, body = await client.answer()
    first, *rest = body.split(b"\n\n")
    assert first + b"\n\n" == CONTENT
    assert b"[DONE]" not in body
    assert "in the middle of the answer" in str(error_of(rest[-2].removeprefix(b"data: "))["message"])


async def test_the_connection_serves_on_after_a_stream_that_broke_off() -> None:
    """A client that has read the end asks again at once, on the same connection."""
    broken_off = STREAM_HEAD + chunked(CONTENT, end=False)
    script = in_turn(sending(broken_off), sending(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"))
    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.post()
        assert b'"error"' in (await client.answer())[2]
        await client.post()
        assert (await client.answer())[2] == b"ok"


async def test_raw_forwarding_that_breaks_off_inside_a_chunk_is_visibly_cut() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD + chunked(CONTENT, end=False) + b"19\r\ndata: {")

    async with proxy_to(script, measure__ask_usage=False) as proxy, connected(proxy) as client:
        await client.post()
        await client.head()
        assert not (await client.rest()).endswith(b"0\r\n\r\n")


async def test_a_json_answer_that_breaks_off_is_visibly_cut() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.post()
        assert (await client.head())[1]["content-length"] == "100"
        assert await client.rest() == b"{"


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000,
    ],
)
async def test_what_is_not_http_gives_502(answer: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        await peer.closed()

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.post()
        status, _, body = await client.answer()
    assert status == 502
    assert error_of(body)["type"] == "BadGatewayError"


async def test_an_engine_slow_to_the_first_byte_gives_504() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    async with proxy_to(script, backend={"first_byte_timeout_seconds": 0.01}) as proxy, connected(proxy) as client:
        await client.post()
        status, _, body = await client.answer()
    assert status == 504
    assert "did not answer within 0.01 s" in str(error_of(body)["message"])


async def test_an_engine_silent_in_the_middle_gives_an_error_event_and_is_hung_up_on() -> None:
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD + chunked(CONTENT, end=False))
        await peer.closed()
        closed.set()

    async with proxy_to(script, backend={"idle_timeout_seconds": 0.01}) as proxy, connected(proxy) as client:
        await client.post()
        _, _, body = await client.answer()
        assert b"was silent for 0.01 s" in body
        await closed.wait()


@pytest.mark.parametrize("streaming", [True, False])
async def test_when_the_client_leaves_the_engine_is_hung_up_on(streaming: bool) -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if streaming:
            await peer.send(STREAM_HEAD + chunked(CONTENT, end=False))
        asked.set()
        await peer.closed()
        closed.set()

    async with proxy_to(script) as proxy:
        async with connected(proxy) as client:
            await client.post()
            await asked.wait()
        await closed.wait()
        assert not proxy.gateway.backends[0].exchanges


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NOT HTTP AT ALL\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, 431),
    ],
)
async def test_requests_that_are_not_http_are_refused(request_bytes: bytes, status: int) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        raise AssertionError("it was forwarded")

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.send(request_bytes)
        got, _, body = await client.answer()
        assert (got, error_of(body)["code"]) == (status, status)
        assert await client.rest() == b""


async def test_a_client_that_never_finishes_its_head_is_told_and_closed() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()

    async with proxy_to(script, server__head_timeout_seconds=0.01) as proxy, connected(proxy) as client:
        await client.send(b"POST /v1/chat")
        assert (await client.rest()).startswith(b"HTTP/1.1 408 ")


def test_the_body_of_these_tests_is_a_stream() -> None:
    assert json.loads(BODY)["stream"] is True


async def test_an_upload_that_is_refused_halfway_still_gets_its_answer() -> None:
    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.send(b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n", b"x" * 100_000)
        status, _, body = await client.answer()
        assert (status, body) == (413, b"big")
        assert await client.rest() == b""
