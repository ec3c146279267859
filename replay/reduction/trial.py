"""One trial: the engine reset, a candidate's requests sent, the answers judged."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from detector.observation import EngineSample
from replay.client import TargetClient
from replay.prepare import Prepared
from replay.reduction.ddmin import Outcome
from replay.reduction.judge import Answer, Judge
from replay.reduction.plan import Candidate, Timing
from replay.run import Job, ReplayRun
from replay.schedule import Send, remaining
from replay.session.redact import Redactor
from replay.session.schema import ContentMode, Record, RequestRecord, ResponseRecord, steps_of
from replay.tally import Tally
from replay.target import TargetUnreachable, engine_sample, run_program, served_models

READY_POLL_SECONDS = 0.5


class Reset(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine is put back before each trial."""

    command: str | None
    """None: it is not."""
    ready_seconds: float = 600.0
    """Longest time until the target answers again."""


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a trial."""

    outcome: Outcome
    why: str
    judge: Judge
    records: list[Record]
    """Requests and answers, as a session has them."""
    sent: int
    """The first so many of the candidate's requests hold all that were sent."""
    restarted: bool | None
    """The engine's process is another one than before the reset; None: not known, or no reset."""


class Laboratory:
    """Runs trials of one session's requests at one target."""

    def __init__(
        self, url: str, prepared: Prepared, reset: Reset, *, salted: bool, client_options: dict[str, object]
    ) -> None:
        """salted: no request finds a prefix of another in the cache. client_options: those of TargetClient."""
        self._url = url
        self._salted = salted
        self._prepared = prepared
        self._reset = reset
        self._client_options = client_options
        self._redactor = Redactor(ContentMode.TEXT)

    @property
    def synthetic(self) -> bool:
        """All prompts are made up."""
        return all(job.wanted_prompt_tokens is not None for job in self._prepared.jobs.values())

    async def run(self, candidate: Candidate, judge: Judge, max_lateness_seconds: float) -> Tried:
        """Try a candidate. Raises TargetUnreachable and TargetRefuses; cancelled, it breaks off what is under way."""
        before = await self._sample() if self._reset.command is not None else None
        if self._reset.command is not None:
            await run_program("--reset", self._reset.command)
        await self._ready()
        # A client of its own: connections that were kept belong to an engine that is gone.
        async with TargetClient(self._url, **self._client_options) as client:  # type: ignore[arg-type]
            sample = await engine_sample(client)
            client.num_speculative_tokens = None if sample is None else sample.num_speculative_tokens
            records = _Records(judge, self._redactor)
            jobs, sends = self._work(candidate)
            tally = Tally(total=len(jobs))
            run = records.run = ReplayRun(client, records, jobs, sends, tally)
            await _until_done(run)
        if run.stopped == "unreachable":
            raise TargetUnreachable(f"{self._url}: went away in the middle of a trial")
        late = max_lateness_seconds if candidate.timing is Timing.RECORDED else float("inf")
        outcome, why = _resolved(judge, tally.faults(late))
        return Tried(
            outcome=outcome,
            why=why,
            judge=judge,
            records=records.written,
            sent=1 + max(records.sent, default=-1),
            restarted=_restarted(before, sample),
        )

    def _work(self, candidate: Candidate) -> tuple[dict[int, Job], list[Send]]:
        """The candidate's requests by their place in it, and when each goes out."""
        salt = secrets.token_hex(8) if self._salted else None
        jobs = {place: self._job(index, place, salt) for place, index in enumerate(candidate.requests)}
        if candidate.timing is Timing.BACK_TO_BACK:
            return jobs, [Send(index=place) for place in jobs]
        places = {index: place for place, index in enumerate(candidate.requests)}
        left = remaining(self._prepared.sends, {send.index for send in self._prepared.sends} - places.keys())
        return jobs, [
            msgspec.structs.replace(
                send, index=places[send.index], after=None if send.after is None else places[send.after]
            )
            for send in left
        ]

    def _job(self, index: int, place: int, salt: str | None) -> Job:
        job = msgspec.structs.replace(self._prepared.jobs[index], request_id=f"r{place}")
        if salt is None:
            return job
        body = msgspec.json.decode(job.body, type=dict[str, Any]) | {"cache_salt": f"{salt}-{place}"}
        return msgspec.structs.replace(job, body=msgspec.json.encode(body))

    async def _ready(self) -> None:
        """Wait until the target answers; at once an error where nothing was reset."""
        deadline = time.monotonic() + self._reset.ready_seconds
        while True:
            try:
                async with TargetClient(self._url, **self._client_options) as client:  # type: ignore[arg-type]
                    if await served_models(client) or self._reset.command is None:
                        return
            except TargetUnreachable:
                if self._reset.command is None or time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise TargetUnreachable(f"{self._url}: serves no model {self._reset.ready_seconds:.0f} s after --reset")
            await asyncio.sleep(READY_POLL_SECONDS)

    async def _sample(self) -> EngineSample | None:
        async with TargetClient(self._url, **self._client_options) as client:  # type: ignore[arg-type]
            return await engine_sample(client)


class _Records:
    """Takes a trial's records, judges the answers, and stops the run when there is no more to learn."""

    def __init__(self, judge: Judge, redactor: Redactor) -> None:
        self.written: list[Record] = []
        self.sent: set[int] = set()
        self.run: ReplayRun | None = None
        self._judge = judge
        self._redactor = redactor

    def put(self, record: Record, body: bytes | None = None, /) -> None:
        """The next record."""
        if isinstance(record, RequestRecord) and body is not None:
            self.sent.add(record.seq)
            record = msgspec.structs.replace(record, prompt=self._redactor.prompt(body))
        self.written.append(record)
        if isinstance(record, ResponseRecord):
            decided = self._judge.take(Answer(record.observation, steps_of(record)))
            if decided and self.run is not None:
                self.run.stop("decided")


async def _until_done(run: ReplayRun) -> None:
    """Run; where that is cancelled, break off what is under way first."""
    running = asyncio.create_task(run.run())
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        run.stop("interrupted")
        with contextlib.suppress(asyncio.CancelledError):
            await running
        raise


def _resolved(judge: Judge, faults: Sequence[str]) -> tuple[Outcome, str]:
    if judge.outcome is not Outcome.NOT_TRIGGERED:
        return judge.outcome, judge.why
    if faults:
        return Outcome.UNRESOLVED, faults[0]
    if judge.nothing_measured():
        return Outcome.UNRESOLVED, "no answer told its speed"
    return judge.outcome, judge.why


def _restarted(before: EngineSample | None, after: EngineSample | None) -> bool | None:
    if before is None or after is None or before.process_started_unix is None or after.process_started_unix is None:
        return None
    return before.process_started_unix != after.process_started_unix
