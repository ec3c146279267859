"""Observations of answers that really went through the proxy, against what the emulated engine did."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from upstreams import connected, observed, settings, until

from detector.observation import Ending, Observation, Quality, Source
from detector.tap.meter import Meter
from proxy.events import Event, Measured
from proxy.serve import Proxy, running
from replay.emulator import Emulator, ServedRequest, serving
from replay.emulator.scenario import parse_scenario

SCENARIO = """
name = "measured"
num_speculative_tokens = 8
[[cycle]]
phase = "healthy"
length = 1
acceptance_length = 3.6
"""
TOKENS = 120


def emulated(version: str = "0.32.0", *, time_scale: float = 20) -> Emulator:
    """An engine that is 20 times as fast as it says."""
    return Emulator(parse_scenario(SCENARIO, "measured"), model="m", version=version, time_scale=time_scale)


@contextlib.asynccontextmanager
async def proxied(emulator: Emulator, **flags: Any) -> AsyncIterator[Proxy]:
    """A proxy in front of the emulator, which reads its metrics as often as it likes."""
    flags = {"measure__counting_gap_seconds": 0} | flags
    async with serving(emulator) as url, running(settings(url, backend={"metrics": True}, **flags)) as proxy:
        await until(lambda: proxy.control.watched["primary"].sample is not None)
        yield proxy


@contextlib.asynccontextmanager
async def proxied_without_metrics(emulator: Emulator, **flags: Any) -> AsyncIterator[Proxy]:
    """A proxy in front of the emulator, which may not read its metrics."""
    async with serving(emulator) as url, running(settings(url, **flags)) as proxy:
        yield proxy


async def ask(proxy: Proxy, *, path: str = "/v1/chat/completions", **fields: Any) -> Any:
    """Send a request; the body of the answer."""
    body: dict[str, Any] = {"model": "m", "max_tokens": TOKENS} | fields
    if path == "/v1/chat/completions":
        body = {"messages": [{"role": "user", "content": "hi"}]} | body
    async with connected(proxy) as client:
        await client.post(msgspec.json.encode(body), path=path)
        status, _, answer = await client.answer()
    assert status == 200, answer
    return answer


def agrees(observation: Observation, truth: ServedRequest) -> None:
    """A, the steps and the tokens are the engine's, to the last digit."""
    assert observation.acceptance_length == truth.acceptance_length
    assert observation.verify_steps == truth.verify_steps
    assert observation.completion_tokens == truth.completion_tokens == TOKENS
    assert observation.prompt_tokens == truth.prompt_tokens
    assert observation.ending is Ending.COMPLETE
    assert observation.finish_reason == "length"


# ---- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_0_32_counts_for_itself(stream: bool) -> None:
    emulator = emulated()
    async with proxied(emulator) as proxy:
        await ask(proxy, stream=stream)
        observation = await observed(proxy)
    (truth,) = emulator.log
    agrees(observation, truth)
    assert (observation.acceptance_source, observation.acceptance_quality) == (Source.ENGINE, Quality.EXACT)
    assert observation.num_speculative_tokens == 8
    positions = [sum(step > place for step in truth.accepted_per_step) for place in range(8)]
    assert observation.position_acceptance == tuple(count / truth.verify_steps for count in positions)
    assert observation.rate_source is Source.ENGINE
    assert observation.decode_tokens_per_second == pytest.approx(truth.decode_tokens_per_second)
    assert observation.step_seconds == pytest.approx((truth.decode_seconds or 0) / truth.verify_steps)


async def test_0_20_streams_are_measured_by_their_cadence() -> None:
    emulator = emulated("0.20.2", time_scale=0)  # no step before the last one's event was written: nothing merges
    # On a busy machine late events may look merged, and then the counters would be asked.
    uncounted = {"measure__ask_token_counts": True, "measure__counting_gap_seconds": 3600}
    async with proxied(emulator, **uncounted) as proxy:
        await ask(proxy, stream=True)
        observation = await observed(proxy)
    (truth,) = emulator.log
    assert observation.completion_tokens == truth.completion_tokens == TOKENS
    assert observation.verify_steps == truth.verify_steps
    # The last step's tokens beyond max_tokens were cut: the stream cannot show them.
    assert observation.acceptance_source is Source.CADENCE
    assert observation.acceptance_length == (TOKENS - 1) / truth.verify_steps
    assert abs(observation.acceptance_length - (truth.acceptance_length or 0)) <= 8 / truth.verify_steps
    assert observation.num_speculative_tokens == 8


