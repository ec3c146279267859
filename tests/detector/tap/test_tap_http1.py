"""Heads and chunk framing, beside llhttp where it can judge."""

from __future__ import annotations

import itertools

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.tap.http1 import (
    LAST_CHUNK,
    BodyFraming,
    ChunkedFraming,
    InvalidHTTP,
    chunk,
    parse_response_head,
)

VLLM = b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 06:48:50 GMT\r\nserver: uvicorn\r\ncontent-type: text/event-stream"


def test_the_head_of_a_stream() -> None:
    head = parse_response_head(VLLM + b"; charset=utf-8\r\ntransfer-encoding: chunked", b"POST")
    assert (head.status, head.reason, head.framing) == (200, b"OK", BodyFraming.CHUNKED)
    assert head.event_stream
    assert head.keep_alive
    assert [name for _, name, _ in head.fields] == [b"date", b"server", b"content-type", b"transfer-encoding"]


@pytest.mark.parametrize(
    ("raw", "method", "framing", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", b"GET", BodyFraming.LENGTH, True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5", b"GET", BodyFraming.LENGTH, True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close", b"GET", BodyFraming.LENGTH, False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 5", b"GET", BodyFraming.LENGTH, False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: Keep-Alive", b"GET", BodyFraming.LENGTH, True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5", b"HEAD", BodyFraming.NONE, True),
        (b"HTTP/1.1 204 No Content", b"POST", BodyFraming.NONE, True),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9", b"GET", BodyFraming.NONE, True),
        (b"HTTP/1.1 100 Continue", b"POST", BodyFraming.NONE, True),
        (b"HTTP/1.1 200 ", b"GET", BodyFraming.CLOSE, False),
        (b"HTTP/1.1 200", b"GET", BodyFraming.CLOSE, False),
    ],
)
def test_what_ends_the_body(raw: bytes, method: bytes, framing: BodyFraming, keep_alive: bool) -> None:
    head = parse_response_head(raw, method)
    assert (head.framing, head.keep_alive) == (framing, keep_alive)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/2 200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 OK",
        b"ICY 200 OK",
        b"HTTP/1.1 200 OK\r\n folded: x",
        b"HTTP/1.1 200 OK\r\na b: c",
        b"HTTP/1.1 200 OK\r\n: c",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\na: b\nc: d",
        b"HTTP/1.1 200 OK\r\na: b\x00",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1",
        b"HTTP/1.1 200 OK\r\ncontent-length: +1",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1, 1",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked",
    ],
)
def test_heads_that_can_be_read_in_two_ways_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidHTTP):
        parse_response_head(raw, b"GET")


payloads = st.lists(st.binary(min_size=1, max_size=300), max_size=8)


def wire_of(pieces: list[bytes], extension: bytes, trailer: bytes) -> bytes:
    chunks = [b"%X%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces]
    return b"".join(chunks) + b"0\r\n" + trailer + b"\r\n"


@given(
    payloads,
    st.sampled_from([b"", b";a=b", b" ;x"]),
    st.sampled_from([b"", b"t: 1\r\n", b"t: 1\r\nu: 2\r\n"]),
    st.binary(max_size=20),
    st.data(),
)
def test_any_cut_gives_the_same_payload_and_the_same_end(
    pieces: list[bytes], extension: bytes, trailer: bytes, after: bytes, data: st.DataObject
) -> None:
    wire = wire_of(pieces, extension, trailer)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    places = [0, *cuts, len(wire)]
    framing, got, end = ChunkedFraming(), [], -1
    for begin, stop in itertools.pairwise(places):
        last = stop == len(wire)
        end = framing.feed(wire[begin:stop] + (after if last else b""), got)
        if end >= 0:
            assert begin + end == len(wire)
            break
    assert end >= 0
    assert framing.at_boundary
    assert b"".join(got) == b"".join(pieces)


@given(payloads)
def test_one_byte_at_a_time(pieces: list[bytes]) -> None:
    wire, framing, got = wire_of(pieces, b"", b""), ChunkedFraming(), []
    ends = [framing.feed(wire[index : index + 1], got) for index in range(len(wire))]
    assert ends == [-1] * (len(wire) - 1) + [1]
    assert b"".join(got) == b"".join(pieces)


def test_the_boundary_between_two_chunks_is_known() -> None:
    framing: ChunkedFraming = ChunkedFraming()
    assert framing.at_boundary
    for piece, boundary in ((b"3", False), (b"\r\nab", False), (b"c\r", False), (b"\n", True), (b"1\r\nx\r\n", True)):
        framing.feed(piece, [])
        assert framing.at_boundary is boundary, piece


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n",
        b"g\r\n",
        b"+1\r\nx\r\n",
        b"0x1\r\nx\r\n",
        b"1_0\r\n",
        b" 1\r\nx\r\n",
        b"-1\r\n",
        b"1\nx\r\n",
        b"1\r\nxy\r\n",
        b"1\r\nx\n",
        b"11111111111111111\r\n",
        b"1;" + b"x" * 5000,
    ],
)
def test_broken_framing_is_refused(wire: bytes) -> None:
    with pytest.raises(InvalidHTTP):
        ChunkedFraming().feed(wire, [])


class Judge:
    """llhttp's reading of a response."""

    def __init__(self) -> None:
        self.body = b""
        self.complete = False
        self.fields: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


@given(
    payloads,
    st.lists(st.tuples(st.from_regex(rb"[a-z][a-z0-9-]{0,12}", fullmatch=True), st.binary(max_size=12)), max_size=5),
)
def test_what_we_accept_llhttp_reads_in_the_same_way(pieces: list[bytes], fields: list[tuple[bytes, bytes]]) -> None:
    reserved = {b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"proxy-connection"}
    lines = b"".join(b"%s: %s\r\n" % field for field in fields if field[0] not in reserved)
    head = b"HTTP/1.1 200 OK\r\n" + lines + b"transfer-encoding: chunked"
    wire = head + b"\r\n\r\n" + b"".join(map(chunk, pieces)) + LAST_CHUNK
    judge = Judge()
    try:
        ours = parse_response_head(head, b"POST")
    except InvalidHTTP:
        return  # stricter than llhttp is fine
    httptools.HttpResponseParser(judge).feed_data(wire)
    got: list[bytes] = []
    assert ChunkedFraming().feed(wire[len(head) + 4 :], got) == len(wire) - len(head) - 4
    assert judge.complete
    assert b"".join(got) == judge.body
    assert [(name, value) for name, _, value in ours.fields] == [
        (name, value.strip(b" \t")) for name, value in judge.fields
    ]


def test_an_empty_chunk_would_end_the_body_and_is_never_made() -> None:
    assert chunk(b"") == b""
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
