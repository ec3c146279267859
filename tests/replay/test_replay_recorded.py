"""Reading a recorded session as exchanges."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from replay_samples import exchange, records_of, write_exchanges

from replay.recorded import exchange_of, read_recorded
from replay.session.reader import SessionError
from replay.session.schema import Record, SessionHeader, encode


def write_part(path: Path, header: SessionHeader, records: list[Record]) -> None:
    path.write_bytes(b"".join(encode(record).data for record in [header, *records]))


def test_requests_meet_their_answers(tmp_path: Path) -> None:
    exchanges = [exchange(1, 3.0), exchange(0, 1.0), exchange(2, 4.0, seconds=None)]
    read = read_recorded(write_exchanges(tmp_path, exchanges))
    assert [one.request.seq for one in read.exchanges] == [0, 1, 2]
    assert [one.ended for one in read.exchanges] == [1.5, 3.5, None]
    assert read.backends() == ["primary"]


def test_equal_request_ids_meet_in_order(tmp_path: Path) -> None:
    pair = [exchange(0, 1.0), exchange(1, 3.0)]
    same = [
        msgspec.structs.replace(
            one,
            request=msgspec.structs.replace(one.request, request_id="same"),
            response=msgspec.structs.replace(one.response, request_id="same"),
        )
        for one in pair
    ]
    assert [one.ended for one in read_recorded(write_exchanges(tmp_path, same)).exchanges] == [1.5, 3.5]


def test_canaries_are_left_out_and_said_so(tmp_path: Path) -> None:
    canary = exchange(0, 1.0).response
    assert canary is not None
    canary = msgspec.structs.replace(canary, observation=msgspec.structs.replace(canary.observation, canary=True))
    path = tmp_path / "one.jsonl"
    write_part(path, SessionHeader(tool_version="0", session_id="a"), [canary, *records_of([exchange(1, 2.0)])])
    read = read_recorded(path)
    assert len(read.exchanges) == 1
    assert read.notes == ("1 canaries are left out",)


def test_an_answer_without_a_request_becomes_one(tmp_path: Path) -> None:
    response = exchange(0, 1.0).response
    assert response is not None
    path = tmp_path / "one.jsonl"
    write_part(path, SessionHeader(tool_version="0", session_id="a"), [response])
    (one,) = read_recorded(path).exchanges
    assert (one.request.path, one.request.at, one.completion_tokens) == ("/v1/chat/completions", 1.0, 30)


def test_parts_of_two_boots_are_on_one_clock(tmp_path: Path) -> None:
    before = SessionHeader(tool_version="0", session_id="a", started_unix=1000.0, started=500.0)
    after = SessionHeader(tool_version="0", session_id="a", part=1, started_unix=1100.0, started=5.0)
    write_part(tmp_path / "b.jsonl", before, records_of([exchange(0, 501.0)]))
    write_part(tmp_path / "a.jsonl", after, records_of([exchange(1, 6.0)]))
    read = read_recorded(tmp_path)
    assert [(one.request.at, one.ended) for one in read.exchanges] == [(501.0, 501.5), (601.0, 601.5)]


def test_two_sessions_in_a_directory_are_not_one(tmp_path: Path) -> None:
    write_exchanges(tmp_path, [exchange(0, 1.0)], session_id="a")
    write_exchanges(tmp_path, [exchange(0, 1.0)], session_id="b")
    with pytest.raises(SessionError, match="holds 2 sessions: name one file"):
        read_recorded(tmp_path)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no session file"):
        read_recorded(tmp_path)


def test_an_exchange_can_be_made_of_an_answer_alone() -> None:
    observation = exchange(0, 1.0).observation
    assert observation is not None
    one = exchange_of(observation, 3, body='{"messages": []}')
    assert one.request.prompt is not None
    assert (one.request.seq, one.request.path, one.request.prompt.body) == (
        3,
        "/v1/chat/completions",
        '{"messages": []}',
    )
