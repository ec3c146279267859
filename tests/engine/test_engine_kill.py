"""How a real vLLM dies in the middle of an answer: what the client sees, and what is left of the engine."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable

import aiohttp
import psutil
import pytest
import pytest_asyncio

from tests.engine import answers, deaths
from tests.engine.server import EngineServer, lives_in

pytestmark = [pytest.mark.engine_kill, pytest.mark.timeout(420)]
Kill = Callable[[EngineServer, signal.Signals], psutil.Process]
SILENCE_SECONDS = 3.0


@pytest_asyncio.fixture
async def engine(installed_engine: None, request: pytest.FixtureRequest) -> AsyncIterator[EngineServer]:
    """An engine of the test's own, slow enough to die before its answer is whole."""
    async with EngineServer(shutdown_timeout_seconds=getattr(request, "param", 0)) as server:
        server.set_acceptance(p=0.05, verify_ms=20)
        yield server


async def payload_after_kill(engine: EngineServer, kill: Kill, number: signal.Signals, max_tokens: int) -> bytes:
    """All bytes of a streamed completion during which the process was signalled, after the first events."""
    payload = b""
    killed = False
    request = answers.body(prompt=answers.PROMPT, max_tokens=max_tokens)
    timeout = aiohttp.ClientTimeout(sock_read=SILENCE_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        try:
            async for _, piece in answers.stream(session, f"{engine.base_url}/v1/completions", request):
                payload += piece
                if not killed and payload.count(b"data: ") > 5:
                    kill(engine, number)
                    killed = True
        except aiohttp.ClientPayloadError:
            payload += b"<truncated>"
        except aiohttp.SocketTimeoutError:
            payload += b"<silent>"
    return payload


@pytest.mark.parametrize("kill", [deaths.kill_engine_core, deaths.kill_worker])
async def test_engine_or_worker_killed_is_an_error_event_in_a_whole_answer(engine: EngineServer, kill: Kill) -> None:
    payload = await payload_after_kill(engine, kill, signal.SIGKILL, max_tokens=1500)
    assert payload.endswith(b"data: [DONE]\n\n")
    assert answers.events(payload)[-1]["error"]["code"] == 500


async def test_engine_core_terminated_is_an_abort_dressed_as_an_answer(engine: EngineServer) -> None:
    payload = await payload_after_kill(engine, deaths.kill_engine_core, signal.SIGTERM, max_tokens=1500)
    assert payload.endswith(b"data: [DONE]\n\n")
    assert answers.events(payload)[-1]["choices"][0]["finish_reason"] == "abort"


async def test_api_server_killed_truncates_and_leaves_orphans_that_stop_removes(engine: EngineServer) -> None:
    assert engine.process is not None
    session = engine.process.pid
    payload = await payload_after_kill(engine, deaths.kill_api, signal.SIGKILL, max_tokens=1500)
    assert payload.endswith(b"<truncated>")
    orphans = engine.processes()
    assert {"VLLM::EngineCore", "VLLM::Worker"} <= {process.cmdline()[0] for process in orphans}
    await engine.stop()
    assert not any(lives_in(session, process) for process in psutil.process_iter())


async def test_api_server_terminated_leaves_the_client_in_silence(engine: EngineServer) -> None:
    payload = await payload_after_kill(engine, deaths.kill_api, signal.SIGTERM, max_tokens=1500)
    assert payload.endswith(b"<silent>")
    assert engine.process is not None
    assert engine.process.poll() is None


@pytest.mark.parametrize("engine", [30], indirect=True)
async def test_draining_finishes_its_answers_and_refuses_new_ones(engine: EngineServer) -> None:
    refused: list[asyncio.Task[tuple[int, str]]] = []

    def drain(server: EngineServer, number: signal.Signals) -> psutil.Process:
        process = deaths.kill_api(server, number)
        refused.append(asyncio.get_running_loop().create_task(_ask_when_draining(server)))
        return process

    payload = await payload_after_kill(engine, drain, signal.SIGTERM, max_tokens=300)
    assert payload.endswith(b"data: [DONE]\n\n")
    assert answers.events(payload)[-1]["choices"][0]["finish_reason"] == "length"
    status, text = await refused[0]
    assert (status, "cannot schedule new futures after shutdown" in text) == (500, True)


async def _ask_when_draining(engine: EngineServer) -> tuple[int, str]:
    await asyncio.sleep(1)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{engine.base_url}/v1/completions", json={"model": "tiny", "prompt": "x"}) as response,
    ):
        return response.status, await response.text()
