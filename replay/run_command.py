"""``specbreaker replay run``: a recorded session once more, against any OpenAI endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from replay import progress, result_session
from replay.bodies import CacheMode
from replay.client import BACKEND, TargetClient
from replay.prepare import Prepared, PromptMode, ReplayOptions, prepare
from replay.recorded import Recorded, read_recorded
from replay.result_session import ResumeError
from replay.run import ReplayRun, Stopped
from replay.schedule import Schedule, remaining
from replay.session.reader import SessionError
from replay.session.recorder import BackgroundRecorder
from replay.session.schema import ContentMode, EngineRecord
from replay.tally import Tally
from replay.target import (
    TargetRefuses,
    TargetUnreachable,
    engine_sample,
    engine_version,
    reset_cache,
)
from replay.target_options import POSITIVE, api_key_of, model_for, overrides_of, prompt_options, url_of


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run goes and what it needs besides its options."""

    directory: Path
    resume: bool
    content: ContentMode
    reset_route: str
    reset_command: str | None
    max_lateness_seconds: float
    as_json: bool


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended."""

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


@click.command("run")
@click.argument("session", type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="URL", help="The OpenAI endpoint, with or without /v1.")
@click.option("--model", help="Model to ask for [default: the recorded one, if the target serves it].")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="[default: replay-TIME]")
@click.option("--schedule", type=click.Choice(["open", "closed", "dependent"]), default="open", show_default=True)
@click.option("--concurrency", type=click.IntRange(min=1), help="With closed [default: as recorded].")
@click.option("--time-scale", type=POSITIVE, default=1.0, show_default=True, help="Recorded seconds per second.")
@click.option("--requests", type=click.IntRange(min=1), metavar="N", help="Only the first N requests.")
@prompt_options
@click.option("--cache", type=click.Choice(["keep", "salt", "reset"]), default="keep", show_default=True)
@click.option("--reset-route", default="/reset_prefix_cache", show_default=True, help="POST, with --cache reset.")
@click.option("--reset-command", metavar="COMMAND", help="Run instead of the POST; without a shell.")
@click.option("--token-counts/--no-token-counts", default=True, help="Ask for usage on every event [default: yes].")
@click.option("--content", type=click.Choice([mode.value for mode in ContentMode]), default="none", show_default=True)
@click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the target's key.")
@click.option("--timeout-seconds", type=POSITIVE, default=600.0, show_default=True, help="Longest silence.")
@click.option("--max-lateness-seconds", type=POSITIVE, default=0.05, show_default=True, help="p99, else invalid.")
@click.option("--resume", is_flag=True, help="Go on with the run in --output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def run_command(
    session: Path,
    target: str,
    output: Path | None,
    api_key_env: str | None,
    timeout_seconds: float,
    **given: Any,
) -> None:
    """Send a recorded session once more and record what comes back.

    The result is a session file. Exit status: 0 a valid replay, 1 not valid (sent too late, too many failures,
    interrupted), 2 bad input, 3 target unreachable.
    """
    try:
        options = _options(given)
        settings = _settings(output, given)
        recorded = read_recorded(session)
        client = TargetClient(url_of(target), api_key=api_key_of(api_key_env), timeout_seconds=timeout_seconds)
        outcome = asyncio.run(_replay(recorded, client, options, settings))
    except (SessionError, ResumeError, TargetRefuses, OSError) as error:
        _fail(error, 2)
    except TargetUnreachable as error:
        _fail(error, 3)
    click.echo(_as_json(outcome, settings) if settings.as_json else _as_text(outcome, settings))
    raise click.exceptions.Exit(outcome.exit_code)


def _options(given: dict[str, Any]) -> ReplayOptions:
    schedule: Schedule = given["schedule"]
    cache: CacheMode = given["cache"]
    prompts: PromptMode = given["prompts"]
    if given["concurrency"] is not None and schedule != "closed":
        raise click.UsageError("--concurrency: only with --schedule closed")
    if given["reset_command"] is not None and cache != "reset":
        raise click.UsageError("--reset-command: only with --cache reset")
    return ReplayOptions(
        schedule=schedule,
        cache=cache,
        prompts=prompts,
        overrides=overrides_of(given),
        **{name: given[name] for name in ("time_scale", "concurrency", "prompt_seed", "requests")},
    )


def _settings(output: Path | None, given: dict[str, Any]) -> Settings:
    if given["resume"] and output is None:
        raise click.UsageError("--resume: needs --output, the directory of the run to go on with")
    return Settings(
        directory=output or Path(f"replay-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"),
        content=ContentMode(given["content"]),
        **{name: given[name] for name in ("resume", "reset_route", "reset_command", "max_lateness_seconds", "as_json")},
    )


def _fail(error: Exception, exit_code: int) -> None:
    click.echo(f"specbreaker replay run: {error}", err=True)
    raise click.exceptions.Exit(exit_code) from error


async def _replay(recorded: Recorded, client: TargetClient, options: ReplayOptions, settings: Settings) -> Outcome:
    exchanges = recorded.exchanges[: options.requests]
    if not exchanges:
        raise SessionError("the session holds no request: nothing to replay")
    source = result_session.source_of(recorded, options)
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
    settings: Settings,
) -> Outcome:
    await _sample(client, recorder)
    sends = [send for send in remaining(prepared.sends, done) if send.index in prepared.jobs or send.after is not None]
    run = ReplayRun(client, recorder, prepared.jobs, sends, tally, concurrency=prepared.concurrency)
    reporting = asyncio.create_task(progress.report(tally, sys.stderr))
    with _signals(run):
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


@contextlib.contextmanager
def _signals(run: ReplayRun) -> Any:
    """While the run lasts, Ctrl-C and SIGTERM stop it cleanly."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        for number in numbers:
            loop.add_signal_handler(number, run.stop, "interrupted")
    except (NotImplementedError, RuntimeError, ValueError):
        pass  # not the main thread: whoever runs us there handles signals
    try:
        yield
    finally:
        for number in numbers:
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(number)


def _as_json(outcome: Outcome, settings: Settings) -> str:
    ends = {"valid": outcome.exit_code == 0, "faults": outcome.faults, "stopped": outcome.stopped}
    whole = {**outcome.tally.summary(), **ends, "notes": outcome.notes, "output": str(settings.directory)}
    return msgspec.json.encode(whole).decode()


def _as_text(outcome: Outcome, settings: Settings) -> str:
    lines = [progress.line(outcome.tally)]
    lines += [f"note: {note}" for note in outcome.notes]
    lines += [f"note: {count} not sent: {reason}" for reason, count in outcome.tally.skipped.items()]
    lines += [f"not valid: {fault}" for fault in outcome.faults]
    if outcome.stopped == "interrupted":
        lines.append("interrupted: --resume goes on with what is left")
    elif outcome.stopped == "unreachable":
        lines.append("the target is gone: --resume goes on with what is left")
    lines.append(f"session: {settings.directory}")
    return "\n".join(lines)