async def test_0_20_answers_without_a_stream_are_measured_by_the_counters() -> None:
    emulator = emulated("0.20.2")
    async with proxied(emulator) as proxy:
        for number in range(2):
            await ask(proxy)
            observation = await observed(proxy)
            agrees(observation, emulator.log[number])
            assert (observation.acceptance_source, observation.acceptance_quality) == (Source.COUNTERS, Quality.EXACT)
            assert observation.ttft_seconds is None
            assert observation.position_acceptance is not None


async def test_counters_say_nothing_of_requests_that_overlap() -> None:
    emulator = emulated("0.20.2")
    async with proxied(emulator) as proxy:
        seen = collected(proxy)
        await asyncio.gather(ask(proxy), ask(proxy))
        await observed(proxy)
        await ask(proxy)
        await observed(proxy)
    first, second, third = seen
    assert [one.acceptance_length for one in (first, second)] == [None, None]
    assert [one.acceptance_source for one in (first, second)] == [None, None]
    assert [one.completion_tokens for one in (first, second)] == [TOKENS, TOKENS]
    assert max(first.in_flight, second.in_flight) == 2
    assert third.in_flight == 1
    agrees(third, emulator.log[2])


def collected(proxy: Proxy) -> list[Observation]:
    """All observations from now on."""
    seen: list[Observation] = []
    put = proxy.control._events.put

    def put_and_note(event: Event, *, must: bool = False) -> None:
        if isinstance(event, Measured):
            seen.append(event.observation)
        put(event, must=must)

    proxy.control._events.put = put_and_note  # type: ignore[method-assign]
    return seen


async def test_a_request_that_went_around_the_proxy_spoils_the_counters() -> None:
    emulator = emulated("0.20.2")
    async with proxied(emulator) as proxy, running(settings(proxy.gateway.backends[0].settings.url)) as other:
        await asyncio.gather(ask(proxy), ask(other))
        observation = await observed(proxy)
    assert observation.completion_tokens == TOKENS
    assert observation.acceptance_length is None


@pytest.mark.parametrize("version", ["0.20.2", "0.32.0"])
@pytest.mark.parametrize("stream", [True, False])
async def test_the_stream_of_several_choices_says_nothing_of_acceptance(version: str, stream: bool) -> None:
    async with proxied_without_metrics(emulated(version)) as proxy:
        await ask(proxy, stream=stream, n=2)
        observation = await observed(proxy)
    assert observation.facts.n == 2
    assert observation.acceptance_length is None
    assert observation.verify_steps is None
    assert observation.decode_tokens_per_second is None
    assert observation.completion_tokens == 2 * TOKENS


async def test_the_counters_know_the_steps_of_several_choices_together() -> None:
    emulator = emulated()
    async with proxied(emulator) as proxy:
        await ask(proxy, n=2)
        observation = await observed(proxy)
    steps = sum(truth.verify_steps for truth in emulator.log)
    accepted = sum(truth.accepted_tokens for truth in emulator.log)
    assert (observation.acceptance_source, observation.verify_steps) == (Source.COUNTERS, steps)
    assert observation.acceptance_length == pytest.approx(1 + accepted / steps)
    assert observation.decode_tokens_per_second is None


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "route", "fields"),
    [
        ("/v1/responses", "responses", {"input": "hi", "max_output_tokens": TOKENS, "max_tokens": None}),
        ("/v1/messages", "messages", {"messages": [{"role": "user", "content": "hi"}]}),
    ],
)
async def test_routes_without_per_event_usage_give_tokens_and_at_most_a_bound(
    stream: bool, path: str, route: str, fields: dict[str, Any]
) -> None:
    emulator = emulated()
    async with proxied_without_metrics(emulator) as proxy:
        await ask(proxy, path=path, stream=stream, **fields)
        observation = await observed(proxy)
    (truth,) = emulator.log
    assert observation.facts.route == route
    assert observation.completion_tokens == truth.completion_tokens == TOKENS
    assert observation.prompt_tokens == truth.prompt_tokens
    if stream:  # events are counted, but not what each held: A is at most this
        assert observation.acceptance_quality is Quality.UPPER_BOUND
        assert (observation.acceptance_length or 0) >= (TOKENS - 1) / truth.verify_steps
    else:
        assert observation.acceptance_length is None


