"""Text events seen by their shape say what reading them says, in whatever order the shapes come."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tap_captures import capture, names

from detector.observation import Ending, Observation, RequestFacts
from detector.tap.dialects import read_event
from detector.tap.meter import Meter
from detector.tap.plain import MAX_ATTEMPTS, PlainEvents


def event(text: str, **choice: Any) -> bytes:
    delta = {"content": text}
    return b"data: " + json.dumps({"id": "c1", "choices": [{"index": 0, "delta": delta, **choice}]}).encode() + b"\n\n"


def learned(payload: bytes) -> PlainEvents:
    plain = PlainEvents()
    plain.learn(payload, payload[6:-2], read_event(payload[6:-2]))
    return plain


@pytest.mark.parametrize("text", ["b", "two words", "\\n" * 3, "a {brace} and [1]", "it's", "\t"])
def test_another_text_in_the_same_shape_is_seen(text: str) -> None:
    assert learned(event("a")).matches(event(text))


@pytest.mark.parametrize(
    "other",
    [
        event(""),
        event("é"),
        event('a "quote" \\u0041'.replace("\\\\", "\\"), finish_reason="stop"),
        event("a", finish_reason="stop"),
        event("a", logprobs={"content": []}),
        event("a") + event("a"),
        event("a")[:-1],
        b"data: [DONE]\n\n",
        b'data: {"id": "c1", "choices": [{"index": 0, "delta": {"content": "a", "x": "b"}}]}\n\n',
        b'data: {"id": "c1", "choices": [{"index": 0, "delta": {"content": "a\nb"}}]}\n\n',
        b'data: {"id": "c1", "choices": [{"index": 0, "delta": {"content": "a\\"}}]}\n\n',
    ],
)
def test_anything_else_is_read(other: bytes) -> None:
    assert not learned(event("a")).matches(other)


@pytest.mark.parametrize(
    "payload",
    [
        b'data: {"text": "a", "choices": [{"index": 0, "delta": {"content": "b"}}]}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {"content": ""}}]}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": {"completion_tokens": 3}}\n\n',
    ],
)
def test_a_shape_is_learned_only_where_its_text_decides(payload: bytes) -> None:
    assert not learned(payload).matches(payload)


def test_a_stream_of_many_shapes_is_no_longer_learned() -> None:
    plain = PlainEvents()
    for number in range(MAX_ATTEMPTS + 1):
        payload = event("a", stop_reason=number)
        plain.learn(payload, payload[6:-2], read_event(payload[6:-2]))
        if number < MAX_ATTEMPTS:
            assert plain._begin
            assert plain._end != b""
    assert not plain.matches(event("a", stop_reason=MAX_ATTEMPTS))


SHAPES = (
    event,
    lambda text: event(text, logprobs=None, finish_reason=None, token_ids=None),
    lambda text: event(text, finish_reason="stop"),
    lambda text: event(text, token_ids=[1, 2]),
    lambda text: event(text).replace(b'"content"', b'"reasoning_content"'),
    lambda text: event(text).replace(b'"delta": {"content": ', b'"text": ').replace(b"}}]}", b"}]}"),
    lambda text: event(text)[:-3] + b', "usage": {"completion_tokens": 7}}\n\n',
    lambda text: event(text).replace(b'"index": 0', b'"index": 1'),
    lambda text: b": comment\n" + event(text),
    lambda text: event(text).replace(b"\n\n", b"\r\n\r\n"),
    lambda text: b'data: {"error": {"message": "' + json.dumps(text).encode()[1:-1] + b'"}}\n\n',
    lambda _: b"data: [DONE]\n\n",
)


def measured(pieces: list[tuple[float, bytes]], one_by_one: bool) -> tuple[Observation, list[tuple[float, int | None]]]:
    meter = Meter(
        RequestFacts(route="chat", stream=True),
        request_id="r",
        backend="b",
        generation=0,
        started=0.0,
        started_unix=0.0,
    )
    meter.head(0.0, 200, "text/event-stream")
    for at, payload in pieces:
        if one_by_one:  # a cut inside each event keeps every one of them from being seen by its shape
            meter.feed(at, payload[:1])
            meter.feed(at, payload[1:])
        else:
            meter.feed(at, payload)
    steps = [(step.at, step.tokens) for step in meter.drain_steps()]
    return meter.finish(pieces[-1][0], Ending.COMPLETE), steps


@given(
    st.lists(
        st.tuples(st.sampled_from(range(len(SHAPES))), st.text(max_size=6), st.integers(1, 4)), min_size=1, max_size=12
    )
)
def test_any_stream_measures_as_one_that_is_read_event_by_event(events: list[tuple[int, str, int]]) -> None:
    payloads = [SHAPES[shape](text) for shape, text, repeats in events for _ in range(repeats)]
    pieces = [(0.02 * (number + 1), payload) for number, payload in enumerate(payloads)]
    assert measured(pieces, one_by_one=False) == measured(pieces, one_by_one=True)


@pytest.mark.parametrize("name", names("*.raw"))
def test_captures_measure_as_when_they_are_read_event_by_event(name: str) -> None:
    answer = capture(name)
    pieces = [(0.02 * (number + 1), payload) for number, payload in enumerate(answer.payloads)]
    if pieces:
        assert measured(pieces, one_by_one=False) == measured(pieces, one_by_one=True)
