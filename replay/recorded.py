"""A recorded session as a list of requests with their answers: what is replayed, compared and converted."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from detector.observation import Observation, Step
from replay.session.reader import Session, SessionError, read_session
from replay.session.schema import (
    EngineRecord,
    EventRecord,
    Prompt,
    RequestRecord,
    ResponseRecord,
    SessionHeader,
    chunks_of,
    steps_of,
)

_CLOCK_TOLERANCE_SECONDS = 1.0
"""Two parts whose clocks differ by less were written on one boot; the wall clock was merely adjusted."""
_ROUTES = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "generate": "/generate",
}


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """One request and what became of it."""

    request: RequestRecord
    response: ResponseRecord | None = None
    """None: its end was not recorded."""
    prompt_key: str | None = None
    """Exchanges of one key get the same synthetic prompt; None: a prompt of its own."""

    @property
    def observation(self) -> Observation | None:
        """The measured answer."""
        return None if self.response is None else self.response.observation

    @property
    def ended(self) -> float | None:
        """Monotonic seconds of its end."""
        return None if self.response is None else self.response.observation.ended

    @property
    def completion_tokens(self) -> int | None:
        """Tokens of the answer."""
        return None if self.response is None else self.response.observation.completion_tokens

    @property
    def steps(self) -> list[Step]:
        """Content events of the answer; none where the record contradicts itself."""
        try:
            return [] if self.response is None else steps_of(self.response)
        except ValueError:
            return []


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """A session, canaries left out."""

    exchanges: list[Exchange]
    """In the order of arrival."""
    header: SessionHeader | None = None
    engine: list[EngineRecord] = []
    events: list[EventRecord] = []
    notes: tuple[str, ...] = ()
    """What is damaged or was left out, one line each."""

    def backends(self) -> list[str]:
        """Names of the backends that answered, the one with most answers first."""
        counts: defaultdict[str, int] = defaultdict(int)
        for exchange in self.exchanges:
            if exchange.observation is not None:
                counts[exchange.observation.backend] += 1
        return sorted(counts, key=lambda name: -counts[name])


def exchange_of(observation: Observation, seq: int, steps: Sequence[Step] = (), body: str | None = None) -> Exchange:
    """An exchange of which only the answer (and perhaps the request's body) is known."""
    chunk_us, chunk_tokens = chunks_of(observation.started, steps)
    request = RequestRecord(
        seq=seq,
        request_id=observation.request_id,
        at=observation.started,
        path=_ROUTES.get(observation.facts.route, "/"),
        facts=observation.facts,
        prompt=None if body is None else Prompt(body=body),
    )
    response = ResponseRecord(
        request_id=observation.request_id, observation=observation, chunk_us=chunk_us, chunk_tokens=chunk_tokens
    )
    return Exchange(request=request, response=response)


def session_files(path: Path) -> list[Path]:
    """The files of a session: the file itself, or those of a directory. Raises SessionError where there is none."""
    if not path.is_dir():
        return [path]
    found = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.zst")])
    if not found:
        raise SessionError(f"{path}: no session file (*.jsonl, *.jsonl.zst) in this directory")
    return found


def read_recorded(path: Path) -> Recorded:
    """Read a session file, or all parts of the one session in a directory.

    Times of parts from several boots are moved to the clock of the first. Raises SessionError.
    """
    reading = _Reading()
    for session in session_parts(path):
        for entry in session:
            reading.take(entry.record)
        reading.notes += [f"{session.path}: {damage}" for damage in session.damage]
    return reading.result()


def session_parts(path: Path) -> list[Session]:
    """The files of one session, the oldest first. Raises SessionError, also for several sessions."""
    sessions = [read_session(file) for file in session_files(path)]
    sessions.sort(key=lambda session: session.header.started_unix if session.header else 0.0)
    identities = {session.header.session_id for session in sessions if session.header}
    if len(identities) > 1:
        raise SessionError(f"{path}: holds {len(identities)} sessions: name one file, or a directory with one session")
    return sessions


def clock_shift(first: SessionHeader, header: SessionHeader) -> float:
    """Seconds from the monotonic clock of this part to that of the first, which may be of another boot."""
    shift = (header.started_unix - header.started) - (first.started_unix - first.started)
    return shift if abs(shift) > _CLOCK_TOLERANCE_SECONDS else 0.0


class _Reading:
    """Puts requests and answers together."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._header: SessionHeader | None = None
        self._shift = 0.0
        self._requests: list[RequestRecord] = []
        self._responses: defaultdict[str, deque[ResponseRecord]] = defaultdict(deque)
        self._engine: list[EngineRecord] = []
        self._events: list[EventRecord] = []
        self._canaries = 0

    def take(self, record: Any) -> None:
        """The next record."""
        match record:
            case SessionHeader():
                self._begin(record)
            case RequestRecord():
                self._requests.append(msgspec.structs.replace(record, at=record.at + self._shift))
            case ResponseRecord() if record.observation.canary:
                self._canaries += 1
            case ResponseRecord():
                self._responses[record.request_id].append(shifted(record, self._shift))
            case EngineRecord():
                self._engine.append(record)
            case EventRecord():
                self._events.append(msgspec.structs.replace(record, at=record.at + self._shift))

    def result(self) -> Recorded:
        exchanges = sorted(self._joined(), key=lambda one: (one.request.at, one.request.seq))
        notes = [*self.notes]
        if self._canaries:
            notes.append(f"{self._canaries} canaries are left out")
        return Recorded(
            exchanges=exchanges, header=self._header, engine=self._engine, events=self._events, notes=tuple(notes)
        )

    def _begin(self, header: SessionHeader) -> None:
        self._header = self._header or header
        self._shift = clock_shift(self._header, header)

    def _joined(self) -> Iterator[Exchange]:
        for request in self._requests:
            answers = self._responses[request.request_id]
            yield Exchange(request=request, response=answers.popleft() if answers else None)
        # Answers whose request was not written, as when the recording began in between.
        seq = len(self._requests)
        for left in self._responses.values():
            for response in left:
                request = exchange_of(response.observation, seq).request
                seq += 1
                yield Exchange(request=request, response=response)


def shifted(record: ResponseRecord, shift: float) -> ResponseRecord:
    """The same answer, so many seconds later."""
    if not shift:
        return record
    old = record.observation
    moved = msgspec.structs.replace(
        old,
        started=old.started + shift,
        sent=None if old.sent is None else old.sent + shift,
        ended=old.ended + shift,
    )
    return msgspec.structs.replace(record, observation=moved)
