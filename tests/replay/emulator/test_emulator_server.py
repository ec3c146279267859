import asyncio
import io
import json
import socket

import aiohttp
import pytest
from emulator_wire import raw_request, read_raw, until

from replay.emulator import Emulator, serving

FULL_USAGE = {"include_usage": True, "continuous_usage_stats": True}


async def test_the_log_is_the_truth_of_what_a_stream_shows(serve):
    emulator = Emulator("h200", time_scale=0)
    client = await serve(emulator)
    *contents, last = await client.events(prompt="x", max_tokens=200, stream_options=FULL_USAGE, return_token_ids=True)
    (served,) = emulator.log
    speculation = last["metrics"]["speculative_decoding"]
    assert served.completion_tokens == 200
    assert served.verify_steps == speculation["num_spec_steps"] == len(contents) - 1
    assert served.acceptance_length == pytest.approx(speculation["mean_acceptance_length"])
    assert list(served.accepted_per_step) == speculation["per_step_accepted"]
    assert served.decode_seconds == pytest.approx(last["metrics"]["generation_time_ms"] / 1000)
    assert served.decode_tokens_per_second == pytest.approx(199 / served.decode_seconds)
    assert served.request_id == last["id"]
    sizes = [len(event["choices"][0]["token_ids"]) for event in contents]
    assert sizes[1:-1] == [accepted + 1 for accepted in served.accepted_per_step][:-1]


async def test_the_same_seed_gives_the_same_run(serve):
    async def texts(seed):
        client = await serve(Emulator("healthy", seed=seed, time_scale=0))
        return [(await client.complete())["choices"][0]["text"] for _ in range(3)]

    assert await texts(1) == await texts(1)
    assert await texts(1) != await texts(2)


async def test_greedy_and_seeded_answers_do_not_depend_on_the_server(serve):
    first, second = (
        await serve(Emulator("published", time_scale=0)),
        await serve(Emulator("fallback", seed=9, time_scale=0)),
    )
    for options in ({"temperature": 0}, {"seed": 5}):
        answers = [await client.complete(**options) for client in (first, second)]
        assert answers[0]["choices"][0]["text"] == answers[1]["choices"][0]["text"]


async def test_an_answer_continues_on_another_server_where_it_was_cut(serve):
    first, second = await serve(Emulator("published", time_scale=0)), await serve(Emulator("fallback", time_scale=0))
    options = {"prompt": "once upon a time", "temperature": 0}
    whole = (await first.complete(**options, max_tokens=40, return_token_ids=True))["choices"][0]
    prompt = whole["prompt_token_ids"] + whole["token_ids"][:15]
    rest = (await second.complete(prompt=prompt, temperature=0, max_tokens=25, return_token_ids=True))["choices"][0]
    assert whole["token_ids"][15:] == rest["token_ids"]


async def test_acceptance_and_phase_can_be_moved_while_it_serves(serve):
    emulator = Emulator("published", time_scale=0)
    client = await serve(emulator)
    emulator.acceptance = 1.0
    await client.complete(max_tokens=91)
    emulator.acceptance = 0.0
    await client.complete(max_tokens=91)
    emulator.acceptance = None
    emulator.force_phase("collapsed")
    await client.complete(max_tokens=91)
    all_accepted, none_accepted, collapsed = emulator.log
    assert (all_accepted.verify_steps, none_accepted.verify_steps) == (10, 90)
    assert [str(phase) for phase in collapsed.phases] == ["collapsed"]
    assert emulator.acceptance is None


async def test_concurrent_requests_share_the_engine(serve):
    emulator = Emulator("published", time_scale=0)
    client = await serve(emulator)
    answers = await asyncio.gather(*(client.complete(max_tokens=50) for _ in range(8)))
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [50] * 8
    assert sorted(entry.index for entry in emulator.log) == list(range(8))
    status, text = await client.get("/metrics")
    assert status == 200
    assert b'vllm:num_requests_running{engine="0",model_name="emulated"} 0.0' in text


