"""Plays the arms of a triage one after the other; those that an earlier call has ended are read instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import msgspec

from replay.arms import Arm, ArmName, Place
from replay.client import TargetClient
from replay.play import PlaySettings, play
from replay.recorded import Recorded, read_recorded
from replay.result_session import BEGUN, ENDED, ResumeError, source_of
from replay.run import Stopped
from replay.session.reader import SessionError
from replay.target import run_program
from replay.triage import ArmResult, result_of


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """Where arms are played."""

    url: str
    command: str | None = None
    """Run before the first arm there, without a shell; when it ends, the server is ready."""


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """An arm that has ended, now or earlier."""

    name: ArmName
    directory: Path
    result: ArmResult
    faults: list[str]
    """Why it is no valid replay; its figures then count for nothing."""


class Playing(msgspec.Struct, frozen=True, kw_only=True):
    """What the arms have in common."""

    directory: Path
    servers: dict[Place, Server]
    settings: PlaySettings
    """Its directory and arm are set for each arm."""
    api_key: str | None = None
    timeout_seconds: float = 600.0


async def play_arms(
    recorded: Recorded, arms: Sequence[Arm], playing: Playing, tell: Callable[[str], None]
) -> tuple[list[Played], Stopped | None]:
    """Play what has not ended yet; stops where an arm is broken off.

    tell: takes a line before each arm. Raises what ``play`` raises, and TargetRefuses where a command fails.
    """
    played: list[Played] = []
    for number, arm in enumerate(arms, start=1):
        its = msgspec.structs.replace(recorded, exchanges=arm.exchanges)
        directory, earlier = _find(playing.directory, its, arm)
        tell(f"arm {number} of {len(arms)}: {arm.name}{': played before' if earlier else ''}")
        if earlier is None:
            stopped = await _play(its, arm, directory, playing)
            if stopped is not None:
                return played, stopped
            earlier = read_recorded(directory)
        played.append(_played(arm.name, directory, earlier))
    return played, None


async def _play(recorded: Recorded, arm: Arm, directory: Path, playing: Playing) -> Stopped | None:
    server = playing.servers[arm.place]
    if server.command is not None:
        await run_program(f"--{arm.place.replace('_', '-')}-command", server.command)
    client = TargetClient(server.url, api_key=playing.api_key, timeout_seconds=playing.timeout_seconds)
    settings = msgspec.structs.replace(playing.settings, directory=directory, arm=arm.name.value)
    return (await play(recorded, client, arm.options, settings)).stopped


def _find(directory: Path, recorded: Recorded, arm: Arm) -> tuple[Path, Recorded | None]:
    """Where the arm was played to its end, and what was recorded; else where to play it.

    An arm that was broken off is played anew beside what it left, since the engine has gone on meanwhile. Raises
    ResumeError where the arm that has ended is another one.
    """
    source = source_of(recorded, arm.options, arm.name.value)
    for attempt in count(1):
        path = directory / (arm.name.value if attempt == 1 else f"{arm.name.value}-{attempt}")
        if not path.exists() or not any(path.glob("*.jsonl*")):
            return path, None
        earlier = _ended(path)
        if earlier is None:
            continue
        begun = next((event.fields for event in earlier.events if event.kind == BEGUN), {})
        different = [name for name, value in source.items() if begun.get(name) != value]
        if different:
            raise ResumeError(f"{path}: was played with other {', '.join(different)}: choose another --output")
        return path, earlier
    raise AssertionError("unreachable")


def _ended(path: Path) -> Recorded | None:
    """The session there, if it was played to its end."""
    try:
        recorded = read_recorded(path)
    except SessionError:
        return None
    ends = [event.fields for event in recorded.events if event.kind == ENDED]
    return recorded if ends and ends[-1].get("stopped") is None else None


def _played(name: ArmName, directory: Path, recorded: Recorded) -> Played:
    ends = [event.fields for event in recorded.events if event.kind == ENDED]
    answered = [(one.observation, one.steps) for one in recorded.exchanges if one.observation is not None]
    return Played(
        name=name,
        directory=directory,
        result=result_of([observation for observation, _ in answered], [steps for _, steps in answered]),
        faults=[str(fault) for fault in ends[-1].get("faults") or ()] if ends else ["it has no end"],
    )
