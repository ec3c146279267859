"""Runs a replay: sends what is due, measures, records, and stops cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from detector.observation import Ending
from detector.tap.request import read_request
from replay.client import Sent, TargetClient
from replay.schedule import Send
from replay.session.schema import Record, RequestRecord
from replay.tally import Tally

MAX_CONNECT_FAILURES = 5
"""After so many failed connections in a row the target is taken to be gone."""
LEAD_SECONDS = 0.05
"""From the start of a run to its first request, so that no request is late because others were being prepared."""

Stopped = Literal["interrupted", "unreachable", "decided"]
"""decided: whoever takes the records has seen enough."""


class Records(Protocol):
    """Takes what happens in a run."""

    def put(self, record: Record, body: bytes | None = None, /) -> Any:
        """The next record; body: that of a request. Never blocks."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One request, ready to be sent."""

    request_id: str
    path: str
    body: bytes
    wanted_prompt_tokens: int | None = None
    """Of a synthetic prompt."""


class ReplayRun:
    """One run. ``stop`` may be called at any time from the same event loop."""

    def __init__(
        self,
        client: TargetClient,
        recorder: Records,
        jobs: Mapping[int, Job],
        sends: Sequence[Send],
        tally: Tally,
        *,
        concurrency: int | None = None,
    ) -> None:
        """jobs: by index of the recorded request. concurrency: for sends that have no time of their own."""
        self.tally = tally
        self.stopped: Stopped | None = None
        self._client = client
        self._recorder = recorder
        self._jobs = jobs
        self._concurrency = concurrency or 1
        self._queue = deque(send for send in sends if send.due is None and send.after is None)
        self._timed = [send for send in sends if send.due is not None]
        self._followers: defaultdict[int, list[Send]] = defaultdict(list)
        for send in sends:
            if send.after is not None:
                self._followers[send.after].append(send)
        self._tasks: set[asyncio.Task[None]] = set()
        self._connect_failures = 0
        self._enough = asyncio.Event()

    async def run(self) -> None:
        """Send everything and wait for the answers; returns early after ``stop``, all records written."""
        begin = time.monotonic() + LEAD_SECONDS
        for send in self._timed:
            self._start(self._send_at(send, begin + (send.due or 0.0)))
        for _ in range(min(self._concurrency, len(self._queue))):
            self._start(self._work())
        while self._tasks:
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            self._tasks -= done
            for task in done:
                if not task.cancelled():
                    task.result()

    def finish(self) -> None:
        """Send nothing more and wait for what is under way: the run was long enough."""
        self._enough.set()

    def stop(self, why: Stopped) -> None:
        """Send nothing more and break off what is under way."""
        if self.stopped is None:
            self.stopped = why
            for task in self._tasks:
                task.cancel()

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.create_task(coroutine))

    async def _work(self) -> None:
        """Send from the queue, one after the other."""
        while self._queue and self.stopped is None:
            send = self._queue.popleft()
            due = time.monotonic() + send.think_seconds
            if await self._pause(due):
                await self._send(send.index, due)

    async def _send_at(self, send: Send, due: float) -> None:
        if not await self._pause(due):
            return
        await self._send(send.index, due)
        if self.stopped is None:
            ended = time.monotonic()
            for follower in self._followers[send.index]:
                self._start(self._send_at(follower, ended + follower.think_seconds))

    async def _pause(self, due: float) -> bool:
        """Wait until then; False if nothing more is to be sent."""
        seconds = due - time.monotonic()
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._enough.wait(), seconds)
        return not self._enough.is_set()

    async def _send(self, index: int, due: float) -> None:
        job = self._jobs.get(index)
        if job is None:
            return
        self.tally.sent += 1
        record = RequestRecord(
            seq=index,
            request_id=job.request_id,
            at=time.monotonic(),
            path=job.path,
            facts=read_request(job.path, job.body),
        )
        self._recorder.put(record, job.body)
        sent = Sent()
        response = await self._client.ask(job.request_id, job.path, job.body, sent)
        self._recorder.put(response)
        lateness = None if sent.at is None else max(0.0, sent.at - due)
        self.tally.ended(response.observation, lateness, job.wanted_prompt_tokens)
        failed = response.observation.ending is Ending.CONNECT_FAILED
        self._connect_failures = self._connect_failures + 1 if failed else 0
        if self._connect_failures >= MAX_CONNECT_FAILURES:
            self.stop("unreachable")
