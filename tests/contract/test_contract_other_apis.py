"""Responses and messages: the sequence of events and where the token counts stand."""

import json


def named_events(response):
    events = []
    for block in response.body.decode().split("\n\n"):
        if block:
            name, data = block.split("\n", 1)
            events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


async def test_responses_stream(engine):
    response = await engine.post("/v1/responses", model=engine.model, input="hello", max_output_tokens=20, stream=True)
    events = named_events(response)
    names = [name for name, _ in events]
    assert names[:4] == [
        *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"),
    ]
    assert set(names[4:-4]) == {"response.output_text.delta"}
    assert names[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert all(event["type"] == name for name, event in events)
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
    text = "".join(event["delta"] for name, event in events if name == "response.output_text.delta")
    assert events[-4][1]["text"] == text
    assert all("usage" not in event for name, event in events if name == "response.output_text.delta")
    usage = events[-1][1]["response"]["usage"]
    assert 0 < usage["output_tokens"] <= 20
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


async def test_messages_stream(engine):
    messages = [{"role": "user", "content": "hello"}]
    response = await engine.post("/v1/messages", model=engine.model, messages=messages, max_tokens=20, stream=True)
    events = named_events(response)
    names = [name for name, _ in events]
    assert names[:2] == ["message_start", "content_block_start"]
    assert set(names[2:-3]) == {"content_block_delta"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    final = dict(events)["message_delta"]
    assert final["delta"]["stop_reason"] in ("max_tokens", "end_turn")
    assert 0 < final["usage"]["output_tokens"] <= 20


async def test_messages_error(engine):
    messages = [{"role": "user", "content": "hello"}]
    response = await engine.post("/v1/messages", model="nope", messages=messages, max_tokens=20)
    assert response.status == 404
    assert response.json["type"] == "error"
    assert list(response.json["error"]) == ["type", "message"]


async def test_count_tokens(engine):
    messages = [{"role": "user", "content": "hello"}]
    counted = await engine.post("/v1/messages/count_tokens", model=engine.model, messages=messages)
    tokens = (await engine.post("/tokenize", model=engine.model, messages=messages)).json["count"]
    assert counted.json == {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}}


async def test_missing_fields(engine):
    response = await engine.post("/v1/messages", model=engine.model, messages=[{"role": "user", "content": "x"}])
    assert (response.status, response.json["error"]["param"]) == (400, "body.max_tokens")
    response = await engine.post("/v1/responses", model=engine.model)
    assert (response.status, response.json["error"]["param"]) == (400, "body.input")
    response = await engine.post("/tokenize", model=engine.model)
    assert response.json["error"]["message"].startswith(
        "2 validation errors:\n  {'type': 'missing', 'loc': 'body.prompt'"
    )


async def test_whole_answers(engine):
    response = (await engine.post("/v1/responses", model=engine.model, input="hello", max_output_tokens=5)).json
    assert list(response)[:5] == ["id", "created_at", "incomplete_details", "instructions", "metadata"]
    assert (response["status"], response["object"]) == ("incomplete", "response")
    messages = [{"role": "user", "content": "hello"}]
    message = (await engine.post("/v1/messages", model=engine.model, messages=messages, max_tokens=5)).json
    assert list(message) == ["id", "type", "role", "content", "model", "stop_reason", "usage"]
    assert message["stop_reason"] == "max_tokens"
