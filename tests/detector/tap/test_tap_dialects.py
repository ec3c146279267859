"""Events of every dialect, in the same words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tap_captures import capture

from detector.observation import SpeculationCounts
from detector.tap import body
from detector.tap.body import MAX_BODY_BYTES, BodyReader
from detector.tap.dialects import Event, read_body, read_event

VLLM_COUNTS = {
    "num_spec_steps": 4,
    "num_accepted_draft_tokens": 5,
    "num_draft_tokens": 8,
    "num_spec_tokens": 2,
    "acceptance_histogram": [1, 1, 2],
}
VLLM_SPECULATION = SpeculationCounts(
    verify_steps=4, accepted_tokens=5, drafted_tokens=8, num_speculative_tokens=2, accepted_per_position=(3, 2)
)


def said(event: Event) -> dict[str, Any]:
    """The fields that differ from a silent event's."""
    silent = Event(kind="other")
    names = [name for name in event.__struct_fields__ if name not in ("plain", "choices")]
    return {
        name: getattr(event, name) for name in names if name == "kind" or getattr(event, name) != getattr(silent, name)
    }


def chat(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, **more}]}


def text(text: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": reason, **more}]}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (chat({"role": "assistant", "content": ""}), {"kind": "role"}),
        (chat({"role": "assistant", "content": None}), {"kind": "role"}),
        (chat({"role": "assistant", "content": "a"}), {"kind": "content"}),
        (chat({"content": "a"}), {"kind": "content"}),
        (chat({"content": ""}), {"kind": "content"}),
        (chat({"content": "a"}, token_ids=[1, 2]), {"kind": "content", "token_ids": 2}),
        (chat({"content": ""}, token_ids=[]), {"kind": "other", "token_ids": 0}),
        (chat({}, token_ids=[7]), {"kind": "content", "token_ids": 1}),
        (chat({"reasoning": "hm"}), {"kind": "content", "parsed": True}),
        (chat({"reasoning_content": "hm"}), {"kind": "content", "parsed": True}),
        (chat({"tool_calls": [{"index": 0}]}), {"kind": "content", "parsed": True}),
        (chat({}), {"kind": "other"}),
        (chat({}, "stop"), {"kind": "other", "finish_reason": "stop"}),
        (chat({"content": None}, "stop"), {"kind": "other", "finish_reason": "stop"}),
        (chat({"content": ""}, "stop", stop_reason=None), {"kind": "content", "finish_reason": "stop"}),
        (chat({"content": ""}, "abort", stop_reason=None), {"kind": "other", "finish_reason": "abort"}),
        (text("a"), {"kind": "content"}),
        (text(""), {"kind": "content"}),
        (text("", "length"), {"kind": "other", "finish_reason": "length"}),
        (text("", "abort", stop_reason=None), {"kind": "other", "finish_reason": "abort"}),
        (text("a") | {"usage": {"completion_tokens": 4}}, {"kind": "content", "completion_tokens": 4}),
        (text("a") | {"usage": None}, {"kind": "content"}),
        ({"choices": [], "usage": {"completion_tokens": 4}}, {"kind": "usage", "completion_tokens": 4}),
        ({"choices": []}, {"kind": "other"}),
        ({"choices": [{"index": 0, "token_ids": [1, 2, 3]}]}, {"kind": "content", "token_ids": 3}),
        (
            {"choices": [], "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}}},
            {"kind": "usage", "prompt_tokens": 9, "cached_tokens": 0},
        ),
        (
            {"choices": [], "usage": {}, "metrics": {"generation_time_ms": 50.0, "speculative_decoding": VLLM_COUNTS}},
            {"kind": "usage", "speculation": VLLM_SPECULATION, "generation_seconds": 0.05},
        ),
        ({"error": {"message": "gone", "code": 500}}, {"kind": "error"}),
        ({"error": "Unauthorized"}, {"kind": "error"}),
        ({"object": "error", "message": "x"}, {"kind": "error"}),
        (chat({"content": "a"}) | {"error": None}, {"kind": "content"}),
        ({"detail": "Not Found"}, {"kind": "other"}),
    ],
)
def test_openai_and_vllm(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert said(read_event(json.dumps(body).encode())) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            chat({}, "stop")
            | {
                "timings": {
                    "prompt_n": 4,
                    "cache_n": 6,
                    "predicted_n": 16,
                    "predicted_ms": 40.0,
                    "draft_n": 12,
                    "draft_n_accepted": 9,
                }
            },
            {
                "kind": "other",
                "finish_reason": "stop",
                "completion_tokens": 16,
                "prompt_tokens": 10,
                "cached_tokens": 6,
                "speculation": SpeculationCounts(verify_steps=6, accepted_tokens=9, drafted_tokens=12),
                "speculation_trimmed": True,
                "generation_seconds": 0.04,
            },
        ),
        (
            {"choices": [], "timings": {"predicted_n": 5, "predicted_ms": 10}},
            {"kind": "usage", "completion_tokens": 5, "generation_seconds": 0.01},
        ),
        (
            {"text": "ab", "meta_info": {"completion_tokens": 3, "prompt_tokens": 2, "finish_reason": None}},
            {"kind": "content", "completion_tokens": 3, "prompt_tokens": 2},
        ),
        (
            {
                "text": "ab",
                "meta_info": {
                    "completion_tokens": 31,
                    "cached_tokens": 1,
                    "finish_reason": {"type": "length", "length": 31},
                    "spec_verify_ct": 10,
                },
            },
            {
                "kind": "content",
                "completion_tokens": 31,
                "cached_tokens": 1,
                "finish_reason": "length",
                "speculation": SpeculationCounts(verify_steps=10, accepted_tokens=20),
                "speculation_trimmed": True,
            },
        ),
        (
            {
                "text": "",
                "meta_info": {"spec_verify_ct": 10, "spec_num_correct_drafts": 21, "spec_num_proposed_drafts": 30},
            },
            {
                "kind": "other",
                "speculation": SpeculationCounts(verify_steps=10, accepted_tokens=21, drafted_tokens=30),
            },
        ),
        (
            {"choices": [{"index": 0, "text": "a", "finish_reason": "stop", "meta_info": {"completion_tokens": 9}}]},
            {"kind": "content", "finish_reason": "stop", "completion_tokens": 9},
        ),
        ({"type": "response.output_text.delta", "delta": "a"}, {"kind": "content"}),
        ({"type": "response.reasoning_text.delta", "delta": "a"}, {"kind": "content", "parsed": True}),
        ({"type": "response.created", "response": {"status": "in_progress", "usage": None}}, {"kind": "other"}),
        (
            {
                "type": "response.completed",
                "response": {
                    "status": "completed",
                    "error": None,
                    "usage": {"input_tokens": 3, "output_tokens": 8, "input_tokens_details": {"cached_tokens": 2}},
                },
            },
            {"kind": "usage", "completion_tokens": 8, "prompt_tokens": 3, "cached_tokens": 2, "finish_reason": "stop"},
        ),
        (
            {
                "type": "response.incomplete",
                "response": {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            },
            {"kind": "usage", "finish_reason": "max_output_tokens"},
        ),
        ({"type": "response.failed", "response": {"status": "failed"}}, {"kind": "error"}),
        (
            {"object": "response", "status": "completed", "error": None, "usage": {"output_tokens": 8}},
            {"kind": "usage", "completion_tokens": 8, "finish_reason": "stop"},
        ),
        (
            {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 0}}},
            {"kind": "role", "prompt_tokens": 5, "completion_tokens": 0},
        ),
        ({"type": "content_block_start", "content_block": {}}, {"kind": "other"}),
        ({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}}, {"kind": "content"}),
        (
            {"type": "content_block_delta", "delta": {"type": "thinking_delta"}},
            {"kind": "content", "parsed": True},
        ),
        ({"type": "content_block_delta", "delta": {"type": "signature_delta"}}, {"kind": "other"}),
        (
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
            {"kind": "usage", "finish_reason": "end_turn", "completion_tokens": 7},
        ),
        ({"type": "message_stop"}, {"kind": "done"}),
        (
            {"type": "message", "stop_reason": "end_turn", "usage": {"output_tokens": 7, "cache_read_input_tokens": 1}},
            {"kind": "content", "finish_reason": "end_turn", "completion_tokens": 7, "cached_tokens": 1},
        ),
        ({"type": "error", "error": {"type": "overloaded_error"}}, {"kind": "error"}),
        ({"type": "ping"}, {"kind": "other"}),
    ],
)
def test_other_dialects(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert said(read_event(json.dumps(body).encode())) == expected


@pytest.mark.parametrize("data", [b"[DONE]", b" [DONE] "])
def test_end_mark(data: bytes) -> None:
    assert read_event(data).kind == "done"


def test_choices() -> None:
    body = {"choices": [{"index": 2, "text": "a"}, {"index": 1, "text": "b", "finish_reason": "abort"}]}
    event = read_event(json.dumps(body).encode())
    assert (event.choices, event.finish_reason) == ((2, 1), "abort")
    assert read_event(json.dumps(text("a")).encode()).choices == (0,)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"usage": {"completion_tokens": "7", "prompt_tokens": 3}}, {"kind": "content", "prompt_tokens": 3}),
        ({"usage": {"completion_tokens": -1}}, {"kind": "content"}),
        ({"usage": {"completion_tokens": True}}, {"kind": "content"}),
        ({"usage": {"completion_tokens": 10**40}}, {"kind": "content"}),
        ({"usage": [1]}, {"kind": "content"}),
        ({"timings": 3}, {"kind": "content"}),
        ({"metrics": {"generation_time_ms": "4", "speculative_decoding": []}}, {"kind": "content"}),
    ],
)
def test_a_wrong_type_hides_nothing_else(change: dict[str, Any], expected: dict[str, Any]) -> None:
    assert said(read_event(json.dumps(text("a") | change).encode())) == expected


