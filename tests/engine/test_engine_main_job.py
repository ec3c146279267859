"""The main job on the real engines: seen, switched away from, come back to; A as the engine counts it."""

from __future__ import annotations

import itertools

import pytest

from detector.observation import Source
from tests.engine.main_job import Row, sequence, side_by_side
from tests.engine.server import EngineServer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400), pytest.mark.asyncio(loop_scope="session")]


THERE_AND_BACK = ["primary", "fallback", "primary"]


def _turns(rows: list[Row]) -> list[str]:
    return [backend for backend, _ in itertools.groupby(row.backend for row in rows)]


async def test_observe_sees_the_collapse_and_changes_nothing(
    dflash_engine: EngineServer, plain_engine: EngineServer
) -> None:
    rows, status = await sequence(dflash_engine, plain_engine, "observe", requests=11, tokens=200)
    assert {row.backend for row in rows} == {"primary"}
    for row in rows:
        assert row.observation is not None
        assert row.observation.acceptance_source is Source.ENGINE
        assert row.observation.acceptance_length == pytest.approx(row.counted_acceptance_length, abs=1e-9)
    episodes = status["backends"]["primary"]["episodes"]
    assert [episode["cause"] for episode in episodes] == ["acceptance_collapse"]
    assert episodes[0]["onset_request"] in (5, 6)
    assert "collapsed" in {row.phase for row in rows[7:10]}


async def test_act_serves_the_collapse_from_the_fallback_and_comes_back(
    dflash_engine: EngineServer, plain_engine: EngineServer
) -> None:
    # The canaries wait in seconds: how many requests the fallback serves meanwhile is the machine's speed.
    rows, _ = await sequence(
        dflash_engine,
        plain_engine,
        "act",
        requests=1000,
        tokens=200,
        enough=lambda rows: _turns(rows) == THERE_AND_BACK,
    )
    assert _turns(rows) == THERE_AND_BACK
    first_away = next(row.index for row in rows if row.backend == "fallback")
    assert first_away in (6, 7)
    collapsed = [
        row
        for row in rows
        if row.backend == "primary" and row.observation and (row.observation.acceptance_length or 9) < 1.2
    ]
    assert len(collapsed) <= 2


async def test_four_streams_at_a_time_agree_with_the_counters(
    dflash_engine: EngineServer, plain_engine: EngineServer
) -> None:
    measured, counted = await side_by_side(dflash_engine, plain_engine, streams=4, requests=3, tokens=120)
    assert measured == pytest.approx(counted, rel=0.02)
