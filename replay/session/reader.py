"""Reads whatever is left of a session file: live or sealed, cut or damaged.

Everything that can be read is returned, in order, and what could not be is reported beside it, not raised. Parts of a
session that were joined (``cat``, ``zstdcat``) read as one file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from replay.session.converters import CONVERTERS, Converter, convert, missing_converter
from replay.session.frames import MAGIC, FrameDamage, read_frames
from replay.session.schema import (
    FORMAT,
    FORMAT_MAJOR,
    FORMAT_MINOR,
    FORMAT_NAME,
    RECORD_TYPES,
    Record,
    Seal,
    SessionHeader,
    UnknownRecord,
)

MAX_LINE_BYTES = 256 * 1024 * 1024
"""A longer line is damage; it bounds the memory that a file of another kind can take."""

_READ_BYTES = 64 * 1024
_LOOKED_AT_LINES = 1000
"""A file without one record in so many lines is not a session."""
_FORMAT = re.compile(rf"{FORMAT_NAME}/(\d{{1,9}})(?:\.(\d{{1,9}}))?")

_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


class SessionError(ValueError):
    """The file is not a session, or not one that this version can read: one line that says so."""


class Entry(NamedTuple):
    """One line of the file."""

    line: int
    """From 1, among the lines that could be found."""
    record: Record | UnknownRecord
    raw: bytes
    """The line as it stands in the file, with every field that a newer version added."""


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of the file that could not be read, or cannot be trusted."""

    first_line: int
    last_line: int
    reason: str

    def __str__(self) -> str:
        if self.first_line == self.last_line:
            return f"line {self.first_line}: {self.reason}"
        return f"lines {self.first_line}-{self.last_line}: {self.reason}"


class _Gap(NamedTuple):
    """In a row of lines: here something is missing."""

    reason: str


class _Version(NamedTuple):
    major: int
    minor: int


class _Envelope(msgspec.Struct):
    type: str
    format: str | None = None


class Session:
    """A session file that is read each time it is iterated. Memory does not grow with the file."""

    def __init__(
        self, path: Path, header: SessionHeader | None, version: _Version, converters: Mapping[int, Converter]
    ):
        self.path = path
        self.header = header
        """None: the first line was damaged."""
        self.damage: list[Damage] = []
        """What the last iteration could not read; whole only when the iteration has ended."""
        self.sealed = False
        """After an iteration: the file ends with a seal, and its SHA-256 is that of the lines read."""
        self._version = version
        self._converters = converters

    def __iter__(self) -> Iterator[Entry]:
        self.damage, self.sealed = [], False
        digest = hashlib.sha256()
        seal_line: int | None = None
        number = 0
        for line in _lines(self.path):
            number += 1
            if isinstance(line, _Gap):
                self._report(number, line.reason)
                number -= 1
                continue
            if not line.endswith(b"\n"):
                self._report(number, "the last line is torn")
            record = self._record(line)
            if isinstance(record, _Gap):
                self._report(number, record.reason)
                digest.update(line)
                continue
            if seal_line is not None:
                if not isinstance(record, SessionHeader):
                    self._report(number, f"follows the seal of line {seal_line}")
                digest, seal_line, self.sealed = hashlib.sha256(), None, False
            if isinstance(record, Seal):
                seal_line = number
                self._check_seal(record, digest.hexdigest(), number)
            digest.update(line)
            yield Entry(number, record, line)
        if seal_line is None and _is_compressed(self.path):
            self._report(number + 1, "the seal is missing: the end of the file is lost")

    def _check_seal(self, seal: Seal, digest: str, number: int) -> None:
        self.sealed = seal.sha256 == digest
        if not self.sealed and not self.damage:
            self.damage.append(
                Damage(
                    first_line=1,
                    last_line=number,
                    reason="the SHA-256 of the seal is not that of the file: something in it was changed",
                )
            )

    def _record(self, line: bytes) -> Record | UnknownRecord | _Gap:
        """Return the line's record, or why there is none."""
        try:
            if self._version.major == FORMAT_MAJOR:
                record = _decoder.decode(line)
                if isinstance(record, SessionHeader) and _parse_format(record.format) is None:
                    return _Gap(f"format {record.format[:80]!r} is not {FORMAT}")
                return record
            tree = msgspec.json.decode(line, type=dict[str, Any])
            converted: Record = msgspec.convert(convert(tree, self._version.major, self._converters), type=Record)
            return converted
        except msgspec.ValidationError as error:
            record_type = _type_in(line)
            newer = (self._version.major, self._version.minor) > (FORMAT_MAJOR, FORMAT_MINOR)
            if record_type is not None and (record_type not in RECORD_TYPES or newer):
                return UnknownRecord(record_type)
            return _Gap(f"not a record: {error}")
        except (ValueError, RecursionError) as error:
            return _Gap(f"not JSON: {error}")
        except (KeyError, TypeError, AttributeError) as error:
            return _Gap(f"not a record of {FORMAT_NAME}/{self._version.major}: {error!r}")

    def _report(self, line: int, reason: str) -> None:
        """Note damage; neighbouring lines make one entry, with the first one's reason."""
        last = self.damage[-1] if self.damage else None
        if last is not None and last.last_line >= line - 1:
            self.damage[-1] = msgspec.structs.replace(last, last_line=line)
        else:
            self.damage.append(Damage(first_line=line, last_line=line, reason=reason))


