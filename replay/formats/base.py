"""What a format is: how it is recognised, read and written, and what of a session it can carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from detector.observation import Observation
from replay.recorded import Exchange, Recorded, exchange_of

HEAD_BYTES = 64 * 1024
"""So much of a file is looked at to recognise its format."""
MAX_DOCUMENT_BYTES = 2 * 1024**3
"""A file that is one JSON document is read whole; a longer one is refused."""


class FormatError(ValueError):
    """A file that cannot be read or written in a format: one line that names the file, the place and the way out."""


class Carries(msgspec.Struct, frozen=True, kw_only=True):
    """What of a session survives in the format."""

    text: bool = False
    """Prompts, where the session holds them."""
    arrival: bool = False
    """When each request came."""
    lengths: bool = False
    """Tokens of prompt and answer."""
    rates: bool = False
    """First token and speed of the answers."""
    events: bool = False
    """Time of each event of a stream."""
    acceptance: bool = False
    """Of each answer, or of the time that a line stands for."""


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """One format. A new one is one file with a FORMAT, and an entry in ``FORMATS``."""

    name: str
    description: str
    carries: Carries
    recognise: Callable[[Path, bytes], bool] | None = None
    """By the file's path and its first HEAD_BYTES. None: the format is not read."""
    read: Callable[[Path], Recorded] | None = None
    """Raises FormatError and OSError."""
    write: Callable[[Recorded], Iterator[bytes]] | None = None
    """The bytes of the file, in pieces. Raises FormatError where the session lacks what the format needs."""


def recorded_of(observations: list[Observation], notes: tuple[str, ...] = ()) -> Recorded:
    """A session of answers of which the format told no more."""
    return Recorded(exchanges=[exchange_of(one, seq) for seq, one in enumerate(observations)], notes=notes)


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not empty. Raises FormatError."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, msgspec.json.decode(line, type=dict[str, Any])
                except (ValueError, RecursionError) as error:
                    raise FormatError(f"{path}: line {number}: not a JSON object ({error}): remove the line") from error


def json_document(path: Path) -> dict[str, Any]:
    """The one JSON object that the file is. Raises FormatError."""
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise FormatError(f"{path}: {path.stat().st_size} bytes are too many for one JSON document")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not a JSON object: {error}") from error


def first_object(head: bytes) -> dict[str, Any]:
    """The JSON object of the first line; empty where there is none."""
    line = head.lstrip().split(b"\n", 1)[0]
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (ValueError, RecursionError):
        return {}


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < float("inf") else None


def count(value: object) -> int | None:
    """A whole number of things, or None."""
    known = number(value)
    return int(known) if known is not None and known >= 0 else None


def line(value: object) -> bytes:
    """One line of JSON."""
    return msgspec.json.encode(value) + b"\n"


def bodies(recorded: Recorded, form: str) -> list[tuple[Exchange, dict[str, Any]]]:
    """The requests whose text was recorded, with it. Raises FormatError where none was."""
    found = []
    for exchange in recorded.exchanges:
        body = body_of(exchange)
        if body is not None:
            found.append((exchange, body))
    if not found:
        raise FormatError(
            f"{form} needs the text of requests, and none was recorded: record with record.content = text"
        )
    return found


def body_of(exchange: Exchange) -> dict[str, Any] | None:
    """The recorded body as an object; None where it was not kept."""
    prompt = exchange.request.prompt
    if prompt is None or prompt.body is None:
        return None
    try:
        return msgspec.json.decode(prompt.body, type=dict[str, Any])
    except (ValueError, RecursionError):
        return None
