"""The directory of a reduction: its journal, the trials that triggered, and the best of them as a session.

``reduced.jsonl.zst`` is replaced whole, so that it is a valid session whenever the reduction is broken off.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from replay.client import BACKEND
from replay.recorded import read_recorded
from replay.reduction.journal import Journal, JournalError
from replay.reduction.judge import Answer
from replay.reduction.plan import Candidate
from replay.session.reader import SessionError, read_session
from replay.session.redact import Redactor
from replay.session.schema import ContentMode, EventRecord, Line, Record, Seal, SessionHeader, encode
from replay.session.sealing import SEALED_SUFFIX
from replay.session.writer import SessionWriter

BEGUN, ENDED = "reduce", "reduce_end"
"""Kinds of the events of a reduced session: what was tried and how, and what was found."""
RESULT = f"reduced{SEALED_SUFFIX}"
JOURNAL = "trials.journal"
TRIALS = "trials"


class Store:
    """One reduction's directory."""

    def __init__(self, directory: Path, journal: Journal, header: SessionHeader, source: dict[str, Any]) -> None:
        self.directory = directory
        self.journal = journal
        self._header = header
        self._source = source

    @classmethod
    def open(
        cls, directory: Path, source: dict[str, Any], url: str, engine_version: str | None, *, resume: bool
    ) -> Store:
        """A new directory, or one to go on with. Raises JournalError and OSError."""
        if not resume and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise JournalError(f"{directory}: is in use: --resume goes on with a reduction, or choose another -o")
        path = directory / JOURNAL
        if resume:
            journal = Journal.resume(path, source)
        else:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            journal = Journal.begin(path, source)
        (directory / TRIALS).mkdir(mode=0o700, exist_ok=True)
        header = SessionHeader(
            tool_version=version("specbreaker"),
            session_id=hashlib.sha256(msgspec.json.encode(source)).hexdigest()[:16],
            content=ContentMode.TEXT,
            backends=(Redactor().backend(BACKEND, url, engine_version),),
        )
        return cls(directory, journal, header, source)

    @property
    def result(self) -> Path:
        """Where the best sequence is."""
        return self.directory / RESULT

    def keep(self, candidate: Candidate, records: Sequence[Record], *, synthetic: bool) -> None:
        """Keep a trial that triggered. synthetic: all of its prompts were made up. Raises OSError."""
        fields = {**self._source, "synthetic_prompts": synthetic, "timing": candidate.timing.value}
        begun = EventRecord(at=time.monotonic(), kind=BEGUN, backend=BACKEND, fields=fields)
        self._write([encode(begun), *map(encode, records)], self._path(candidate))

    def answers(self, candidate: Candidate) -> list[Answer]:
        """The answers of a trial that was kept, in the order of their ends. Raises JournalError."""
        try:
            exchanges = read_recorded(self._path(candidate)).exchanges
        except SessionError as error:
            raise JournalError(f"{error}: begin anew with another -o") from error
        answers = [Answer(one.observation, one.steps) for one in exchanges if one.observation is not None]
        return sorted(answers, key=lambda one: one.observation.ended)

    def publish(self, candidate: Candidate, found: dict[str, Any]) -> None:
        """Make the trial of this candidate the result. Raises JournalError and OSError."""
        try:
            kept = [entry for entry in read_session(self._path(candidate)) if not isinstance(entry.record, Seal)]
        except SessionError as error:
            raise JournalError(f"{error}: begin anew with another -o") from error
        ended = EventRecord(at=time.monotonic(), kind=ENDED, backend=BACKEND, fields=found)
        lines = [Line("kept", entry.raw) for entry in kept if not isinstance(entry.record, SessionHeader)]
        self._write([*lines, encode(ended)], self.result)

    def _path(self, candidate: Candidate) -> Path:
        name = hashlib.sha256(msgspec.json.encode(candidate)).hexdigest()[:16]
        return self.directory / TRIALS / f"{name}{SEALED_SUFFIX}"

    def _write(self, lines: Sequence[Line], path: Path) -> None:
        """Write a sealed session and put it in its place in one step."""
        temporary = self.directory / "new"
        shutil.rmtree(temporary, ignore_errors=True)
        writer = SessionWriter(temporary, self._header)
        writer.append(lines)
        writer.close()
        (written,) = temporary.iterdir()
        written.replace(path)
        temporary.rmdir()
