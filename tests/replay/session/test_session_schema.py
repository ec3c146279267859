"""A record survives the way to the disk and back, and takes no secret along."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_samples import RECORDS, SECONDS, UNTIMED, request_record, response_record

from detector.observation import RequestFacts, Step
from replay.session.schema import (
    RECORD_TYPES,
    Record,
    RequestRecord,
    chunks_of,
    encode,
    steps_of,
    stored_headers,
    type_of,
)


@settings(UNTIMED, max_examples=300)
@given(RECORDS)
def test_a_record_is_one_line_of_json_and_comes_back_equal(record: Record) -> None:
    line = encode(record)
    assert line.data.endswith(b"\n")
    assert line.data.count(b"\n") == 1
    assert json.loads(line.data)["type"] == line.type == type_of(record)
    assert msgspec.json.decode(line.data, type=Record) == record


def test_the_six_types_of_the_format() -> None:
    assert sorted(RECORD_TYPES) == ["engine", "event", "request", "response", "seal", "session"]


def test_keys_cookies_and_queries_never_enter_a_record() -> None:
    record = RequestRecord(
        seq=0,
        request_id="r",
        at=1.0,
        path="/v1/models?api_key=sk-secret",
        facts=RequestFacts(route="other"),
        headers={
            "Authorization": "Bearer sk-secret",
            "Cookie": "sk-secret",
            "X-Api-Key": "sk-secret",
            "User-Agent": "curl",
        },
    )
    assert b"sk-secret" not in encode(record).data
    assert record.path == "/v1/models"
    assert record.headers == {"user-agent": "curl"}


def test_header_bytes_that_are_not_utf8_do_not_cost_the_record() -> None:
    raw = b"agent \xff".decode(errors="surrogateescape")
    assert stored_headers([("User-Agent", raw)]) == {"user-agent": "agent ?"}


@settings(UNTIMED, max_examples=300)
@given(SECONDS, st.lists(st.tuples(st.floats(0, 100), st.none() | st.integers(0, 17)), max_size=50))
def test_chunk_times_keep_their_microsecond_however_many_there_are(
    started: float, gaps: list[tuple[float, int | None]]
) -> None:
    at, steps = started, []
    for gap, tokens in gaps:
        at += gap
        steps.append(Step(at, tokens))
    chunk_us, chunk_tokens = chunks_of(started, steps)
    observation = msgspec.structs.replace(response_record(0).observation, started=started)
    record = msgspec.structs.replace(
        response_record(0), observation=observation, chunk_us=chunk_us, chunk_tokens=chunk_tokens
    )
    back = steps_of(record)
    assert [step.tokens for step in back] == [step.tokens for step in steps]
    assert [step.at for step in back] == pytest.approx([step.at for step in steps], abs=1e-6, rel=1e-15)


def test_token_counts_are_left_out_where_none_is_known() -> None:
    assert chunks_of(1.0, [Step(1.5, None), Step(1.75, None)]) == ((500_000, 250_000), None)


def test_times_and_tokens_of_different_numbers_of_chunks_are_refused() -> None:
    record = msgspec.structs.replace(response_record(0), chunk_us=(1, 2), chunk_tokens=(1,))
    with pytest.raises(ValueError, match="shorter"):
        steps_of(record)


def test_a_response_joins_its_request_by_id() -> None:
    assert request_record(3).request_id == response_record(3).request_id
