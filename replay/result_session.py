"""The session that a replay writes: where it goes, what it says of itself, and how a broken-off run goes on."""

from __future__ import annotations

import secrets
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from detector.observation import Ending
from replay.client import BACKEND
from replay.prepare import ReplayOptions
from replay.recorded import Recorded, read_recorded
from replay.session.reader import SessionError
from replay.session.recorder import BackgroundRecorder
from replay.session.redact import Redactor
from replay.session.schema import ContentMode, EventRecord, SessionHeader

BEGUN, ENDED = "replay", "replay_end"
"""Kinds of the events at either end of a run."""


class Resumed(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier part of the same run."""

    session_id: str
    done: set[int]
    """Indices of the requests that were answered."""


class ResumeError(ValueError):
    """The directory does not hold what could be resumed, or holds something that is in the way: one line."""


def source_of(recorded: Recorded, options: ReplayOptions, arm: str | None = None) -> dict[str, Any]:
    """What a run replays and how, as the fields of its first event; a resumed run must have the same."""
    header = recorded.header
    return {
        **({} if arm is None else {"arm": arm}),
        "source_session": None if header is None else header.session_id,
        "source_requests": len(recorded.exchanges),
        "options": msgspec.to_builtins(options),
    }


def check_new(directory: Path) -> None:
    """Raise ResumeError if the directory already holds session files."""
    if directory.exists() and not directory.is_dir():
        raise ResumeError(f"{directory}: is not a directory: choose another --output")
    if any(directory.glob("*.jsonl*")):
        raise ResumeError(f"{directory}: already holds session files: --resume goes on with them, or choose another")


def read_resumed(directory: Path, source: dict[str, Any]) -> Resumed:
    """What is done of the run in this directory. Raises ResumeError if there is none or it is another run."""
    try:
        earlier = read_recorded(directory)
    except SessionError as error:
        raise ResumeError(f"nothing to resume: {error}") from error
    begun = next((event for event in earlier.events if event.kind == BEGUN), None)
    if begun is None or earlier.header is None:
        raise ResumeError(f"{directory}: holds no replay: choose another --output and leave --resume out")
    different = [name for name, value in source.items() if begun.fields.get(name) != value]
    if different:
        raise ResumeError(
            f"{directory}: is a run with other {', '.join(different)}: resume with the same, or begin anew"
        )
    done = {
        exchange.request.seq
        for exchange in earlier.exchanges
        if exchange.observation is not None
        and exchange.observation.ending not in (Ending.CLIENT_GONE, Ending.CONNECT_FAILED)
    }
    return Resumed(session_id=earlier.header.session_id, done=done)


def open_recorder(
    directory: Path, session_id: str, url: str, engine_version: str | None, content: ContentMode
) -> BackgroundRecorder:
    """Begin a session file. Raises OSError where the directory cannot be written."""
    redactor = Redactor(content)
    header = SessionHeader(
        tool_version=version("specbreaker"),
        session_id=session_id,
        started_unix=time.time(),
        started=time.monotonic(),
        content=content,
        backends=(redactor.backend(BACKEND, url, engine_version),),
    )
    # A run that is kept up by a full disk loses no record while its queue lasts.
    return BackgroundRecorder(directory, header, redactor, max_queued_records=100_000, retry_seconds=1.0)


def new_session_id() -> str:
    """A name that no other session has."""
    return secrets.token_hex(8)


def event(kind: str, fields: dict[str, Any]) -> EventRecord:
    """An event of now."""
    return EventRecord(at=time.monotonic(), kind=kind, backend=BACKEND, fields=fields)
