"""Chat completions: every key, in order, of every object; streams event by event."""

import re

import pytest
from contract_wire import step_boundaries

STREAM_HEADERS = ["date", "server", "content-type", "vary", "connection", "transfer-encoding"]
CHUNK = ["id", "object", "created", "model", "choices"]
TIMING = ["time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "mean_itl_ms", "tokens_per_second"]
SPECULATION = [
    *("mean_acceptance_length", "draft_acceptance_rate", "acceptance_histogram", "num_spec_steps"),
    *("num_accepted_draft_tokens", "num_draft_tokens", "num_spec_tokens", "per_step_accepted", "per_step_drafted"),
]
FULL_USAGE = {"include_usage": True, "continuous_usage_stats": True}


def check_metrics(metrics, k):
    assert list(metrics) == [*TIMING, "speculative_decoding"]
    speculation = metrics["speculative_decoding"]
    assert list(speculation) == SPECULATION
    accepted, drafted = speculation["per_step_accepted"], speculation["per_step_drafted"]
    assert speculation["num_spec_tokens"] == k
    assert speculation["num_spec_steps"] == len(accepted) == len(drafted)
    assert speculation["num_accepted_draft_tokens"] == sum(accepted)
    assert speculation["num_draft_tokens"] == sum(drafted)
    assert speculation["acceptance_histogram"] == [accepted.count(count) for count in range(k + 1)]
    assert speculation["mean_acceptance_length"] == pytest.approx(1 + sum(accepted) / len(accepted), abs=1e-12)
    assert speculation["draft_acceptance_rate"] == pytest.approx(sum(accepted) / sum(drafted), abs=1e-12)
    return speculation


async def test_plain_stream(engine):
    response = await engine.chat(stream=True)
    assert response.status == 200
    assert response.header_names == STREAM_HEADERS
    assert response.header("content-type") == "text/event-stream; charset=utf-8"
    role, *contents = response.events
    assert list(role) == [*CHUNK, "prompt_token_ids", "prompt_text"]
    assert role["object"] == "chat.completion.chunk"
    assert re.fullmatch(r"chatcmpl-[0-9a-f]+", role["id"])
    assert role["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert (role["prompt_token_ids"], role["prompt_text"]) == (None, None)
    for event in contents[:-1]:
        assert list(event) == CHUNK
        assert list(event["choices"][0]) == ["index", "delta", "logprobs", "finish_reason", "token_ids"]
        assert list(event["choices"][0]["delta"]) == ["content"]
    last = contents[-1]
    assert list(last) == [*CHUNK, "system_fingerprint"]
    assert list(last["choices"][0]) == ["index", "delta", "logprobs", "finish_reason", "stop_reason", "token_ids"]
    assert (last["choices"][0]["finish_reason"], last["choices"][0]["stop_reason"]) == ("length", None)
    assert re.fullmatch(r"vllm-0\.32\.0[^-]*-[0-9a-f]{8}", last["system_fingerprint"])
    assert len({(event["id"], event["created"], event["model"]) for event in response.events}) == 1


async def test_usage_chunk_comes_only_when_asked(engine):
    *contents, last = (await engine.chat(stream=True, stream_options={"include_usage": True})).events
    assert all("usage" not in event and "system_fingerprint" not in event for event in contents)
    assert list(last) == [*CHUNK, "usage", "system_fingerprint", "metrics"]
    assert last["choices"] == []
    names = list(last["usage"])
    assert names[:3] == ["prompt_tokens", "total_tokens", "completion_tokens"]
    assert names[3:] in ([], ["prompt_tokens_details"])  # the latter with --enable-prompt-tokens-details
    assert last["usage"]["completion_tokens"] == 40
    check_metrics(last["metrics"], engine.num_speculative_tokens)


async def test_one_event_carries_whole_verify_steps(engine):
    response = await engine.chat(stream=True, max_tokens=120, stream_options=FULL_USAGE, return_token_ids=True)
    role, *contents, last = response.events
    assert list(role["usage"]) == ["prompt_tokens", "total_tokens", "completion_tokens", "completion_tokens_details"]
    assert role["usage"]["completion_tokens"] == 0
    seen = 0
    boundaries = step_boundaries(check_metrics(last["metrics"], engine.num_speculative_tokens), 120)
    for event in contents:
        seen += len(event["choices"][0]["token_ids"])
        assert event["usage"]["completion_tokens"] == seen
        assert seen in boundaries
    assert len(contents[0]["choices"][0]["token_ids"]) == 1
    assert seen == last["usage"]["completion_tokens"] == 120
    assert len(contents) <= len(boundaries)
    assert boundaries[-1] == 120


async def test_token_ids_agree_with_the_tokenizer(engine):
    messages = [{"role": "user", "content": "Say something about the weather."}]
    response = await engine.chat(stream=True, return_token_ids=True)
    role, *contents = response.events
    tokens = (await engine.post("/tokenize", model=engine.model, messages=messages)).json["tokens"]
    assert role["prompt_token_ids"] == tokens
    ids = [token for event in contents for token in event["choices"][0]["token_ids"]]
    text = "".join(event["choices"][0]["delta"]["content"] for event in contents)
    back = (await engine.post("/detokenize", model=engine.model, tokens=ids)).json["prompt"]
    assert text == back or "\ufffd" in text + back


async def test_whole_answer(engine):
    response = await engine.chat()
    assert response.header_names == ["date", "server", "content-length", "content-type", "vary", "connection"]
    body = response.json
    assert list(body) == [
        *("id", "object", "created", "model", "choices", "service_tier", "system_fingerprint", "usage"),
        *("prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params", "metrics"),
    ]
    (choice,) = body["choices"]
    assert list(choice) == [
        *("index", "message", "logprobs", "finish_reason", "stop_reason", "token_ids", "routed_experts"),
    ]
    assert list(choice["message"]) == [
        *("role", "content", "refusal", "annotations", "audio", "function_call", "reasoning"),
    ]
    assert choice["finish_reason"] == "length"
    assert list(body["usage"]) == [
        *("prompt_tokens", "total_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details"),
    ]
    assert body["usage"]["completion_tokens"] == 40
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 40
    speculation = check_metrics(body["metrics"], engine.num_speculative_tokens)
    assert step_boundaries(speculation, 40)[-1] == 40


async def test_two_choices_are_told_apart_and_have_no_metrics(engine):
    *events, last = (await engine.chat(n=2, stream=True, stream_options=FULL_USAGE)).events
    assert [event["choices"][0]["index"] for event in events[:2]] == [0, 1]
    assert all(event["choices"][0]["delta"].get("role") == "assistant" for event in events[:2])
    finished = [event["choices"][0] for event in events if event["choices"][0]["finish_reason"]]
    assert sorted(choice["index"] for choice in finished) == [0, 1]
    assert last["usage"]["completion_tokens"] == 80
    assert "metrics" not in last
    whole = (await engine.chat(n=2)).json
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    assert whole["metrics"] is None


async def test_logprobs_have_one_entry_per_token(engine):
    body = (await engine.chat(logprobs=True, top_logprobs=2, temperature=0, return_token_ids=True)).json
    entries = body["choices"][0]["logprobs"]["content"]
    assert len(entries) == len(body["choices"][0]["token_ids"]) == 40
    for entry in entries:
        assert list(entry) == ["token", "logprob", "bytes", "top_logprobs"]
        assert entry["logprob"] <= 0
        assert [list(top) for top in entry["top_logprobs"]] == [["token", "logprob", "bytes"]] * 2
    streamed = (await engine.chat(logprobs=True, stream=True)).events
    counted = sum(len(event["choices"][0]["logprobs"]["content"]) for event in streamed[1:])
    assert counted == 40


async def test_prompt_logprobs_are_shown_on_demand(engine):
    body = (await engine.chat(prompt_logprobs=1, max_tokens=2)).json
    first, *others = body["prompt_logprobs"]
    assert first is None
    assert len(others) + 1 == body["usage"]["prompt_tokens"]
    assert all(list(entry) == ["logprob", "rank", "decoded_token"] for shown in others for entry in shown.values())


async def test_a_stop_string_ends_the_answer_and_is_cut_out(engine):
    text = (await engine.chat(temperature=0)).json["choices"][0]["message"]["content"]
    stop = text[12:15]
    body = (await engine.chat(temperature=0, stop=[stop])).json
    choice = body["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert choice["message"]["content"] == text[: text.find(stop)]
    events = (await engine.chat(temperature=0, stop=[stop], stream=True)).events
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == text[: text.find(stop)]
    assert events[-1]["choices"][0]["stop_reason"] == stop


async def test_the_request_id_becomes_the_answers_id(engine):
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": engine.model, "messages": messages, "max_tokens": 2}
    response = await engine.request("POST", "/v1/chat/completions", body, headers={"x-request-id": "my-req-1"})
    assert response.json["id"] == "chatcmpl-my-req-1"
    assert "x-request-id" not in response.header_names


async def test_stream_interval_batches_tokens(engine):
    _, *contents = (await engine.chat(stream=True, stream_interval=20, return_token_ids=True)).events
    sizes = [len(event["choices"][0]["token_ids"]) for event in contents]
    assert sizes[0] == 1
    assert all(size >= 20 for size in sizes[1:-1])
    assert sum(sizes) == 40
