"""Measuring the K that an endpoint runs at, with prompts of our own: the live half of ``specbreaker tune``."""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec

from detector.levels import Answer
from replay.client import Sent, TargetClient
from replay.session.schema import steps_of
from replay.target import TargetRefuses, TargetUnreachable, engine_sample, served_models

PROMPTS: Final = (
    "Write a Python function that merges two sorted lists, with tests.",
    "Tell a short story about a lighthouse keeper who finds a letter.",
    "List the planets of the solar system with their diameters, as a JSON array.",
    "Explain how a suspension bridge carries its load.",
    "Write a small HTML page with a form that asks for a name and an address.",
    "Translate into French: The train was late, so we walked along the river.",
    "Summarise the water cycle in five bullet points.",
    "Write a SQL query that finds the three best customers of each month.",
    "Describe the rules of chess to a child.",
    "Convert this table to CSV: apples 3, pears 5, plums 8, and add a total.",
    "What are the trade-offs between a queue and a stream in a distributed system?",
    "Write a C program that prints the first hundred prime numbers.",
)
"""Code, prose and tables in turn, since acceptance depends on what is written."""


class LiveOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the endpoint."""

    url: str
    model: str | None = None
    """None: the only one that it serves."""
    requests: int = 12
    max_tokens: int = 256
    depth: int | None = None
    """K; None: by the engine's ``/metrics``."""
    api_key: str | None = None
    timeout_seconds: float = 600.0


async def measure_target(options: LiveOptions) -> tuple[int, list[Answer]]:
    """K and the answers of an endpoint, one request at a time.

    One more request goes first and is not counted: it may find a cold engine. Raises TargetUnreachable, and
    TargetRefuses where it serves no such model, gives no K or no whole answer.
    """
    client = TargetClient(options.url, api_key=options.api_key, timeout_seconds=options.timeout_seconds)
    async with client:
        model = _chosen(client.url, await served_models(client), options.model)
        sample = await engine_sample(client)
        depth = options.depth if options.depth is not None or sample is None else sample.num_speculative_tokens
        if depth is None:
            raise TargetRefuses(f"{client.url}: /metrics does not say K: give it with --k {options.url}=K")
        client.num_speculative_tokens = depth
        answers = [await _ask(client, model, number, options.max_tokens) for number in range(options.requests + 1)]
    return depth, answers[1:]


def _chosen(url: str, served: list[str], asked: str | None) -> str:
    if asked is not None:
        return asked
    if len(served) == 1:
        return served[0]
    listed = ", ".join(served[:8]) or "no model by /v1/models"
    raise TargetRefuses(f"{url}: serves {listed}: choose with --model")


async def _ask(client: TargetClient, model: str, number: int, max_tokens: int) -> Answer:
    # vLLM caches prefixes: the number makes each prompt a new one.
    prompt = f"({number}) {PROMPTS[number % len(PROMPTS)]}"
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    sent = Sent()
    request_id = f"tune-{time.time_ns():x}-{number}"
    record = await client.ask(request_id, "/v1/chat/completions", msgspec.json.encode(body), sent)
    observation = record.observation
    if sent.at is None:
        raise TargetUnreachable(f"{client.url}: stopped answering")
    if observation.ending.failed:
        raise TargetRefuses(f"{client.url}: request {number} got no whole answer (HTTP {observation.status})")
    return Answer(observation, steps_of(record))
