"""The records of a session file, and how they look as lines of JSON.

A session file is JSON lines. The first line is a :class:`SessionHeader`, then come records in the order in which they
were written, and a finished file ends with a :class:`Seal`. Times are seconds on the monotonic clock that the header
anchors to the wall clock, so ``header.started_unix + (at - header.started)`` is a wall-clock time.

A request is written when it arrives and its response when it ends, so a crash loses no request that was under way.
No record holds a key, a cookie or a URL; text of prompts is held only in the content mode ``text``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from detector.observation import EngineSample, Observation, RequestFacts, Step

FORMAT_NAME = "specbreaker-session"
FORMAT_MAJOR = 1
"""Grows when an older reader would misread the file; a reader refuses a major version above its own."""
FORMAT_MINOR = 0
"""Grows when fields or record types are added; a reader keeps what it does not know."""
FORMAT = f"{FORMAT_NAME}/{FORMAT_MAJOR}" + (f".{FORMAT_MINOR}" if FORMAT_MINOR else "")

STORED_HEADERS = ("user-agent", "x-request-id", "traceparent")
"""The only request headers that are ever stored; everything else may be a secret."""


class ContentMode(StrEnum):
    """How much of a prompt is stored."""

    NONE = "none"
    """Roles, lengths and sampling numbers."""
    HASH = "hash"
    """Also a keyed hash of each 64-character block, so that shared prefixes show."""
    TEXT = "text"
    """Also the request's body in the clear."""


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """A backend at the time the file was begun."""

    name: str
    host_hash: str
    """Keyed hash of host and port: two backends of one session on one host compare equal, and nothing else shows."""
    engine_version: str | None = None


class SessionHeader(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="session"):
    """First line of every file."""

    format: str = FORMAT
    tool_version: str
    session_id: str
    """The same in every part of one session."""
    part: int = 0
    """Files of one session count from 0."""
    started_unix: float = 0.0
    """Wall clock when this file was begun, seconds since 1970."""
    started: float = 0.0
    """Monotonic clock at the same instant, seconds."""
    content: ContentMode = ContentMode.NONE
    backends: tuple[Backend, ...] = ()
    """The primary first."""


class PromptPart(msgspec.Struct, frozen=True):
    """One message (or the system text, the tools, the prompt) of a request."""

    role: str
    characters: int


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A request's content, as far as the session's content mode keeps it."""

    parts: tuple[PromptPart, ...] = ()
    """In the order in which a chat template puts them before the model: tools, system, messages."""
    parameters: dict[str, bool | int | float] = {}
    """Sampling numbers as the client sent them (``temperature``, ``seed``, ...); no strings."""
    block_hashes: tuple[str, ...] | None = None
    """One hash per whole 64-character block, each over the block and the hash before it: equal hashes mean equal
    prefixes. Comparable within one session only."""
    body: str | None = None
    """The request's body, in content mode ``text``, if it was UTF-8."""


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="request"):
    """A request, written when it arrived."""

    seq: int
    """Order of arrival, from 0, over all parts of the session."""
    request_id: str
    at: float
    """Monotonic seconds of arrival."""
    method: str = "POST"
    path: str
    """Without the query, which may hold a key."""
    facts: RequestFacts
    """Route, model, stream and what else the body's own keys say."""
    headers: dict[str, str] = {}
    """Only ``STORED_HEADERS``."""
    prompt: Prompt | None = None
    """None: the body was not JSON, or was not kept."""

    def __post_init__(self) -> None:
        """Drop what must not reach a disk, whoever made this record."""
        msgspec.structs.force_setattr(self, "path", _utf8(self.path.partition("?")[0]))
        if self.headers:
            msgspec.structs.force_setattr(self, "headers", stored_headers(self.headers.items()))


