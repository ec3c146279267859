"""``specbreaker replay triage``: which clock the cycle runs on, and what it needs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from replay.arms import Arm, ArmName, Place, arms_of
from replay.bodies import Overrides
from replay.play import PlaySettings
from replay.prepare import PromptMode, ReplayOptions
from replay.recorded import Exchange, Recorded, read_recorded
from replay.result_session import ResumeError
from replay.run import Stopped
from replay.session.reader import SessionError
from replay.session.schema import ContentMode
from replay.target import TargetRefuses, TargetUnreachable
from replay.target_options import api_key_of, url_of
from replay.triage import Triage, triage
from replay.triage_run import Played, Playing, Server, play_arms

_positive = click.FloatRange(min=0, min_open=True)
_ELSEWHERE: tuple[Place, ...] = ("lower_k", "speculation_off")


@click.command("triage")
@click.argument("session", type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="URL", help="The OpenAI endpoint, with or without /v1.")
@click.option("--lower-k", metavar="URL", help="The same model with a lower K.")
@click.option("--lower-k-command", metavar="COMMAND", help="Run before that arm; without a shell.")
@click.option("--speculation-off", metavar="URL", help="The same model without speculation.")
@click.option("--speculation-off-command", metavar="COMMAND", help="Run before that arm; without a shell.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="[default: triage-TIME]")
@click.option("--requests", type=click.IntRange(min=1), default=80, show_default=True, help="Of each arm.")
@click.option("--seconds", type=_positive, default=1800.0, show_default=True, help="Of each arm, at most.")
@click.option(
    "--arm",
    "only",
    type=click.Choice([name.value for name in ArmName]),
    multiple=True,
    help="Only these arms [default: all].",
)
@click.option("--model", help="Model to ask for [default: the recorded one, if the target serves it].")
@click.option("--temperature", type=click.FloatRange(min=0), help="[default: as recorded]")
@click.option("--seed", type=int, help="[default: as recorded]")
@click.option("--ignore-eos/--no-ignore-eos", default=True, help="Where an arm sets lengths [default: yes].")
@click.option("--prompts", type=click.Choice(["auto", "recorded", "synthetic"]), default="auto", show_default=True)
@click.option("--prompt-seed", default=0, show_default=True, help="Synthetic prompts depend on nothing else.")
@click.option("--token-counts/--no-token-counts", default=True, help="Ask for usage on every event [default: yes].")
@click.option("--content", type=click.Choice([mode.value for mode in ContentMode]), default="none", show_default=True)
@click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the key.")
@click.option("--timeout-seconds", type=_positive, default=600.0, show_default=True, help="Longest silence.")
@click.option("--max-lateness-seconds", type=_positive, default=0.05, show_default=True, help="p99, else invalid.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def triage_command(session: Path, output: Path | None, only: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Play a recorded session in different ways and tell what drives its collapses.

    Each arm is a session in the output directory; called again with the same, arms that have ended are not played
    again. Exit status: 0 the clock is named, 1 it is not, 2 bad input, 3 a server cannot be reached.
    """
    directory = output or Path(f"triage-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    try:
        playing = _playing(directory, given)
        recorded = read_recorded(session)
        arms = arms_of(
            _playable(recorded),
            _options(given),
            requests=given["requests"],
            ignore_eos=given["ignore_eos"],
            places=list(playing.servers),
        )
        chosen = _chosen(arms, only)
        played, stopped = asyncio.run(play_arms(recorded, chosen, playing, lambda line: click.echo(line, err=True)))
    except (SessionError, ResumeError, TargetRefuses, OSError) as error:
        _fail(error, 2)
    except TargetUnreachable as error:
        _fail(error, 3)
    found = triage({arm.name: arm.result for arm in played if not arm.faults})
    told = as_object(found, played, stopped)
    click.echo(msgspec.json.encode(told).decode() if as_json else render(found, played, stopped))
    raise click.exceptions.Exit(3 if stopped == "unreachable" else 0 if found.clock and not stopped else 1)


def _playing(directory: Path, given: dict[str, Any]) -> Playing:
    servers: dict[Place, Server] = {"target": Server(url=url_of("--target", given["target"]))}
    for place in _ELSEWHERE:
        option = f"--{place.replace('_', '-')}"
        url, command = given[place], given[f"{place}_command"]
        if url is not None or command is not None:
            # A command alone changes the target itself: these arms come last.
            servers[place] = Server(url=url_of(option, url) if url else servers["target"].url, command=command)
    return Playing(
        directory=directory,
        servers=servers,
        settings=PlaySettings(
            directory=directory,
            content=ContentMode(given["content"]),
            max_lateness_seconds=given["max_lateness_seconds"],
            max_seconds=given["seconds"],
        ),
        api_key=api_key_of(given["api_key_env"]),
        timeout_seconds=given["timeout_seconds"],
    )


def _chosen(arms: list[Arm], only: tuple[str, ...]) -> list[Arm]:
    """The arms asked for, all by default. ``one_client`` is the same as ``as_is`` where the recording has one."""
    missing = [name for name in only if name in _ELSEWHERE and name not in {arm.name for arm in arms}]
    if missing:
        option = f"--{missing[0].replace('_', '-')}"
        raise click.UsageError(f"--arm {missing[0]}: needs {option} or {option}-command")
    return [arm for arm in arms if not only or arm.name in only]


def _options(given: dict[str, Any]) -> ReplayOptions:
    prompts: PromptMode = given["prompts"]
    overrides = Overrides(**{name: given[name] for name in ("model", "temperature", "seed", "token_counts")})
    return ReplayOptions(prompts=prompts, prompt_seed=given["prompt_seed"], overrides=overrides)


def _playable(recorded: Recorded) -> list[Exchange]:
    if not recorded.exchanges:
        raise SessionError("the session holds no request: nothing to play")
    return recorded.exchanges


def _fail(error: Exception, exit_code: int) -> None:
    click.echo(f"specbreaker replay triage: {error}", err=True)
    raise click.exceptions.Exit(exit_code) from error


def as_object(found: Triage, played: list[Played], stopped: Stopped | None) -> dict[str, Any]:
    """The triage as JSON values."""
    return {
        "clock": found.clock,
        "reason": found.reason,
        "hypotheses": msgspec.to_builtins(found.findings),
        "arms": [_arm_object(arm, found) for arm in played],
        "stopped": stopped,
    }


def _arm_object(arm: Played, found: Triage) -> dict[str, Any]:
    side = arm.result.side
    return {
        "name": arm.name,
        "session": str(arm.directory),
        "faults": arm.faults,
        "requests": side.requests,
        "onsets": side.onsets,
        "slow_share": msgspec.to_builtins(side.slow_share),
        "healthy": msgspec.to_builtins(side.healthy),
        "slow": msgspec.to_builtins(side.slow),
        "in_flight": arm.result.in_flight,
        "cached_tokens": arm.result.cached_tokens,
        "periods": msgspec.to_builtins(found.periods.get(arm.name, {}), str_keys=True),
    }


def render(found: Triage, played: list[Played], stopped: Stopped | None) -> str:
    """The triage as text for a person."""
    lines = [f"clock: {found.clock or 'undetermined'}", f"  {found.reason}"]
    for finding in found.findings:
        p_value = "" if finding.p_value is None else f", p = {finding.p_value:.2g}"
        lines.append(f"{finding.hypothesis}: {finding.verdict}{p_value}")
        lines += [f"  {reason}" for reason in finding.reasons]
    lines.append("arms:")
    for arm in played:
        side = arm.result.side
        said = f"{side.onsets} collapses in {side.requests} requests, slow {side.slow_share.estimate:.0%}"
        lines.append(f"  {arm.name}: {said}: {arm.directory}")
        lines += [f"    not valid, not counted: {fault}" for fault in arm.faults]
    if stopped is not None:
        lines.append(f"{stopped}: the same command goes on with the arms that are left")
    return "\n".join(lines)
