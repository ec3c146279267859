"""From a recorded session and the options of a replay to the requests that will be sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec

from replay.bodies import CacheMode, Overrides, Unplayable, make_body
from replay.client import TargetClient
from replay.conversations import predecessors, prompts_of
from replay.prompts import Calibration, SyntheticPrompts
from replay.recorded import Exchange
from replay.run import Job
from replay.schedule import Schedule, Send, plan, recorded_concurrency
from replay.target import calibrate, count_tokens

PromptMode = Literal["auto", "recorded", "synthetic"]


class ReplayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a session is replayed; a resumed run must have the same."""

    schedule: Schedule = "open"
    time_scale: float = 1.0
    """Recorded seconds per second."""
    concurrency: int | None = None
    """Of the closed schedule; None: as recorded."""
    pauses: bool = False
    """With the closed schedule: each client pauses before a request as long as the recorded one did."""
    cache: CacheMode = "keep"
    prompts: PromptMode = "auto"
    prompt_seed: int = 0
    requests: int | None = None
    """Only the first so many."""
    overrides: Overrides = Overrides()


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a run needs."""

    jobs: dict[int, Job]
    sends: list[Send]
    skipped: Counter[str]
    concurrency: int
    synthetic: bool
    """Some prompts are made up: A then says nothing about the recorded content."""


async def prepare(
    exchanges: Sequence[Exchange], options: ReplayOptions, client: TargetClient, *, salt: str
) -> Prepared:
    """Plan the sends and make the bodies.

    salt: unique to this run, for cache mode ``salt``. Raises TargetRefuses and TargetUnreachable where the tokens of
    synthetic prompts cannot be counted.
    """
    prompts = prompts_of(exchanges)
    turns = predecessors(exchanges, prompts)
    made_up = [_is_made_up(exchange, options.prompts) for exchange in exchanges]
    synthetic = {
        route: SyntheticPrompts(
            exchanges, prompts, turns, seed=options.prompt_seed, calibration=await _calibration(client, options, route)
        )
        for route in {exchange.request.facts.route for exchange, its in zip(exchanges, made_up, strict=True) if its}
    }
    jobs: dict[int, Job] = {}
    skipped: Counter[str] = Counter()
    for index, exchange in enumerate(exchanges):
        source = synthetic[exchange.request.facts.route] if made_up[index] else None
        try:
            jobs[index] = await _job(client, exchange, index, source, options, salt)
        except Unplayable as error:
            skipped[str(error)] += 1
    return Prepared(
        jobs=jobs,
        sends=plan(
            exchanges, options.schedule, time_scale=options.time_scale, predecessors=turns, pauses=options.pauses
        ),
        skipped=skipped,
        concurrency=options.concurrency or recorded_concurrency(exchanges),
        synthetic=any(job.wanted_prompt_tokens is not None for job in jobs.values()),
    )


def _is_made_up(exchange: Exchange, mode: PromptMode) -> bool:
    if mode != "auto":
        return mode == "synthetic"
    return exchange.request.prompt is None or exchange.request.prompt.body is None


async def _calibration(client: TargetClient, options: ReplayOptions, route: str) -> Calibration:
    if route not in ("chat", "completions"):
        return Calibration()
    return await calibrate(client, options.overrides.model, chat=route == "chat")


async def _job(
    client: TargetClient,
    exchange: Exchange,
    index: int,
    synthetic: SyntheticPrompts | None,
    options: ReplayOptions,
    salt: str,
) -> Job:
    body = make_body(exchange, index, synthetic, options.overrides)
    if synthetic is not None and (counted := await count_tokens(client, body)) is not None:
        synthetic.correct(index, counted)
        body = make_body(exchange, index, synthetic, options.overrides)
    if options.cache == "salt":
        body["cache_salt"] = f"{salt}-{index}"
    return Job(
        request_id=exchange.request.request_id,
        path=exchange.request.path,
        body=msgspec.json.encode(body),
        wanted_prompt_tokens=None if synthetic is None else synthetic.wanted_tokens(index),
    )
