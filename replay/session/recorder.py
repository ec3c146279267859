"""Keeps the disk away from the event loop: a thread writes what ``put`` has queued."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from pathlib import Path

import msgspec

from replay.session.redact import Redactor
from replay.session.schema import Line, Record, RequestRecord, SessionHeader, encode, type_of
from replay.session.writer import SessionWriter

logger = logging.getLogger(__name__)

BATCH_SECONDS = 0.02
"""A record waits at most this long for others to be written with it, so a killed process loses this much."""
BODY = "body"
"""Name under which bodies are counted that were not looked at because too many were queued."""


class RecorderCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of the records so far, by type."""

    written: dict[str, int]
    dropped: dict[str, int]
    """Queue full, not JSON, or the disk refused to the end. ``body``: the record is there, its ``prompt`` is not."""
    bytes_written: int
    write_failures: int
    """Batches that the disk refused; each is tried again."""
    seal_failures: int
    """Files that could not be sealed or compressed; each is tried again at the next rotation or start."""
    queued: int


class BackgroundRecorder:
    """Records a session from an event loop, without ever waiting for the disk.

    A full disk or a lost permission costs records (they are counted, and one line is logged), never a request.
    """

    def __init__(
        self,
        directory: Path,
        header: SessionHeader,
        redactor: Redactor,
        *,
        max_bytes: int = 64 * 1024 * 1024,
        max_age_seconds: float = 86400.0,
        max_queued_records: int = 10_000,
        max_queued_body_bytes: int = 32 * 1024 * 1024,
        retry_seconds: float = 5.0,
    ) -> None:
        """Begin the first file and start the thread. Raises OSError where the directory cannot be written."""
        header = msgspec.structs.replace(header, content=redactor.mode)
        self._writer = SessionWriter(directory, header, max_bytes=max_bytes, max_age_seconds=max_age_seconds)
        self._directory = directory
        self._redactor = redactor
        self._max_queued_records = max_queued_records
        self._max_queued_body_bytes = max_queued_body_bytes
        self._retry_seconds = retry_seconds
        self._lock = threading.Lock()
        """Held for the time of a list append or swap; guards the queue and the drop counts."""
        self._queue: list[tuple[Record, bytes | None]] = []
        self._queued_body_bytes = 0
        self._dropped: Counter[str] = Counter()
        self._unreported: Counter[str] = Counter()
        """The part of ``_dropped`` that no seal knows of yet."""
        self._written: Counter[str] = Counter()
        self._bytes_written = 0
        self._failing = False
        self._write_failures = 0
        self._seal_failures = 0
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="specbreaker-recorder", daemon=True)
        self._thread.start()

    def put(self, record: Record, body: bytes | None = None) -> bool:
        """Queue a record; False if it had to be dropped. Never blocks; from any thread.

        ``body`` is a request's body: the thread makes the record's ``prompt`` of it, as the content mode allows.
        """
        with self._lock:
            if len(self._queue) >= self._max_queued_records or self._stopping.is_set():
                first = self._count_dropped(type_of(record))
                accepted = False
            else:
                first, accepted = False, True
                if body is not None and self._queued_body_bytes + len(body) > self._max_queued_body_bytes:
                    first = self._count_dropped(BODY)
                    body = None
                self._queue.append((record, body))
                self._queued_body_bytes += 0 if body is None else len(body)
        if first:
            logger.warning("recording: the queue is full and records are being dropped; /metrics counts them")
        if not self._wake.is_set():
            self._wake.set()
        return accepted

    def counts(self) -> RecorderCounts:
        """Return what has become of the records so far."""
        with self._lock:
            dropped, queued = dict(self._dropped), len(self._queue)
        return RecorderCounts(
            written=dict(self._written),
            dropped=dropped,
            bytes_written=self._bytes_written,
            write_failures=self._write_failures,
            seal_failures=self._seal_failures,
            queued=queued,
        )

    def close(self, timeout_seconds: float = 10.0) -> bool:
        """Write what is queued, seal the file and end the thread; False if that took longer than the time-out.

        Then the thread goes on while the process lives; what it does not reach, the next start seals.
        """
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        lines: list[Line] = []
        while not self._stopping.is_set():
            lines = lines or self._take()
            if not self._append(lines):
                self._stopping.wait(self._retry_seconds)
                continue
            lines = []
            if self._seal_step():
                continue
            self._wake.wait()
            self._wake.clear()
            self._stopping.wait(BATCH_SECONDS)
        for last in (lines, self._take()):
            if not self._append(last):
                with self._lock:
                    for line in last:
                        self._count_dropped(line.type)
        self._close_writer()

    def _take(self) -> list[Line]:
        """Empty the queue and return its records as lines."""
        with self._lock:
            queue, self._queue = self._queue, []
            self._queued_body_bytes = 0
        return [line for record, body in queue if (line := self._line(record, body)) is not None]

    def _line(self, record: Record, body: bytes | None) -> Line | None:
        if body is not None and isinstance(record, RequestRecord):
            record = msgspec.structs.replace(record, prompt=self._redactor.prompt(body))
        try:
            return encode(record)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            with self._lock:
                first = self._count_dropped(type_of(record))
            if first:
                logger.warning("recording: a record of type %s is not JSON and is dropped: %s", type_of(record), error)
            return None

    def _append(self, lines: list[Line]) -> bool:
        """Write the lines, if there are any; False if the disk refused."""
        if not lines:
            return True
        with self._lock:
            unreported, self._unreported = self._unreported, Counter()
        self._writer.note_dropped(unreported)
        try:
            self._bytes_written += self._writer.append(lines)
        except OSError as error:
            self._write_failures += 1
            if not self._failing:
                logger.warning("recording to %s fails, and is tried again: %s", self._directory, error)
            self._failing = True
            return False
        if self._failing:
            logger.warning("recording to %s works again; dropped so far: %s", self._directory, dict(self._dropped))
            self._failing = False
        self._written.update(line.type for line in lines)
        return True

    def _seal_step(self) -> bool:
        try:
            return self._writer.seal_step()
        except OSError as error:
            self._count_seal_failure(error)
            return True

    def _close_writer(self) -> None:
        with self._lock:
            unreported, self._unreported = self._unreported, Counter()
        self._writer.note_dropped(unreported)
        try:
            self._writer.close()
        except OSError as error:
            self._count_seal_failure(error)

    def _count_seal_failure(self, error: OSError) -> None:
        self._seal_failures += 1
        if self._seal_failures == 1:
            logger.warning("a session file in %s cannot be sealed now, and stays as it is: %s", self._directory, error)

    def _count_dropped(self, name: str) -> bool:
        """Count, with the lock held; True for the first of its name."""
        self._dropped[name] += 1
        self._unreported[name] += 1
        return self._dropped[name] == 1
