"""Real engines for the tests of this folder: started once a session, side by side, only those that a test asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Literal

import pytest
import pytest_asyncio

from tests.engine.server import EngineError, EngineServer, installed_venv

MODES: dict[str, Literal["dflash", "plain"]] = {"dflash_engine": "dflash", "plain_engine": "plain"}
HEALTHY_P = 0.88


@pytest.fixture(scope="session")
def installed_engine() -> None:
    """Fails, in one line that says what to run, where the engine is not installed."""
    reason = None
    try:
        installed_venv()
    except EngineError as error:
        reason = str(error)
    if reason:
        pytest.fail(reason, pytrace=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session_engines(
    request: pytest.FixtureRequest, installed_engine: None
) -> AsyncIterator[dict[str, EngineServer]]:
    """Every engine that a collected test names, started at the same time."""
    asked = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    engines = {name: EngineServer(mode) for name, mode in MODES.items() if name in asked}
    async with AsyncExitStack() as stack:
        async with asyncio.TaskGroup() as starts:
            for engine in engines.values():
                starts.create_task(stack.enter_async_context(engine))
        yield engines


@pytest.fixture(scope="session")
def dflash_engine(session_engines: dict[str, EngineServer]) -> EngineServer:
    """The engine that speculates with DFlash, K=7; shared by the session, each test finds it healthy."""
    return session_engines["dflash_engine"]


@pytest.fixture(scope="session")
def plain_engine(session_engines: dict[str, EngineServer]) -> EngineServer:
    """The engine that does not speculate; shared by the session."""
    return session_engines["plain_engine"]


@pytest.fixture(autouse=True)
def _healthy_engine(request: pytest.FixtureRequest) -> None:
    """A test that collapsed the shared engine leaves nothing to the next one."""
    if "dflash_engine" in request.fixturenames:
        request.getfixturevalue("dflash_engine").set_acceptance(p=HEALTHY_P)
