"""What the policy decides, carried out: forecasts, fallbacks, model names, conversations, engines that sleep."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
from upstreams import Peer, Script, Seen, connected, observed, settings, until, upstream

from detector.observation import EngineSample, Observation
from detector.policy import PolicyState, State
from detector.policy.state import BackendView, Pace
from detector.verdict import Forecast, Verdict
from proxy.config import Config, ConfigError
from proxy.events import Sampled
from proxy.serve import Proxy, running

EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (EVENT, b"data: [DONE]\n\n"))
    + b"0\r\n\r\n"
)
LONG = "a long prompt " * 2000


def seeing(seen: list[Seen]) -> Script:
    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            seen.append(request)
            await peer.send(ANSWER)

    return script


@contextlib.asynccontextmanager
async def rig(count: int, **flags: Any) -> AsyncIterator[tuple[Proxy, list[list[Seen]]]]:
    """A proxy in mode act with that many scripted backends, and what each of them has been asked."""
    seen: list[list[Seen]] = [[] for _ in range(count)]
    async with contextlib.AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(upstream(seeing(one))) for one in seen]
        config = settings(*urls, policy__mode="act", **flags)
        yield await stack.enter_async_context(running(config)), seen


async def ask(proxy: Proxy, model: str = "m", content: str = "hi", **fields: Any) -> str:
    """Ask once; who served."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": content}], **fields}
    async with connected(proxy) as client:
        await client.post(msgspec.json.encode(body))
        status, headers, _ = await client.answer()
    assert status == 200
    await observed(proxy, headers["x-specbreaker-backend"])
    return headers["x-specbreaker-backend"]


def judged(proxy: Proxy, backend: str, verdict: Verdict) -> None:
    """Script the detector: every answer of that backend gets this verdict from now on."""
    watch = proxy.control.watched[backend].watch

    def update(_: Observation) -> Verdict:
        watch._verdict = verdict
        return verdict

    watch.update = update  # type: ignore[method-assign]


KNOWN = PolicyState(
    backends={
        "primary": BackendView(healthy=Pace(220.0, 1.0), collapsed=Pace(60.0, 1.0)),
        "fallback1": BackendView(healthy=Pace(130.0, 1.0)),
    },
    answer_tokens=2000.0,
)


async def explained(proxy: Proxy) -> Any:
    async with aiohttp.ClientSession(proxy.admin_url) as http, http.get("/explain") as answer:
        return json.loads(await answer.text())


async def test_traffic_leaves_before_a_forecast_collapse_and_the_reason_is_given_in_numbers() -> None:
    async with rig(2, policy__dwell_seconds=100.0) as (proxy, _):
        proxy.control.state = KNOWN
        judged(proxy, "primary", Verdict(forecast=Forecast(next_request_probability=0.9, clock="requests")))
        assert await ask(proxy) == "primary"
        await until(lambda: proxy.gateway.routing.order[0].name == "fallback1")
        assert await ask(proxy) == "fallback1"
        page = await explained(proxy)
    assert page["last_decision"] == "primary at risk (p = 0.90): route new requests to fallback1"
    why = page["decisions"][0]["explanation"]
    primary, fallback = why["options"]
    assert why["hit_probability"] == 0.9
    assert primary["expected_seconds"] > fallback["expected_seconds"]
    assert "hit with probability 0.90" in primary["why"]
    assert page["why"]["held_seconds"] > 90
    assert page["why"]["words"].startswith("fallback1 serves")


async def test_a_canary_while_the_collapse_is_still_ahead_does_not_bring_the_traffic_back() -> None:
    async with rig(2, policy__dwell_seconds=0.05, policy__canary_interval_seconds=0.02) as (proxy, seen):
        proxy.control.state = KNOWN
        ahead = Verdict(forecast=Forecast(next_request_probability=0.95))
        judged(proxy, "primary", ahead)
        await ask(proxy)
        await until(lambda: len(seen[0]) >= 3)  # canaries
        assert proxy.control.state.state is not State.PRIMARY
        judged(proxy, "primary", Verdict(forecast=Forecast(next_request_probability=0.0)))
        await until(lambda: proxy.gateway.routing.order[0].name == "primary")


async def test_the_second_fallback_serves_where_the_first_collapses_too() -> None:
    async with rig(3, policy__dwell_seconds=0.05, policy__canary_interval_seconds=100.0) as (proxy, _):
        bad = Verdict(degraded=True)
        judged(proxy, "primary", bad)
        await ask(proxy)
        await until(lambda: proxy.gateway.routing.order[0].name == "fallback1")
        judged(proxy, "fallback1", bad)
        for _ in range(20):
            served = await ask(proxy)
            if served == "fallback2":
                break
        assert served == "fallback2"
        assert {one.name for one in proxy.gateway.routing.order} == {"primary", "fallback1", "fallback2"}


