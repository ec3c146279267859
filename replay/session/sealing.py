"""Finishing a session file: the seal, then ``.jsonl`` to ``.jsonl.zst``.

A live file is locked by its writer (``flock``), so a file that can be locked belongs to nobody: it was finished, or its
writer died. Both are sealed here, step by step, so that a recorder can go on writing in between.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from replay.session.frames import compress_lines
from replay.session.schema import Seal, encode

LIVE_SUFFIX = ".jsonl"
SEALED_SUFFIX = ".jsonl.zst"
PREFIX = "specbreaker-"
FILE_MODE = 0o600


class _LineType(msgspec.Struct):
    type: str


def unsealed_files(directory: Path) -> list[Path]:
    """Return the session files of a directory that are not compressed yet, oldest first; some may be in use."""
    return sorted(directory.glob(f"{PREFIX}*{LIVE_SUFFIX}"))


def lock(descriptor: int) -> bool:
    """Take the file for this process, until it is closed; False if another writer holds it. Raises OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def seal_file(path: Path) -> Iterator[None]:
    """Seal and compress a file that no writer holds, yielding every few milliseconds of work.

    Does nothing with a file in use or gone. A file without one whole line is removed. On failure (OSError) the
    ``.jsonl`` stays, readable, and sealing it can be tried again.
    """
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return
    with file:
        # A file that was sealed by another process meanwhile is locked by nobody, but has no name any more.
        if not lock(file.fileno()) or os.fstat(file.fileno()).st_nlink == 0:
            return
        seal = yield from _missing_seal(file)
        if seal is not None:
            if not seal.counts:
                path.unlink()
                return
            _append_seal(file, seal)
        yield from _compress(file, path)


def _missing_seal(file: BinaryIO) -> Generator[None, None, Seal | None]:
    """Return the seal that a file lacks, None if it has one; yield once in a while."""
    digest, counts, whole_bytes, torn_bytes = hashlib.sha256(), Counter[str](), 0, 0
    line_type = ""
    for number, line in enumerate(file):
        if not line.endswith(b"\n"):
            torn_bytes = len(line)
            break
        line_type = _type_of_line(line)
        counts[line_type] += 1
        digest.update(line)
        whole_bytes += len(line)
        if number % 1000 == 999:
            yield
    if line_type == "seal" and not torn_bytes:
        return None
    return Seal(
        counts=dict(counts), sha256=digest.hexdigest(), sealed_unix=time.time(), recovered=True, torn_bytes=torn_bytes
    )


def _type_of_line(line: bytes) -> str:
    try:
        return msgspec.json.decode(line, type=_LineType).type
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "unreadable"


def _append_seal(file: BinaryIO, seal: Seal) -> None:
    """Cut the torn last line off and put the seal in its place."""
    if seal.torn_bytes:
        file.seek(-seal.torn_bytes, os.SEEK_END)
        file.truncate()
    file.seek(0, os.SEEK_END)
    file.write(encode(seal).data)
    file.flush()
    os.fsync(file.fileno())


def _compress(file: BinaryIO, path: Path) -> Iterator[None]:
    sealed = path.with_suffix(path.suffix + ".zst")
    temporary = sealed.with_suffix(sealed.suffix + ".tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
        with open(descriptor, "wb") as target:
            file.seek(0)
            yield from compress_lines(file, target)
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(sealed)
    finally:
        temporary.unlink(missing_ok=True)
    path.unlink()
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
