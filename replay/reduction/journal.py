"""The trials of a reduction on disk, a line each as it ends, so that one that was broken off repeats none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from replay.reduction.ddmin import Outcome, Subset
from replay.reduction.judge import Onset
from replay.reduction.plan import Candidate, Timing
from replay.session.sealing import FILE_MODE

VERSION = 1


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One trial that has ended. Numbers count from 1."""

    number: int
    requests: Subset
    timing: Timing
    outcome: Outcome
    why: str
    onset: Onset | None = None
    """Where the collapse began, for one that triggered."""
    sent: int
    """The first so many of the requests hold all that were sent before the trial was decided."""
    seconds: float
    """Of the whole trial, reset included."""

    @property
    def candidate(self) -> Candidate:
        """What was tried."""
        return Candidate(requests=self.requests, timing=self.timing)

    @property
    def enough(self) -> Candidate | None:
        """The beginning of the candidate that triggered; None: it did not. What follows it was never sent."""
        if self.outcome is not Outcome.TRIGGERED:
            return None
        return Candidate(requests=self.requests[: self.sent], timing=self.timing)


class _Begin(msgspec.Struct, frozen=True, kw_only=True):
    reduction: int = VERSION
    source: dict[str, Any]


class JournalError(ValueError):
    """The journal cannot be used: one line that names the file and the way out."""


class Journal:
    """The trials of one reduction, in order."""

    def __init__(self, path: Path, trials: list[Trial]) -> None:
        self.trials = trials
        self._path = path

    @classmethod
    def begin(cls, path: Path, source: dict[str, Any]) -> Journal:
        """A new journal; source: what is reduced and how. Raises JournalError and OSError."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        except FileExistsError as error:
            raise JournalError(f"{path}: is there already: --resume goes on with it, or choose another -o") from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(_Begin(source=source)) + b"\n")
        return cls(path, [])

    @classmethod
    def resume(cls, path: Path, source: dict[str, Any]) -> Journal:
        """The journal of a reduction that was broken off. Raises JournalError; a torn last line is left out."""
        try:
            first, *lines = path.read_bytes().split(b"\n")
            if not lines:
                raise ValueError("its first line is torn")
            begun = msgspec.json.decode(first, type=_Begin)
            # What comes after the last line end is torn, and most often empty.
            trials = [msgspec.json.decode(line, type=Trial) for line in lines[:-1]]
        except OSError as error:
            raise JournalError(f"nothing to resume: {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise JournalError(f"{path}: not the journal of a reduction ({error}): choose another -o") from error
        different = [name for name, value in source.items() if begun.source.get(name) != value]
        if different:
            raise JournalError(f"{path}: is of other {', '.join(different)}: resume with the same, or begin anew")
        os.truncate(path, len(b"\n".join([first, *lines[:-1]])) + 1)
        return cls(path, trials)

    def add(self, trial: Trial) -> None:
        """Write a trial down. Raises OSError."""
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(trial) + b"\n")
        self.trials.append(trial)

    def of(self, candidate: Candidate) -> list[Trial]:
        """The trials of a candidate, in order."""
        return [trial for trial in self.trials if trial.candidate == candidate]

    def about(self, candidate: Candidate) -> list[Trial]:
        """Those of a candidate, and those of longer ones that had sent no more of it when they triggered."""
        return [trial for trial in self.trials if candidate in (trial.candidate, trial.enough)]