async def test_a_fallback_is_asked_for_its_own_name_of_the_model() -> None:
    seen: list[list[Seen]] = [[], []]
    async with upstream(seeing(seen[0])) as first, upstream(seeing(seen[1])) as second:
        config = settings(first, second, policy__mode="act", policy__dwell_seconds=100.0)
        fallback = msgspec.structs.replace(config.backends[1], models={"m": "org/plain"})
        async with running(msgspec.structs.replace(config, backends=(config.backends[0], fallback))) as proxy:
            judged(proxy, "primary", Verdict(degraded=True))
            assert await ask(proxy) == "primary"
            await until(lambda: proxy.gateway.routing.order[0].name == "fallback1")
            assert await ask(proxy) == "fallback1"
            assert await ask(proxy, model="other") == "primary"
    assert [json.loads(one.body)["model"] for one in seen[0]] == ["m", "other"]
    (renamed,) = seen[1]
    assert json.loads(renamed.body)["model"] == "org/plain"
    assert renamed.field("content-length") == str(len(renamed.body))


async def test_a_long_conversation_stays_on_the_fallback_that_has_its_prefix() -> None:
    slow_reading = {"policy__prefill_tokens_per_second": 100.0, "policy__canary_interval_seconds": 0.02}
    async with rig(2, policy__dwell_seconds=0.05, **slow_reading) as (proxy, _):
        proxy.control.state = KNOWN
        judged(proxy, "primary", Verdict(degraded=True))
        await ask(proxy, content="begin")
        await until(lambda: proxy.gateway.routing.order[0].name == "fallback1")
        assert await ask(proxy, content=LONG) == "fallback1"
        judged(proxy, "primary", Verdict())
        await until(lambda: proxy.gateway.routing.order[0].name == "primary")
        assert await ask(proxy, content=LONG) == "fallback1"  # 7000 tokens of prompt at 100/s: not worth the move
        assert await ask(proxy, content="short") == "primary"
        judged(proxy, "fallback1", Verdict(degraded=True))
        assert await ask(proxy, content=LONG) == "fallback1"  # this answer tells that it is degraded
        proxy.control.publish()
        assert await ask(proxy, content=LONG) == "primary"


def sample(*, awake: bool) -> EngineSample:
    return EngineSample(at=0.0, awake=awake)


async def test_an_engine_that_sleeps_gets_no_requests() -> None:
    async with rig(2, policy__dwell_seconds=0.05) as (proxy, _):
        assert await ask(proxy) == "primary"
        proxy.control._events.put(Sampled("primary", sample(awake=False)))
        await until(lambda: proxy.gateway.routing.order[0].name == "fallback1")
        assert await ask(proxy) == "fallback1"
        assert not proxy.control.watched["primary"].reachable
        proxy.control._events.put(Sampled("primary", sample(awake=True)))
        await until(lambda: proxy.gateway.routing.order[0].name == "primary")


async def test_observe_changes_nothing_whatever_is_forecast() -> None:
    async with rig(2, policy__dwell_seconds=0.01) as (proxy, seen):
        proxy.control.policy = msgspec.structs.replace(proxy.control.policy, mode="observe")
        proxy.control.state = KNOWN
        proxy.control.publish()
        for verdict in (Verdict(forecast=Forecast(next_request_probability=1.0)), Verdict(degraded=True)):
            judged(proxy, "primary", verdict)
            for _ in range(3):
                assert await ask(proxy, content=LONG) == "primary"
        assert seen[1] == []
        assert len(seen[0]) == 6  # no canaries


def test_a_canary_budget_that_cannot_pay_one_canary_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"policy\.canary_max_tokens: must be at least canary_tokens, which is 64$"):
        settings("http://127.0.0.1:1", policy__canary_tokens=64, policy__canary_max_tokens=32)


def test_the_files_settings_reach_the_policy() -> None:
    from proxy.policy_settings import policy_config

    config: Config = settings("http://127.0.0.1:1", "http://127.0.0.1:2", policy__dwell_seconds=90.0)
    policy = policy_config(config)
    assert (policy.primary, policy.fallbacks) == ("primary", ("fallback1",))
    assert policy.canary_max_interval_seconds == policy.dwell_seconds == 90.0
