"""Completions: every key, in order, of every object; streams event by event."""

import re

from contract_wire import step_boundaries

CHUNK = ["id", "object", "created", "model", "choices"]
CHOICE = ["index", "text", "logprobs", "finish_reason", "stop_reason", "prompt_token_ids", "token_ids"]
FULL_USAGE = {"include_usage": True, "continuous_usage_stats": True}


async def test_plain_stream(engine):
    events = (await engine.complete(stream=True)).events
    assert re.fullmatch(r"cmpl-[0-9a-f]+", events[0]["id"])
    for event in events[:-1]:
        assert list(event) == CHUNK
        assert event["object"] == "text_completion"
    assert list(events[-1]) == [*CHUNK, "system_fingerprint"]
    assert all(list(event["choices"][0]) == CHOICE for event in events)
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["length"]


async def test_one_event_carries_whole_verify_steps(engine):
    prompt = "def add(a, b):"
    response = await engine.complete(
        prompt, stream=True, max_tokens=120, stream_options=FULL_USAGE, return_token_ids=True
    )
    *contents, last = response.events
    tokens = (await engine.post("/tokenize", model=engine.model, prompt=prompt)).json["tokens"]
    assert contents[0]["choices"][0]["prompt_token_ids"] == tokens
    assert all(event["choices"][0]["prompt_token_ids"] is None for event in contents[1:])
    assert list(last) == [*CHUNK, "usage", "system_fingerprint", "metrics"]
    boundaries = step_boundaries(last["metrics"]["speculative_decoding"], 120)
    seen = 0
    for event in contents:
        seen += len(event["choices"][0]["token_ids"])
        assert seen in boundaries
        assert event["usage"] == {
            "prompt_tokens": len(tokens),
            "total_tokens": len(tokens) + seen,
            "completion_tokens": seen,
        }
        assert list(event["usage"]) == ["prompt_tokens", "total_tokens", "completion_tokens"]
    assert seen == 120


async def test_whole_answer(engine):
    body = (await engine.complete()).json
    assert list(body) == [
        *("id", "object", "created", "model", "choices", "service_tier", "system_fingerprint", "usage"),
        *("kv_transfer_params", "ec_transfer_params", "metrics"),
    ]
    assert list(body["choices"][0]) == [
        *("index", "text", "logprobs", "finish_reason", "stop_reason", "token_ids", "prompt_logprobs"),
        *("prompt_token_ids", "routed_experts"),
    ]
    assert body["usage"]["completion_tokens"] == 40
    assert step_boundaries(body["metrics"]["speculative_decoding"], 40)[-1] == 40


async def test_default_length_is_16_tokens(engine):
    body = (await engine.post("/v1/completions", model=engine.model, prompt="x", ignore_eos=True)).json
    assert body["usage"]["completion_tokens"] == 16


async def test_token_ids_as_prompt(engine):
    tokens = (await engine.post("/tokenize", model=engine.model, prompt="def add(a, b):")).json["tokens"]
    by_text = (await engine.complete(temperature=0)).json
    by_ids = (await engine.complete(tokens, temperature=0)).json
    assert by_ids["choices"][0]["text"] == by_text["choices"][0]["text"]
    assert by_ids["usage"] == by_text["usage"]


async def test_several_prompts_and_choices_are_numbered_through(engine):
    body = (await engine.complete(["one", "two"], n=2, max_tokens=4)).json
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"]["completion_tokens"] == 16
    assert body["metrics"] is None
    events = (await engine.complete(["one", "two"], n=2, max_tokens=4, stream=True)).events
    assert {event["choices"][0]["index"] for event in events} == {0, 1, 2, 3}


async def test_logprobs_offsets_run_through_the_stream(engine):
    events = (await engine.complete(stream=True, logprobs=1, temperature=0)).events
    offsets, tokens = [], []
    for event in events:
        logprobs = event["choices"][0]["logprobs"]
        assert list(logprobs) == ["text_offset", "token_logprobs", "tokens", "top_logprobs"]
        offsets += logprobs["text_offset"]
        tokens += logprobs["tokens"]
        assert len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == len(logprobs["tokens"])
    assert len(tokens) == 40
    assert offsets == [sum(map(len, tokens[:index])) for index in range(40)]


async def test_echo_puts_the_prompt_first(engine):
    body = (await engine.complete("def add(a, b):", echo=True, max_tokens=4)).json
    assert body["choices"][0]["text"].startswith("def add(a, b):")
    events = (await engine.complete("def add(a, b):", echo=True, max_tokens=4, stream=True)).events
    assert events[0]["choices"][0]["text"].startswith("def add(a, b):")


async def test_echo_alone_shows_only_the_prompt(engine):
    body = (await engine.complete("def add(a, b):", echo=True, max_tokens=0)).json
    assert body["choices"][0]["text"] == "def add(a, b):"


async def test_an_echoed_prompt_has_logprobs_but_for_its_first_token(engine):
    choice = (await engine.complete("def add(a, b):", echo=True, logprobs=1, max_tokens=4)).json["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    first, *others = choice["prompt_logprobs"]
    assert first is None
    assert len(others) + 1 + 4 == len(logprobs["tokens"])
    assert all(list(entry) == ["logprob", "rank", "decoded_token"] for shown in others for entry in shown.values())


async def test_an_answer_of_one_token_has_no_verify_step(engine):
    *_, last = (await engine.complete(max_tokens=1, stream=True, stream_options={"include_usage": True})).events
    speculation = last["metrics"]["speculative_decoding"]
    assert (speculation["num_spec_steps"], speculation["mean_acceptance_length"]) == (0, 1.0)
    assert "per_step_accepted" not in speculation
    assert "mean_itl_ms" not in last["metrics"]
    whole = (await engine.complete(max_tokens=1)).json["metrics"]
    assert (whole["speculative_decoding"]["per_step_accepted"], whole["mean_itl_ms"]) == (None, None)


async def test_an_answer_that_a_stop_string_ends_has_no_speculation_metrics(engine):
    text = (await engine.complete(temperature=0)).json["choices"][0]["text"]
    options = {"temperature": 0, "stop": [text[12:15]]}
    *_, last = (await engine.complete(stream=True, stream_options={"include_usage": True}, **options)).events
    assert "generation_time_ms" in last["metrics"]
    assert "speculative_decoding" not in last["metrics"]
    assert (await engine.complete(**options)).json["metrics"]["speculative_decoding"] is None


async def test_a_stop_token_ends_the_answer(engine):
    ids = (await engine.complete(temperature=0, return_token_ids=True)).json["choices"][0]["token_ids"]
    stop = ids[5]
    choice = (await engine.complete(temperature=0, stop_token_ids=[stop], return_token_ids=True)).json["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert choice["token_ids"] == ids[: ids.index(stop) + 1]


async def test_the_request_id_becomes_the_answers_id(engine):
    body = {"model": engine.model, "prompt": "x", "max_tokens": 2}
    response = await engine.request("POST", "/v1/completions", body, headers={"x-request-id": "my-req-2"})
    assert response.json["id"] == "cmpl-my-req-2"
