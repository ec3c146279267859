"""The four measurements of one target: alone, paced, memory and held rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine

import msgspec
from process_cost import cpu_seconds, resident_bytes
from results import HeldRate, Memory, quantile
from stream_client import NANOSECONDS, Answer, Connection, TargetFailed, chat_request

HELD_SHARE = 0.98
"""A rate is held when at least this share of it arrives while it is offered."""
SETTLE_SECONDS = 0.2
"""Pause before CPU time is read, so that work put off until after the answers is counted."""
LOWEST_STREAMS, HIGHEST_STREAMS, BISECTIONS = 2, 1024, 2
TRIES = 3
"""A level is not held only where it fails this often: one hiccup of the machine makes more than 2 % of a level late."""


class Target(msgspec.Struct, frozen=True):
    """A server to measure; `pid` is the root of its processes, None where they are not ours to count (direct)."""

    name: str
    port: int
    pid: int | None
    version: str


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and lengths of the phases."""

    events: int = 200
    prompt_bytes: int = 2000
    gap_seconds: float = 0.004
    streams: int = 16
    """Streams side by side in the paced and the memory phase."""
    rounds: int = 6
    alone_streams: int = 25
    """Streams of `events` events of one target per round, one after another."""
    short_streams: int = 100
    """Streams of `short_events` events of one target per round, one after another, for the TTFT."""
    short_events: int = 5
    """Events of a stream of the alone phase's TTFT and of the memory phase."""
    paced_seconds: float = 4.2
    """Length of one paced round of one target."""
    memory_streams: int = 10_000
    memory_limit_seconds: float = 30.0
    level_seconds: float = 1.6
    """Length of one level of the held-rate search."""


async def set_gap(stub_port: int, gap_seconds: float) -> None:
    """Set the stub's pause between two events of the streams that start from now on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stub_port)
    body = msgspec.json.encode({"gap_seconds": gap_seconds})
    writer.write(b"POST /stub HTTP/1.1\r\nhost: stub\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()


async def run_alone(target: Target, load: Load) -> tuple[list[Answer], list[Answer]]:
    """One round, one stream after another: the short ones, then the long ones. Raises TargetFailed.

    The stub's gap must be 0. The TTFT is taken from short streams: while a long one is written without a pause, the
    stub and the target keep both cores of a small machine, and the client waits for its turn, not for the first byte.
    """
    short, long = chat_request(load.short_events, load.prompt_bytes), chat_request(load.events, load.prompt_bytes)
    async with Connection(target.port) as connection:
        return (
            [await connection.stream(short, load.short_events) for _ in range(load.short_streams)],
            [await connection.stream(long, load.events) for _ in range(load.alone_streams)],
        )


async def run_paced(target: Target, load: Load) -> tuple[list[Answer], float | None]:
    """One round of streams side by side: the answers, and the CPU seconds the target spent. Raises TargetFailed.

    The streams start spread over the length of one of them, as independent clients would; on each connection one stream
    follows the other until the round's time is over.
    """
    request = chat_request(load.events, load.prompt_bytes)
    answers: list[Answer] = []
    end = time.monotonic() + load.paced_seconds
    stagger_seconds = load.events * load.gap_seconds / load.streams

    async def client(index: int) -> None:
        await asyncio.sleep(index * stagger_seconds)
        async with Connection(target.port) as connection:
            answers.append(await connection.stream(request, load.events))
            while time.monotonic() < end:
                answers.append(await connection.stream(request, load.events))

    cpu_before = cpu_seconds(target.pid) if target.pid else None
    await side_by_side([client(index) for index in range(load.streams)])
    await asyncio.sleep(SETTLE_SECONDS)
    cpu_spent = cpu_seconds(target.pid) - cpu_before if target.pid and cpu_before is not None else None
    return answers, cpu_spent


async def side_by_side(clients: list[Coroutine[None, None, None]]) -> None:
    """Run clients together; where one fails, stop the others and raise its error."""
    tasks = [asyncio.create_task(client) for client in clients]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_memory(target: Target, load: Load) -> Memory | None:
    """Resident memory around many short streams; None for a target without a PID. The stub's gap must be 0."""
    if target.pid is None:
        return None
    request = chat_request(load.short_events, load.prompt_bytes)
    before = resident_bytes(target.pid)
    end = time.monotonic() + load.memory_limit_seconds
    left, done = load.memory_streams, 0

    async def client() -> None:
        nonlocal left, done
        async with Connection(target.port) as connection:
            while left > 0 and time.monotonic() < end:
                left -= 1
                await connection.stream(request, load.short_events)
                done += 1

    await side_by_side([client() for _ in range(load.streams)])
    await asyncio.sleep(SETTLE_SECONDS)
    return Memory(streams=done, rss_before_bytes=before, rss_after_bytes=resident_bytes(target.pid))


