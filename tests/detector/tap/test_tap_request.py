"""Reading a request, and asking for usage by splicing its bytes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.observation import RequestFacts
from detector.tap.request import SplicedBody, ask_usage, read_request, rename_model

CHAT = "/v1/chat/completions"


def ask(body: bytes, path: str = CHAT, token_counts: bool = False) -> SplicedBody | None:
    return ask_usage(body, read_request(path, body), token_counts=token_counts)


def is_subsequence(small: bytes, big: bytes) -> bool:
    rest = iter(big)
    return all(byte in rest for byte in small)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/chat/completions?x=1", "chat"),
        ("/openai/deployments/m/chat/completions/", "chat"),
        ("/v1/completions", "completions"),
        ("/v1/responses", "responses"),
        ("/v1/responses/resp_1", "other"),
        ("/v1/messages", "messages"),
        ("/v1/messages/count_tokens", "other"),
        ("/inference/v1/generate", "generate"),
        ("/generate", "generate"),
        ("/v1/chat/completions/batch", "other"),
        ("/v1/chat/completions/render", "other"),
        ("/generative_scoring", "other"),
        ("", "other"),
    ],
)
def test_route(path: str, route: str) -> None:
    assert read_request(path, b"").route == route


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"model": "m", "stream": True, "max_tokens": 7}, {"model": "m", "stream": True, "max_tokens": 7}),
        ({"max_tokens": 7, "max_completion_tokens": 9}, {"max_tokens": 9}),
        ({"max_output_tokens": 5}, {"max_tokens": 5}),
        ({"sampling_params": {"max_tokens": 4, "n": 2}}, {"max_tokens": 4, "n": 2}),
        ({"sampling_params": {"max_new_tokens": 4}}, {"max_tokens": 4}),
        ({"n": 3}, {"n": 3}),
        ({"n": 2, "best_of": 4}, {"n": 4}),
        ({"prompt": ["a", "b"]}, {"n": 2}),
        ({"prompt": [[1, 2], [3]]}, {"n": 2}),
        ({"prompt": [1, 2, 3]}, {"n": 1}),
        ({"prompt": ["a", "b"], "n": 2}, {"n": 4}),
        ({"prompt": []}, {"n": 1}),
        ({"stream_options": {"include_usage": True}}, {"usage_asked": True}),
        ({"stream_options": {"continuous_usage_stats": True}}, {"token_counts_asked": False}),
        (
            {"stream_options": {"continuous_usage_stats": True, "include_usage": True}},
            {"usage_asked": True, "token_counts_asked": True},
        ),
        ({"tools": [{"type": "function"}]}, {"parsers_possible": True}),
        ({"tools": []}, {}),
        ({"tools": None, "reasoning_effort": None}, {}),
        ({"reasoning_effort": "high"}, {"parsers_possible": True}),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {"parsers_possible": True}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {}),
        ({"model": 5, "n": "x", "stream": [], "max_tokens": {}, "stream_options": 3, "prompt": 1}, {}),
    ],
)
def test_facts(body: dict[str, Any], expected: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    assert read_request(CHAT, data) == RequestFacts(route="chat", body_bytes=len(data), **expected)


@settings(max_examples=200, deadline=None)
@given(body=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)), path=st.text(max_size=20))
def test_reading_never_raises(body: bytes, path: str) -> None:
    assert read_request(path, body).body_bytes == len(body)


@pytest.mark.parametrize("depth", [10, 100_000])
def test_deep_nesting_is_survived(depth: int) -> None:
    body = b'{"stream":true,"a":' + b"[" * depth + b"]" * depth + b"}"
    assert read_request(CHAT, body).stream is (depth == 10)
    assert (ask(body) is not None) is (depth == 10)


@pytest.mark.parametrize(
    ("body", "spliced"),
    [
        (b'{"stream":true}', b'{"stream_options":{"include_usage":true},"stream":true}'),
        (b' {\n "stream": true}\n', b' {"stream_options":{"include_usage":true},\n "stream": true}\n'),
        (b'{"stream":true,"stream_options":null}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
        (b'{"stream":true,"stream_options":{}}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
        (b'{"stream":true,"stream_options": { } }', b'{"stream":true,"stream_options": {"include_usage":true } }'),
        (
            b'{"stream":true,"stream_options":{"include_usage" : false, "x":1}}',
            b'{"stream":true,"stream_options":{"include_usage" : true, "x":1}}',
        ),
        (
            b'{"stream":true,"stream_options":{"include_usage":null}}',
            b'{"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            b'{"stream":true,"stream_options":{"y":{"include_usage":false},"x":[{"stream_options":{}}]}}',
            b'{"stream":true,"stream_options":{"include_usage":true,"y":{"include_usage":false},'
            b'"x":[{"stream_options":{}}]}}',
        ),
        (
            b'{"stream_options":{"include_usage":true},"stream":true,"stream_options":{"include_usage":false}}',
            b'{"stream_options":{"include_usage":true},"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            b'{"stream":true,"stream_options":{},"tools":[{"stream_options":{}}]}',
            b'{"stream":true,"stream_options":{"include_usage":true},"tools":[{"stream_options":{}}]}',
        ),
        (
            b'{"stream":true,"messages":[{"content":"\\"stream_options\\":{}"}]}',
            b'{"stream_options":{"include_usage":true},"stream":true,"messages":[{"content":"\\"stream_options\\":{}"}]}',
        ),
        (
            b'{"stream":true,"m":["stream_options"],"stream_options":{},"s":"stream_options"}',
            b'{"stream":true,"m":["stream_options"],"stream_options":{"include_usage":true},"s":"stream_options"}',
        ),
        (b'\xef\xbb\xbf{"stream":true}', b'\xef\xbb\xbf{"stream_options":{"include_usage":true},"stream":true}'),
    ],
)
def test_usage_is_spliced_in(body: bytes, spliced: bytes) -> None:
    answer = ask(body)
    assert answer == SplicedBody(body=spliced, remove_usage_chunk=True, remove_event_usage=False)
    assert json.loads(spliced)["stream_options"]["include_usage"] is True


@pytest.mark.parametrize(
    "body",
    [
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":{"include_usage":1}}',
        b'{"stream":true,"stream_options":{"include_usage":"yes"}}',
        b'{"stream":true,"stream_options":[]}',
        b'{"stream":true,"stream_options":"x"}',
        b'{"stream":true,"stream\\u005foptions":{}}',
        b'{"stream":false}',
        b"{}",
        b"[]",
        b"",
        b'{"stream":true',
        b'{"stream":true}}',
        b"\xff\xfe{\x00}\x00",
    ],
)
def test_nothing_to_ask(body: bytes) -> None:
    assert ask(body) is None


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/inference/v1/generate", "/v1/embeddings"])
def test_other_routes_are_left_alone(path: str) -> None:
    assert ask(b'{"stream":true}', path) is None


@pytest.mark.parametrize(
    ("options", "chunk", "events"),
    [
        (None, True, True),
        ({"include_usage": False}, True, True),
        ({"include_usage": True}, False, True),
        ({"continuous_usage_stats": True}, True, True),
        ({"include_usage": True, "continuous_usage_stats": False}, False, True),
    ],
)
def test_token_counts(options: dict[str, bool] | None, chunk: bool, events: bool) -> None:
    body = json.dumps({"stream": True} | ({} if options is None else {"stream_options": options})).encode()
    answer = ask(body, token_counts=True)
    assert answer is not None
    assert json.loads(answer.body)["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert (answer.remove_usage_chunk, answer.remove_event_usage) == (chunk, events)


def test_continuous_stats_of_the_client_wake_up_with_include_usage_and_are_removed_again() -> None:
    answer = ask(b'{"stream":true,"stream_options":{"continuous_usage_stats":true}}')
    assert answer is not None
    assert (answer.remove_usage_chunk, answer.remove_event_usage) == (True, True)


def test_both_already_asked_by_the_client() -> None:
    body = b'{"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}'
    assert ask(body, token_counts=True) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "stream_options", '"stream_options":{}']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["stream_options", "include_usage", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    members=st.lists(st.tuples(st.sampled_from(["stream_options", "messages", "tools"]), JSON), max_size=5),
    token_counts=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_only_the_wanted_options_change(members: list[tuple[str, Any]], token_counts: bool, indent: int | None) -> None:
    parts = [f'"{name}":{json.dumps(value, indent=indent)}' for name, value in members]
    body = ("{" + ",".join([*parts, '"stream": true']) + "}").encode()
    answer = ask(body, token_counts=token_counts)
    if answer is None:
        return
    before, after = json.loads(body), json.loads(answer.body)
    options = before.pop("stream_options", None) or {}
    wanted = {"include_usage": True} | ({"continuous_usage_stats": True} if token_counts else {})
    assert after.pop("stream_options") == options | wanted
    assert after == before
    removed = body.replace(b"false", b"").replace(b"null", b"")
    assert is_subsequence(removed, answer.body)


def test_broken_utf8_in_a_message_stays_as_it_is() -> None:
    body = b'{"messages":[{"content":"\xff\xc3"}],"stream":true}'
    answer = ask(body)
    assert answer is not None
    assert answer.body.endswith(body[1:])


def test_a_huge_body_is_spliced() -> None:
    body = (
        b'{"messages":[{"content":"'
        + b'say \\"stream_options\\": {} \\n' * 80_000
        + b'"}],"stream":true,"stream_options":{}}'
    )
    answer = ask(body)
    assert answer is not None
    assert answer.body.endswith(b'"stream_options":{"include_usage":true}}')
    assert len(answer.body) == len(body) + len(b'"include_usage":true')


# ---- another model's name --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "renamed"),
    [
        (b'{"model":"m","stream":true}', b'{"model":"org/new","stream":true}'),
        (b'{ "model" : "m" , "messages":[] }', b'{ "model" : "org/new" , "messages":[] }'),
        (b'{"metadata":{"model":"m"},"model":"m"}', b'{"metadata":{"model":"m"},"model":"org/new"}'),
        (b'{"model":"m","metadata":{"model":"m"}}', b'{"model":"org/new","metadata":{"model":"m"}}'),
        (b'\xef\xbb\xbf{"model":"m"}', b'\xef\xbb\xbf{"model":"org/new"}'),
        (b'{"messages":[]}', b'{"messages":[]}'),
        (b"not JSON", b"not JSON"),
        (b"", b""),
    ],
)
def test_only_the_models_name_changes(body: bytes, renamed: bytes) -> None:
    assert rename_model(body, "org/new") == renamed


@given(name=st.text(min_size=1), new=st.text(min_size=1), content=st.text())
def test_a_renamed_body_says_the_same_but_for_the_model(name: str, new: str, content: str) -> None:
    body = {"messages": [{"role": "user", "content": content}], "model": name, "stream": True}
    assert json.loads(rename_model(msgspec.json.encode(body), new)) == {**body, "model": new}
