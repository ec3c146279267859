"""Observations out of a file, whatever kind it is: a session, a CSV of rates, or a chunk log.

The kind is recognised by content, not by name.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from detector.observation import Observation, RequestFacts, Step
from detector.tap.chunklog import observe_chunk_log_request
from replay.recorded import clock_shift, session_parts, shifted
from replay.session.frames import MAGIC
from replay.session.reader import Session, SessionError, read_session
from replay.session.schema import ResponseRecord, SessionHeader, steps_of

FileKind = Literal["session", "csv", "chunk_log"]

_NAME_COLUMNS = ("request", "request_id", "run", "index")
_NUMBER_COLUMNS = ("tok_s", "completion_tokens", "acceptance_length", "step_seconds")
_KNOWN_FORMATS = (
    "a session file or a directory with one, a CSV with a tok_s column, "
    "or a chunk log (JSON lines, the first with kind=header)"
)


class ReadError(ValueError):
    """The file cannot be read as observations: one line that names the file, the place and the way out."""


class ObservationFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a file holds, in the order of the file."""

    kind: FileKind
    observations: list[Observation]
    steps: list[list[Step]]
    """Content events of each observation, as far as the file has them."""
    series: str | None = None
    """The backend or CSV series that was read; None: all of them, or the file names none."""
    notes: tuple[str, ...] = ()
    """What was left out or is damaged, one line each."""


def read_observations(path: Path, *, series: str | None = None) -> ObservationFile:
    """Read the observations of a file, or of all parts of the one session in a directory.

    ``series`` chooses one of the backends of a session (None: all) or one of the series of a CSV (None: the first,
    since they are different experiments). Raises ReadError.
    """
    try:
        if path.is_dir():
            return _read_answers(path, session_parts(path), series)
        with path.open("rb") as file:
            first_line = file.readline(64 * 1024)
        if not first_line:
            raise ReadError(f"{path}: is empty; expected {_KNOWN_FORMATS}")
        if _is_chunk_log(first_line):
            return _read_chunk_log(path, series)
        try:
            return _read_answers(path, [read_session(path)], series)
        except SessionError as error:
            if first_line.startswith((MAGIC, b"{")):
                raise ReadError(str(error)) from error
        return _read_csv(path, series)
    except SessionError as error:
        raise ReadError(str(error)) from error
    except OSError as error:
        raise ReadError(f"{path}: cannot be read: {error.strerror}") from error


