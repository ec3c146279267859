"""The emulator's bytes beside those of a real vLLM 0.32: same keys in the same order, constants and kinds of events."""

import json

import pytest
from emulator_wire import DATA, capture, event_shapes, shape

from replay.emulator import Emulator
from replay.emulator.scenario import parse_scenario

USAGE = {"include_usage": True}
FULL_USAGE = {"include_usage": True, "continuous_usage_stats": True}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 120, "ignore_eos": True}
COMPLETION = {"model": "tiny", "prompt": "def add(a, b):", "max_tokens": 120, "ignore_eos": True}
LOGPROBS = {"model": "tiny", "prompt": "x", "max_tokens": 8, "stream": True, "logprobs": 1}


def emulator(k=7, **options):
    scenario = parse_scenario(
        f"""
        name = "reference"
        num_speculative_tokens = {k}
        max_model_len = 2048
        [[cycle]]
        phase = "healthy"
        length = 1
        acceptance = 0.5
        """,
        "test",
    )
    return Emulator(scenario, model="tiny", time_scale=0, tool_parser=False, **options)


async def post(client, path, body, **headers):
    headers = {"content_type": "application/json", **headers}
    return await client.raw("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), **headers)


@pytest.mark.parametrize(
    ("file", "path", "body", "k"),
    [
        ("chat_stream.raw", "chat", CHAT | {"stream_options": FULL_USAGE, "return_token_ids": True}, 7),
        ("chat_stream_usage_only.raw", "chat", CHAT | {"stream_options": USAGE}, 7),
        ("chat_stream_plain.raw", "chat", CHAT, 7),
        ("no_speculation_chat_stream.raw", "chat", CHAT | {"stream_options": FULL_USAGE, "return_token_ids": True}, 0),
        ("completion_stream.raw", "", COMPLETION | {"stream_options": FULL_USAGE, "return_token_ids": True}, 7),
        ("completion_stream_plain.raw", "", COMPLETION, 7),
    ],
)
async def test_streams(serve, file, path, body, k):
    options = {"per_request_metrics": bool(k)}
    client = await serve(emulator(k, **options))
    route = f"/v1/{path}/completions" if path else "/v1/completions"
    status, headers, chunks = await post(client, route, body | {"stream": True})
    expected_status, expected_headers, expected_chunks = capture(file)
    assert (status, headers) == (expected_status, expected_headers)
    assert event_shapes(chunks) == event_shapes(expected_chunks)


@pytest.mark.parametrize(
    ("file", "path", "body"),
    [
        ("chat_nonstream.raw", "/v1/chat/completions", CHAT),
        ("chat_nonstream_token_ids.raw", "/v1/chat/completions", CHAT | {"return_token_ids": True}),
        ("completion_nonstream.raw", "/v1/completions", COMPLETION),
    ],
)
async def test_whole_answers(serve, file, path, body):
    client = await serve(emulator())
    status, headers, (answer,) = await post(client, path, body)
    expected_status, expected_headers, (expected,) = capture(file)
    assert (status, headers) == (expected_status, expected_headers)
    assert shape(json.loads(answer)) == shape(json.loads(expected))


HELLO = [{"role": "user", "content": "hello there"}]


@pytest.mark.parametrize(
    ("file", "path", "body"),
    [
        ("details_chat_stream.raw", "/v1/chat/completions", CHAT | {"stream_options": FULL_USAGE}),
        ("details_completion_stream.raw", "/v1/completions", COMPLETION | {"stream_options": FULL_USAGE}),
        ("responses_stream.raw", "/v1/responses", {"model": "tiny", "input": "hello", "max_output_tokens": 12}),
        ("messages_stream.raw", "/v1/messages", {"model": "tiny", "messages": HELLO, "max_tokens": 12}),
    ],
)
async def test_streams_of_a_server_with_prompt_tokens_details(serve, file, path, body):
    client = await serve(emulator(prompt_tokens_details=True))
    status, headers, chunks = await post(client, path, body | {"stream": True})
    expected_status, expected_headers, expected_chunks = capture(file)
    assert (status, headers) == (expected_status, expected_headers)
    assert event_shapes(chunks) == event_shapes(expected_chunks)


@pytest.mark.parametrize(
    ("file", "path", "body"),
    [
        ("responses_nonstream.raw", "/v1/responses", {"model": "tiny", "input": "hello", "max_output_tokens": 12}),
        ("messages_nonstream.raw", "/v1/messages", {"model": "tiny", "messages": HELLO, "max_tokens": 12}),
    ],
)
async def test_other_apis_whole(serve, file, path, body):
    client = await serve(emulator(prompt_tokens_details=True))
    _, _, (answer,) = await post(client, path, body)
    assert shape(json.loads(answer)) == shape(json.loads(capture(file)[2][0]))


async def test_refused_requests(serve):
    """Bodies, byte for byte, of what the engine refused."""
    client = await serve(emulator())
    expected = json.loads((DATA / "errors.json").read_text())
    chat = "/v1/chat/completions"
    hello = [{"role": "user", "content": "hello"}]
    long = [{"role": "user", "content": "hello world " * 3000}]
    asked = {
        "bad_json": (chat, b'{"model":"tiny","messages": [ ,]'),
        "missing_messages": (chat, {"model": "tiny"}),
        "unknown_model": (chat, {"model": "nope", "messages": hello}),
        "too_long_prompt": (chat, {"model": "tiny", "messages": long}),
        "too_long_prompt_stream": (chat, {"model": "tiny", "messages": long, "stream": True}),
        "max_tokens_too_big": (chat, {"model": "tiny", "messages": hello, "max_tokens": 100000}),
        "negative_temperature": (chat, {"model": "tiny", "messages": hello, "temperature": -1}),
        "n_zero": (chat, {"model": "tiny", "messages": hello, "n": 0}),
        "stream_options_without_stream": (chat, {"model": "tiny", "messages": hello, "stream_options": USAGE}),
        "unknown_route": ("/v1/nope", {}),
        "embeddings_not_served": ("/v1/embeddings", {}),
    }
    for name, (path, body) in asked.items():
        status, headers, (answer,) = await post(client, path, body)
        reference = expected[name]
        assert status == reference["status"], name
        assert headers == [line.split(": ")[0] for line in reference["head"]], name
        assert answer.decode().replace("body.30", "body.31") == reference["body"], name
    status, _, (answer,) = await post(client, chat, b"{}", content_type="text/plain")
    assert (status, answer.decode()) == (
        expected["wrong_content_type"]["status"],
        expected["wrong_content_type"]["body"],
    )
    status, headers, (answer,) = await client.raw("GET", chat)
    reference = expected["wrong_method"]
    assert (status, answer.decode()) == (reference["status"], reference["body"])
    assert headers == [line.split(": ")[0] for line in reference["head"]]


async def test_logprobs_and_two_choices_begin_as_captured(serve):
    client = await serve(emulator())
    expected = json.loads((DATA / "errors.json").read_text())
    chat = CHAT | {"stream": True, "n": 2, "max_tokens": 4}
    for name, path, body in (
        ("n2_stream", "/v1/chat/completions", chat),
        ("logprobs_stream", "/v1/completions", LOGPROBS),
    ):
        status, headers, chunks = await post(client, path, body)
        reference = expected[name]
        assert (status, headers) == (reference["status"], [line.split(": ")[0] for line in reference["head"]])
        whole = [block for block in reference["body"].split("\n\n")[:-1] if block.startswith("data: ")][:2]
        for chunk, block in zip(chunks, whole, strict=False):
            ours, theirs = json.loads(chunk[6:]), json.loads(block[6:])
            assert list(ours) == list(theirs)
            assert list(ours["choices"][0]) == list(theirs["choices"][0])
            assert ours["choices"][0]["index"] == theirs["choices"][0]["index"]


async def test_an_api_key_guards_v1_only(serve):
    client = await serve(emulator(api_key="secret", request_id_headers=True))
    expected = json.loads((DATA / "keys.json").read_text())
    hello = {"model": "tiny", "prompt": "x", "max_tokens": 2}
    right = {"authorization": "Bearer secret"}
    asked = {
        "no_key": ("POST", "/v1/completions", hello, {}),
        "wrong_key": ("POST", "/v1/completions", hello, {"authorization": "Bearer nope"}),
        "right_key": ("POST", "/v1/completions", hello, right),
        "models_nokey": ("GET", "/v1/models", {}, {}),
        "health_nokey": ("GET", "/health", {}, {}),
        "metrics_nokey": ("GET", "/metrics", {}, {}),
        "version_nokey": ("GET", "/version", {}, {}),
        "tokenize_nokey": ("POST", "/tokenize", {"model": "tiny", "prompt": "x"}, {}),
        "openapi_nokey": ("GET", "/openapi.json", {}, {}),
        "invocations_nokey": ("POST", "/invocations", hello, {}),
        "load_nokey": ("GET", "/load", {}, {}),
        "request_id": ("POST", "/v1/completions", hello, right | {"x_request_id": "abc-123"}),
    }
    assert set(asked) == set(expected)
    for name, (method, path, body, headers) in asked.items():
        raw_body = json.dumps(body).encode() if method == "POST" else b""
        status, names, chunks = await client.raw(method, path, raw_body, content_type="application/json", **headers)
        reference = expected[name]
        assert status == reference["status"], name
        assert names == [line.split(": ")[0] for line in reference["head"]], name
        if status.startswith("HTTP/1.1 401"):
            assert chunks[0].decode() == reference["body"]
    _, _, (answer,) = await client.raw(
        "POST",
        "/v1/completions",
        json.dumps(hello).encode(),
        content_type="application/json",
        x_request_id="abc-123",
        **right,
    )
    assert json.loads(answer)["id"] == "cmpl-abc-123"


async def test_metrics_have_the_same_families_types_and_buckets(serve):
    client = await serve(emulator())
    await client.complete(model="tiny")
    _, text = await client.get("/metrics")
    lines = text.decode().splitlines()
    types = {line for line in lines if line.startswith("# TYPE ")}
    reference = set((DATA / "metric_types.txt").read_text().splitlines())
    without_these = ("estimated_", "http_request_size", "http_response_size")
    assert {line for line in reference if not any(name in line for name in without_these)} <= types
    buckets = {line.rsplit(" ", 1)[0] for line in lines if "_bucket{" in line and line.startswith("vllm:")}
    assert buckets == set((DATA / "metric_buckets.txt").read_text().splitlines())
