"""A real engine is killed in the middle of an answer, and the answer goes on on another real engine."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import psutil
import pytest

from proxy.serve import running
from tests.engine import deaths
from tests.engine.server import EngineServer
from tests.engine.test_engine_continuation import CHAT, ask, config, request
from tests.proxy.upstreams import until

pytestmark = [pytest.mark.engine_kill, pytest.mark.timeout(420)]
Kill = Callable[[EngineServer, signal.Signals], psutil.Process]


@pytest.mark.parametrize(
    ("kill", "number"),
    [
        (deaths.kill_engine_core, signal.SIGKILL),
        (deaths.kill_engine_core, signal.SIGTERM),
        (deaths.kill_api, signal.SIGKILL),
    ],
)
async def test_an_answer_survives_its_real_engine(installed_engine: None, kill: Kill, number: signal.Signals) -> None:
    body = request(CHAT, return_token_ids=True, stream_options={"include_usage": True}, ignore_eos=True, max_tokens=300)
    async with EngineServer() as first, EngineServer("plain") as second:
        first.set_acceptance(verify_ms=20)
        text, ids, _ = await ask(second.base_url + CHAT, body)
        async with running(config(first.base_url, second)) as proxy:
            answer = asyncio.create_task(ask(proxy.url + CHAT, body))
            primary = proxy.gateway.backends[0]
            await until(lambda: any(one.running and one.running.keeper.token_count > 20 for one in primary.exchanges))
            kill(first, number)
            got = await answer
    assert (got[0], got[1]) == (text, ids)
