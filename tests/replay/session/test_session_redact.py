"""What of a prompt reaches the disk in each content mode."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_samples import UNTIMED

from replay.session.redact import BLOCK_CHARACTERS, Redactor
from replay.session.schema import ContentMode, Prompt, PromptPart

SECRET = "correct horse battery staple"


def chat(*texts: str, **more: object) -> bytes:
    messages = [{"role": role, "content": text} for role, text in zip(("system", "user") * 5, texts, strict=False)]
    return json.dumps({"model": "m", "messages": messages, **more}).encode()


def test_none_keeps_roles_lengths_and_numbers_only() -> None:
    body = chat("be brief", SECRET, temperature=0.5, seed=7, ignore_eos=True, user=SECRET, stop=[SECRET], top_p="0.1")
    assert Redactor().prompt(body) == Prompt(
        parts=(PromptPart("system", 8), PromptPart("user", len(SECRET))),
        parameters={"temperature": 0.5, "seed": 7, "ignore_eos": True},
    )


@pytest.mark.parametrize("mode", [ContentMode.NONE, ContentMode.HASH])
@pytest.mark.parametrize(
    "body",
    [
        chat(SECRET * 9),
        json.dumps({"prompt": SECRET * 9}),
        json.dumps({"prompt": [SECRET * 9, SECRET]}),
        json.dumps({"input": [{"type": SECRET, "content": [{"type": "input_text", "text": SECRET * 9}]}]}),
        json.dumps({"system": [{"type": "text", "text": SECRET}], "messages": [{"role": SECRET, "content": SECRET}]}),
        json.dumps({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": SECRET}]}]}),
        json.dumps({"tools": [{"function": {"name": SECRET}}], "messages": [SECRET, {"content": {"x": SECRET}}]}),
    ],
)
def test_no_text_of_any_kind_of_body_is_kept(mode: ContentMode, body: str | bytes) -> None:
    prompt = Redactor(mode).prompt(body if isinstance(body, bytes) else body.encode())
    assert prompt is not None
    assert sum(part.characters for part in prompt.parts) >= len(SECRET)
    assert b"horse" not in msgspec.json.encode(prompt)


def test_text_keeps_the_body_as_it_was() -> None:
    body = chat(SECRET).replace(b", ", b" ,\n")
    prompt = Redactor(ContentMode.TEXT).prompt(body)
    assert prompt is not None
    assert prompt.body is not None
    assert prompt.body.encode() == body


def test_equal_prefixes_have_equal_hashes_up_to_where_they_part() -> None:
    redactor = Redactor(ContentMode.HASH)
    shared = "s" * (10 * BLOCK_CHARACTERS)
    first, second = redactor.prompt(chat(shared, "one " * 40)), redactor.prompt(chat(shared, "two " * 40))
    assert first is not None
    assert second is not None
    assert first.block_hashes is not None
    assert second.block_hashes is not None
    assert first.block_hashes[:10] == second.block_hashes[:10]
    assert not set(first.block_hashes[11:]) & set(second.block_hashes[11:])
    # Each hash covers all before it: the same block at another place is another hash.
    assert len(set(first.block_hashes)) == len(first.block_hashes) == (10 * BLOCK_CHARACTERS + 160 + 12) // 64


def test_hashes_of_two_sessions_cannot_be_compared() -> None:
    one, other = (Redactor(ContentMode.HASH).prompt(chat("x" * 640)) for _ in range(2))
    assert one is not None
    assert other is not None
    assert one.block_hashes
    assert not set(one.block_hashes) & set(other.block_hashes or ())


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"messages"', b"\xff", b"{\xff}", b"[" * 10_000, b'{"prompt":"\\ud800"}']
)
def test_a_body_that_is_no_json_object_has_no_prompt(body: bytes) -> None:
    assert all(Redactor(mode).prompt(body) is None for mode in ContentMode)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "text", "x"]), inner)
    ),
    max_leaves=8,
)


@settings(UNTIMED, max_examples=200)
@given(st.dictionaries(st.sampled_from(["messages", "prompt", "input", "tools", "system", "temperature"]), JSON))
def test_any_json_can_be_described_and_written(body: dict[str, object]) -> None:
    for mode in ContentMode:
        prompt = Redactor(mode).prompt(json.dumps(body).encode(errors="replace"))
        if prompt is not None:
            assert msgspec.json.decode(msgspec.json.encode(prompt), type=Prompt) == prompt


def test_a_host_shows_only_whether_it_is_the_same() -> None:
    redactor = Redactor()
    first = redactor.backend("a", "http://user:pass@engine.internal:8000/v1?key=k", "0.32.0")
    again, other_port = (
        redactor.backend("b", "http://ENGINE.internal:8000"),
        redactor.backend("c", "http://engine.internal:8001"),
    )
    assert first.host_hash == again.host_hash != other_port.host_hash
    assert first.engine_version == "0.32.0"
    assert Redactor().backend("a", "http://engine.internal:8000").host_hash != first.host_hash
    assert all(secret not in repr(first) for secret in ("engine.internal", "pass", "8000"))
