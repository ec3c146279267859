"""Writes a session to files: append-only, one ``write`` a batch, rotated by size and age, sealed at the end."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from replay.session.schema import Line, Seal, SessionHeader, encode
from replay.session.sealing import FILE_MODE, LIVE_SUFFIX, PREFIX, SEALED_SUFFIX, lock, seal_file, unsealed_files

DIRECTORY_MODE = 0o700


class Clock(NamedTuple):
    """One instant on both clocks, seconds."""

    unix: float
    monotonic: float


def read_clock() -> Clock:
    """Return the present instant."""
    return Clock(time.time(), time.monotonic())


class SessionWriter:
    """One session's files in one directory. For one thread; see BackgroundRecorder for an event loop.

    A file is locked while it is written. Files that are finished, or that a dead writer left, are sealed and compressed
    in small steps by ``seal_step``.
    """

    def __init__(
        self,
        directory: Path,
        header: SessionHeader,
        *,
        max_bytes: int = 64 * 1024 * 1024,
        max_age_seconds: float = 86400.0,
        clock: Callable[[], Clock] = read_clock,
    ) -> None:
        """Begin the first file. Raises OSError where the directory cannot be made or written.

        ``header`` is the pattern of each file's first line: part and clocks are filled in here. A file is finished at
        the first batch after it reached ``max_bytes`` or ``max_age_seconds``.
        """
        self._directory = directory
        self._header = header
        self._max_bytes = max_bytes
        self._max_age_seconds = max_age_seconds
        self._clock = clock
        self._next_part = 0
        self._dropped: Counter[str] = Counter()
        self._to_seal: deque[Path] = deque()
        self._sealing: Iterator[None] | None = None
        self._part: _Part | None = self._begin_part()
        self._to_seal.extend(unsealed_files(directory))

    @property
    def path(self) -> Path | None:
        """The file that is being written; None after a failure or ``close``."""
        return None if self._part is None else self._part.path

    def note_dropped(self, dropped: Mapping[str, int]) -> None:
        """Have the next seal say that these records, by type, were not written."""
        self._dropped.update(dropped)

    def append(self, lines: Sequence[Line]) -> int:
        """Write a batch and return its length in bytes.

        Raises OSError if it could not be written whole: then none of it is in the file, and the next call begins a new
        file, so that the same batch can be tried again.
        """
        now = self._clock()
        if self._part is not None and self._part.is_due(now, self._max_bytes, self._max_age_seconds):
            self._end_part()
        if self._part is None:
            self._part = self._begin_part()
        try:
            return self._part.append(lines)
        except OSError:
            if self._part.is_empty:
                empty, self._part = self._part, None
                empty.discard()
            else:
                self._end_part()
            raise

    def seal_step(self) -> bool:
        """Do a few milliseconds of sealing; False when there is none left to do.

        Raises OSError if a file cannot be sealed: it is left as it is and tried again after the next rotation.
        """
        if self._sealing is None:
            if not self._to_seal:
                return False
            self._sealing = seal_file(self._to_seal.popleft())
        # Where this raises, the file is given up until the next rotation.
        sealing, self._sealing = self._sealing, None
        finished = next(sealing, True)
        if not finished:
            self._sealing = sealing
        return True

    def close(self) -> None:
        """Finish, seal and compress the last file, and whatever else is left to seal.

        Raises OSError, after trying every file, if one could not be sealed.
        """
        self._end_part()
        failure: OSError | None = None
        more = True
        while more:
            try:
                more = self.seal_step()
            except OSError as error:
                failure = error
        if failure is not None:
            raise failure

    def _begin_part(self) -> _Part:
        self._directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        now = self._clock()
        header = msgspec.structs.replace(
            self._header, part=self._next_part, started_unix=now.unix, started=now.monotonic
        )
        part = _Part.create(self._directory, header)
        self._next_part += 1
        return part

    def _end_part(self) -> None:
        if self._part is None:
            return
        # Let go of it first: whatever fails now, nothing is ever written to a closed descriptor.
        ended, self._part = self._part, None
        if ended.finish(self._dropped, self._clock()):
            self._dropped = Counter()
        self._to_seal = deque(unsealed_files(self._directory))


class _Part:
    """One open, locked file."""

    def __init__(self, path: Path, descriptor: int, started: float) -> None:
        self.path = path
        self._descriptor = descriptor
        self._started = started
        self._bytes = 0
        self._torn = False
        self._digest = hashlib.sha256()
        self._counts: Counter[str] = Counter()

    @classmethod
    def create(cls, directory: Path, header: SessionHeader) -> _Part:
        """Make a new file with its header; on failure (OSError) none is left behind."""
        path, descriptor = _create_locked(directory, header)
        part = cls(path, descriptor, header.started)
        try:
            part.append([encode(header)])
        except OSError:
            part.discard()
            raise
        return part

    @property
    def is_empty(self) -> bool:
        """True while there is nothing but the header."""
        return self._counts.total() <= 1

    def discard(self) -> None:
        """Remove the file. Raises OSError."""
        os.close(self._descriptor)
        self.path.unlink(missing_ok=True)

    def is_due(self, now: Clock, max_bytes: int, max_age_seconds: float) -> bool:
        """True where a new file should be begun; also where this one was deleted, so that nothing goes to nowhere."""
        full_or_old = self._bytes >= max_bytes or now.monotonic - self._started >= max_age_seconds
        deleted = os.fstat(self._descriptor).st_nlink == 0
        return deleted or (full_or_old and not self.is_empty)

    def append(self, lines: Sequence[Line]) -> int:
        """Write the lines at once; on failure (OSError) the file is as it was before, if it can be cut back."""
        data = b"".join(line.data for line in lines)
        try:
            _write_all(self._descriptor, data)
        except OSError:
            self._torn = True
            os.ftruncate(self._descriptor, self._bytes)
            self._torn = False
            raise
        self._bytes += len(data)
        self._digest.update(data)
        self._counts.update(line.type for line in lines)
        return len(data)

    def finish(self, dropped: Mapping[str, int], now: Clock) -> bool:
        """Write the seal and let go of the file; False where the seal could not be written.

        Such a file is sealed later, as a dead writer's would be.
        """
        seal = Seal(
            counts=dict(self._counts), dropped=dict(dropped), sha256=self._digest.hexdigest(), sealed_unix=now.unix
        )
        try:
            if self._torn:
                return False
            self.append([encode(seal)])
            os.fsync(self._descriptor)
        except OSError:
            return False
        finally:
            os.close(self._descriptor)
        return True


def _create_locked(directory: Path, header: SessionHeader) -> tuple[Path, int]:
    """Create a file that no other process has, named by UTC time and process id. Raises OSError."""
    when = datetime.fromtimestamp(header.started_unix, UTC)
    for number in itertools.count(header.part):
        path = directory / f"{PREFIX}{when:%Y%m%dT%H%M%SZ}-{os.getpid()}-{number:04d}{LIVE_SUFFIX}"
        if path.with_suffix(SEALED_SUFFIX).exists():
            continue
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, FILE_MODE)
        except FileExistsError:
            continue
        try:
            # Between creation and lock another process may have removed the empty file as a dead writer's.
            if lock(descriptor) and os.fstat(descriptor).st_nlink:
                return path, descriptor
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        os.close(descriptor)
    raise AssertionError("unreachable: the count has no end")


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
