"""Recorded exchanges and sessions that the tests of replays share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detector.observation import Observation
from detector.tap.request import read_request
from replay.recorded import Exchange
from replay.session.redact import Redactor
from replay.session.schema import (
    ContentMode,
    Record,
    RequestRecord,
    ResponseRecord,
    SessionHeader,
    encode,
)
from replay.session.writer import SessionWriter

CHAT = "/v1/chat/completions"
SYSTEM = {"role": "system", "content": "You answer in short sentences, and you never guess what you do not know. " * 3}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def exchange(
    index: int,
    at: float,
    *,
    seconds: float | None = 0.5,
    mode: ContentMode = ContentMode.NONE,
    redactor: Redactor | None = None,
    prompt_tokens: int | None = 120,
    completion_tokens: int | None = 30,
    path: str = CHAT,
    **body: Any,
) -> Exchange:
    """One recorded request; seconds: how long its answer took, None: its end was not recorded."""
    default = {"messages": [SYSTEM, user(f"Question number {index}?")]} if path == CHAT else {"prompt": "Once upon"}
    raw = json.dumps({"model": "emulated", "max_tokens": 30, **default, **body}).encode()
    facts = read_request(path, raw)
    request = RequestRecord(
        seq=index,
        request_id=f"r{index}",
        at=at,
        path=path,
        facts=facts,
        prompt=(redactor or Redactor(mode)).prompt(raw),
    )
    if seconds is None:
        return Exchange(request=request)
    observation = Observation(
        request_id=f"r{index}",
        backend="primary",
        facts=facts,
        started_unix=1.7e9 + at,
        started=at,
        ended=at + seconds,
        status=200,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )
    return Exchange(request=request, response=ResponseRecord(request_id=f"r{index}", observation=observation))


def records_of(exchanges: Sequence[Exchange]) -> list[Record]:
    return [record for one in exchanges for record in (one.request, one.response) if record is not None]


def write_exchanges(
    directory: Path, exchanges: Sequence[Exchange], *, mode: ContentMode = ContentMode.NONE, session_id: str = "5e55"
) -> Path:
    """Write a sealed session and return its directory."""
    writer = SessionWriter(directory, SessionHeader(tool_version="0.1.0", session_id=session_id, content=mode))
    writer.append([encode(record) for record in records_of(exchanges)])
    writer.close()
    return directory
