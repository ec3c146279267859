"""Framing of server-sent events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.tap.sse import EventFramer, event_data

LINES = st.sampled_from(
    [
        b"data: {}",
        b"data:x",
        b"data",
        b"data: ",
        b": keep-alive",
        b"event: error",
        b"id: 7",
        b"retry: 1",
        b"nonsense",
        b"data: \xff\xfe broken \xc3",
        b"data: [DONE]",
        b"data: " + b"y" * 40,
        b"",
        b"",
    ]
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\n", b"\n\n", b"\r\n", b"\r"])), max_size=30).map(
    lambda parts: b"".join(line + end for line, end in parts)
)


def frame(payloads: list[bytes], max_event_bytes: int = 1 << 20) -> tuple[list[bytes], int]:
    framer = EventFramer(max_event_bytes)
    events = [event for payload in payloads for event in framer.feed(payload)]
    return events + framer.end(), framer.oversized_events


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(stream)) for place in places), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


@settings(max_examples=300, deadline=None)
@given(stream=STREAMS, places=st.lists(st.integers(0, 400), max_size=8), bound=st.sampled_from([8, 20, 46, 1000]))
def test_cuts_do_not_matter(stream: bytes, places: list[int], bound: int) -> None:
    whole = frame([stream], bound)
    assert frame([stream[i : i + 1] for i in range(len(stream))], bound) == whole
    assert frame(cut(stream, places), bound) == whole


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\r\ndata:  b\r\n\r\n", [b"a\n b"]),
        (b": comment\n\ndata: a\n\n", [b"a"]),
        (b": comment\ndata: a\n\n", [b"a"]),
        (b"event: error\ndata: a\nid: 1\n\n", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"\n\n\ndata: a\n\n\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data\n\n", [b""]),
        (b"database: a\n\n", []),
        (b"event: ping\n\n", []),
        (b"data: a\n", [b"a"]),
        (b"", []),
    ],
)
def test_what_the_standard_says(stream: bytes, events: list[bytes]) -> None:
    assert frame([stream]) == (events, 0)


def test_fast_path_agrees_with_the_slow_one_after_the_start() -> None:
    framer = EventFramer()
    assert framer.feed(b"data: 0\n\n") == [b"0"]
    assert framer.feed(b"data: 1\n\ndata: 2\ndata: 3\n\n: c\n\n\ndata: 4\n\n") == [b"1", b"2\n3", b"4"]
    assert framer.feed(b"data: 5\n\nda") == [b"5"]
    assert framer.feed(b"ta: 6\n\n") == [b"6"]


def test_a_huge_event_is_counted_and_framing_goes_on() -> None:
    framer = EventFramer(max_event_bytes=100)
    assert framer.feed(b"data: a\n\ndata: " + b"x" * 5000) == [b"a"]
    for _ in range(50):
        assert framer.feed(b"y" * 1000) == []
    assert len(framer._pending) < 10
    assert framer.feed(b"\n\ndata: b\n\n") == [b"b"]
    assert framer.feed(b"data: " + b"x" * 200 + b"\n\ndata: c\n\n") == [b"c"]
    assert framer.oversized_events == 2
    assert framer.end() == []


def test_event_data_of_a_block_without_data() -> None:
    assert event_data(b": only a comment\n") is None
    assert event_data(b"data: a\n\n") == b"a"
