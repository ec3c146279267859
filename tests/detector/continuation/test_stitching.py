"""Two parts of an answer, cut at any byte, read like the uninterrupted answer."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from emulated_stream import Read, stream
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detector.continuation.ask import ask_token_ids
from detector.continuation.handover import Handover, Refused, Way, hand_over, keeps_text
from detector.continuation.keeper import Keeper
from detector.continuation.stitch import Stitcher
from detector.tap.request import read_request
from replay.emulator.text import decode

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LOOKED = [{"role": "user", "content": "look"}, {"role": "tool", "tool_call_id": "1", "content": "a tree"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CONTEXT_LENGTH = 32768
PIECES = st.lists(st.integers(1, 2000), min_size=1, max_size=4)


class TokensSeen(Exception):
    """The answer is refused, because the client saw tokens of half a character."""


def body_of(path: str, members: dict[str, Any]) -> bytes:
    said = {"messages": [{"role": "user", "content": "tell"}]} if path == CHAT else {"prompt": "def add(a, b):"}
    return json.dumps(
        {"model": "emulated", "stream": True, "temperature": 0, "max_tokens": 60} | said | members
    ).encode()


def kept(path: str, body: bytes) -> tuple[bytes, Keeper]:
    asking = ask_token_ids(body, read_request(path, body))
    keeper = Keeper(asked=asking is not None, keep_text=keeps_text(body), max_tokens=1000)
    return asking or body, keeper


def fed(filter_: Keeper | Stitcher, payload: bytes, sizes: list[int]) -> bytes:
    """The payload through a filter, in pieces of these sizes over and over."""
    out, at, turn = b"", 0, 0
    while at < len(payload):
        size = sizes[turn % len(sizes)]
        out += filter_.feed(payload[at : at + size])
        at, turn = at + size, turn + 1
    return out


def settled(handover: Handover | Refused) -> Handover:
    """A handover whose questions are answered by an engine with the same tokenizer."""
    assert isinstance(handover, Handover)
    while (question := handover.question) is not None:
        assert handover.learn(decode(question["tokens"])) is None
    if handover.shows_tokens_twice:
        raise TokensSeen
    if handover.needs_context_length:
        assert handover.learn_context_length(CONTEXT_LENGTH) is None
    return handover


def continued(path: str, body: bytes, cut: int, sizes: list[int], seed: int) -> tuple[bytes, Keeper]:
    """The answer to this request whose first engine dies after so many bytes."""
    sent, keeper = kept(path, body)
    facts = read_request(path, body)
    whole = b"".join(stream(path, sent, depth=4, seed=seed))
    out = fed(keeper, whole[: cut % len(whole)], sizes)
    if keeper.finished:
        assert hand_over(facts.route, sent, keeper) == Refused("already_finished")
        return out, keeper
    handover = settled(hand_over(facts.route, sent, keeper))
    target = handover.path(path.encode()).decode()
    if handover.way is Way.AGAIN:
        sent, keeper = kept(path, body)
        rest = Keeper(asked=keeper.asked, keep_text=False, max_tokens=1000)
    else:
        rest = Stitcher(handover, client_wants_ids=not keeper.asked)
    payload = b"".join(stream(target, handover.request_body(), depth=2, seed=seed + 1))
    out += fed(rest, payload, sizes) + rest.end()
    assert rest.failure is None
    return out, keeper


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {}),
    "completion": (COMPLETIONS, {}),
    "usage": (CHAT, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    "limit of a chat": (CHAT, {"max_tokens": None, "max_completion_tokens": 40, "min_tokens": 30}),
    "default limit": (COMPLETIONS, {"max_tokens": None}),
    "log-probabilities": (COMPLETIONS, {"logprobs": 1}),
    "tools": (CHAT, {"messages": LOOKED, "tools": [TOOL], "stream_options": {"include_usage": True}}),
}


@pytest.mark.parametrize("case", CASES)
@given(cut=st.integers(0, 1 << 16), sizes=PIECES, seed=st.integers(0, 50))
@example(cut=0, sizes=[1], seed=0)
@settings(max_examples=25, deadline=None)
def test_an_answer_cut_at_any_byte(case: str, cut: int, sizes: list[int], seed: int) -> None:
    path, members = CASES[case]
    body = body_of(path, members)
    expected = Read(b"".join(stream(path, body, depth=4, seed=seed)))
    try:
        payload, keeper = continued(path, body, cut, sizes, seed)
    except TokensSeen:
        assert "logprobs" in members
        return
    if keeper.finished and not payload.endswith(b"[DONE]\n\n"):
        assert expected.text.startswith(Read(payload).text)
        return
    got = Read(payload)
    assert (got.text, got.ids, got.endings, got.usage) == (expected.text, [], expected.endings, expected.usage)
    assert (got.roles, got.done, len(got.identities)) == (expected.roles, 1, 1)
    assert got.keys <= expected.keys


@given(
    cut=st.integers(600, 9000),
    at=st.integers(0, 150),
    length=st.integers(1, 40),
    include=st.booleans(),
    path=st.sampled_from([CHAT, COMPLETIONS]),
    seed=st.integers(0, 20),
)
@settings(max_examples=80, deadline=None)
def test_a_stop_string_anywhere_around_the_cut(
    cut: int, at: int, length: int, include: bool, path: str, seed: int
) -> None:
    whole = Read(b"".join(stream(path, body_of(path, {})))).text
    stop = whole[at : at + length] or "never said"
    body = body_of(
        path, {"stop": stop, "include_stop_str_in_output": include, "stream_options": {"include_usage": True}}
    )
    expected = Read(b"".join(stream(path, body, depth=4, seed=seed)))
    payload, keeper = continued(path, body, cut, [300], seed)
    if keeper.finished and not payload.endswith(b"[DONE]\n\n"):
        return
    got = Read(payload)
    assert (got.text, got.endings, got.done) == (expected.text, expected.endings, 1)
    assert got.usage[0] == expected.usage[0]


@given(sizes=PIECES, seed=st.integers(0, 20), case=st.sampled_from(list(CASES)))
@settings(max_examples=30, deadline=None)
def test_a_whole_answer_passes_as_if_nobody_had_asked(case: str, sizes: list[int], seed: int) -> None:
    path, members = CASES[case]
    body = body_of(path, members)
    sent, keeper = kept(path, body)
    out = fed(keeper, b"".join(stream(path, sent, seed=seed)), sizes) + keeper.end()
    assert timeless(out) == timeless(b"".join(stream(path, body, seed=seed)))
    assert keeper.failure is None


def timeless(payload: bytes) -> bytes:
    return re.sub(rb'"created":\d+', b"", payload)