async def test_completions_are_measured_like_chat() -> None:
    emulator = emulated()
    async with proxied(emulator) as proxy:
        await ask(proxy, path="/v1/completions", prompt="hi", stream=True)
        observation = await observed(proxy)
    agrees(observation, emulator.log[0])
    assert (observation.facts.route, observation.acceptance_source) == ("completions", Source.ENGINE)


async def test_concurrent_streams_are_each_measured_exactly() -> None:
    emulator = emulated()
    async with proxied(emulator) as proxy:
        seen = collected(proxy)
        await asyncio.gather(*(ask(proxy, stream=True, max_tokens=40 + number) for number in range(4)))
        await observed(proxy)
    truths = {truth.completion_tokens: truth for truth in emulator.log}
    assert len(seen) == len(truths) == 4
    for observation in seen:
        truth = truths[observation.completion_tokens or 0]
        assert observation.acceptance_length == truth.acceptance_length
    assert max(one.in_flight for one in seen) > 1


# ---- what must not go wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["feed_pieces", "finish", "head"])
async def test_a_meter_that_raises_does_not_disturb_the_answer(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object, **__: object) -> None:
        raise RuntimeError("a fault in the meter")

    emulator = emulated()
    async with proxied(emulator) as proxy:
        whole = await ask(proxy, stream=True, seed=1)
        await observed(proxy)
        with monkeypatch.context() as broken:
            broken.setattr(Meter, method, fault)
            got = await ask(proxy, stream=True, seed=1)
            measurement = proxy.gateway.measurement
            await until(lambda: measurement.failures == 1)
        assert got.count(b"data: ") > 10
        assert got.endswith(b"data: [DONE]\n\n")
        assert whole.endswith(b"data: [DONE]\n\n")
        await ask(proxy, stream=True)
        assert (await observed(proxy)).acceptance_source is Source.ENGINE
        assert b"specbreaker_measuring_failures_total 1.0" in exposition(proxy)


def exposition(proxy: Proxy) -> bytes:
    """The proxy's own /metrics."""
    return proxy.control._metrics.exposition()[0]


async def test_an_aborted_answer_is_observed_as_left_by_its_client() -> None:
    emulator = emulated()
    async with proxied(emulator) as proxy:
        async with connected(proxy) as client:
            body = {"model": "m", "stream": True, "max_tokens": 5000, "messages": [{"role": "user", "content": "x"}]}
            await client.post(msgspec.json.encode(body))
            await client.head()
            await client.reader.readuntil(b"\n\n")
        await until(lambda: len(emulator.log) == 1)
        observation = await observed(proxy)
    assert observation.ending is Ending.CLIENT_GONE
    assert observation.completion_tokens is None or observation.completion_tokens <= emulator.log[0].completion_tokens
    assert emulator.log[0].finish_reason == "abort"


async def test_the_generation_grows_when_the_engine_restarts() -> None:
    first = emulated()
    async with serving(first) as url:
        port = int(url.rsplit(":", 1)[1])
        config = settings(url, backend={"metrics": True}, measure__scrape_seconds=0.02)
        async with running(config) as proxy:
            await ask(proxy, stream=True)
            assert (await observed(proxy)).generation == 0
            watched = proxy.control.watched["primary"]
            await until(lambda: watched.sample is not None)
            first.die("api_kill")
            await until(lambda: not watched.reachable)
            async with serving(emulated(), port=port):
                await until(lambda: watched.reachable and watched.backend.generation == 1)
                await ask(proxy, stream=True)
                observation = await observed(proxy)
    assert observation.generation == 1
    assert observation.ending is Ending.COMPLETE


async def test_engines_without_metrics_are_measured_by_their_streams() -> None:
    emulator = emulated("0.20.2", time_scale=1)
    async with proxied_without_metrics(emulator, measure__ask_token_counts=True) as proxy:
        await ask(proxy, stream=True)
        observation = await observed(proxy)
    assert proxy.control.watched["primary"].sample is None
    assert (observation.acceptance_source, observation.rate_source) == (Source.CADENCE, Source.CADENCE)
    assert observation.decode_tokens_per_second is not None
    assert observation.step_seconds is not None
    assert observation.num_speculative_tokens is None
    assert observation.completion_tokens == TOKENS