async def test_a_reader_that_lags_gets_merged_steps():
    # The long name makes each event 20 kB, so that a thousand of them fill every buffer on the way.
    emulator = Emulator("fallback", model="m" * 20_000, time_scale=0)
    async with serving(emulator) as base_url:
        host, port = base_url.removeprefix("http://").split(":")
        lagging = socket.socket()
        lagging.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lagging.setblocking(False)
        await asyncio.get_running_loop().sock_connect(lagging, (host, int(port)))
        reader, writer = await asyncio.open_connection(sock=lagging, limit=4096)
        body = {"prompt": "x", "max_tokens": 1000, "stream": True, "stream_options": FULL_USAGE, "logprobs": 1}
        writer.write(raw_request("/v1/completions", body | {"return_token_ids": True}))
        await until(lambda: emulator.log)
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
    *contents, last = [json.loads(chunk[6:]) for chunk in read_raw(received)[2][:-1]]
    sizes = [len(event["choices"][0]["token_ids"]) for event in contents]
    assert sum(sizes) == last["usage"]["completion_tokens"] == 1000
    assert sizes[0] == 1
    assert max(sizes) > 100
    shown = [len(event["choices"][0]["logprobs"]["tokens"]) for event in contents]
    assert shown == sizes


async def test_a_client_that_leaves_frees_the_engine(serve):
    emulator = Emulator("published")
    client = await serve(emulator)
    options = {"prompt": "x", "max_tokens": 5000, "stream": True}
    async with client.session.post(client.base_url + "/v1/completions", json=options) as response:
        await response.content.readany()
        assert emulator.in_flight == 1
    await until(lambda: not emulator.in_flight)
    (served,) = emulator.log
    assert served.finish_reason == "abort"
    assert served.completion_tokens < 5000
    _, text = await client.get("/metrics")
    assert b'finished_reason="abort",model_name="emulated"} 0.0' in text


async def test_prompt_tokens_details_show_what_was_cached(serve):
    client = await serve(Emulator("published", time_scale=0, prompt_tokens_details=True))
    prompt = "the same beginning every time, " * 8
    first, second = [(await client.complete(prompt=prompt))["usage"] for _ in range(2)]
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    cached = second["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached < second["prompt_tokens"]
    *_, last = await client.events(prompt=prompt, stream_options={"include_usage": True})
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": cached}


@pytest.mark.parametrize(("level", "shown"), [("none", False), ("summary", True)])
async def test_levels_of_speculation_metrics(serve, level, shown):
    client = await serve(Emulator("published", time_scale=0, spec_decode_metrics=level))
    *_, last = await client.events(prompt="x", stream_options={"include_usage": True})
    assert ("speculative_decoding" in last["metrics"]) is shown
    assert "per_step_accepted" not in last["metrics"].get("speculative_decoding", {})


async def test_without_any_metrics_flag_there_is_no_metrics_object(serve):
    client = await serve(Emulator("fallback", time_scale=0, per_request_metrics=False))
    *_, last = await client.events(prompt="x", stream_options={"include_usage": True})
    assert "metrics" not in last
    assert (await client.complete())["metrics"] is None


async def test_control_routes_of_development_mode(serve):
    emulator = Emulator("published", time_scale=0, dev_mode=True)
    client = await serve(emulator)
    info = json.loads((await client.get("/server_info"))[1])
    assert info["vllm_config"]["speculative_config"]["num_speculative_tokens"] == 8
    assert await client.post("/sleep?level=1") == (200, b'{"status":"sleeping","level":1}')
    assert await client.get("/is_sleeping") == (200, b'{"is_sleeping":true}')
    waiting = asyncio.ensure_future(client.complete())
    await until(lambda: emulator.in_flight)
    assert await client.post("/wake_up") == (200, b'{"status":"awake","tags":null}')
    assert (await waiting)["usage"]["completion_tokens"] == 20
    assert await client.post("/reset_prefix_cache") == (200, b'{"success":true}')
    assert (await client.post("/sleep?level=7"))[0] == 400


async def test_control_routes_are_not_there_otherwise(serve):
    client = await serve(Emulator("published", time_scale=0))
    for method, path in (("POST", "/sleep"), ("POST", "/wake_up"), ("GET", "/is_sleeping"), ("GET", "/server_info")):
        assert await client.request(method, path) == (404, b'{"detail":"Not Found"}')


async def test_an_upload_is_read_in_pieces(serve):
    client = await serve(Emulator("published", time_scale=0))
    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(b"x" * 3_000_000), filename="speech.wav")
    status, body = await client.request("POST", "/v1/audio/transcriptions", data=form)
    assert (status, json.loads(body)["text"]) == (200, "heard 3000000 bytes")
    assert (await client.post("/v1/audio/transcriptions"))[0] == 400


