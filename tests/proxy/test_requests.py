"""What the engine gets of a client's request, and on which of its connections."""

from __future__ import annotations

import asyncio
import json

import pytest
from upstreams import (
    BODY,
    Peer,
    Seen,
    answer_of,
    answering,
    chunked,
    connected,
    proxy_to,
    until,
)


async def forwarded(*fields: str, method: str = "GET", target: str = "/v1/models", **flags: object) -> Seen:
    """One request without a body, as the engine received it."""
    seen: list[Seen] = []
    lines = "".join(f"{field}\r\n" for field in fields)
    async with proxy_to(answering(seen), **flags) as proxy, connected(proxy) as client:
        await client.send(f"{method} {target} HTTP/1.1\r\nHost: api.example:1234\r\n{lines}\r\n".encode())
        assert (await client.head())[0] == 200
    assert len(seen) == 1
    return seen[0]


# ---- identity and tracing --------------------------------------------------------------------------------------------


async def test_a_request_id_is_passed_on_and_returned() -> None:
    seen: list[Seen] = []
    async with proxy_to(answering(seen)) as proxy, connected(proxy) as client:
        await client.post(BODY, "X-Request-ID: my id/7")
        _, fields, _ = await client.answer()
    assert seen[0].field("x-request-id") == "my id/7"
    assert fields["x-request-id"] == "my id/7"


async def test_a_missing_request_id_is_made_up_unique_and_returned() -> None:
    seen: list[Seen] = []
    returned = []
    async with proxy_to(answering(seen)) as proxy, connected(proxy) as client:
        for _ in range(3):
            await client.post()
            returned.append((await client.answer())[1]["x-request-id"])
    assert [one.field("x-request-id") for one in seen] == returned
    assert len(set(returned)) == 3
    assert all(returned)


async def test_an_empty_request_id_counts_as_none() -> None:
    seen: list[Seen] = []
    async with proxy_to(answering(seen)) as proxy, connected(proxy) as client:
        await client.post(BODY, "X-Request-Id:")
        returned = (await client.answer())[1]["x-request-id"]
    assert returned
    assert seen[0].field("x-request-id") == returned


async def test_an_engine_that_echoes_the_id_is_not_doubled() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer_of(b"ok", "x-request-id: the-engines-own"))

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.post(BODY, "X-Request-Id: mine")
        raw = await client.reader.readuntil(b"\r\n\r\n")
    assert raw.lower().count(b"x-request-id") == 1
    assert b"the-engines-own" in raw


async def test_an_error_of_our_own_carries_the_request_id() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.post(BODY, "X-Request-Id: mine")
        status, fields, _ = await client.answer()
    assert (status, fields["x-request-id"]) == (502, "mine")


async def test_trace_context_passes_untouched() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seen = await forwarded(f"traceparent: {trace}", "tracestate: vendor=a,b=c", "baggage: x=1")
    assert seen.field("traceparent") == trace
    assert seen.field("tracestate") == "vendor=a,b=c"
    assert seen.field("baggage") == "x=1"


# ---- where it came from, where it goes -------------------------------------------------------------------------------


async def test_forwarded_fields_are_added() -> None:
    seen = await forwarded()
    assert seen.field("x-forwarded-for") == "127.0.0.1"
    assert seen.field("x-forwarded-proto") == "http"
    assert seen.field("x-forwarded-host") == "api.example:1234"


async def test_forwarded_fields_of_a_proxy_before_us_are_kept() -> None:
    seen = await forwarded(
        "X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https", "X-Forwarded-Host: front.example"
    )
    assert seen.field("x-forwarded-for") == "203.0.113.9, 127.0.0.1"
    assert seen.field("x-forwarded-proto") == "https"
    assert seen.field("x-forwarded-host") == "front.example"


async def test_a_chain_given_in_two_fields_is_kept_whole() -> None:
    seen = await forwarded("X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 198.51.100.2")
    assert seen.field("x-forwarded-for") == "203.0.113.9, 198.51.100.2, 127.0.0.1"


async def test_the_host_is_the_engines() -> None:
    seen: list[Seen] = []
    async with proxy_to(answering(seen)) as proxy, connected(proxy) as client:
        await client.post()
        await client.answer()
        backend = proxy.gateway.backends[0]
    assert seen[0].field("host") == f"{backend.host}:{backend.port}"


async def test_fields_of_the_connection_stay_on_it_and_all_others_pass_in_order() -> None:
    seen = await forwarded(
        "Connection: keep-alive, X-Hop",
        "X-Hop: 1",
        "Keep-Alive: timeout=5",
        "TE: trailers",
        "Proxy-Authorization: Basic x",
        "Proxy-Connection: keep-alive",
        "X-One: a",
        "Accept: */*",
        "x-one: b",
        "Cookie: c=d",
    )
    assert [field for field in seen.fields if not field[0].startswith((b"x-forwarded", b"x-request", b"host"))] == [
        (b"X-One", b"a"),
        (b"Accept", b"*/*"),
        (b"x-one", b"b"),
        (b"Cookie", b"c=d"),
    ]


async def test_the_clients_key_is_passed_on_where_the_proxy_has_none() -> None:
    assert (await forwarded("Authorization: Bearer sk-mine")).field("authorization") == "Bearer sk-mine"


async def test_the_engines_key_replaces_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_KEY", "sk-engine")
    backend = {"api_key_env": "ENGINE_KEY"}
    seen = await forwarded("Authorization: Bearer sk-mine", backend=backend)
    assert seen.field("authorization") == "Bearer sk-engine"
    assert (await forwarded(backend=backend)).field("authorization") == "Bearer sk-engine"


