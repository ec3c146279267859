"""What a Keeper lets through, keeps, and takes for the engine's failure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from detector.continuation.keeper import MAX_EVENT_BYTES, Keeper
from detector.observation import Ending

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def event(delta: dict[str, Any], ids: list[int] | None = None, finish: str | None = None, **members: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": ids}
    return b"data: " + json.dumps(HEAD | {"choices": [choice]} | members, separators=(",", ":")).encode() + b"\n\n"


ROLE = event({"role": "assistant", "content": ""}, prompt_token_ids=[7, 8, 9])
DONE = b"data: [DONE]\n\n"


def keeper(**flags: Any) -> Keeper:
    return Keeper(**{"asked": True, "keep_text": False, "max_tokens": 1000} | flags)


def test_ids_are_kept_and_taken_out() -> None:
    one = keeper()
    assert one.feed(ROLE) == event({"role": "assistant", "content": ""}, prompt_token_ids=None)
    assert one.feed(event({"content": "a"}, [1, 2])) == event({"content": "a"})
    assert one.feed(event({"content": "b"}, [], "stop")) == event({"content": "b"}, finish="stop")
    assert one.feed(DONE) == DONE
    assert one.end() == b""
    assert (one.prompt_ids, bytes(one.answer_ids), one.token_count) == (b"7,8,9", b",1,2", 2)
    assert (one.failure, one.finished, one.done) == (None, True, True)


def test_a_client_that_asked_itself_gets_them() -> None:
    one = keeper(asked=False)
    payload = ROLE + event({"content": "a"}, [1, 2]) + event({}, [3])
    assert one.feed(payload) == payload
    assert one.token_count == 3


def test_an_event_for_its_ids_alone_is_left_out() -> None:
    one = keeper()
    one.feed(ROLE)
    assert one.feed(event({}, [4, 5])) == b""
    assert one.feed(event({}, [6], "stop")) == event({}, finish="stop")
    assert bytes(one.answer_ids) == b",4,5,6"


def test_text_that_looks_like_ids_stays() -> None:
    one = keeper()
    one.feed(ROLE)
    said = event({"content": '"token_ids":[1,2],"finish_reason":null,"error":1'}, [3])
    assert one.feed(said) == said.replace(b'"token_ids":[3]', b'"token_ids":null')
    assert bytes(one.answer_ids) == b",3"


FAILURES = {
    "error": (b'data: {"error":{"message":"dead","type":"InternalServerError","code":500}}\n\n', Ending.ENGINE_ERROR),
    "abort": (event({"content": "x"}, None, "abort"), Ending.ENGINE_ABORT),
    "no_finish_reason": (b"", Ending.UPSTREAM_CLOSED),
}


@pytest.mark.parametrize("what", FAILURES)
@pytest.mark.parametrize("together", [True, False])
def test_an_engine_that_gives_up_is_not_passed_on(what: str, together: bool) -> None:
    last, ending = FAILURES[what]
    before = ROLE + event({"content": "a"}, [1])
    one = keeper()
    if together:
        out = one.feed(before + last + DONE)
    else:
        out = b"".join(one.feed(piece) for piece in (before, last, DONE) if piece)
    assert out == keeper().feed(before)
    assert one.failure is not None
    assert (one.failure.what, one.failure.ending) == (what, ending)
    assert one.feed(event({"content": "late"}, [2])) == b""


def test_an_end_without_an_end_mark_is_a_failure_only_without_a_finish_reason() -> None:
    cut, whole = keeper(), keeper()
    cut.feed(ROLE + event({"content": "a"}, [1]) + b"data: {")
    assert cut.end() == b""
    assert cut.failure is not None
    whole.feed(ROLE + event({"content": "a"}, [1], "stop"))
    assert whole.end() == b""
    assert whole.failure is None


def test_comments_and_what_is_not_json_pass() -> None:
    one = keeper()
    payload = b": keep-alive\n\n" + ROLE + b"event: x\ndata: no json\n\n"
    assert one.feed(payload) == payload.replace(b"[7,8,9]", b"null")


@pytest.mark.parametrize(("delta", "state"), [({"reasoning": "hm"}, "reasoning"), ({"tool_calls": [{}]}, "tool_call")])
def test_states_of_parsers_are_seen(delta: dict[str, Any], state: str) -> None:
    one = keeper()
    one.feed(ROLE + event(delta, [1]))
    assert (one.in_reasoning, one.in_tool_call) == (state == "reasoning", state == "tool_call")
    one.feed(event({"content": "so"}, [2]))
    assert one.in_reasoning is False


def test_tokens_without_ids_and_several_choices_are_seen() -> None:
    one = keeper()
    one.feed(ROLE + event({"content": "a"}, None))
    assert one.ids_incomplete
    assert not one.several_choices
    one.feed(event({"content": "a"}, [1]).replace(b'"index":0', b'"index":1'))
    assert one.several_choices


def test_beyond_the_limit_nothing_is_kept_but_ids_are_still_taken_out() -> None:
    one = keeper(max_tokens=5, keep_text=True)
    one.feed(ROLE + event({"content": "a"}, [1, 2]))
    assert not one.too_long
    assert one.feed(event({"content": "b"}, [3])) == event({"content": "b"})
    assert one.too_long
    assert (one.prompt_ids, bytes(one.answer_ids), one.text) == (None, b"", [])
    assert one.feed(event({"content": "c"}, [4])) == event({"content": "c"})
    assert bytes(one.answer_ids) == b""


def test_an_event_without_an_end_is_not_held_for_ever() -> None:
    one = keeper()
    one.feed(ROLE)
    piece = b"data: " + b"x" * (MAX_EVENT_BYTES // 4)
    out = b"".join(one.feed(piece) for _ in range(5))
    assert out == piece * 5
    assert one.too_long
    assert one.feed(DONE) == DONE
    one.end()
    assert one.failure is None
