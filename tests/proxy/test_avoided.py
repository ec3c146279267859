"""An engine that a balancer leaves because it is degraded: canaries find out when it is well again."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
from served import SWITCHED
from upstreams import connected, observed, settings, until

from detector.observation import Observation, RequestFacts
from detector.policy import PolicyConfig
from proxy.avoided import Avoided
from proxy.serve import Proxy, running
from replay.emulator import Emulator, serving
from replay.emulator.scenario import parse_scenario

CONFIG = PolicyConfig(dwell_seconds=2.0, canary_tokens=100, canary_burst_tokens=500.0, jitter_share=0.0)


def canaries_of(
    avoided: Avoided, end: float, took: float = 0.5, config: PolicyConfig = CONFIG
) -> list[tuple[float, int]]:
    """When canaries go out, and what they ask for, while the engine stays degraded; each answer takes ``took``."""
    sent = []
    assert avoided.due(0.0, config, degraded=True, begun=0, out=False) is None
    while (now := avoided.wake_at) is not None and now < end:
        tokens = avoided.due(now, config, degraded=True, begun=len(sent), out=False)
        if tokens is not None:
            sent.append((now, tokens))
            avoided.answered(observation(canary=True), now + took, config, 0.0)
    return sent


def observation(*, canary: bool, tokens: int = 100) -> Observation:
    facts = RequestFacts(route="chat", stream=True)
    return Observation(
        request_id="x",
        backend="primary",
        facts=facts,
        started=0.0,
        started_unix=0.0,
        ended=1.0,
        canary=canary,
        completion_tokens=tokens,
    )


def test_a_healthy_engine_gets_none() -> None:
    avoided = Avoided()
    assert avoided.due(0.0, CONFIG, degraded=False, begun=0, out=False) is None
    assert avoided.wake_at is None


def test_the_first_goes_out_after_the_dwell_and_all_within_their_budget() -> None:
    sent = canaries_of(Avoided(), 30.0)
    assert sent[0] == (2.0, 100)
    assert sum(tokens for _, tokens in sent) == 500
    waits = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(sent)]
    assert all(wait >= 0.5 + CONFIG.canary_interval_seconds for wait in waits)


def test_without_budget_one_of_the_smallest_goes_out_per_longest_wait() -> None:
    sent = canaries_of(Avoided(), 1000.0)[5:]
    assert {tokens for _, tokens in sent} == {100}
    assert all(
        later - earlier >= CONFIG.canary_max_interval_seconds for (earlier, _), (later, _) in itertools.pairwise(sent)
    )


def test_answers_of_clients_earn_tokens() -> None:
    avoided = Avoided()
    canaries_of(avoided, 30.0)
    avoided.due(30.0, CONFIG, degraded=False, begun=0, out=False)
    avoided.answered(observation(canary=False, tokens=400), 31.0, CONFIG, 0.0)
    avoided.due(32.0, CONFIG, degraded=True, begun=0, out=False)
    assert avoided.due(34.0, CONFIG, degraded=True, begun=0, out=False) == 100
    avoided.answered(observation(canary=True), 34.5, CONFIG, 0.0)
    assert avoided.wake_at == 34.5 + CONFIG.canary_interval_seconds


def test_while_clients_ask_or_a_canary_is_out_none_is_sent() -> None:
    avoided = Avoided()
    avoided.due(0.0, CONFIG, degraded=True, begun=7, out=False)
    assert avoided.due(2.0, CONFIG, degraded=True, begun=8, out=False) is None
    assert avoided.wake_at == 3.0
    assert avoided.due(3.0, CONFIG, degraded=True, begun=8, out=True) is None
    assert avoided.due(4.0, CONFIG, degraded=True, begun=8, out=False) == 100
    avoided.answered(observation(canary=True), 4.5, CONFIG, 0.0)
    assert avoided.due(5.5, CONFIG, degraded=True, begun=9, out=False) == 100


# ---- wired -----------------------------------------------------------------------------------------------------------

BODY = b'{"model":"m","stream":true,"max_tokens":200,"messages":[{"role":"user","content":"hi"}]}'


@contextlib.asynccontextmanager
async def collapsed(*, asks: bool) -> AsyncIterator[tuple[Proxy, Emulator]]:
    """A proxy whose only engine has collapsed, and which gets no request any more."""
    emulator = Emulator(parse_scenario(SWITCHED, "switched"), model="m", time_scale=100)
    async with serving(emulator) as url:
        quick = {"policy__dwell_seconds": 0.05, "policy__canary_interval_seconds": 0.05}
        config = settings(url, policy__canaries_without_traffic=asks, policy__max_backoff_seconds=0.1, **quick)
        async with running(config) as proxy:
            for phase, count in (("healthy", 8), ("collapsed", 6)):
                emulator.force_phase(phase)
                for _ in range(count):
                    async with connected(proxy) as client:
                        await client.post(BODY)
                        assert (await client.answer())[0] == 200
                    await observed(proxy)
            assert proxy.control.watched["primary"].watch.verdict.degraded
            yield proxy, emulator


async def readyz(proxy: Proxy) -> tuple[int, str | None]:
    """Status, and what Envoy is told."""
    async with aiohttp.ClientSession() as http, http.get(f"{proxy.admin_url}/readyz") as answer:
        return answer.status, answer.headers.get("x-envoy-degraded")


async def test_a_degraded_engine_is_told_to_envoy_and_asked_until_it_is_well() -> None:
    async with collapsed(asks=True) as (proxy, emulator):
        assert await readyz(proxy) == (200, "true")
        served = len(emulator.log)
        await until(lambda: len(emulator.log) > served)
        emulator.force_phase("healthy")
        await until(lambda: not proxy.control.watched["primary"].watch.verdict.degraded)
        assert await readyz(proxy) == (200, None)
        assert proxy.control.policy.mode == "observe"
        assert proxy.control.state.fallback is None


async def test_by_default_nothing_is_told_and_nothing_is_asked() -> None:
    async with collapsed(asks=False) as (proxy, emulator):
        assert await readyz(proxy) == (200, None)
        assert proxy.control._avoided.wake_at is None
        assert all(served.completion_tokens == 200 for served in emulator.log)


@pytest.mark.parametrize("degraded", [True, False])
def test_recovery_begins_the_sizes_anew(degraded: bool) -> None:
    avoided = Avoided()
    config = msgspec.structs.replace(CONFIG, canary_burst_tokens=100_000.0)
    assert canaries_of(avoided, 60.0, config=config)[-1][1] > 100
    avoided.due(200.0, config, degraded=degraded, begun=100, out=False)
    avoided.due(300.0, config, degraded=True, begun=100, out=False)
    tokens = avoided.due(400.0, config, degraded=True, begun=100 + degraded, out=False)
    assert tokens is not None
    assert (tokens > 100) is degraded