def _is_chunk_log(first_line: bytes) -> bool:
    try:
        record = msgspec.json.decode(first_line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("kind") == "header"


def _read_answers(path: Path, parts: list[Session], series: str | None) -> ObservationFile:
    answers: list[ResponseRecord] = []
    first: SessionHeader | None = None
    for part in parts:
        first = first or part.header
        shift = clock_shift(first, part.header) if first is not None and part.header is not None else 0.0
        answers += [shifted(entry.record, shift) for entry in part if isinstance(entry.record, ResponseRecord)]
    if series is not None:
        backends = Counter(answer.observation.backend for answer in answers)
        if series not in backends:
            raise ReadError(f"{path}: no answer of a backend {series!r}; it has: {_listed(backends)}")
        answers = [answer for answer in answers if answer.observation.backend == series]
    return ObservationFile(
        kind="session",
        observations=[answer.observation for answer in answers],
        steps=[_steps(answer) for answer in answers],
        series=series,
        notes=tuple(f"{part.path}: {damage}" for part in parts for damage in part.damage),
    )


def _steps(answer: ResponseRecord) -> list[Step]:
    """The content events of an answer; none where the record contradicts itself."""
    try:
        return steps_of(answer)
    except ValueError:
        return []


def _read_chunk_log(path: Path, series: str | None) -> ObservationFile:
    if series is not None:
        raise ReadError(f"{path}: a chunk log holds one series: leave --series out")
    header: dict[str, Any] = {}
    observations: list[Observation] = []
    steps: list[list[Step]] = []
    warm_ups = 0
    for number, record in _json_lines(path):
        if record.get("kind") == "header":
            header = record
        elif record.get("kind") != "request":
            raise ReadError(
                f"{path}: line {number}: kind is {str(record.get('kind'))[:40]!r}, not 'request': remove the line"
            )
        elif isinstance(record.get("index"), int) and record["index"] < 0:
            warm_ups += 1
        else:
            # A log without a clock is read as if its requests had followed each other at once.
            timed = isinstance(record.get("unix_time"), int | float)
            started = None if timed else observations[-1].ended if observations else 0.0
            try:
                observation, its_steps = observe_chunk_log_request(record, header, started=started)
            except (TypeError, ValueError, OverflowError) as error:
                raise ReadError(f"{path}: line {number}: {error}: correct or remove the line") from error
            observations.append(observation)
            steps.append(its_steps)
    notes = (f"{path}: {warm_ups} warm-up requests (index below 0) are left out",) if warm_ups else ()
    return ObservationFile(kind="chunk_log", observations=observations, steps=steps, notes=notes)


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = msgspec.json.decode(line, type=dict[str, Any])
            except (ValueError, RecursionError) as error:
                raise ReadError(f"{path}: line {number}: not a JSON object ({error}): remove the line") from error
            yield number, record


def _read_csv(path: Path, series: str | None) -> ObservationFile:
    rows = list(_csv_rows(path))
    if not rows:
        raise ReadError(f"{path}: has a header and no rows: nothing to read")
    names = Counter(row["series"] for _, row in rows if "series" in row)
    if series is not None and series not in names:
        raise ReadError(f"{path}: no series {series!r}; it has: {_listed(names)}")
    chosen = series if series is not None else next(iter(names), None)
    observations: list[Observation] = []
    for number, row in rows:
        if row.get("series") == chosen:
            started = observations[-1].ended if observations else 0.0
            observations.append(_observe_row(path, number, row, len(observations), started))
    notes: tuple[str, ...] = ()
    if series is None and len(names) > 1:
        notes = (f"{path}: holds several series; read is the first one: {chosen} (--series: {_listed(names)})",)
    return ObservationFile(kind="csv", observations=observations, steps=[], series=chosen, notes=notes)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, cells by column name); lines before the header that begin with ``#`` are comments."""
    header: list[str] | None = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for cells in reader:
                if not cells or (header is None and cells[0].startswith("#")):
                    continue
                if header is None:
                    header = [name.strip().lower() for name in cells]
                    if "tok_s" not in header:
                        raise ReadError(f"{path}: line {reader.line_num}: no tok_s column; expected {_KNOWN_FORMATS}")
                elif len(cells) != len(header):
                    counts = f"{len(cells)} cells where the header names {len(header)}"
                    raise ReadError(f"{path}: line {reader.line_num}: {counts}: correct or remove the line")
                else:
                    yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    except UnicodeDecodeError as error:
        raise ReadError(f"{path}: is not text in UTF-8 (byte {error.start}); expected {_KNOWN_FORMATS}") from error
    except csv.Error as error:
        raise ReadError(f"{path}: line {reader.line_num}: not CSV ({error}); expected {_KNOWN_FORMATS}") from error


def _observe_row(path: Path, number: int, row: dict[str, str], index: int, started: float) -> Observation:
    """Make the observation of one row.

    A CSV has no clock: answers follow each other at once, each as long as its tokens took, or one second where their
    number is not known. Of A, T and the rate, any two give the third: rate = A / T.
    """
    values = {column: _number(path, number, row, column) for column in _NUMBER_COLUMNS}
    rate, tokens = values["tok_s"], values["completion_tokens"]
    if rate is None:
        raise ReadError(f"{path}: line {number}: tok_s is empty: fill it in or remove the line")
    acceptance_length, step_seconds = values["acceptance_length"], values["step_seconds"]
    if step_seconds is None and acceptance_length is not None:
        step_seconds = acceptance_length / rate
    elif acceptance_length is None and step_seconds is not None:
        acceptance_length = rate * step_seconds
    decode_seconds = None if tokens is None else tokens / rate
    return Observation(
        request_id=next((row[name] for name in _NAME_COLUMNS if row.get(name)), str(index)),
        backend=row.get("series") or "csv",
        facts=RequestFacts(route="other"),
        started_unix=0.0,
        started=started,
        ended=started + (1.0 if decode_seconds is None else decode_seconds),
        decode_seconds=decode_seconds,
        completion_tokens=None if tokens is None else int(tokens),
        acceptance_length=acceptance_length,
        step_seconds=step_seconds,
        decode_tokens_per_second=rate,
    )


def _number(path: Path, number: int, row: dict[str, str], column: str) -> float | None:
    text = row.get(column, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ReadError(f"{path}: line {number}: {column} is {text[:40]!r}, not a number above 0: correct or remove it")
    return value


def _listed(names: Counter[str]) -> str:
    return ", ".join(names) or "none"