def read_session(path: Path, *, converters: Mapping[int, Converter] = CONVERTERS) -> Session:
    """Open a session file.

    Raises SessionError if it cannot be opened, holds nothing of a session, or has a format that is too new.
    """
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise SessionError(f"{path}: cannot be read: {error.strerror}") from error
    version = _Version(FORMAT_MAJOR, FORMAT_MINOR)
    for line in islice(_lines(path), _LOOKED_AT_LINES):
        if isinstance(line, _Gap):
            continue
        envelope = _envelope(line)
        if envelope is None:
            continue
        if envelope.type == "session" and envelope.format is not None:
            version = _parse_format(envelope.format) or version
            _refuse_unreadable(path, version, converters)
        record = Session(path, None, version, converters)._record(line)
        if isinstance(record, SessionHeader):
            return Session(path, record, version, converters)
        if not isinstance(record, _Gap | UnknownRecord):
            return Session(path, None, version, converters)
    raise SessionError(f"{path}: not a session file, or nothing of it is left: no line of it is a session's record")


def _parse_format(text: str) -> _Version | None:
    match = _FORMAT.fullmatch(text)
    return None if match is None else _Version(int(match[1]), int(match[2] or 0))


def _refuse_unreadable(path: Path, version: _Version, converters: Mapping[int, Converter]) -> None:
    written = f"{path}: written as {FORMAT_NAME}/{version.major}.{version.minor}"
    if version.major > FORMAT_MAJOR:
        raise SessionError(f"{written}, newer than {FORMAT}, the newest read here: use a newer specbreaker")
    missing = missing_converter(version.major, converters)
    if missing is not None:
        raise SessionError(f"{written}, and nothing converts from version {missing}: use an older specbreaker")


def _envelope(line: bytes) -> _Envelope | None:
    try:
        return msgspec.json.decode(line, type=_Envelope)
    except (ValueError, RecursionError):
        return None


def _type_in(line: bytes) -> str | None:
    envelope = _envelope(line)
    return None if envelope is None else envelope.type


def _is_compressed(path: Path) -> bool:
    """By name too, so that damage to the first four bytes costs one frame only."""
    if path.suffix == ".zst":
        return True
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _lines(path: Path) -> Iterator[bytes | _Gap]:
    """Yield the file's lines with their line ends, the last one perhaps without, and gaps where some are lost."""
    try:
        compressed = _is_compressed(path)
        with path.open("rb") as file:
            yield from _split(read_frames(file) if compressed else _pieces(file))
    except OSError as error:
        yield _Gap(f"the disk gave no more: {error}")


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_READ_BYTES):
        yield piece


def _split(pieces: Iterable[bytes | FrameDamage]) -> Iterator[bytes | _Gap]:
    unfinished: list[bytes] = []
    unfinished_bytes = 0
    for piece in pieces:
        if isinstance(piece, FrameDamage):
            yield _Gap(str(piece))
            # After a cut comes nothing, and what there is of the last line may be whole but for its line end.
            if not piece.cut:
                unfinished, unfinished_bytes = [], 0
            continue
        first, newline, others = piece.partition(b"\n")
        unfinished_bytes += len(first)
        if unfinished_bytes <= MAX_LINE_BYTES:
            unfinished.append(first)
        else:
            unfinished = []
        if not newline:
            continue
        yield b"".join(unfinished) + newline if unfinished else _Gap(f"a line is longer than {MAX_LINE_BYTES} bytes")
        *lines, rest = others.split(newline)
        yield from (line + newline for line in lines)
        unfinished, unfinished_bytes = [rest], len(rest)
    if any(unfinished):
        yield b"".join(unfinished)
