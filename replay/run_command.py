"""``specbreaker replay run``: a recorded session once more, against any OpenAI endpoint."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from replay import progress
from replay.bodies import CacheMode
from replay.client import TargetClient
from replay.play import Outcome, PlaySettings, play
from replay.prepare import PromptMode, ReplayOptions
from replay.recorded import read_recorded
from replay.result_session import ResumeError
from replay.schedule import Schedule
from replay.session.reader import SessionError
from replay.session.schema import ContentMode
from replay.target import TargetRefuses, TargetUnreachable
from replay.target_options import POSITIVE, api_key_of, overrides_of, prompt_options, url_of


@click.command("run")
@click.argument("session", type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="URL", help="The OpenAI endpoint, with or without /v1.")
@click.option("--model", help="Model to ask for [default: the recorded one, if the target serves it].")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="[default: replay-TIME]")
@click.option("--schedule", type=click.Choice(["open", "closed", "dependent"]), default="open", show_default=True)
@click.option("--concurrency", type=click.IntRange(min=1), help="With closed [default: as recorded].")
@click.option("--pauses/--no-pauses", default=False, help="With closed: clients pause as recorded [default: no].")
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
        url, api_key = url_of("--target", target), api_key_of(api_key_env)
        client = TargetClient(url, api_key=api_key, timeout_seconds=timeout_seconds)
        outcome = asyncio.run(play(recorded, client, options, settings))
    except (SessionError, ResumeError, TargetRefuses, OSError) as error:
        _fail(error, 2)
    except TargetUnreachable as error:
        _fail(error, 3)
    click.echo(_as_json(outcome, settings) if given["as_json"] else _as_text(outcome, settings))
    raise click.exceptions.Exit(outcome.exit_code)


def _options(given: dict[str, Any]) -> ReplayOptions:
    schedule: Schedule = given["schedule"]
    cache: CacheMode = given["cache"]
    prompts: PromptMode = given["prompts"]
    if given["concurrency"] is not None and schedule != "closed":
        raise click.UsageError("--concurrency: only with --schedule closed")
    if given["pauses"] and schedule != "closed":
        raise click.UsageError("--pauses: only with --schedule closed")
    if given["reset_command"] is not None and cache != "reset":
        raise click.UsageError("--reset-command: only with --cache reset")
    return ReplayOptions(
        schedule=schedule,
        cache=cache,
        prompts=prompts,
        overrides=overrides_of(given),
        **{name: given[name] for name in ("time_scale", "concurrency", "pauses", "prompt_seed", "requests")},
    )


def _settings(output: Path | None, given: dict[str, Any]) -> PlaySettings:
    if given["resume"] and output is None:
        raise click.UsageError("--resume: needs --output, the directory of the run to go on with")
    return PlaySettings(
        directory=output or Path(f"replay-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"),
        content=ContentMode(given["content"]),
        **{name: given[name] for name in ("resume", "reset_route", "reset_command", "max_lateness_seconds")},
    )


def _fail(error: Exception, exit_code: int) -> None:
    click.echo(f"specbreaker replay run: {error}", err=True)
    raise click.exceptions.Exit(exit_code) from error


def _as_json(outcome: Outcome, settings: PlaySettings) -> str:
    ends = {"valid": outcome.exit_code == 0, "faults": outcome.faults, "stopped": outcome.stopped}
    whole = {**outcome.tally.summary(), **ends, "notes": outcome.notes, "output": str(settings.directory)}
    return msgspec.json.encode(whole).decode()


def _as_text(outcome: Outcome, settings: PlaySettings) -> str:
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