class Level(msgspec.Struct, frozen=True):
    """What became of one offered rate; rates in events per second."""

    held: bool
    delivered: float
    event_delay_p99_ms: float | None
    limited_by_harness: bool


async def find_held_rate(target: Target, load: Load) -> HeldRate:
    """Double the number of streams until the rate is not held, then bisect.

    The stub's gap must be `load.gap_seconds`.
    """
    held: Level | None = None
    low, high = 0, LOWEST_STREAMS
    while (level := await offer_repeatedly(target, load, high)).held and high < HIGHEST_STREAMS:
        held, low, high = level, high, high * 2
    limited_by_harness = level.limited_by_harness
    for _ in range(BISECTIONS if low else 0):
        middle = (low + high) // 2
        level = await offer_repeatedly(target, load, middle)
        if level.held:
            held, low = level, middle
        else:
            high, limited_by_harness = middle, level.limited_by_harness
    return HeldRate(
        events_per_second=held.delivered if held else 0.0,
        event_delay_p99_ms=held.event_delay_p99_ms if held else None,
        limited_by_harness=limited_by_harness,
    )


async def offer_repeatedly(target: Target, load: Load, streams: int) -> Level:
    """Offer a rate until it is held, `TRIES` times at most."""
    for _ in range(TRIES - 1):
        level = await offer(target, load, streams)
        if level.held:
            return level
    return await offer(target, load, streams)


async def offer(target: Target, load: Load, streams: int) -> Level:
    """Run `streams` streams of one event per gap. A stream that fails is a rate that is not held.

    Delivered is what arrives on time, at most one gap after it was sent (later, and it merges with the stream's next
    event), in the last three quarters of the level, when all streams run.
    """
    events = max(2, round(load.level_seconds / load.gap_seconds))
    request = chat_request(events, load.prompt_bytes)
    answers: list[Answer] = []
    window_start = time.monotonic() + load.level_seconds / 4
    window_end = window_start + load.level_seconds * 3 / 4

    async def client(index: int) -> None:
        await asyncio.sleep(index * load.level_seconds / 8 / streams)
        async with Connection(target.port) as connection:
            answers.append(await connection.stream(request, events))

    try:
        await side_by_side([client(index) for index in range(streams)])
    except TargetFailed:
        return Level(held=False, delivered=0.0, event_delay_p99_ms=None, limited_by_harness=False)
    on_time = sum(
        window_start <= arrived / NANOSECONDS < window_end and arrived - sent <= load.gap_seconds * NANOSECONDS
        for answer in answers
        for sent, arrived in zip(answer.sent_ns, answer.arrived_ns, strict=True)
    )
    delivered = on_time / (window_end - window_start)
    sent = sum((events - 1) * NANOSECONDS / (answer.sent_ns[-1] - answer.sent_ns[0]) for answer in answers)
    offered = streams / load.gap_seconds
    return Level(
        held=delivered >= HELD_SHARE * offered,
        delivered=delivered,
        event_delay_p99_ms=quantile([delay for answer in answers for delay in answer.delays_seconds()], 0.99) * 1e3,
        limited_by_harness=sent < HELD_SHARE * offered,
    )