# ---- every route, every method ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_every_method_passes(method: str) -> None:
    seen = await forwarded(method=method, target="/v1/files/a%2Fb?x=%20&y=1")
    assert (seen.method.decode(), seen.target.decode()) == (method, "/v1/files/a%2Fb?x=%20&y=1")


@pytest.mark.parametrize(
    "target",
    ["/v1/chat/completions/batch", "/v2/rerank", "/inference/v1/generate", "/tokenizer_info", "/not/known/at/all"],
)
async def test_routes_that_the_proxy_does_not_know_pass(target: str) -> None:
    assert (await forwarded(method="POST", target=target)).target.decode() == target


async def test_an_error_of_the_engine_passes_as_it_is() -> None:
    body = b'{"error": {"message":"The model `x` does not exist.","type":"NotFoundError","param":"model","code":404}}'

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer_of(body, "content-type: application/json", "x-own: 1", status=404))

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.post()
        status, fields, got = await client.answer()
    assert (status, fields["x-own"], got) == (404, "1", body)


async def test_a_body_that_is_not_json_passes_to_a_json_route() -> None:
    seen: list[Seen] = []
    async with proxy_to(answering(seen)) as proxy, connected(proxy) as client:
        for body in (b"{", b"[1,2]", b'"x"', b"\xff\xfe", b'{"stream":true,"stream_options":7}'):
            await client.post(body)
            assert (await client.answer())[0] == 200
    assert [one.body for one in seen] == [b"{", b"[1,2]", b'"x"', b"\xff\xfe", b'{"stream":true,"stream_options":7}']


# ---- bodies ----------------------------------------------------------------------------------------------------------


async def test_100_continue_is_answered_here_and_not_passed_on() -> None:
    seen: list[Seen] = []
    async with proxy_to(answering(seen)) as proxy, connected(proxy) as client:
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: p\r\nContent-Type: application/json\r\n"
            b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY)
        )
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(BODY)
        assert (await client.answer())[0] == 200
    assert seen[0].field("expect") is None


async def test_a_refused_request_gets_no_100_continue() -> None:
    async with proxy_to(answering([])) as proxy, connected(proxy) as client:
        await client.send(b"POST /sleep HTTP/1.1\r\nHost: p\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        assert (await client.answer())[0] == 403


async def test_a_chunked_json_body_is_read_and_sent_with_its_length() -> None:
    asked = json.dumps({"model": "m", "messages": []}).encode()
    seen: list[Seen] = []
    async with proxy_to(answering(seen)) as proxy, connected(proxy) as client:
        await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: p\r\nContent-Type: application/json\r\n")
        await client.send(b"Transfer-Encoding: chunked\r\n\r\n", chunked(asked[:5], asked[5:]))
        assert (await client.answer())[0] == 200
    assert (seen[0].body, seen[0].field("content-length")) == (asked, str(len(asked)))


async def test_a_chunked_upload_stays_chunked_and_equal() -> None:
    pieces = [bytes([number]) * 5000 for number in range(8)]
    seen: list[Seen] = []
    async with proxy_to(answering(seen)) as proxy, connected(proxy) as client:
        await client.send(b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: p\r\nContent-Type: audio/wav\r\n")
        await client.send(b"Transfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            await client.send(chunked(piece, end=False))
        await client.send(b"0\r\n\r\n")
        assert (await client.answer())[0] == 200
    assert seen[0].body == b"".join(pieces)
    assert seen[0].field("transfer-encoding") == "chunked"
    assert seen[0].field("content-length") is None


# ---- connections to the engine ---------------------------------------------------------------------------------------


async def ask_twice(keep_alive: float, *, age: float) -> int:
    """Ask twice with a pause of that many (pretended) seconds between; connections that the engine saw."""
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await answering([])(peer)

    flags = {"backend": {"keep_alive_seconds": keep_alive}}
    async with proxy_to(script, **flags) as proxy, connected(proxy) as client:
        await client.post()
        await client.answer()
        for idle in proxy.gateway.backends[0]._idle:
            idle.idle_since -= age
        await client.post()
        await client.answer()
    return connections


async def test_an_idle_connection_is_used_again_for_keep_alive_seconds() -> None:
    assert await ask_twice(4.0, age=0.0) == 1
    assert await ask_twice(400.0, age=300.0) == 1


async def test_an_idle_connection_that_the_engine_may_be_closing_is_not_used() -> None:
    assert await ask_twice(4.0, age=4.001) == 2


async def test_an_idle_connection_that_grew_old_is_closed() -> None:
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer_of(b"ok"))
        await peer.closed()
        closed.set()

    async with proxy_to(script) as proxy, connected(proxy) as client:
        await client.post()
        await client.answer()
        proxy.gateway.backends[0].close_idle(older_than_seconds=0.0)
        await closed.wait()


async def test_an_engine_that_closes_an_idle_connection_costs_nothing() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer_of(b"ok"))

    async with proxy_to(script) as proxy, connected(proxy) as client:
        for _ in range(3):
            await client.post()
            assert (await client.answer())[0] == 200
            await until(lambda: not proxy.gateway.backends[0]._idle)


async def test_an_engine_that_says_close_is_believed() -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.request()
        await peer.send(answer_of(b"ok", "connection: close"))
        await peer.closed()

    async with proxy_to(script) as proxy, connected(proxy) as client:
        for _ in range(2):
            await client.post()
            status, fields, _ = await client.answer()
            assert (status, fields.get("connection")) == (200, None)
    assert connections == 2
