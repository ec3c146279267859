"""Removing the usage that the client had not asked for."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tap_captures import capture

from detector.tap import removal
from detector.tap.removal import UsageRemover

ROLE = b'data: {"id":"1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
TEXT = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
LAST = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"z"},"finish_reason":"stop"}]}\n\n'
CHUNK = b'data: {"id":"1","choices":[],"usage":{"completion_tokens":3}}\n\n'
STAMPED = b'data: {"id":"1","choices":[],"usage":{"completion_tokens":3},"system_fingerprint":"f"}\n\n'
DONE = b"data: [DONE]\n\n"
COUNTED = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"completion_tokens":3}}\n\n'
QUOTING = b'data: {"choices":[{"delta":{"content":"\\"choices\\":[],\\"usage\\":{}"}}]}\n\n'


def remove(payloads: list[bytes], chunk: bool = True, events: bool = False) -> bytes:
    remover = UsageRemover(chunk, events)
    return b"".join([remover.feed(payload) for payload in payloads]) + remover.end()


def neutral(payload: bytes) -> bytes:
    """The payload without what differs from one request to the next."""
    return re.sub(rb'"id":"[^"]*"|"created":\d+', b"", payload)


def test_chat_capture_becomes_the_plain_stream() -> None:
    asked = capture("dflash_trained_chat_stream_usage_only.raw")
    plain = capture("dflash_trained_chat_stream_plain.raw")
    assert neutral(remove(asked.payloads)) == neutral(plain.payload)
    assert b'"system_fingerprint":"vllm' in remove(asked.payloads)


def test_per_event_usage_is_removed_from_a_capture() -> None:
    counted = capture("dflash_trained_completion_stream.raw")
    plain = capture("dflash_trained_completion_stream_plain.raw")
    ids = re.compile(rb'"(prompt_)?token_ids":\[[^\]]*\]')
    cleaned = ids.sub(lambda found: b'"%btoken_ids":null' % (found[1] or b""), remove(counted.payloads, True, True))
    assert neutral(cleaned) == neutral(plain.payload)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (ROLE + TEXT + LAST + CHUNK + DONE, ROLE + TEXT + LAST + DONE),
        (ROLE + TEXT + LAST + DONE, ROLE + TEXT + LAST + DONE),
        (TEXT + CHUNK, TEXT),
        (QUOTING + CHUNK + QUOTING, QUOTING + QUOTING),
        (TEXT + CHUNK + DONE + b"trailing text", TEXT + DONE + b"trailing text"),
        (b": keep-alive\n\n" + TEXT + CHUNK, b": keep-alive\n\n" + TEXT),
        (TEXT + b": note\n" + CHUNK, TEXT + b": note\n"),
        (TEXT.replace(b"\n", b"\r\n") + CHUNK.replace(b"\n", b"\r\n") + DONE, TEXT.replace(b"\n", b"\r\n") + DONE),
        (TEXT + CHUNK.replace(b"\n", b"\r") + DONE, TEXT + DONE),
        (TEXT + CHUNK.replace(b"\n\n", b"\r\n\r") + b"\n" + DONE, TEXT + DONE),
        (TEXT + b'data: {"choices":[],\ndata: "usage":{"x":1}}\n\n' + DONE, TEXT + DONE),
        (TEXT + b'event: x\ndata: { "choices" : [ ] , "usage" : {} }\n\n', TEXT),
        (b'data: {"choices":[],"usage":null}\n\n', b'data: {"choices":[],"usage":null}\n\n'),
        (b'data: {"usage":{}}\n\n', b'data: {"usage":{}}\n\n'),
        (b'data: {"choices":[]}\n\n', b'data: {"choices":[]}\n\n'),
        (TEXT + b'data: {"choices":[],"usage":{}', TEXT + b'data: {"choices":[],"usage":{}'),
        (b"\xef\xbb\xbf" + CHUNK + TEXT, TEXT),
        (b"data: \xff\xc3 \xed\n\n" + CHUNK, b"data: \xff\xc3 \xed\n\n"),
        (b'data: {"error": {"message": "gone"}}\n\n' + DONE, b'data: {"error": {"message": "gone"}}\n\n' + DONE),
        (b"\n\n\n" + TEXT + b"\n\n" + CHUNK + b"\n" + DONE, b"\n\n\n" + TEXT + b"\n\n" + b"\n" + DONE),
        (b"", b""),
    ],
)
def test_usage_chunk(stream: bytes, expected: bytes) -> None:
    assert remove([stream]) == expected
    assert remove([stream[i : i + 1] for i in range(len(stream))]) == expected


@pytest.mark.parametrize(
    ("last", "chunk", "expected"),
    [
        (LAST, STAMPED, LAST.replace(b"}]}\n", b'}],"system_fingerprint":"f"}\n')),
        (LAST, CHUNK, LAST),
        (LAST, STAMPED.replace(b'"f"', b"null"), LAST),
        (LAST.replace(b"\n", b"\r\n"), STAMPED, LAST.replace(b"}]}\n\n", b'}],"system_fingerprint":"f"}\r\n\r\n')),
        (LAST, b": wait\n\n" + STAMPED, LAST + b": wait\n\n"),
        (LAST.replace(b'"id"', b'"system_fingerprint":"own","id"'), STAMPED, None),
        (LAST.replace(b"\n\n", b"\n: }\n\n"), STAMPED, None),
        (LAST.replace(b"\n\n", b"\nid: 4\n\n"), STAMPED, None),
    ],
)
def test_fingerprint_goes_back(last: bytes, chunk: bytes, expected: bytes | None) -> None:
    stream = TEXT + last + chunk + DONE
    assert remove([stream]) == TEXT + (last if expected is None else expected) + DONE


def test_llama_cpp_timings_go_back() -> None:
    chunk = b'data: {"choices":[],"system_fingerprint":"b1","usage":{"x":1},"timings":{"predicted_n":3}}\n\n'
    last = b'data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"system_fingerprint":"b1"}\n\n'
    assert remove([last, chunk, DONE]) == last.replace(b'"b1"}', b'"b1","timings":{"predicted_n":3}}') + DONE


def test_the_finished_event_is_held_no_longer_than_the_next_event() -> None:
    remover = UsageRemover(True, False)
    assert remover.feed(TEXT) == TEXT
    assert remover.feed(LAST) == b""
    assert remover.feed(TEXT) == LAST + TEXT
    assert remover.feed(LAST) == b""
    assert remover.end() == LAST


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (COUNTED, COUNTED.replace(b',"usage":{"completion_tokens":3}', b"")),
        (b'data: {"usage":{"a":{"b":[1]}}, "choices":[{}]}\n\n', b'data: { "choices":[{}]}\n\n'),
        (b'data: {"choices":[{}] , "usage" : {"a":1} , "x":1}\n\n', b'data: {"choices":[{}]  , "x":1}\n\n'),
        (
            b'data: {"choices":[{"x":{"y":1,"usage":{"a":1}}}],"usage":{"a":1}}\n\n',
            b'data: {"choices":[{"x":{"y":1,"usage":{"a":1}}}]}\n\n',
        ),
        (b'data: {"choices":[{}],"usage":{},"usage":{}}\n\n', None),
        (b'data: {"choices":[{}],\ndata: "usage":{"a":\ndata: 1}}\n\n', None),
        (b'data: {"choices":[{}],"usage":null}\n\n', None),
        (b'data: {"type":"message_delta","usage":{"output_tokens":3}}\n\n', None),
        (QUOTING, None),
    ],
)
def test_event_usage(event: bytes, expected: bytes | None) -> None:
    stream = ROLE + event + CHUNK + DONE
    wanted = ROLE + (event if expected is None else expected)
    assert remove([stream], True, True) == wanted + DONE
    assert remove([stream], False, True) == wanted + CHUNK + DONE


def test_usage_that_the_engine_sends_to_everyone_stays() -> None:
    stream = ROLE + COUNTED + COUNTED + CHUNK + DONE
    assert remove([stream]) == stream


def test_nothing_to_remove() -> None:
    stream = ROLE + COUNTED + LAST + STAMPED + DONE
    assert remove([stream], False, False) == stream


def test_a_huge_content_event_streams_through_and_the_usage_chunk_still_goes() -> None:
    remover = UsageRemover(True, False)
    out = remover.feed(TEXT[:-10] + b"x" * removal.MAX_CONTENT_EVENT_BYTES)
    assert len(out) > removal.MAX_CONTENT_EVENT_BYTES
    for _ in range(20):
        assert remover.feed(b"y" * 10_000) == b"y" * 10_000
    assert len(remover._pending) < 10
    assert remover.feed(b'"}}]}\n\n' + CHUNK + DONE) == b'"}}]}\n\n' + DONE


def test_a_long_usage_chunk_is_removed_and_an_endless_one_is_not() -> None:
    def chunk(steps: int) -> bytes:
        return b'data: {"choices":[],"usage":{},"metrics":{"per_step_accepted":[' + b"7," * steps + b"7]}}\n\n"

    assert remove([TEXT, chunk(100_000), DONE]) == TEXT + DONE
    endless = chunk(600_000)
    assert remove([TEXT, endless, DONE]) == TEXT + endless + DONE
    assert remove([TEXT, endless[:700_000], endless[700_000:], DONE]) == TEXT + endless + DONE


def test_clean_is_true_only_where_forwarding_is_safe() -> None:
    remover = UsageRemover(True, False)
    assert remover.clean(TEXT + TEXT + b": c\n\n")
    assert not remover.clean(TEXT + CHUNK)
    assert not remover.clean(LAST)
    assert not remover.clean(TEXT[:-1])
    remover.feed(TEXT[:20])
    assert not remover.clean(TEXT)
    remover.feed(TEXT[20:])
    assert remover.clean(TEXT)
    remover.feed(LAST)
    assert not remover.clean(TEXT)
    assert UsageRemover(False, False).clean(COUNTED + LAST)


def test_clean_waits_for_what_was_pending_when_removal_was_given_up() -> None:
    remover = UsageRemover(True, False)
    assert remover.feed(COUNTED + TEXT[:10]) == COUNTED
    assert not remover.clean(TEXT)
    assert remover.feed(TEXT[10:]) == TEXT


ENDS = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])
LINES = st.sampled_from(
    [
        *(event.rstrip() for event in (ROLE, TEXT, LAST, CHUNK, STAMPED, DONE, COUNTED, QUOTING)),
        b'data: {"choices":[],',
        b'data: "usage":{"x":1}}',
        b": comment",
        b"event: x",
        b"data: \xff\xc3",
        b"",
        b"x" * 90,
    ]
)
STREAMS = st.lists(st.tuples(LINES, ENDS, ENDS | st.just(b"")), max_size=14).map(
    lambda parts: b"".join(b"".join(part) for part in parts)
)


@settings(max_examples=400, deadline=None)
@given(
    stream=STREAMS,
    places=st.lists(st.integers(0, 900), max_size=6),
    chunk=st.booleans(),
    events=st.booleans(),
    bounds=st.sampled_from([(1 << 16, 1 << 20), (80, 95), (60, 60)]),
)
def test_cuts_do_not_matter(
    stream: bytes, places: list[int], chunk: bool, events: bool, bounds: tuple[int, int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(removal, "MAX_CONTENT_EVENT_BYTES", bounds[0])
        patch.setattr(removal, "MAX_USAGE_CHUNK_BYTES", bounds[1])
        whole = remove([stream], chunk, events)
        edges = [0, *sorted(min(place, len(stream)) for place in places), len(stream)]
        assert remove([stream[a:b] for a, b in pairwise(edges)], chunk, events) == whole
        assert remove([stream[i : i + 1] for i in range(len(stream))], chunk, events) == whole
    if not (chunk or events):
        assert whole == stream


TEXTS = st.text(max_size=30)


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=8),
    counted=st.booleans(),
    places=st.lists(st.integers(0, 900), max_size=6),
)
def test_the_client_gets_the_plain_stream(texts: list[str], counted: bool, places: list[int]) -> None:
    def event(number: int, asked: bool) -> bytes:
        body: dict[str, Any] = {"id": "c", "choices": [{"index": 0, "delta": {"content": texts[number]}}]}
        last = number == len(texts) - 1
        body["choices"][0]["finish_reason"] = "stop" if last else None
        if asked and counted:
            body["usage"] = {"completion_tokens": number, "note": texts[number]}
        if last and not asked:
            body["system_fingerprint"] = "f"
        return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"

    asked = b"".join(event(number, True) for number in range(len(texts))) + STAMPED + DONE
    plain = b"".join(event(number, False) for number in range(len(texts))) + DONE
    edges = [0, *sorted(min(place, len(asked)) for place in places), len(asked)]
    assert remove([asked[a:b] for a, b in pairwise(edges)], True, counted) == plain