class ResponseRecord(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="response"):
    """An answer, written when it ended."""

    request_id: str
    observation: Observation
    chunk_us: tuple[int, ...] = ()
    """Content events of the stream, microseconds: the first since ``observation.started``, each other since the one
    before it. See ``steps_of``."""
    chunk_tokens: tuple[int | None, ...] | None = None
    """Tokens of each content event; None where no event's count was known."""
    chunks_omitted: int = 0
    """Content events after the last one listed that were not kept, to bound the memory of a long answer."""
    response_bytes: int = 0
    """Bytes of the answer's body as the engine sent it."""


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="engine"):
    """One reading of a backend's ``/metrics``."""

    backend: str
    generation: int = 0
    sample: EngineSample


class EventRecord(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="event"):
    """Something that the proxy decided, did or noticed."""

    at: float
    """Monotonic seconds."""
    kind: str
    """``phase``, ``switch``, ``canary``, ``notice``, ``engine_restart``, ...: a reader must expect others."""
    backend: str | None = None
    fields: dict[str, Any] = {}
    """What belongs to the kind: JSON values only."""


class Seal(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="seal"):
    """Last line of a finished file."""

    counts: dict[str, int]
    """Lines before this one, by record type; ``unreadable`` where a recovered file held something else."""
    dropped: dict[str, int] = {}
    """Records of this file's time that were not written (queue full, disk full), by type."""
    sha256: str
    """Of all bytes before this line, uncompressed."""
    sealed_unix: float = 0.0
    recovered: bool = False
    """The writer died; a later start sealed the file."""
    torn_bytes: int = 0
    """Length of the torn last line that recovery cut off."""


class UnknownRecord(msgspec.Struct, frozen=True):
    """A record that a newer minor version of the format wrote. Its bytes are in ``Entry.raw``."""

    type: str


Record = SessionHeader | RequestRecord | ResponseRecord | EngineRecord | EventRecord | Seal
RECORD_TYPES: dict[str, type[Record]] = {
    str(record.__struct_config__.tag): record
    for record in (SessionHeader, RequestRecord, ResponseRecord, EngineRecord, EventRecord, Seal)
}

_encoder = msgspec.json.Encoder()


class Line(NamedTuple):
    """One record as it goes to the disk."""

    type: str
    data: bytes


def encode(record: Record) -> Line:
    """Return the record as one line that ends with a newline.

    Raises TypeError, ValueError, OverflowError or RecursionError if an event's fields are not JSON.
    """
    return Line(type_of(record), _encoder.encode(record) + b"\n")


def type_of(record: Record) -> str:
    """Return the record's ``type`` as it stands in the file."""
    return str(record.__struct_config__.tag)


def stored_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return those of a request's headers that may be stored, with lower-case names."""
    return {name.lower(): _utf8(value) for name, value in headers if name.lower() in STORED_HEADERS}


def _utf8(text: str) -> str:
    """Return text that JSON can hold: HTTP libraries hand on bytes that are not UTF-8 as lone surrogates."""
    return text.encode(errors="replace").decode()


def chunks_of(started: float, steps: Sequence[Step]) -> tuple[tuple[int, ...], tuple[int | None, ...] | None]:
    """Return ``chunk_us`` and ``chunk_tokens`` of an answer that started at ``started``.

    Times are rounded before they are subtracted, so that rounding does not add up: each is right to half a microsecond.
    """
    deltas: list[int] = []
    before, counted = 0, False
    for step in steps:  # one pass: every answer of a busy proxy comes through here
        offset = round((step.at - started) * 1e6)
        deltas.append(offset - before)
        before = offset
        counted = counted or step.tokens is not None
    return tuple(deltas), tuple(step.tokens for step in steps) if counted else None


def steps_of(record: ResponseRecord) -> list[Step]:
    """Return the content events of an answer, with their monotonic times: the inverse of ``chunks_of``.

    Raises ValueError if the record lists times and tokens of different numbers of events.
    """
    tokens = (None,) * len(record.chunk_us) if record.chunk_tokens is None else record.chunk_tokens
    steps, offset_us = [], 0
    for delta_us, count in zip(record.chunk_us, tokens, strict=True):
        offset_us += delta_us
        steps.append(Step(record.observation.started + offset_us / 1e6, count))
    return steps
