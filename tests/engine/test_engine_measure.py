"""The meter on a real engine: A from its own counts, from the cadence of the stream and from ``/metrics``."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import msgspec
import pytest

from detector.observation import Ending, EngineSample, Observation, Quality, Source
from detector.tap.meter import Meter
from detector.tap.promtext import parse, speculation_between
from detector.tap.request import read_request
from tests.engine import answers
from tests.engine.server import EngineServer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(420)]
K = 7
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": answers.PROMPT},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": answers.PROMPT}]},
}
acceptances = pytest.mark.parametrize("p", [0.9, 0.5, 0.05])
routes = pytest.mark.parametrize("route", ROUTES)
concurrencies = pytest.mark.parametrize("concurrency", [1, 4])


class Answer(msgspec.Struct):
    """One answer as it came: the request, the pieces with their times, and what the engine says of it."""

    route: str
    request: bytes
    pieces: list[tuple[float, bytes]]
    metrics: dict[str, Any]

    def observation(self, *, with_engine_metrics: bool = True) -> Observation:
        """What the meter makes of it."""
        facts = read_request(self.route, self.request)
        start = self.pieces[0][0]
        meter = Meter(facts, request_id="1", backend="b", generation=0, started=start, started_unix=0.0)
        meter.head(start, 200, "text/event-stream; charset=utf-8")
        for at, piece in self.pieces:
            meter.feed(at, piece if with_engine_metrics else answers.without_engine_metrics(piece))
        return meter.finish(self.pieces[-1][0], Ending.COMPLETE, num_speculative_tokens=K)


async def ask(engine: EngineServer, route: str, concurrency: int) -> list[Answer]:
    """So many streams at the same time."""
    request = answers.body(stream_options={"include_usage": True}, **ROUTES[route])

    async def one(session: aiohttp.ClientSession) -> Answer:
        pieces = [piece async for piece in answers.stream(session, engine.base_url + route, request)]
        last_event = answers.events(b"".join(payload for _, payload in pieces))[-1]
        return Answer(route, request, pieces, last_event["metrics"])

    async with aiohttp.ClientSession() as session:
        return await asyncio.gather(*(one(session) for _ in range(concurrency)))


async def sample(engine: EngineServer) -> EngineSample:
    """One reading of the engine's counters."""
    async with aiohttp.ClientSession() as session, session.get(f"{engine.base_url}/metrics") as response:
        return parse(await response.read(), time.monotonic())


@acceptances
@routes
@concurrencies
async def test_acceptance_is_the_engines_own(
    dflash_engine: EngineServer, route: str, p: float, concurrency: int
) -> None:
    dflash_engine.set_acceptance(p=p)
    for answer in await ask(dflash_engine, route, concurrency):
        observation, own = answer.observation(), answer.metrics["speculative_decoding"]
        assert (observation.acceptance_source, observation.acceptance_quality) == (Source.ENGINE, Quality.EXACT)
        assert observation.verify_steps == own["num_spec_steps"]
        assert observation.acceptance_length == own["mean_acceptance_length"]
        assert observation.num_speculative_tokens == K
        assert observation.completion_tokens == 200
        assert observation.rate_source is Source.ENGINE
        seconds = answer.metrics["generation_time_ms"] / 1000
        assert observation.step_seconds == pytest.approx(seconds / own["num_spec_steps"])
        assert observation.decode_tokens_per_second == pytest.approx(199 / seconds)


@acceptances
@routes
@concurrencies
async def test_cadence_agrees_with_the_engine(
    dflash_engine: EngineServer, route: str, p: float, concurrency: int
) -> None:
    """Steps may merge on the way when this machine is busy, and two small ones do it unseen: then some are missing.

    What the quality promises must hold all the same: no A is too low by more than the last step's loss, K / steps, and
    a TRIMMED one is not too high by more either.
    """
    dflash_engine.set_acceptance(p=p, verify_ms=5)
    for answer in await ask(dflash_engine, route, concurrency):
        seen, own = answer.observation(with_engine_metrics=False), answer.metrics["speculative_decoding"]
        assert seen.acceptance_source is Source.CADENCE
        assert seen.verify_steps is not None
        assert seen.acceptance_length is not None
        assert seen.verify_steps <= own["num_spec_steps"]
        error = seen.acceptance_length - own["mean_acceptance_length"]
        last_step_loss = (K + 1e-6) / own["num_spec_steps"]
        assert error >= -last_step_loss
        if seen.acceptance_quality is not Quality.UPPER_BOUND:
            assert seen.acceptance_quality is Quality.TRIMMED
            assert error <= last_step_loss


@routes
async def test_cadence_counts_every_step_of_most_answers(dflash_engine: EngineServer, route: str) -> None:
    dflash_engine.set_acceptance(p=0.9, verify_ms=5)
    whole = [
        answer.observation(with_engine_metrics=False).verify_steps
        == answer.metrics["speculative_decoding"]["num_spec_steps"]
        for _ in range(6)
        for answer in await ask(dflash_engine, route, 1)
    ]
    assert sum(whole) > len(whole) / 2


@acceptances
@routes
async def test_counters_of_a_lone_request_are_the_engines_own(
    dflash_engine: EngineServer, route: str, p: float
) -> None:
    dflash_engine.set_acceptance(p=p)
    before = await sample(dflash_engine)
    (answer,) = await ask(dflash_engine, route, 1)
    counted = speculation_between(before, await sample(dflash_engine), 200)
    own = answer.metrics["speculative_decoding"]
    assert counted is not None
    assert counted.verify_steps == own["num_spec_steps"]
    assert counted.accepted_tokens == own["num_accepted_draft_tokens"]
    assert counted.drafted_tokens == own["num_draft_tokens"]
    assert counted.num_speculative_tokens == K
    at_least = [sum(own["acceptance_histogram"][position + 1 :]) for position in range(K)]
    assert counted.accepted_per_position == tuple(at_least)


async def test_counters_of_two_requests_at_once_are_nobodys(dflash_engine: EngineServer) -> None:
    before = await sample(dflash_engine)
    await ask(dflash_engine, "/v1/completions", 2)
    assert speculation_between(before, await sample(dflash_engine), 200) is None


async def test_without_speculation_every_step_is_one_token(plain_engine: EngineServer) -> None:
    request = answers.body(stream_options={"include_usage": True}, prompt=answers.PROMPT)
    async with aiohttp.ClientSession() as session:
        url = plain_engine.base_url + "/v1/completions"
        pieces = [piece async for piece in answers.stream(session, url, request)]
    observation = Answer("/v1/completions", request, pieces, {}).observation()
    after = await sample(plain_engine)
    assert (after.num_speculative_tokens, after.drafts) == (0, None)
    assert observation.completion_tokens == 200
    assert observation.position_acceptance is None
    assert observation.acceptance_length is not None
    assert observation.acceptance_length >= 1.0
