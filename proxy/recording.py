"""Hands what happens to the session recorder, or to nobody where nothing is recorded."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detector.observation import EngineSample, Observation, RequestFacts, Step
from proxy.config import Config, ConfigError
from proxy.messages import Request
from proxy.version import VERSION
from replay.session.recorder import BackgroundRecorder, RecorderCounts
from replay.session.redact import Redactor
from replay.session.schema import (
    ContentMode,
    EngineRecord,
    EventRecord,
    RequestRecord,
    ResponseRecord,
    SessionHeader,
    chunks_of,
)


class Recording:
    """The proxy's side of a session file. Never waits for the disk."""

    def __init__(self, config: Config) -> None:
        """Open the directory, if one is configured. Raises ConfigError where it cannot be written."""
        self._recorder: BackgroundRecorder | None = None
        self._numbers = itertools.count()
        directory = config.record.directory
        if directory is None:
            return
        redactor = Redactor(ContentMode(config.record.content))
        header = SessionHeader(
            tool_version=VERSION,
            session_id=secrets.token_hex(8),
            started_unix=time.time(),
            started=time.monotonic(),
            content=redactor.mode,
            backends=tuple(redactor.backend(backend.name, backend.url) for backend in config.backends),
        )
        try:
            self._recorder = BackgroundRecorder(
                Path(directory),
                header,
                redactor,
                max_bytes=config.record.max_file_bytes,
                max_age_seconds=config.record.max_file_seconds,
            )
        except OSError as error:
            raise ConfigError(f"record.directory: {directory}: {error.strerror}") from None

    def request(self, request: Request, facts: RequestFacts, at: float, body: bytes | None) -> None:
        """A measurable request arrived."""
        if self._recorder is None:
            return
        headers = {lower.decode("latin-1"): value.decode("latin-1") for lower, _, value in request.fields}
        record = RequestRecord(
            seq=next(self._numbers),
            request_id=request.request_id,
            at=at,
            method=request.method.decode("latin-1"),
            path=request.path,
            facts=facts,
            headers=headers,
        )
        self._recorder.put(record, body)

    def response(
        self, observation: Observation, steps: Sequence[Step], steps_omitted: int, response_bytes: int
    ) -> None:
        """Its answer ended."""
        if self._recorder is None:
            return
        chunk_us, chunk_tokens = chunks_of(observation.started, steps)
        self._recorder.put(
            ResponseRecord(
                request_id=observation.request_id,
                observation=observation,
                chunk_us=chunk_us,
                chunk_tokens=chunk_tokens,
                chunks_omitted=steps_omitted,
                response_bytes=response_bytes,
            )
        )

    def engine(self, backend: str, generation: int, sample: EngineSample) -> None:
        """An engine's /metrics were read."""
        if self._recorder is not None:
            self._recorder.put(EngineRecord(backend=backend, generation=generation, sample=sample))

    def event(self, kind: str, backend: str | None, fields: dict[str, Any]) -> None:
        """Something was decided, done or noticed."""
        if self._recorder is not None:
            self._recorder.put(EventRecord(at=time.monotonic(), kind=kind, backend=backend, fields=fields))

    def counts(self) -> RecorderCounts | None:
        """What became of the records so far; None where nothing is recorded."""
        return self._recorder.counts() if self._recorder is not None else None

    def close(self) -> None:
        """Write what is queued and seal the file; blocks, at most for some seconds."""
        if self._recorder is not None:
            self._recorder.close()
