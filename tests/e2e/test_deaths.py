"""Every way an engine dies in the middle of a stream: the client gets a whole answer or a clear error, never less."""

from __future__ import annotations

import json

import pytest
from upstreams import Client, connected, observed, settings

from detector.observation import Ending
from proxy.serve import running
from replay.emulator import Emulator, serving

BODY = json.dumps(
    {
        "model": "emulated",
        "stream": True,
        "max_tokens": 400,
        "messages": [{"role": "user", "content": "count to a thousand"}],
    }
).encode()

OUTCOMES = {
    "engine_kill": Ending.ENGINE_ERROR,
    "worker_kill": Ending.ENGINE_ERROR,
    "engine_assert": Ending.ENGINE_ERROR,
    "engine_term": Ending.ENGINE_ABORT,
    "api_term": Ending.UPSTREAM_TIMEOUT,
    "api_term_drain": Ending.COMPLETE,
    "api_kill": Ending.UPSTREAM_CLOSED,
    "wedge": Ending.UPSTREAM_TIMEOUT,
}


async def some_events(client: Client, count: int) -> bytes:
    """The head and the first events of a stream."""
    status, _ = await client.head()
    assert status == 200
    return b"".join([await client.reader.readuntil(b"\n\n\r\n") for _ in range(count)])


@pytest.mark.parametrize(("death", "ending"), OUTCOMES.items())
async def test_a_death_in_the_middle_of_a_stream(death: str, ending: Ending) -> None:
    emulator = Emulator("healthy", time_scale=4)
    async with serving(emulator) as url:
        config = settings(url, backend={"idle_timeout_seconds": 0.5})
        async with running(config) as proxy, connected(proxy) as client:
            await client.post(BODY)
            answer = await some_events(client, 5)
            emulator.die(death)  # type: ignore[arg-type]
            answer += await client.rest_of_answer()
            observation = await observed(proxy)
    assert observation.ending is ending
    said_error = b'data: {"error":' in answer
    gave_up = b'"finish_reason":"abort"' in answer
    whole = b'"finish_reason":"length"' in answer
    assert [said_error, gave_up, whole].count(True) == 1
    assert (b"[DONE]" in answer) == (ending in (Ending.COMPLETE, Ending.ENGINE_ERROR, Ending.ENGINE_ABORT))
    assert whole == (ending is Ending.COMPLETE)


async def test_an_engine_that_died_is_left_for_the_fallback() -> None:
    emulator = Emulator("healthy", time_scale=4)
    async with serving(emulator) as url, serving(Emulator("fallback", time_scale=4)) as other:
        config = settings(url, other, policy__mode="act", policy__dwell_seconds=60)
        async with running(config) as proxy, connected(proxy) as client:
            await client.post(BODY)
            await some_events(client, 3)
            emulator.die("engine_kill")
            await client.rest_of_answer()
            served_by = "primary"
            while served_by != "fallback1":  # answers are judged a moment after their end
                async with connected(proxy) as again:
                    await again.post(BODY)
                    status, fields, body = await again.answer()
                    served_by = fields.get("x-specbreaker-backend", "none")
    assert status == 200
    assert b'"finish_reason":"length"' in body