@pytest.mark.parametrize(
    ("histogram", "positions"),
    [([1, 1, 2], (3, 2)), ([1, 1, 3], None), ([4], None), ("x", None), ([1, None, 3], None), (None, None)],
)
def test_positions_only_from_a_histogram_that_adds_up(histogram: Any, positions: tuple[int, ...] | None) -> None:
    counts = VLLM_COUNTS | {"acceptance_histogram": histogram}
    event = read_event(json.dumps({"choices": [], "metrics": {"speculative_decoding": counts}, "usage": {}}).encode())
    assert event.speculation is not None
    assert event.speculation.accepted_per_position == positions


WORDS = st.sampled_from(
    [
        *("choices", "delta", "content", "role", "text", "usage", "completion_tokens", "error", "type", "message"),
        *(
            "meta_info",
            "timings",
            "metrics",
            "speculative_decoding",
            "finish_reason",
            "token_ids",
            "response",
            "status",
        ),
        *("predicted_n", "draft_n", "draft_n_accepted", "spec_verify_ct", "num_spec_steps", "acceptance_histogram"),
        *(
            "num_accepted_draft_tokens",
            "response.completed",
            "response.x.delta",
            "message_start",
            "content_block_delta",
        ),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 70) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=25,
)


@settings(max_examples=500, deadline=None)
@given(value=JSON)
def test_hostile_json_never_raises(value: Any) -> None:
    data = json.dumps(value).encode()
    assert read_event(data).kind in ("content", "role", "usage", "error", "done", "other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body, "MAX_BODY_BYTES", 0)
        reader = BodyReader()
        reader.feed(data)
        assert reader.read().kind in ("other", "content", "usage")


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=40))
def test_hostile_bytes_never_raise(data: bytes) -> None:
    assert read_event(data).kind in ("other", "done", "error")


@pytest.mark.parametrize("data", [b"[" * 200_000, b'{"a":' * 200_000, b'{"choices":[{"delta":' + b"[" * 200_000])
def test_deep_nesting_never_raises(data: bytes) -> None:
    assert said(read_event(data)) == {"kind": "other"}


@pytest.mark.parametrize("name", ["dflash_trained_chat_nonstream.raw", "dflash_trained_completion_nonstream.raw"])
def test_a_body_longer_than_the_bound_still_gives_its_counts(name: str) -> None:
    answer = capture(name).payload
    whole = read_body(answer)
    long = answer.replace(b'"choices":[{', b'"x":"' + b'say \\"usage\\": {} ' * 80_000 + b'","choices":[{', 1)
    reader = BodyReader()
    for start in range(0, len(long), 70_000):
        reader.feed(long[start : start + 70_000])
    assert len(reader._kept) <= MAX_BODY_BYTES
    kept = reader.read()
    assert whole.speculation is not None
    for field in ("completion_tokens", "prompt_tokens", "finish_reason", "speculation", "generation_seconds"):
        assert getattr(kept, field) == getattr(whole, field)
