import json

import openai
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.emulator import Emulator
from replay.emulator.tools import ToolCall, ToolCallParser, choose_tool_call

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"enum": ["C", "F"]},
                "hours": {"type": "array", "items": {"type": "number"}},
            },
        },
    },
}
OTHER = {"type": "function", "function": {"name": "other"}}
HELLO = [{"role": "user", "content": "What is the weather?"}]


@settings(max_examples=100)
@given(
    name=st.text(min_size=1, max_size=8),
    arguments=st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=3),
    cuts=st.lists(st.integers(1, 12), min_size=1),
)
def test_deltas_add_up_to_the_call_however_the_text_is_cut(name, arguments, cuts):
    call = ToolCall(name=name, arguments=json.dumps(arguments))
    parser, text, deltas, turn = ToolCallParser(call), call.text, [], 0
    while text:
        size = cuts[turn % len(cuts)]
        turn += 1
        delta = parser.delta(text[:size])
        text = text[size:]
        if delta is not None:
            deltas.append(delta)
    assert deltas[0]["function"]["name"] == name
    assert all(list(delta) == ["index", "function"] for delta in deltas[1:])
    assert "".join(delta["function"]["arguments"] for delta in deltas) == call.arguments


def test_which_tool_is_called():
    tools = {"tools": [WEATHER, OTHER]}
    named = {"tool_choice": {"type": "function", "function": {"name": "other"}}}
    answered = [*HELLO, {"role": "tool", "content": "sunny"}]
    assert choose_tool_call(tools, HELLO).name == "get_weather"
    assert choose_tool_call(tools | named, HELLO).name == "other"
    assert choose_tool_call(tools | {"tool_choice": "none"}, HELLO) is None
    assert choose_tool_call(tools, answered) is None
    assert choose_tool_call(tools | {"tool_choice": "required"}, answered).name == "get_weather"
    arguments = json.loads(choose_tool_call(tools, HELLO).arguments)
    assert arguments == {"city": "some city", "days": 1, "unit": "C", "hours": [1.5]}


async def test_an_openai_client_gets_the_call_streamed_and_whole(serve):
    client = await serve(Emulator("published", model="tiny", time_scale=0))
    async with openai.AsyncOpenAI(base_url=client.base_url + "/v1", api_key="x", max_retries=0) as sdk:
        whole = await sdk.chat.completions.create(model="tiny", messages=HELLO, tools=[WEATHER])
        (call,) = whole.choices[0].message.tool_calls
        assert whole.choices[0].finish_reason == "tool_calls"
        assert call.function.name == "get_weather"
        stream = await sdk.chat.completions.create(model="tiny", messages=HELLO, tools=[WEATHER], stream=True)
        arguments, reasons = "", []
        async for chunk in stream:
            reasons.append(chunk.choices[0].finish_reason)
            for delta in chunk.choices[0].delta.tool_calls or []:
                arguments += delta.function.arguments or ""
        assert arguments == call.function.arguments
        assert reasons[-1] == "tool_calls"
        answered = [*HELLO, {"role": "tool", "content": "sunny", "tool_call_id": call.id}]
        text = await sdk.chat.completions.create(model="tiny", messages=answered, tools=[WEATHER], max_tokens=10)
        assert text.choices[0].message.content
        assert text.choices[0].message.tool_calls is None


async def test_the_parser_swallows_steps_unless_token_ids_are_asked(serve):
    client = await serve(Emulator("published", model="tiny", time_scale=0))
    path, options = "/v1/chat/completions", {"messages": HELLO, "tools": [WEATHER], "max_tokens": 500}
    usage = {"include_usage": True}
    *shown, last = await client.events(path, **options, stream_options=usage)
    steps = last["metrics"]["speculative_decoding"]["num_spec_steps"]
    assert len(shown) - 1 < steps + 1
    *all_steps, last = await client.events(path, **options, stream_options=usage, return_token_ids=True)
    assert len(all_steps) - 1 == last["metrics"]["speculative_decoding"]["num_spec_steps"] + 1


async def test_a_named_call_ends_with_stop(serve):
    client = await serve(Emulator("published", model="tiny", time_scale=0))
    choice = {"type": "function", "function": {"name": "other"}}
    *_, last = await client.events(
        "/v1/chat/completions", messages=HELLO, tools=[WEATHER, OTHER], tool_choice=choice, max_tokens=500
    )
    assert last["choices"][0]["finish_reason"] == "stop"
