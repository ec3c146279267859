"""Errors: status and exact body."""

import pytest

JSON_HEADERS = ["date", "server", "content-length", "content-type", "vary", "connection"]


def error(message, kind, param, code):
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def check(response, expected):
    assert response.status == expected["error"]["code"]
    assert response.json == expected
    assert list(response.json["error"]) == ["message", "type", "param", "code"]
    assert response.header_names == JSON_HEADERS


async def test_bad_json(engine):
    response = await engine.request("POST", "/v1/chat/completions", b'{"model":"tiny","messages": [}')
    message = (
        "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.29', 'msg': 'JSON decode error',"
        " 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting value'}}"
    )
    check(response, error(message, "Bad Request", "body.29", 400))


async def test_wrong_content_type(engine):
    response = await engine.request(
        "POST", "/v1/chat/completions", b'{"model":"tiny"}', headers={"content-type": "text/plain"}
    )
    message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
    check(response, error(message, "Bad Request", None, 400))


async def test_missing_messages(engine):
    response = await engine.post("/v1/chat/completions", model=engine.model)
    message = (
        "1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required',"
        " 'input': '<dict of 1 items>'}"
    )
    check(response, error(message, "Bad Request", "body.messages", 400))


@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_model(engine, stream):
    message = f"The model `nope` does not exist. Valid aliases: {engine.model}."
    check(await engine.chat(model="nope", stream=stream), error(message, "NotFoundError", "model", 404))


@pytest.mark.parametrize("stream", [False, True])
async def test_prompt_too_long_is_plain_json_even_for_a_stream(engine, stream):
    limit = engine.max_model_len
    message = (
        f"This model's maximum context length is {limit} tokens. However, your prompt contains at least {limit + 1}"
        " input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the"
        f" input prompt. (parameter=input_tokens, value={limit + 1})"
    )
    response = await engine.chat("hello world " * limit, stream=stream, max_tokens=8)
    check(response, error(message, "BadRequestError", "input_tokens", 400))


async def test_max_tokens_beyond_the_context(engine):
    message = (
        f"max_tokens=100000 cannot be greater than max_model_len={engine.max_model_len}. Please request fewer output"
        " tokens. (parameter=max_tokens, value=100000)"
    )
    check(await engine.complete(max_tokens=100000), error(message, "BadRequestError", "max_tokens", 400))


async def test_negative_temperature(engine):
    message = "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)"
    check(await engine.chat(temperature=-1), error(message, "BadRequestError", "temperature", 400))


async def test_no_choices(engine):
    check(await engine.chat(n=0), error("n must be at least 1, got 0.", "BadRequestError", None, 400))


async def test_stream_options_without_stream(engine):
    message = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
    response = await engine.chat(stream_options={"include_usage": True})
    check(response, error(message, "BadRequestError", "stream_options", 400))


async def test_empty_prompt(engine):
    message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
    check(await engine.complete(""), error(message, "BadRequestError", "prompt", 400))


@pytest.mark.parametrize(
    ("options", "told", "param"),
    [
        ({"top_p": 0}, "top_p must be in (0, 1], got 0.0. (parameter=top_p, value=0.0)", "top_p"),
        (
            {"logprobs": True, "top_logprobs": 50},
            "Requested sample logprobs of 50, which is greater than max allowed: 20 (parameter=logprobs, value=50)",
            "logprobs",
        ),
        ({"min_tokens": 50}, "min_tokens must be less than or equal to max_tokens=40, got 50.", None),
        (
            {"logit_bias": {"5": 1}},
            "The min_p and logit_bias sampling parameters are not yet supported with speculative decoding.",
            None,
        ),
        (
            {"stream": True, "prompt_logprobs": 1},
            "`prompt_logprobs` are not available when `stream=True`. (parameter=prompt_logprobs)",
            "prompt_logprobs",
        ),
    ],
)
async def test_sampling_parameters_out_of_range(engine, options, told, param):
    check(await engine.chat(**options), error(told, "BadRequestError", param, 400))


async def test_no_prompt_at_all(engine):
    check(await engine.complete([]), error("You must pass at least one prompt", "BadRequestError", None, 400))


async def test_scale_out_routes_are_forbidden(engine):
    message = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
    response = await engine.post("/inference/v1/generate", token_ids=[5], sampling_params={})
    check(response, error(message, "PermissionDeniedError", None, 403))


@pytest.mark.parametrize(
    ("field", "value", "mismatch"),
    [
        (
            "max_tokens",
            "x",
            "{'type': 'int_parsing', 'loc': 'body.max_tokens', 'msg': 'Input should be a valid integer, unable to parse"
            " string as an integer', 'input': 'x'}",
        ),
        (
            "max_tokens",
            1.5,
            "{'type': 'int_from_float', 'loc': 'body.max_tokens', 'msg': 'Input should be a valid integer, got a number"
            " with a fractional part', 'input': '1.5'}",
        ),
        (
            "stream",
            "maybe",
            "{'type': 'bool_parsing', 'loc': 'body.stream', 'msg': 'Input should be a valid boolean, unable to"
            " interpret input', 'input': 'maybe'}",
        ),
        (
            "model",
            5,
            "{'type': 'string_type', 'loc': 'body.model', 'msg': 'Input should be a valid string', 'input': '5'}",
        ),
    ],
)
async def test_fields_of_the_wrong_type(engine, field, value, mismatch):
    response = await engine.chat(**{field: value})
    check(response, error(f"1 validation error:\n  {mismatch}", "Bad Request", f"body.{field}", 400))


async def test_an_empty_body(engine):
    response = await engine.request("POST", "/v1/chat/completions", b"")
    message = "1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'}"
    check(response, error(message, "Bad Request", "body", 400))


async def test_an_empty_conversation(engine):
    response = await engine.post("/v1/chat/completions", model=engine.model, messages=[])
    message = "Cannot apply chat template to an empty conversation. Provide at least one message."
    check(response, error(message, "BadRequestError", None, 400))


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ("auto", '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
        ("required", 'tool_choice="required" requires --tool-call-parser to be set'),
        (
            {"type": "function", "function": {"name": "f"}},
            'tool_choice=function "f" requires --tool-call-parser to be set',
        ),
    ],
)
async def test_tools_need_a_parser(engine, choice, told):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    check(await engine.chat(tools=tools, tool_choice=choice), error(told, "BadRequestError", None, 400))


async def test_an_unknown_field_is_ignored(engine):
    assert (await engine.chat(no_such_field=1, max_tokens=2)).status == 200
