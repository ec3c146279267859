"""Records and files that the tests of session files share."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from detector.observation import (
    Ending,
    EngineSample,
    Observation,
    Quality,
    RequestFacts,
    Source,
)
from replay.session.schema import (
    Backend,
    ContentMode,
    EngineRecord,
    EventRecord,
    Prompt,
    PromptPart,
    Record,
    RequestRecord,
    ResponseRecord,
    Seal,
    SessionHeader,
    encode,
)
from replay.session.writer import SessionWriter

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is slow, not wrong."""

HEADER = SessionHeader(tool_version="0.1.0", session_id="5e55", backends=(Backend(name="primary", host_hash="00ff"),))

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SECONDS = st.floats(0, 1e9)
MAYBE_FLOAT = st.none() | st.floats(0, 1e12)
MAYBE_COUNT = st.none() | st.integers(0, 2**40)

FACTS = st.builds(
    RequestFacts,
    route=st.sampled_from(["chat", "completions", "responses", "messages", "generate", "other"]),
    model=st.none() | TEXT,
    stream=st.booleans(),
    max_tokens=MAYBE_COUNT,
    body_bytes=st.integers(0, 2**40),
)
OBSERVATIONS = st.builds(
    Observation,
    request_id=TEXT,
    backend=TEXT,
    facts=FACTS,
    started_unix=SECONDS,
    started=SECONDS,
    ended=SECONDS,
    status=st.none() | st.integers(100, 599),
    ending=st.sampled_from(Ending),
    completion_tokens=MAYBE_COUNT,
    acceptance_length=MAYBE_FLOAT,
    acceptance_source=st.none() | st.sampled_from(Source),
    acceptance_quality=st.none() | st.sampled_from(Quality),
    position_acceptance=st.none() | st.lists(st.floats(0, 1), max_size=4).map(tuple),
    step_seconds=MAYBE_FLOAT,
)
RECORDS = st.one_of(
    st.builds(SessionHeader, tool_version=TEXT, session_id=TEXT, content=st.sampled_from(ContentMode)),
    st.builds(
        RequestRecord,
        seq=st.integers(0, 2**40),
        request_id=TEXT,
        at=SECONDS,
        path=TEXT,
        facts=FACTS,
        headers=st.dictionaries(TEXT | st.just("User-Agent"), TEXT, max_size=3),
        prompt=st.none()
        | st.builds(
            Prompt,
            parts=st.lists(st.builds(PromptPart, role=TEXT, characters=st.integers(0, 2**40)), max_size=3).map(tuple),
            parameters=st.dictionaries(TEXT, st.booleans() | st.integers(-(2**60), 2**60), max_size=3),
            block_hashes=st.none() | st.lists(TEXT, max_size=3).map(tuple),
            body=st.none() | TEXT,
        ),
    ),
    st.builds(
        ResponseRecord,
        request_id=TEXT,
        observation=OBSERVATIONS,
        chunk_us=st.lists(st.integers(0, 2**40), max_size=5).map(tuple),
        chunk_tokens=st.none() | st.lists(st.none() | st.integers(0, 100), max_size=5).map(tuple),
    ),
    st.builds(EngineRecord, backend=TEXT, sample=st.builds(EngineSample, at=SECONDS, drafts=MAYBE_FLOAT)),
    st.builds(
        EventRecord,
        at=SECONDS,
        kind=TEXT,
        backend=st.none() | TEXT,
        fields=st.dictionaries(TEXT, st.none() | TEXT | st.booleans() | st.integers(-(2**60), 2**60), max_size=3),
    ),
    st.builds(Seal, counts=st.dictionaries(TEXT, st.integers(0, 2**40), max_size=3), sha256=TEXT),
)


def request_record(seq: int) -> RequestRecord:
    return RequestRecord(
        seq=seq,
        request_id=f"req-{seq}",
        at=seq / 10,
        path="/v1/chat/completions",
        facts=RequestFacts(route="chat", model="m", stream=True, max_tokens=512),
    )


def response_record(seq: int, *, chunks: int = 40, backend: str = "primary") -> ResponseRecord:
    generator = random.Random(seq)
    observation = Observation(
        request_id=f"req-{seq}",
        backend=backend,
        facts=RequestFacts(route="chat", model="m", stream=True, max_tokens=512),
        started_unix=1.7e9 + seq,
        started=seq / 10,
        ended=seq / 10 + 5,
        completion_tokens=chunks * 4,
        acceptance_length=generator.uniform(1, 8),
    )
    return ResponseRecord(
        request_id=f"req-{seq}",
        observation=observation,
        chunk_us=tuple(generator.randrange(5_000, 20_000) for _ in range(chunks)),
        chunk_tokens=tuple(generator.randrange(1, 9) for _ in range(chunks)),
    )


def sample_records(count: int, *, chunks: int = 40) -> list[Record]:
    records: list[Record] = []
    for seq in range(count):
        records += [request_record(seq), response_record(seq, chunks=chunks)]
    return records


def write_session(directory: Path, records: list[Record], *, sealed: bool) -> Path:
    """Write a session and return its file: compressed, or as a writer that is still at work leaves it."""
    writer = SessionWriter(directory, HEADER)
    writer.append([encode(record) for record in records])
    live = writer.path
    assert live is not None
    if sealed:
        writer.close()
        return live.with_suffix(".jsonl.zst")
    content = live.read_bytes()
    writer.close()
    copy = directory / "live.jsonl"
    copy.write_bytes(content)
    return copy
