"""Conversations are told apart by what stays the same in them, and nothing of it is kept."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.sessions import MIN_BODY_BYTES, Sessions

LONG = "x" * MIN_BODY_BYTES


def body(**members: Any) -> bytes:
    return msgspec.json.encode({"model": "m", "padding": LONG, **members})


def turn(number: int, system: str = "You are an agent.", **members: Any) -> bytes:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Fix the bug."}]
    for index in range(number):
        messages.append({"role": "assistant", "content": f"step {index}"})
    return body(messages=messages, **members)


def test_the_requests_of_a_conversation_share_a_key_and_other_conversations_have_another() -> None:
    sessions = Sessions(10)
    key = sessions.key(None, turn(0))
    assert key is not None
    assert sessions.key(None, turn(7)) == key
    assert sessions.key(None, turn(0, system="You are a poet.")) != key
    assert sessions.key(None, turn(0, user="someone")) != key


@pytest.mark.parametrize(
    "members",
    [
        {"prompt_cache_key": "a"},
        {"prompt": "Once upon a time"},
        {"input": "Once upon a time"},
        {"input": [{"role": "user", "content": "hi"}], "instructions": "be brief"},
        {"system": "be brief", "messages": [{"role": "user", "content": "hi"}]},
    ],
)
def test_every_api_has_something_that_names_the_conversation(members: dict[str, Any]) -> None:
    sessions = Sessions(10)
    assert sessions.key(None, body(**members)) is not None
    changed = dict.fromkeys(members, "another")
    assert sessions.key(None, body(**changed)) != sessions.key(None, body(**members))


def test_what_the_client_names_comes_before_what_it_says() -> None:
    sessions = Sessions(10)
    assert sessions.key(b"conversation-1", turn(0)) == sessions.key(b"conversation-1", turn(0, system="another"))
    cached = [sessions.key(None, turn(0, system=text, prompt_cache_key="k")) for text in ("one", "two")]
    assert cached[0] == cached[1]


def test_short_requests_and_those_without_words_have_no_key() -> None:
    sessions = Sessions(10)
    assert sessions.key(b"named", b'{"model":"m","messages":[{"role":"user","content":"hi"}]}') is None
    assert sessions.key(None, body()) is None
    assert Sessions(0).key(None, turn(0)) is None


def test_keys_are_salted() -> None:
    assert Sessions(10).key(None, turn(0)) != Sessions(10).key(None, turn(0))


def test_the_oldest_conversations_are_forgotten() -> None:
    sessions = Sessions(3)
    keys = [sessions.key(f"conversation {number}".encode(), turn(0)) or b"" for number in range(5)]
    for key in keys[:3]:
        sessions.served(key, "a")
    sessions.served(keys[0], "b")
    for key in keys[3:]:
        sessions.served(key, "a")
    assert len(sessions) == 3
    assert [sessions.last(key) for key in keys] == ["b", None, None, "a", "a"]


@given(st.one_of(st.binary(), st.recursive(st.none() | st.text() | st.integers(), st.lists).map(msgspec.json.encode)))
def test_no_body_breaks_it(piece: bytes) -> None:
    sessions = Sessions(10)
    for text in (piece, b'{"messages":' + piece + b"}", b'{"input":[' + piece + b"]}"):
        key = sessions.key(None, text + b" " * MIN_BODY_BYTES)
        assert key is None or len(key) == 16
