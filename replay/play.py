"""Plays requests against a target and records what comes back: one whole replay, from the first look to the seal."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from pathlib import Path

import msgspec

from replay import progress, result_session
from replay.client import BACKEND, TargetClient
from replay.interrupt import interrupted
from replay.prepare import Prepared, ReplayOptions, prepare
from replay.recorded import Recorded
from replay.run import ReplayRun, Stopped
from replay.schedule import remaining
from replay.session.reader import SessionError
from replay.session.recorder import BackgroundRecorder
from replay.session.schema import ContentMode, EngineRecord
from replay.tally import Tally
from replay.target import engine_sample, engine_version, model_for, reset_cache


class PlaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the result of a replay goes, and what it needs besides its options."""

    directory: Path
    resume: bool = False
    content: ContentMode = ContentMode.NONE
    reset_route: str = "/reset_prefix_cache"
    reset_command: str | None = None
    max_lateness_seconds: float = 0.05
    """p99 above which the run is not valid."""
    max_seconds: float | None = None
    """After so long nothing more is sent; what is under way ends. None: no limit."""
    arm: str | None = None
    """The arm of a triage that this run is."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a replay ended."""

    tally: Tally
    faults: list[str]
    stopped: Stopped | None
    notes: list[str]

    @property
    def exit_code(self) -> int:
        """0: a valid replay; 1: it ran but is none; 3: the target went away."""
        if self.stopped == "unreachable":
            return 3
        return 1 if self.faults or self.stopped else 0


async def play(recorded: Recorded, client: TargetClient, options: ReplayOptions, settings: PlaySettings) -> Outcome:
    """Send the recorded requests, record the answers, seal the result.

    Ctrl-C and SIGTERM break it off cleanly. Raises SessionError, ResumeError, TargetRefuses, TargetUnreachable and
    OSError before the first request is sent.
    """
    exchanges = recorded.exchanges[: options.requests]
    if not exchanges:
        raise SessionError("the session holds no request: nothing to replay")
    source = result_session.source_of(recorded, options, settings.arm)
    resumed = result_session.read_resumed(settings.directory, source) if settings.resume else None
    if resumed is None:
        result_session.check_new(settings.directory)
    session_id = resumed.session_id if resumed else result_session.new_session_id()
    async with client:
        model = await model_for(client, options.overrides.model, exchanges[0].request.facts.model)
        options = msgspec.structs.replace(options, overrides=msgspec.structs.replace(options.overrides, model=model))
        prepared = await prepare(exchanges, options, client, salt=f"{session_id}-{time.time_ns():x}")
        if not prepared.jobs:
            raise SessionError(f"no request can be sent: {'; '.join(prepared.skipped)}")
        done = resumed.done if resumed else set()
        tally = Tally(total=len(prepared.jobs.keys() - done), skipped=prepared.skipped)
        if options.cache == "reset" and not done:
            await reset_cache(client, settings.reset_route, settings.reset_command)
        recorder = result_session.open_recorder(
            settings.directory, session_id, client.url, await engine_version(client), settings.content
        )
        try:
            recorder.put(result_session.event(result_session.BEGUN, source))
            return await _run(client, recorder, prepared, done, tally, [*recorded.notes], settings)
        finally:
            await asyncio.to_thread(recorder.close)


async def _run(
    client: TargetClient,
    recorder: BackgroundRecorder,
    prepared: Prepared,
    done: set[int],
    tally: Tally,
    notes: list[str],
    settings: PlaySettings,
) -> Outcome:
    await _sample(client, recorder)
    sends = [send for send in remaining(prepared.sends, done) if send.index in prepared.jobs or send.after is not None]
    run = ReplayRun(client, recorder, prepared.jobs, sends, tally, concurrency=prepared.concurrency)
    reporting = asyncio.create_task(progress.report(tally, sys.stderr))
    with interrupted(lambda: run.stop("interrupted")):
        if settings.max_seconds is not None:
            asyncio.get_running_loop().call_later(settings.max_seconds, run.finish)
        await run.run()
    reporting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reporting
    if run.stopped != "unreachable":
        await _sample(client, recorder)
    if prepared.synthetic:
        notes.append("prompts are synthetic: their content, which moves acceptance, is not the recorded one")
    faults = tally.faults(settings.max_lateness_seconds)
    fields = {**tally.summary(), "valid": not faults and run.stopped is None, "faults": faults, "stopped": run.stopped}
    recorder.put(result_session.event(result_session.ENDED, {**fields, "synthetic_prompts": prepared.synthetic}))
    return Outcome(tally=tally, faults=faults, stopped=run.stopped, notes=notes)


async def _sample(client: TargetClient, recorder: BackgroundRecorder) -> None:
    """Record what the engine counts, and learn K."""
    sample = await engine_sample(client)
    if sample is not None:
        client.num_speculative_tokens = sample.num_speculative_tokens
        recorder.put(EngineRecord(backend=BACKEND, sample=sample))
