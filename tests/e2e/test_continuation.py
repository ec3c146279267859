"""An answer whose engine dies in the middle goes on on another backend: the client sees one whole answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cutter import Cutter, cutting
from upstreams import (
    STREAM_HEAD,
    Client,
    Peer,
    Script,
    Seen,
    answer_of,
    chunked,
    connected,
    event,
    observed,
    settings,
    until,
    upstream,
)

from detector.observation import Ending
from proxy.serve import Proxy, running
from replay.emulator import Emulator, serving
from replay.emulator.scenario import parse_scenario
from replay.session.reader import read_session
from replay.session.schema import EventRecord, RequestRecord, ResponseRecord

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
TOKENS = 200
PACED = {"time_scale": 0.5}
"""An engine that takes its time, to die or be left in the middle; others never merge events, however slow we are."""
DEATHS = ("engine_kill", "worker_kill", "engine_assert", "engine_term", "api_term", "api_kill", "wedge", "sleep")


def request(path: str, **members: Any) -> bytes:
    said = {"messages": [{"role": "user", "content": "tell me"}]} if path == CHAT else {"prompt": "def add(a, b):"}
    body = {"model": "emulated", "stream": True, "max_tokens": TOKENS, "temperature": 0, **said, **members}
    return json.dumps({name: value for name, value in body.items() if value is not None}).encode()


class Answer:
    """A stream as a client reads it."""

    def __init__(self, payload: bytes) -> None:
        blocks = [block.removeprefix(b"data: ") for block in payload.split(b"\n\n") if block]
        self.done = blocks.count(b"[DONE]")
        self.ended_with_done = blocks[-1] == b"[DONE]"
        self.events = [json.loads(block) for block in blocks if block != b"[DONE]"]

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [event["choices"][0] for event in self.events if event.get("choices")]

    @property
    def text(self) -> str:
        return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in self.choices)

    @property
    def ids(self) -> list[int]:
        return [token for choice in self.choices for token in choice.get("token_ids") or []]

    @property
    def error(self) -> dict[str, Any]:
        return self.events[-1]["error"]


class Pair:
    """A proxy in front of two engines that say the same."""

    def __init__(self, proxy: Proxy, primary: Emulator, fallback: Emulator, first: Cutter, second: Cutter) -> None:
        self.proxy = proxy
        self.primary = primary
        self.fallback = fallback
        self.first = first
        """In front of the primary."""
        self.second = second
        """In front of the fallback."""

    async def answer(
        self, path: str, body: bytes, interrupt: Callable[[], None] | None = None, after: int = 5
    ) -> Answer:
        """Ask through the proxy; let something happen after some events."""
        async with connected(self.proxy) as client:
            await client.post(body, path=path)
            assert (await client.head())[0] == 200
            payload = b""
            if interrupt is not None:
                payload = await events(client, after)
                interrupt()
            return Answer(payload + await client.chunked())

    def metric(self, name: str) -> dict[str, float]:
        lines = self.proxy.control._metrics.exposition()[0].decode().splitlines()
        return {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if line.startswith(name)}


async def events(client: Client, count: int) -> bytes:
    payload = b""
    while payload.count(b"\n\n") < count:
        size = int(await client.reader.readuntil(b"\r\n"), 16)
        payload += (await client.reader.readexactly(size + 2))[:-2]
    return payload


@asynccontextmanager
async def pair(
    *, primary: dict[str, Any] | None = None, fallback: dict[str, Any] | None = None, **flags: Any
) -> AsyncIterator[Pair]:
    one = Emulator(**{"scenario": "healthy", "time_scale": 0} | (primary or {}))
    other = Emulator(**{"scenario": "fallback", "time_scale": 20} | (fallback or {}))
    flags = {"policy__mode": "act", "policy__dwell_seconds": 60, "backend": {"idle_timeout_seconds": 0.5}} | flags
    async with (
        serving(one) as one_url,
        serving(other) as other_url,
        cutting(one_url) as first,
        cutting(other_url) as second,
        running(settings(first.url, second.url, **flags)) as proxy,
    ):
        yield Pair(proxy, one, other, first, second)


async def uninterrupted(path: str, body: bytes) -> Answer:
    async with (
        serving(Emulator("fallback", time_scale=0)) as url,
        running(settings(url)) as proxy,
        connected(proxy) as client,
    ):
        await client.post(body, path=path)
        return Answer((await client.answer())[2])


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("death", DEATHS)
async def test_an_answer_survives_its_engine(path: str, death: str) -> None:
    body = request(path, return_token_ids=True, stream_options={"include_usage": True})
    whole = await uninterrupted(path, body)
    async with pair(primary=PACED) as it:
        answer = await it.answer(path, body, lambda: it.primary.die(death))
        first, second = await observed(it.proxy), await observed(it.proxy, "fallback1")
        counted = it.metric("specbreaker_continuations_total{")
    assert (answer.text, answer.ids) == (whole.text, whole.ids)
    assert len(answer.ids) == TOKENS
    assert (answer.done, answer.ended_with_done) == (1, True)
    usage = {name: answer.events[-1]["usage"][name] for name in ("prompt_tokens", "total_tokens", "completion_tokens")}
    assert usage == {name: whole.events[-1]["usage"][name] for name in usage}
    assert all({event[word] for event in answer.events} == {answer.events[0][word]} for word in ("id", "created"))
    assert [choice["finish_reason"] for choice in answer.choices if choice["finish_reason"]] == ["length"]
    assert first.ending.failed
    assert second.ending is Ending.COMPLETE
    assert 0 < (second.completion_tokens or 0) < TOKENS
    label = f'{{from="primary",reason="{first.ending}",result="completed",to="fallback1"}}'
    assert counted == {f"specbreaker_continuations_total{label}": 1}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("after", [1, 2, 3, 4, 6, 8, 11, 15, 20])
async def test_a_cut_after_any_event_shows_nowhere(path: str, after: int) -> None:
    """Also where a character is not whole at the cut, and without anything that the client asked for itself."""
    whole = await uninterrupted(path, request(path))
    async with pair() as it:
        it.first.cut(after)
        answer = await it.answer(path, request(path))
        assert it.first.cuts == 1
    assert answer.text == whole.text
    assert answer.done == 1
    assert [list(event) for event in answer.events[-1:]] == [list(event) for event in whole.events[-1:]]
    assert {tuple(event) for event in answer.events} == {tuple(event) for event in whole.events}
    assert not [event for event in answer.events if "usage" in event]
    assert answer.ids == []
    roles = [choice for choice in answer.choices if "role" in choice.get("delta", {})]
    assert len(roles) == (path == CHAT)


async def test_usage_on_each_event_counts_both_parts() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = request(COMPLETIONS, stream_options=options, return_token_ids=True)
    async with pair() as it:
        it.first.cut(after=5)
        answer = await it.answer(COMPLETIONS, body)
    seen, prompt = 0, answer.events[0]["usage"]["prompt_tokens"]
    for one in answer.events[:-1]:
        seen += len(one["choices"][0]["token_ids"])
        usage = one["usage"]
        assert (usage["completion_tokens"], usage["prompt_tokens"]) == (seen, prompt)
        assert usage["total_tokens"] == seen + prompt
    assert answer.events[-1]["usage"]["completion_tokens"] == seen == TOKENS


@pytest.mark.parametrize(
    ("path", "asked"), [(COMPLETIONS, {"logprobs": 3}), (CHAT, {"logprobs": True, "top_logprobs": 3})]
)
async def test_log_probabilities_go_on(path: str, asked: dict[str, Any]) -> None:
    body = request(path, **asked)
    whole = await uninterrupted(path, body)
    async with pair() as it:
        it.first.cut(after=5)
        answer = await it.answer(path, body)
    assert logprobs(answer) == logprobs(whole)


def logprobs(answer: Answer) -> list[Any]:
    found: list[Any] = []
    for choice in answer.choices:
        of = choice["logprobs"] or {}
        found += of.get("content") or zip(*(of[name] for name in sorted(of)), strict=True) if of else []
    return found


async def test_a_chat_without_a_limit_goes_on_to_its_own_end() -> None:
    scenario = {"scenario": parse_scenario(SHORT, "short")}
    body = request(CHAT, max_tokens=None, ignore_eos=True, stream_options={"include_usage": True})
    async with pair(primary=scenario, fallback=scenario) as it:
        it.first.cut(after=3)
        answer = await it.answer(CHAT, body)
    assert answer.choices[-1]["finish_reason"] == "length"
    assert answer.events[-1]["usage"]["total_tokens"] == 300


SHORT = """
name = "short"
num_speculative_tokens = 2
max_model_len = 300
[[cycle]]
phase = "healthy"
length = 1
acceptance = 0.5
"""


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("at", [60, 68, 75, 83, 90])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_stop_string_across_the_cut_ends_the_answer(path: str, at: int, include: bool) -> None:
    whole = (await uninterrupted(path, request(path))).text
    members = {"include_stop_str_in_output": include, "stop": ["never said", whole[at : at + 30]]}
    body = request(path, stream_options={"include_usage": True}, **members)
    expected = await uninterrupted(path, body)
    async with pair() as it:
        it.first.cut(after=at // 14)
        answer = await it.answer(path, body)
        assert it.first.cuts == 1
    assert answer.text == expected.text
    assert answer.choices[-1]["finish_reason"] == "stop"
    assert answer.choices[-1]["stop_reason"] == expected.choices[-1]["stop_reason"]
    assert answer.done == 1
    assert "usage" in answer.events[-1]


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
LOOKED = [
    {"role": "user", "content": "look"},
    {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "a tree"},
]


async def test_an_answer_that_may_yet_call_a_tool_goes_on_as_a_chat() -> None:
    body = request(CHAT, messages=LOOKED, tools=[TOOL], stream_options={"include_usage": True})
    whole = await uninterrupted(CHAT, body)
    async with pair() as it:
        it.first.cut(after=5)
        answer = await it.answer(CHAT, body)
        assert it.fallback.log[-1].prompt_tokens > 40
    assert answer.text == whole.text
    assert answer.done == 1
    for name in ("prompt_tokens", "completion_tokens"):
        assert answer.events[-1]["usage"][name] == whole.events[-1]["usage"][name]


async def test_a_tool_call_of_which_nothing_was_shown_is_made_by_the_other_engine() -> None:
    body = request(CHAT, tools=[TOOL], tool_choice="auto", messages=[{"role": "user", "content": "look"}])
    async with pair() as it:
        it.first.cut(after=5)
        answer = await it.answer(CHAT, body)
        assert it.first.cuts == 1
    call, *_ = [call["function"] for one in answer.choices for call in one["delta"].get("tool_calls", [])]
    assert (call["name"], answer.choices[-1]["finish_reason"], answer.done) == ("look", "tool_calls", 1)


async def test_half_a_tool_call_is_refused() -> None:
    body = request(CHAT, tools=[TOOL], tool_choice="auto", messages=[{"role": "user", "content": "look"}])
    async with pair() as it:
        it.first.cut(after=13)
        answer = await it.answer(CHAT, body)
    assert "in a tool call" in answer.error["message"]
    assert (answer.error["code"], answer.done) == ("continuation_refused", 0)


@pytest.mark.parametrize("death", ["engine_kill", "engine_term", "api_kill", "wedge"])
async def test_what_cannot_be_continued_ends_with_an_error_that_says_why(death: str) -> None:
    body = request(CHAT, presence_penalty=0.5)
    async with pair(primary=PACED) as it:
        answer = await it.answer(CHAT, body, lambda: it.primary.die(death))
        counted = it.metric("specbreaker_continuations_total{")
        assert it.fallback.log == []
    assert answer.error["code"] == "continuation_refused"
    assert "presence_penalty: counts the output only" in answer.error["message"]
    assert answer.done == 0
    assert [('to="none"' in name, 'result="refused"' in name, value) for name, value in counted.items()] == [
        (True, True, 1)
    ]


async def test_a_second_backend_that_fails_too_ends_with_an_error() -> None:
    async with pair() as it:
        it.first.cut(after=4)
        it.second.cut(after=4)
        answer = await it.answer(CHAT, request(CHAT))
        counted = it.metric("specbreaker_continuations_total{")
    assert answer.error["code"] == "continuation_failed"
    assert answer.done == 0
    assert sorted(name.partition('result="')[2].partition('"')[0] for name in counted) == ["failed", "refused"]


async def test_with_a_larger_budget_it_goes_on_twice() -> None:
    body = request(CHAT, return_token_ids=True, stream_options={"include_usage": True})
    whole = await uninterrupted(CHAT, body)
    async with pair(continuation__max_per_answer=2) as it:
        it.first.cut(after=4)
        it.second.cut(after=4)
        answer = await it.answer(CHAT, body)
        assert (it.first.cuts, it.second.cuts) == (1, 1)
    assert (answer.text, answer.ids) == (whole.text, whole.ids)
    assert answer.events[-1]["usage"]["completion_tokens"] == TOKENS


async def test_without_another_backend_that_answers_it_says_so() -> None:
    async with pair(primary=PACED) as it:
        it.fallback.die("api_kill")
        answer = await it.answer(CHAT, request(CHAT), lambda: it.primary.die("engine_kill"))
    assert (answer.error["code"], answer.done) == ("continuation_refused", 0)
    assert "no other backend" in answer.error["message"]


@pytest.mark.parametrize("flags", [{"policy__mode": "observe"}, {"continuation__enabled": False}])
async def test_where_it_is_off_the_engines_bytes_pass_as_they_are(flags: dict[str, Any]) -> None:
    async with pair(primary=PACED, **flags) as it:
        answer = await it.answer(CHAT, request(CHAT), lambda: it.primary.die("engine_kill"))
        assert it.fallback.log == []
        assert all(exchange.running is None for backend in it.proxy.gateway.backends for exchange in backend.exchanges)
    assert answer.error["code"] == 500
    assert answer.done == 1


async def test_a_client_that_leaves_meanwhile_frees_both_engines() -> None:
    async with pair(primary=PACED, fallback={"time_scale": 0.1}) as it:
        async with connected(it.proxy) as client:
            await client.post(request(CHAT), path=CHAT)
            await client.head()
            await events(client, 4)
            it.primary.die("engine_kill")
            await until(lambda: it.fallback.in_flight == 1)
        await until(lambda: it.fallback.in_flight == 0)
        await until(lambda: bool(it.metric("specbreaker_continuations_total{")))
        (name,) = it.metric("specbreaker_continuations_total{")
    assert 'result="client_gone"' in name


async def test_an_answer_that_grew_too_long_is_not_kept() -> None:
    async with pair(continuation__max_kept_tokens=60) as it:
        it.first.cut(after=20)
        answer = await it.answer(CHAT, request(CHAT))
    assert "max_kept_tokens" in answer.error["message"]
    assert all('"token_ids":[' not in json.dumps(event, separators=(",", ":")) for event in answer.events)


async def test_the_policy_can_move_a_running_answer() -> None:
    body = request(CHAT, return_token_ids=True)
    whole = await uninterrupted(CHAT, body)
    async with pair(primary=PACED) as it:

        def move() -> None:
            (exchange,) = it.proxy.gateway.backends[0].exchanges
            assert it.proxy.gateway.continue_elsewhere(exchange, "collapse")

        answer = await it.answer(CHAT, body, move)
        first = await observed(it.proxy)
        counted = it.metric("specbreaker_continuations_total{")
        assert it.primary.in_flight == 0
    assert (answer.text, answer.ids, answer.done) == (whole.text, whole.ids, 1)
    assert not first.ending.failed
    (name,) = counted
    assert 'reason="collapse",result="completed"' in name


async def test_what_cannot_be_moved_stays_where_it_is() -> None:
    body = request(CHAT, presence_penalty=0.5, max_tokens=60)
    async with pair(primary=PACED) as it:

        def move() -> None:
            (exchange,) = it.proxy.gateway.backends[0].exchanges
            it.proxy.gateway.continue_elsewhere(exchange, "collapse")

        answer = await it.answer(CHAT, body, move)
    assert (answer.choices[-1]["finish_reason"], answer.done) == ("length", 1)


async def test_the_session_file_has_both_parts_and_why(tmp_path: Path) -> None:
    async with pair(primary=PACED, record__directory=str(tmp_path)) as it:
        await it.answer(CHAT, request(CHAT), lambda: it.primary.die("engine_kill"))
        await observed(it.proxy, "fallback1")
    (file,) = tmp_path.glob("*.jsonl*")
    records = [entry.record for entry in read_session(file)]
    answers = [record.observation for record in records if isinstance(record, ResponseRecord)]
    assert [(one.backend, one.ending) for one in answers] == [
        ("primary", Ending.ENGINE_ERROR),
        ("fallback1", Ending.COMPLETE),
    ]
    assert answers[1].request_id == f"{answers[0].request_id}.1"
    (event,) = [record for record in records if isinstance(record, EventRecord) and record.kind == "continuation"]
    assert (event.backend, event.fields["to"], event.fields["result"]) == ("primary", "fallback1", "completed")
    assert not [
        record for record in records if isinstance(record, RequestRecord) and record.prompt and record.prompt.body
    ]


# ---- answers of which the client has seen nothing --------------------------------------------------------------------


@pytest.mark.parametrize("death", ["engine_kill", "api_kill"])
@pytest.mark.parametrize("again", [False, True])
async def test_a_whole_answer_is_sent_again_only_where_that_is_wanted(death: str, again: bool) -> None:
    body = request(CHAT, stream=None)
    async with pair(primary=PACED, continuation__retry_whole_answers=again) as it, connected(it.proxy) as client:
        await client.post(body, path=CHAT)
        await until(lambda: it.primary.in_flight == 1)
        it.primary.die(death)
        status, fields, answer = await client.answer()
        counted = it.metric("specbreaker_continuations_total{")
    if not again:
        assert status in (500, 502)
        assert counted == {}
        return
    assert (status, fields["x-specbreaker-backend"]) == (200, "fallback1")
    assert json.loads(answer)["usage"]["completion_tokens"] == TOKENS
    (name,) = counted
    assert 'result="sent_again",to="fallback1"' in name


async def test_a_stream_without_its_first_event_starts_again() -> None:
    whole = await uninterrupted(CHAT, request(CHAT))
    async with pair() as it:
        it.first.cut(after=0)
        answer = await it.answer(CHAT, request(CHAT))
        assert it.first.cuts == 1
    assert (answer.text, answer.done) == (whole.text, 1)
    assert len([choice for choice in answer.choices if "role" in choice["delta"]]) == 1


async def test_a_collapse_moves_running_answers_where_that_is_wanted() -> None:
    primary = {"scenario": parse_scenario(COLLAPSING, "collapsing"), "time_scale": 5}
    whole = await uninterrupted(CHAT, request(CHAT, max_tokens=600))
    async with pair(primary=primary, continuation__on_collapse=True, measure__interval_seconds=0.01) as it:
        for _ in range(8):
            await it.answer(CHAT, request(CHAT))
        it.primary.force_phase("collapsed")
        answers = [await it.answer(CHAT, request(CHAT, max_tokens=600)) for _ in range(3)]
        await until(lambda: any('reason="collapse"' in name for name in it.metric("specbreaker_continuations_total{")))
    assert [answer.text for answer in answers] == [whole.text] * 3


COLLAPSING = """
name = "collapsing"
num_speculative_tokens = 8
[[cycle]]
phase = "healthy"
length = 1000
acceptance = 0.78
[[cycle]]
phase = "collapsed"
length = 1
acceptance = 0.01
"""


# ---- engines that do not know what they are asked for ----------------------------------------------------------------


def strict_engine(seen: list[Seen], *, refuses_all: bool = False) -> Script:
    """An engine that refuses members that it does not know, and has no token ids."""

    async def script(peer: Peer) -> None:
        while True:
            seen.append(await peer.request())
            if refuses_all or b"return_token_ids" in seen[-1].body:
                await peer.send(answer_of(b'{"error":"what?"}', "content-type: application/json", status=400))
            else:
                said = '{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}'
                await peer.send(STREAM_HEAD + chunked(event(said), event("[DONE]")))

    return script


@asynccontextmanager
async def beside_a_fallback(script: Script) -> AsyncIterator[tuple[Proxy, Client]]:
    async with (
        upstream(script) as url,
        serving(Emulator("fallback")) as other,
        running(settings(url, other, policy__mode="act")) as proxy,
        connected(proxy) as client,
    ):
        yield proxy, client


async def test_an_engine_that_refuses_token_ids_is_asked_without_and_not_again() -> None:
    seen: list[Seen] = []
    async with beside_a_fallback(strict_engine(seen)) as (_, client):
        for _ in range(2):
            await client.post(request(CHAT))
            status, _, body = await client.answer()
            assert (status, body.count(b"[DONE]")) == (200, 1)
    assert [b"return_token_ids" in one.body for one in seen] == [True, False, False]


async def test_a_request_that_is_wrong_by_itself_is_refused_as_ever() -> None:
    seen: list[Seen] = []
    async with beside_a_fallback(strict_engine(seen, refuses_all=True)) as (proxy, client):
        await client.post(request(CHAT))
        assert (await client.answer())[::2] == (400, b'{"error":"what?"}')
        assert proxy.gateway.backends[0].takes_token_ids


# ---- clients of other kinds ------------------------------------------------------------------------------------------


async def test_a_client_of_http_1_0_gets_one_answer_up_to_the_end_of_its_connection() -> None:
    whole = await uninterrupted(CHAT, request(CHAT))
    body = request(CHAT)
    async with pair() as it, connected(it.proxy) as client:
        it.first.cut(after=5)
        await client.send(
            b"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        _, _, payload = (await client.rest()).partition(b"\r\n\r\n")
    assert Answer(payload).text == whole.text


async def test_a_connection_serves_the_next_request_after_a_continued_answer() -> None:
    async with pair() as it, connected(it.proxy) as client:
        it.first.cut(after=5)
        for _ in range(2):
            await client.post(request(CHAT), path=CHAT)
            status, _, payload = await client.answer()
            assert (status, Answer(payload).done) == (200, 1)
        assert it.first.cuts == 1


async def test_a_client_that_does_not_read_is_not_read_for_on_the_other_engine_either() -> None:
    """The rest waits in the second engine's connection until the client reads again."""
    body = request(CHAT, max_tokens=20_000)
    long = {"time_scale": 0}
    async with pair(fallback=long, backend={"idle_timeout_seconds": 30}) as it, connected(it.proxy) as client:
        it.first.cut(after=5)
        await client.post(body, path=CHAT)
        await client.head()
        client.stop_reading()
        fallback = it.proxy.gateway.backends[1]
        await until(lambda: any(exchange._reading_paused_at is not None for exchange in fallback.exchanges))
        client.read_again()
        answer = Answer(await client.chunked())
    assert answer.choices[-1]["finish_reason"] == "length"


async def test_a_fault_of_ours_ends_the_answer_instead_of_leaving_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("proxy.continuation.hand_over", broken)
    async with pair() as it:
        it.first.cut(after=5)
        answer = await it.answer(CHAT, request(CHAT))
    assert (answer.error["code"], answer.done) == ("continuation_refused", 0)


async def test_a_fallback_with_another_tokenizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replay.emulator.routes_other.decode", lambda _tokens: "something else")
    async with pair() as it:
        it.first.cut(after=5)
        answer = await it.answer(CHAT, request(CHAT))
        assert it.fallback.log == []
    assert "another text" in answer.error["message"]
    assert answer.done == 0
