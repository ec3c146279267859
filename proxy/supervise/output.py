"""What an engine prints: passed through to standard error, kept for a while, written to a file where one is named.

Writing may block, on a full pipe or a slow disk, so a thread does it. What it cannot write in time is counted, not
waited for: neither the engine nor the proxy may stand still because nobody reads a log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
from collections import deque
from pathlib import Path
from typing import Final

MAX_LINE_BYTES: Final = 8192
MAX_QUEUED_PIECES: Final = 1000
KEPT_FILES: Final = 3
CLOSE_SECONDS: Final = 2.0
STANDARD_ERROR: Final = 2

log = logging.getLogger("specbreaker.supervise")


class EngineOutput:
    """The pipe that the engine's processes write to, over all its launches."""

    def __init__(self, lines: int, file: RotatedFile | None, *, stderr: int = STANDARD_ERROR) -> None:
        """lines: how many to keep. stderr: file descriptor to pass everything through to."""
        self.tail: deque[str] = deque(maxlen=lines)
        self.dropped = 0
        """Pieces that were not written."""
        self._file = file
        self._stderr = stderr
        self._partial = b""
        self._pieces: queue.Queue[bytes | None] = queue.Queue(MAX_QUEUED_PIECES)
        self._thread = threading.Thread(target=self._write, name="engine-output", daemon=True)
        self._thread.start()

    async def pipe(self) -> tuple[int, asyncio.Event]:
        """A descriptor for one launch to write to, which the caller closes.

        The event is set when nobody can write to it any more and all was read.
        """
        reading, writing = os.pipe()
        ended = asyncio.Event()
        file = os.fdopen(reading, "rb", buffering=0)
        await asyncio.get_running_loop().connect_read_pipe(lambda: _Reader(self, ended), file)
        return writing, ended

    def received(self, data: bytes) -> None:
        """Bytes of the engine."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > MAX_LINE_BYTES:
            lines.append(self._partial)
            self._partial = b""
        self.tail.extend(line[:MAX_LINE_BYTES].decode(errors="replace").rstrip("\r") for line in lines)
        try:
            self._pieces.put_nowait(data)
        except queue.Full:
            self.dropped += 1

    def _write(self) -> None:
        failed = False
        while (piece := self._pieces.get()) is not None:
            try:
                _write_all(self._stderr, piece)
                if self._file is not None:
                    self._file.write(piece)
            except OSError as error:
                if not failed:
                    log.error("the engine's output cannot be written: %s", error)
                failed = True
                self.dropped += 1

    def close(self) -> None:
        """Write what is left; not for long, where nobody reads it."""
        with contextlib.suppress(queue.Full):
            self._pieces.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)
        if self._file is not None:
            self._file.close()


class _Reader(asyncio.Protocol):
    def __init__(self, output: EngineOutput, ended: asyncio.Event) -> None:
        self._output = output
        self._ended = ended

    def data_received(self, data: bytes) -> None:
        self._output.received(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._ended.set()


class RotatedFile:
    """FILE, and FILE.1 to FILE.3 before it."""

    def __init__(self, path: str, max_bytes: int) -> None:
        """Raises OSError where it cannot be written."""
        self._path = Path(path)
        self._max_bytes = max_bytes
        self._file = self._path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Append; begin anew where the file has grown to its size. Raises OSError."""
        if self._file.tell() and self._file.tell() + len(data) > self._max_bytes:
            self._file.close()
            for number in range(KEPT_FILES, 0, -1):
                older = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
                if older.exists():
                    older.replace(self._path.with_name(f"{self._path.name}.{number}"))
            self._file = self._path.open("ab", buffering=0)
        self._file.write(data)

    def close(self) -> None:
        """Close it."""
        self._file.close()


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
