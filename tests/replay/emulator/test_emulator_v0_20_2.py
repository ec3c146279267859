"""The wire of vLLM 0.20.2: no metrics, no fingerprint, fewer null fields."""

import json

import pytest

from replay.emulator import Emulator

HELLO = [{"role": "user", "content": "hello"}]
FULL_USAGE = {"include_usage": True, "continuous_usage_stats": True}


@pytest.fixture
async def client(serve):
    return await serve(Emulator("h200", version="0.20.2", time_scale=0, dev_mode=True))


async def test_chat_stream(client):
    role, *contents, last = await client.events("/v1/chat/completions", messages=HELLO, stream_options=FULL_USAGE)
    assert list(role) == ["id", "object", "created", "model", "choices", "usage", "prompt_token_ids"]
    assert list(contents[0]["usage"]) == ["prompt_tokens", "total_tokens", "completion_tokens"]
    assert list(last) == ["id", "object", "created", "model", "choices", "usage"]
    assert last["usage"]["completion_tokens"] == 20


async def test_chat_stream_without_usage_has_no_fingerprint(client):
    *_, last = await client.events("/v1/chat/completions", messages=HELLO)
    assert list(last) == ["id", "object", "created", "model", "choices"]


async def test_whole_chat_answer(client):
    _, body = await client.post("/v1/chat/completions", messages=HELLO, max_tokens=5)
    answer = json.loads(body)
    assert list(answer) == [
        *("id", "object", "created", "model", "choices", "service_tier", "system_fingerprint", "usage"),
        *("prompt_logprobs", "prompt_token_ids", "kv_transfer_params"),
    ]
    assert answer["system_fingerprint"] is None
    assert answer["choices"][0]["message"]["tool_calls"] == []
    assert "routed_experts" not in answer["choices"][0]
    assert list(answer["usage"]) == ["prompt_tokens", "total_tokens", "completion_tokens", "prompt_tokens_details"]


async def test_completions(client):
    *contents, last = await client.events(prompt="x")
    assert all(event["usage"] is None for event in [*contents, last])
    answer = await client.complete()
    assert list(answer)[-3:] == ["system_fingerprint", "usage", "kv_transfer_params"]


async def test_errors_control_routes_and_metrics(client):
    status, body = await client.post("/v1/completions", model="nope", prompt="x")
    assert (status, json.loads(body)["error"]["message"]) == (404, "The model `nope` does not exist.")
    assert await client.request("POST", "/reset_prefix_cache") == (200, b"")
    assert await client.get("/version") == (200, b'{"version":"0.20.2"}')
    _, text = await client.get("/metrics")
    assert b"vllm:spec_decode_num_drafts_total" in text
    assert b"vllm:admission_rejections" not in text
    assert b"vllm:request_num_preemptions" not in text


def test_other_versions_are_refused():
    with pytest.raises(ValueError, match=r"0\.19\.1 is not emulated"):
        Emulator(version="0.19.1")
