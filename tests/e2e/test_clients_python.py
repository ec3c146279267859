"""openai-python in front of `specbreaker serve`, as an agent uses it: only base_url is different."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam, ChatCompletionToolParam
from served import Served, served
from upstreams import until

from replay.emulator import Emulator, serving
from replay.emulator.scenario import parse_scenario

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def client(demo: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=demo.base_url, api_key="sk-any", max_retries=0) as made:
        yield made


@pytest.fixture
async def async_client(demo: Served) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=demo.base_url, api_key="sk-any", max_retries=0) as made:
        yield made


def test_models_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["emulated"]


def test_a_whole_chat_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="emulated", messages=HI, max_tokens=12)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def test_a_streamed_chat_answer_has_no_chunk_that_was_not_asked_for(client: OpenAI) -> None:
    stream = client.chat.completions.create(model="emulated", messages=HI, max_tokens=12, stream=True)
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_usage_that_was_asked_for_comes(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="emulated", messages=HI, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    last = list(stream)[-1]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 12


async def test_async_streams_side_by_side(async_client: AsyncOpenAI) -> None:
    async def ask(tokens: int) -> int:
        stream = await async_client.chat.completions.create(
            model="emulated", messages=HI, max_tokens=tokens, stream=True, stream_options={"include_usage": True}
        )
        used = [chunk.usage.completion_tokens async for chunk in stream if chunk.usage is not None]
        return used[-1]

    assert await asyncio.gather(*(ask(tokens) for tokens in (8, 9, 10, 11))) == [8, 9, 10, 11]


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called(client: OpenAI, stream: bool) -> None:
    if stream:
        chunks = client.chat.completions.create(
            model="emulated", messages=HI, tools=[WEATHER], tool_choice="required", stream=True
        )
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        name = "".join(call.function.name or "" for call in calls if call.function)
        arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    else:
        answer = client.chat.completions.create(model="emulated", messages=HI, tools=[WEATHER], tool_choice="required")
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        name, arguments = call.function.name, call.function.arguments
    assert name == "get_weather"
    assert set(json.loads(arguments)) == {"city"}


@pytest.mark.parametrize("stream", [False, True])
def test_two_choices(client: OpenAI, stream: bool) -> None:
    if stream:
        chunks = client.chat.completions.create(model="emulated", messages=HI, n=2, max_tokens=6, stream=True)
        indices = {choice.index for chunk in chunks for choice in chunk.choices}
    else:
        answer = client.chat.completions.create(model="emulated", messages=HI, n=2, max_tokens=6)
        indices = {choice.index for choice in answer.choices}
    assert indices == {0, 1}


def test_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="emulated", messages=HI, max_tokens=5, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert [len(token.top_logprobs) for token in logprobs.content or []] == [2] * 5


def test_completions(client: OpenAI) -> None:
    whole = client.completions.create(model="emulated", prompt="Once", max_tokens=6)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 6
    stream = client.completions.create(model="emulated", prompt="Once", max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream)


def test_headers_say_what_served_it(client: OpenAI) -> None:
    raw = client.with_raw_response.chat.completions.create(
        model="emulated", messages=HI, max_tokens=4, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-specbreaker-backend"] in ("primary", "fallback")
    assert raw.headers["x-specbreaker-phase"] in ("healthy", "transition", "collapsed", "recovering")
    assert raw.headers["x-request-id"] == "mine-1"


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="other", messages=HI)
    assert error.value.status_code == 404
    assert "The model `other` does not exist." in str(error.value)


def test_a_control_route_is_forbidden(client: OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError):
        client.post("/load_lora_adapter", body={}, cast_to=object)


def test_a_wrong_parameter_is_a_bad_request(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="emulated", messages=HI, max_tokens=-1)


# ---- an engine that the test holds -----------------------------------------------------------------------------------

LONG = """
name = "long"
num_speculative_tokens = 8
[[cycle]]
phase = "healthy"
length = 1
acceptance_length = 3.6
"""


async def test_an_aborted_stream_frees_the_engine() -> None:
    emulator = Emulator(parse_scenario(LONG, "long"))
    async with serving(emulator) as url:
        with served("--upstream", url) as proxy:
            async with AsyncOpenAI(base_url=proxy.base_url, api_key="x", max_retries=0) as client:
                stream = await client.chat.completions.create(
                    model="emulated", messages=HI, max_tokens=20_000, stream=True
                )
                async for _ in stream:
                    break
                assert emulator.in_flight == 1
                await stream.close()
                await until(lambda: not emulator.in_flight)
            async with aiohttp.ClientSession() as http, http.get(f"{proxy.url}/metrics") as answer:
                metrics = await answer.text()
    running = [line for line in metrics.splitlines() if line.startswith("vllm:num_requests_running")]
    assert [float(line.rsplit(" ", 1)[1]) for line in running] == [0.0]
    assert emulator.log[-1].finish_reason == "abort"


@pytest.mark.parametrize(
    ("death", "words"),
    [
        ("engine_kill", "EngineCore encountered an issue"),
        ("api_kill", "closed the connection in the middle of the answer"),
    ],
)
async def test_an_engine_that_dies_in_the_middle_is_an_error_and_not_an_end(death: str, words: str) -> None:
    emulator = Emulator(parse_scenario(LONG, "long"))
    async with serving(emulator) as url:
        with served("--upstream", url) as proxy:
            async with AsyncOpenAI(base_url=proxy.base_url, api_key="x", max_retries=0) as client:
                stream = await client.chat.completions.create(
                    model="emulated", messages=HI, max_tokens=20_000, stream=True
                )
                await anext(aiter(stream))
                emulator.die(death)
                with pytest.raises(openai.APIError, match=words):
                    await read_all(stream)
                await stream.close()
                with pytest.raises(openai.InternalServerError) as error:
                    await client.chat.completions.create(model="emulated", messages=HI)
    assert error.value.status_code in (500, 502)


async def read_all(stream: openai.AsyncStream[ChatCompletionChunk]) -> None:
    async for _ in stream:
        pass


async def test_an_engine_that_is_down_is_an_internal_server_error() -> None:
    async with serving(Emulator("healthy")) as url:
        pass
    with served("--upstream", url) as proxy:
        async with AsyncOpenAI(base_url=proxy.base_url, api_key="x", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError) as error:
                await client.chat.completions.create(model="emulated", messages=HI)
    assert error.value.status_code == 502
    assert "backend primary cannot be reached" in str(error.value)