async def test_a_realtime_session_confirms_updates(serve):
    client = await serve(Emulator("published", time_scale=0))
    async with client.session.ws_connect(client.base_url + "/v1/realtime") as session:
        assert (await session.receive_json())["type"] == "session.created"
        await session.send_json({"type": "session.update", "session": {"model": "m"}})
        assert await session.receive_json() == {"type": "session.updated", "session": {"model": "m"}}
        await session.send_json({"type": "nonsense"})
        assert (await session.receive_json())["type"] == "error"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x", "max_tokens": "many"}),
        ("/v1/completions", {"prompt": "x", "max_tokens": 1.5}),
        ("/v1/completions", {"prompt": "x", "stream": "perhaps"}),
        ("/v1/completions", {"prompt": "x", "temperature": "warm"}),
        ("/v1/completions", {"prompt": "x", "model": 5}),
        ("/v1/completions", {"prompt": ["x", 1]}),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/completions", {"prompt": [1, 10**9]}),
        ("/v1/completions", {"prompt": {"a": 1}}),
        ("/v1/completions", {"prompt": "x", "stop": 5}),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}),
        ("/v1/completions", {"prompt": "x", "temperature": 3}),
        ("/v1/completions", [1, 2]),
        ("/v1/chat/completions", {"messages": "hello"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": []}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "tool_choice": "auto"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}),
        ("/tokenize", {}),
        ("/detokenize", {"tokens": "x"}),
        ("/v1/responses", {}),
        ("/v1/messages", {"messages": []}),
    ],
)
async def test_bad_input_is_a_400_with_a_message(serve, path, body):
    client = await serve(Emulator("published", time_scale=0))
    status, answer = await client.request("POST", path, json=body)
    assert status == 400
    assert json.loads(answer)["error"]["message"]


async def test_values_that_can_only_mean_one_thing_are_taken(serve):
    client = await serve(Emulator("published", time_scale=0))
    answer = await client.complete(max_tokens="7", stream="no", temperature="0.5", n=1.0)
    assert answer["usage"]["completion_tokens"] == 7


async def test_an_empty_body_and_unknown_token_ids(serve):
    client = await serve(Emulator("published", time_scale=0))
    headers = {"content-type": "application/json"}
    status, body = await client.request("POST", "/v1/completions", data=b"", headers=headers)
    assert (status, json.loads(body)["error"]["param"]) == (400, "body")
    assert await client.post("/detokenize", tokens=[10**7]) == (200, b'{"prompt":""}')


async def test_a_body_that_is_no_text(serve):
    client = await serve(Emulator("published", time_scale=0))
    status, body = await client.request(
        "POST", "/v1/completions", data=b'{"prompt": "\xff"}', headers={"content-type": "application/json"}
    )
    assert (status, body) == (400, b'{"detail":"There was an error parsing the body"}')


async def test_a_step_that_ends_within_a_character_is_an_event_without_text(serve):
    client = await serve(Emulator("fallback", time_scale=0))
    events = await client.events(prompt="x", max_tokens=400, seed=1, return_token_ids=True)
    empty = [event for event in events if not event["choices"][0]["text"]]
    assert empty
    assert all(len(event["choices"][0]["token_ids"]) == 1 for event in empty)
    assert "語" in "".join(event["choices"][0]["text"] for event in events)


async def test_an_echo_with_logprobs_tells_of_the_prompt_too(serve):
    client = await serve(Emulator("published", time_scale=0))
    choice = (await client.complete(prompt="hello there", echo=True, logprobs=2, return_token_ids=True))["choices"][0]
    prompt = choice["prompt_token_ids"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert len(choice["logprobs"]["tokens"]) == len(prompt) + 20
    assert choice["prompt_logprobs"][0] is None
    assert [str(token) in entry for token, entry in zip(prompt[1:], choice["prompt_logprobs"][1:], strict=True)]
    assert all(len(entry) == 2 for entry in choice["prompt_logprobs"][1:])


async def test_an_answer_without_max_tokens_ends_by_itself(serve):
    client = await serve(Emulator("published", time_scale=0))
    _, body = await client.post("/v1/chat/completions", messages=[{"role": "user", "content": "hi"}])
    answer = json.loads(body)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 32000


def test_a_negative_time_scale_is_refused():
    with pytest.raises(ValueError, match="time_scale"):
        Emulator(time_scale=-1)
