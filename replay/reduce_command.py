"""``specbreaker replay reduce``: the shortest sequence of a session's requests that still makes a target collapse."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from replay.client import TargetClient
from replay.conversations import predecessors, prompts_of
from replay.interrupt import interrupted
from replay.prepare import Prepared, ReplayOptions, prepare
from replay.recorded import Exchange, Recorded, read_recorded
from replay.reduction.ddmin import Subset
from replay.reduction.journal import JournalError
from replay.reduction.plan import Candidate, Plan, Timing
from replay.reduction.reducer import Budget, Reduced, Reducer, finding
from replay.reduction.store import Store
from replay.reduction.trial import Laboratory, Reset
from replay.result_session import source_of
from replay.session.reader import SessionError
from replay.target import TargetRefuses, TargetUnreachable, engine_version, model_for
from replay.target_options import POSITIVE, api_key_of, overrides_of, prompt_options, url_of

_COUNT = click.IntRange(min=1)
NO_RESET = (
    "the engine was not reset between trials: what one trial left behind counts in the next, so the number of requests "
    "is not what a fresh engine needs, and what was left out may have mattered"
)
SAME_PROCESS = "--reset left the engine's process running: what it keeps in memory went on from trial to trial"


@click.command("reduce")
@click.argument("session", type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="URL", help="The OpenAI endpoint, with or without /v1.")
@click.option("--model", help="Model to ask for [default: the recorded one, if the target serves it].")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", required=True, help="Must be new.")
@click.option("--reset", metavar="COMMAND", help="Puts the engine back before each trial; run without a shell.")
@click.option("--ready-seconds", type=POSITIVE, default=600.0, show_default=True, help="Longest wait after --reset.")
@click.option("--back-to-back", is_flag=True, help="Leave recorded times out from the beginning.")
@click.option("--keep-content", is_flag=True, help="Do not try one prompt repeated.")
@click.option("--max-trials", type=_COUNT, default=100, show_default=True)
@click.option("--max-seconds", type=POSITIVE, default=3600.0, show_default=True, help="No trial begins after that.")
@click.option("--whole-trials", type=_COUNT, default=2, show_default=True, help="Of the whole session, and the result.")
@click.option("--repeats", type=_COUNT, default=3, show_default=True, help="Most trials of one sequence.")
@click.option("--requests", type=_COUNT, metavar="N", help="Only the first N requests.")
@click.option("--time-scale", type=POSITIVE, default=1.0, show_default=True, help="Recorded seconds per second.")
@prompt_options
@click.option("--cache", type=click.Choice(["keep", "salt"]), default="keep", show_default=True)
@click.option("--token-counts/--no-token-counts", default=True, help="Ask for usage on every event [default: yes].")
@click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the target's key.")
@click.option("--timeout-seconds", type=POSITIVE, default=600.0, show_default=True, help="Longest silence.")
@click.option("--max-lateness-seconds", type=POSITIVE, default=0.05, show_default=True, help="p99, else unresolved.")
@click.option("--resume", is_flag=True, help="Go on with the reduction in --output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def reduce_command(session: Path, target: str, output: Path, as_json: bool, **given: Any) -> None:
    """Find the shortest sequence of requests that still makes the target collapse.

    Each trial sends some of the requests to an engine that --reset has put back. The result is a session in DIR. Exit
    status: 0 nothing more can be left out, 1 not done (budget, interrupted) or the session triggers nothing here, 2 bad
    input, 3 target unreachable.
    """
    try:
        client_options: dict[str, object] = {
            "api_key": api_key_of(given["api_key_env"]),
            "timeout_seconds": given["timeout_seconds"],
        }
        work = _reduce(read_recorded(session), url_of("--target", target), client_options, output, given)
        reduced = asyncio.run(_stoppable(work))
    except (SessionError, JournalError, TargetRefuses, OSError) as error:
        _fail(error, 2)
    except TargetUnreachable as error:
        _fail(error, 3)
    found = finding(reduced) | {"notes": _notes(reduced, given["reset"]), "output": str(output)}
    click.echo(msgspec.json.encode(found).decode() if as_json else _as_text(reduced, found))
    raise click.exceptions.Exit(0 if reduced.ended == "minimal" else 1)


async def _reduce(
    recorded: Recorded, url: str, client_options: dict[str, object], output: Path, given: dict[str, Any]
) -> Reducer:
    """Everything that is needed for trials. Raises SessionError, JournalError, TargetRefuses and TargetUnreachable."""
    exchanges = recorded.exchanges[: given["requests"]]
    if not exchanges:
        raise SessionError("the session holds no request: nothing to reduce")
    options = _options(given)
    told = ("reset", "back_to_back", "keep_content", "cache")
    source = source_of(recorded, options) | {name: given[name] for name in told}
    async with TargetClient(url, **client_options) as client:  # type: ignore[arg-type]
        model = await model_for(client, options.overrides.model, exchanges[0].request.facts.model)
        options = msgspec.structs.replace(options, overrides=msgspec.structs.replace(options.overrides, model=model))
        prepared = await prepare(exchanges, options, client, salt="")
        if not prepared.jobs:
            raise SessionError(f"no request can be sent: {'; '.join(prepared.skipped)}")
        store = Store.open(output, source, url, await engine_version(client), resume=given["resume"])
    for reason, count in prepared.skipped.items():
        click.echo(f"note: {count} not sent: {reason}", err=True)
    budget = Budget(
        trials=given["max_trials"],
        seconds=given["max_seconds"],
        **{name: given[name] for name in ("whole_trials", "repeats", "max_lateness_seconds")},
    )
    reset = Reset(command=given["reset"], ready_seconds=given["ready_seconds"])
    return Reducer(
        Laboratory(url, prepared, reset, salted=given["cache"] == "salt", client_options=client_options),
        store,
        _plan(exchanges, prepared, keep_content=given["keep_content"]),
        Candidate(
            requests=tuple(sorted(prepared.jobs)),
            timing=Timing.BACK_TO_BACK if given["back_to_back"] else Timing.RECORDED,
        ),
        budget,
        say=lambda line: click.echo(line, err=True),
    )


def _options(given: dict[str, Any]) -> ReplayOptions:
    return ReplayOptions(
        schedule="dependent",
        overrides=overrides_of(given),
        **{name: given[name] for name in ("time_scale", "prompts", "prompt_seed", "requests")},
    )


def _plan(exchanges: Sequence[Exchange], prepared: Prepared, *, keep_content: bool) -> Plan:
    before = predecessors(exchanges, prompts_of(exchanges))

    def close(subset: Subset) -> Subset:
        kept = set(subset)
        for index in sorted(subset, reverse=True):
            turn = before[index]
            while turn is not None and turn not in kept:
                kept.add(turn)
                turn = before[turn]
        return tuple(sorted(kept & prepared.jobs.keys()))

    def usual(subset: Subset) -> int:
        lengths = {index: exchanges[index].completion_tokens or 0 for index in subset}
        mean = sum(lengths.values()) / len(lengths)
        return min(subset, key=lambda index: abs(lengths[index] - mean))

    return Plan(close=close, usual=usual, keep_content=keep_content)


async def _stoppable(work: Any) -> Reduced:
    """Run the reduction; Ctrl-C and SIGTERM break it off, and what was found by then is the result."""
    reducer: Reducer = await work
    running = asyncio.create_task(reducer.run())
    with interrupted(running.cancel):
        try:
            reduced = await running
        except asyncio.CancelledError:
            reduced = reducer.so_far("interrupted")
        except TargetUnreachable:
            reducer.publish(reducer.so_far("unreachable"))
            raise
    reducer.publish(reduced)
    return reduced


def _fail(error: Exception, exit_code: int) -> None:
    click.echo(f"specbreaker replay reduce: {error}", err=True)
    raise click.exceptions.Exit(exit_code) from error


def _notes(reduced: Reduced, reset: str | None) -> list[str]:
    notes = [] if reset is not None else [NO_RESET]
    return [*notes, SAME_PROCESS] if reduced.restarted is False else notes


_ENDS = {
    "minimal": "nothing more can be left out",
    "budget": "the budget is used up before nothing more could be left out: --resume with a larger one goes on",
    "interrupted": "interrupted: --resume goes on",
    "not_triggered": "the whole session does not make this target collapse: there is nothing to reduce",
}


def _as_text(reduced: Reduced, found: dict[str, Any]) -> str:
    lines = [f"{_ENDS[reduced.ended]} ({reduced.trials} trials)"]
    if reduced.best is not None:
        lines.append(f"{len(reduced.whole.requests)} requests, reduced to {reduced.best}")
        lines.append(
            f"  triggered in {reduced.best_triggered} of {reduced.best_trials} trials, the whole session in "
            f"{reduced.whole_triggered} of {reduced.whole_trials}"
        )
        if reduced.onset is not None:
            at = reduced.onset
            lines.append(
                f"  {at.cause} after {at.requests:.2f} requests, {at.tokens:.0f} tokens, {at.steps:.0f} verify steps, "
                f"{at.seconds:.1f} s"
            )
        if reduced.best.repeats_one:
            lines.append("  it does not depend on content: the same prompt again and again triggers it as well")
        lines.append(f"session: {found['output']}")
    lines += [f"note: {note}" for note in found["notes"]]
    return "\n".join(lines)
