"""Files of older versions go through one converter a version."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from session_samples import request_record

from replay.recorded import read_recorded
from replay.session import converters as converters_module
from replay.session import reader
from replay.session.converters import CONVERTERS, Converter, convert, missing_converter
from replay.session.reader import SessionError, read_session
from replay.session.schema import (
    FORMAT_MAJOR,
    RequestRecord,
    ResponseRecord,
    SessionHeader,
    UnknownRecord,
    encode,
    steps_of,
)


def from_version_0(record: dict[str, Any]) -> dict[str, Any]:
    """An invented version 0: it had milliseconds, and another name for them."""
    if record["type"] == "request":
        return {**{name: value for name, value in record.items() if name != "at_ms"}, "at": record["at_ms"] / 1000}
    return record


def version_0_file(path: Path, *lines: dict[str, Any]) -> Path:
    header = {"type": "session", "format": "specbreaker-session/0", "tool_version": "0", "session_id": "s"}
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))
    return path


def version_0_request(at_ms: object) -> dict[str, Any]:
    request = json.loads(encode(request_record(7)).data)
    del request["at"]
    return {**request, "at_ms": at_ms}


def test_every_version_up_to_ours_can_be_read() -> None:
    assert missing_converter(1, CONVERTERS) is None
    assert sorted(CONVERTERS) == list(range(1, FORMAT_MAJOR))


def test_a_file_of_version_0_reads_as_one_of_ours(tmp_path: Path) -> None:
    path = version_0_file(tmp_path / "f", version_0_request(700.0))
    session = read_session(path, converters={0: from_version_0})
    header, request = [entry.record for entry in session]
    assert isinstance(header, SessionHeader)
    assert isinstance(request, RequestRecord)
    assert request == request_record(7)
    assert session.damage == []


@pytest.mark.parametrize("damaged", [{"type": "request"}, version_0_request("noon"), {"type": 5}, {}])
def test_a_record_that_cannot_be_converted_is_damage(tmp_path: Path, damaged: dict[str, Any]) -> None:
    path = version_0_file(tmp_path / "f", damaged, version_0_request(700.0))
    session = read_session(path, converters={0: from_version_0})
    assert [entry.line for entry in session] == [1, 3]
    assert len(session.damage) == 1


def test_without_a_converter_the_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = version_0_file(tmp_path / "f", version_0_request(1.0))
    with pytest.raises(SessionError, match="nothing converts from version 0: use an older specbreaker"):
        read_session(path)


FIRST_VERSION = Path(__file__).parents[2] / "data/sessions/first_version.jsonl.zst"
"""Recorded by the first version of this program that could."""


def test_a_recording_of_the_first_version_is_read_whole() -> None:
    session = read_session(FIRST_VERSION)
    records = [entry.record for entry in session]
    assert (session.damage, session.sealed) == ([], True)
    answers = [record.observation for record in records if isinstance(record, ResponseRecord)]
    assert sum(isinstance(record, RequestRecord) for record in records) == len(answers) == 8
    assert not any(isinstance(record, UnknownRecord) for record in records)
    assert all(answer.acceptance_length and answer.completion_tokens == 80 for answer in answers)
    assert all(steps_of(record) for record in records if isinstance(record, ResponseRecord))
    assert len(read_recorded(FIRST_VERSION).exchanges) == 8


def test_a_recording_of_the_first_version_goes_through_every_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    """As two versions from now: the second one renames what the first one has, the third one names it as we do."""
    before = [entry.record for entry in read_session(FIRST_VERSION)]
    for module in (converters_module, reader):
        monkeypatch.setattr(module, "FORMAT_MAJOR", 3)

    def renamed(record: dict[str, Any], old: str, new: str) -> dict[str, Any]:
        assert old in record or record["type"] not in ("request", "response")
        return {new if name == old else name: value for name, value in record.items()}

    chain: Mapping[int, Converter] = {
        1: lambda record: renamed(record, "request_id", "id_2"),
        2: lambda record: renamed(record, "id_2", "request_id"),
    }
    session = read_session(FIRST_VERSION, converters=chain)
    assert [entry.record for entry in session] == before
    assert session.damage == []
    with pytest.raises(SessionError, match="nothing converts from version 2"):
        read_session(FIRST_VERSION, converters={1: chain[1]})


def test_converters_are_chained_in_order() -> None:
    def to(version: int) -> Converter:
        return lambda record: {**record, "way": [*record["way"], version]}

    converters: Mapping[int, Converter] = {version: to(version + 1) for version in range(-3, FORMAT_MAJOR)}
    assert convert({"way": []}, -3, converters)["way"] == list(range(-2, FORMAT_MAJOR + 1))
    assert missing_converter(-3, {-3: to(-2)}) == -2
