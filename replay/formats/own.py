"""Our own files: sessions, and what ``specbreaker detect`` reads besides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from replay.formats.base import Carries, Format, FormatError, first_object
from replay.readers import ReadError, read_observations
from replay.recorded import Recorded, exchange_of, read_recorded
from replay.session.frames import MAGIC
from replay.session.reader import SessionError
from replay.session.schema import RECORD_TYPES, ContentMode, SessionHeader, encode


def _is_session(path: Path, head: bytes) -> bool:
    if path.is_dir() or head.startswith(MAGIC) or path.name.endswith(".jsonl.zst"):
        return True
    return first_object(head).get("type") in RECORD_TYPES


def _read_session(path: Path) -> Recorded:
    try:
        return read_recorded(path)
    except SessionError as error:
        raise FormatError(str(error)) from error


def _write_session(recorded: Recorded) -> Iterator[bytes]:
    header = recorded.header or SessionHeader(tool_version="convert", session_id="converted")
    kept = ContentMode.TEXT if any(_has_text(one.request.prompt) for one in recorded.exchanges) else header.content
    yield encode(msgspec.structs.replace(header, content=kept)).data
    for exchange in recorded.exchanges:
        yield encode(exchange.request).data
        if exchange.response is not None:
            yield encode(exchange.response).data
    for reading in recorded.engine:
        yield encode(reading).data
    for event in recorded.events:
        yield encode(event).data


def _has_text(prompt: object) -> bool:
    return getattr(prompt, "body", None) is not None


def _is_chunk_log(_path: Path, head: bytes) -> bool:
    return first_object(head).get("kind") == "header"


def _is_csv(_path: Path, head: bytes) -> bool:
    lines = (line for line in head.decode(errors="replace").lstrip("\ufeff").splitlines() if not line.startswith("#"))
    return "tok_s" in next(lines, "").lower().split(",")


def _read_observations(path: Path) -> Recorded:
    try:
        read = read_observations(path)
    except ReadError as error:
        raise FormatError(str(error)) from error
    steps = read.steps or [[] for _ in read.observations]
    pairs = zip(read.observations, steps, strict=True)
    exchanges = [exchange_of(one, seq, its_steps) for seq, (one, its_steps) in enumerate(pairs)]
    return Recorded(exchanges=exchanges, notes=read.notes)


SESSION = Format(
    name="session",
    description="specbreaker's session file, or a directory of its parts",
    carries=Carries(text=True, arrival=True, lengths=True, rates=True, events=True, acceptance=True),
    recognise=_is_session,
    read=_read_session,
    write=_write_session,
)
CHUNK_LOG = Format(
    name="chunk-log",
    description="chunk log: JSON lines, the first with kind=header",
    carries=Carries(arrival=True, lengths=True, rates=True, events=True, acceptance=True),
    recognise=_is_chunk_log,
    read=_read_observations,
)
CSV = Format(
    name="csv",
    description="CSV with a tok_s column",
    carries=Carries(lengths=True, rates=True, acceptance=True),
    recognise=_is_csv,
    read=_read_observations,
)
