"""The thread between the event loop and the disk: it never blocks the one, and survives the other."""

import errno
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from session_samples import HEADER, request_record

from replay.session.reader import read_session
from replay.session.recorder import BackgroundRecorder
from replay.session.redact import Redactor
from replay.session.schema import ContentMode, EventRecord, Line, Record, RequestRecord, Seal
from replay.session.writer import SessionWriter


class Gate:
    """Stands in for the disk: a batch waits until it is opened, or is refused while ``refuse`` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.waiting = threading.Event()
        self.refuse = threading.Event()
        self.refused = threading.Semaphore(0)
        append = SessionWriter.append

        def gated(writer: SessionWriter, lines: Sequence[Line]) -> int:
            self.waiting.set()
            assert self.open.wait(60)
            if self.refuse.is_set():
                self.refused.release()
                raise OSError(errno.ENOSPC, "No space left on device")
            return append(writer, lines)

        monkeypatch.setattr(SessionWriter, "append", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


def records_in(directory: Path) -> list[Record]:
    (path,) = directory.glob("*.jsonl.zst")
    session = read_session(path)
    records = [entry.record for entry in session]
    assert session.sealed
    assert session.damage == []
    return records  # type: ignore[return-value]


def test_what_is_put_is_in_the_sealed_file(tmp_path: Path) -> None:
    recorder = BackgroundRecorder(tmp_path, HEADER, Redactor())
    assert all(recorder.put(request_record(seq)) for seq in range(500))
    assert recorder.close()
    _, *requests, seal = records_in(tmp_path)
    assert requests == [request_record(seq) for seq in range(500)]
    assert isinstance(seal, Seal)
    counts = recorder.counts()
    assert (counts.written, counts.dropped, counts.queued) == ({"request": 500}, {}, 0)
    assert counts.bytes_written > 500 * 100


def test_a_waiting_disk_never_blocks_put_and_drops_are_counted_by_type(
    tmp_path: Path, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = BackgroundRecorder(tmp_path, HEADER, Redactor(), max_queued_records=10)
    recorder.put(request_record(0))
    assert gate.waiting.wait(60)
    with caplog.at_level(logging.WARNING):
        accepted = [recorder.put(request_record(seq)) for seq in range(1, 31)]
        recorder.put(EventRecord(at=0.0, kind="notice"))
    assert accepted == [True] * 10 + [False] * 20
    assert recorder.counts().dropped == {"request": 20, "event": 1}
    assert recorder.counts().queued == 10
    assert len([record for record in caplog.records if "dropped" in record.message]) == 2, "once for each type"
    gate.open.set()
    assert recorder.close()
    *_, seal = records = records_in(tmp_path)
    assert [record.seq for record in records if isinstance(record, RequestRecord)] == list(range(11))
    assert isinstance(seal, Seal)
    assert seal.dropped == {"request": 20, "event": 1}


def test_a_full_disk_is_logged_once_tried_again_and_loses_nothing(
    tmp_path: Path, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    gate.refuse.set()
    gate.open.set()
    with caplog.at_level(logging.WARNING):
        recorder = BackgroundRecorder(tmp_path, HEADER, Redactor(), retry_seconds=0.001)
        for seq in range(5):
            recorder.put(request_record(seq))
        for _ in range(4):
            assert gate.refused.acquire(timeout=60)
        gate.refuse.clear()
        assert recorder.close()
    assert [record.seq for record in records_in(tmp_path) if isinstance(record, RequestRecord)] == list(range(5))
    assert recorder.counts().write_failures >= 4
    assert recorder.counts().dropped == {}
    assert [record.message.split(" ", 3)[3][:5] for record in caplog.records] == ["fails", "works"]


def test_what_the_disk_refuses_to_the_end_is_counted_as_dropped(tmp_path: Path, gate: Gate) -> None:
    gate.refuse.set()
    gate.open.set()
    recorder = BackgroundRecorder(tmp_path, HEADER, Redactor(), retry_seconds=60)
    for seq in range(5):
        recorder.put(request_record(seq))
    assert gate.refused.acquire(timeout=60)
    assert recorder.close()
    assert recorder.counts().dropped == {"request": 5}
    *_, seal = records_in(tmp_path)
    assert isinstance(seal, Seal)
    assert seal.dropped == {"request": 5}


def test_a_file_that_cannot_be_sealed_is_counted_and_left_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with caplog.at_level(logging.WARNING):
        recorder = BackgroundRecorder(tmp_path, HEADER, Redactor(), max_bytes=1)
        recorder.put(request_record(0))
        assert recorder.close()
    assert recorder.counts().seal_failures == 1
    assert "Permission denied" in caplog.text
    (path,) = tmp_path.iterdir()
    assert [json.loads(line)["type"] for line in path.read_bytes().splitlines()] == ["session", "request", "seal"]


def test_a_record_that_is_not_json_costs_itself_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = BackgroundRecorder(tmp_path, HEADER, Redactor())
    with caplog.at_level(logging.WARNING):
        recorder.put(EventRecord(at=0.0, kind="notice", fields={"bad": object()}))
        recorder.put(EventRecord(at=0.0, kind="\ud800"))
        recorder.put(request_record(1))
        assert recorder.close()
    assert recorder.counts().dropped == {"event": 2}
    assert [type(record) for record in records_in(tmp_path)][1:-1] == [RequestRecord]
    assert len(caplog.records) == 1


def test_a_body_becomes_the_prompt_that_the_content_mode_allows(tmp_path: Path) -> None:
    recorder = BackgroundRecorder(tmp_path, HEADER, Redactor(ContentMode.HASH))
    recorder.put(request_record(0), json.dumps({"prompt": "a secret " * 20}).encode())
    recorder.put(request_record(1), b"not json")
    assert recorder.close()
    header, first, second, _ = records_in(tmp_path)
    assert header.content is ContentMode.HASH  # type: ignore[union-attr]
    assert isinstance(first, RequestRecord)
    assert first.prompt is not None
    assert first.prompt.parts[0].characters == 180
    assert len(first.prompt.block_hashes or ()) == 2
    assert isinstance(second, RequestRecord)
    assert second.prompt is None


def test_queued_bodies_have_a_bound_beyond_which_only_their_description_is_lost(tmp_path: Path, gate: Gate) -> None:
    recorder = BackgroundRecorder(tmp_path, HEADER, Redactor(), max_queued_body_bytes=100)
    recorder.put(request_record(0))
    assert gate.waiting.wait(60)
    body = json.dumps({"prompt": "x" * 50}).encode()
    assert recorder.put(request_record(1), body)
    assert recorder.put(request_record(2), body)
    assert recorder.counts().dropped == {"body": 1}
    gate.open.set()
    assert recorder.close()
    requests = [record for record in records_in(tmp_path) if isinstance(record, RequestRecord)]
    assert [request.prompt is None for request in requests] == [True, False, True]


def test_after_close_nothing_is_taken(tmp_path: Path) -> None:
    recorder = BackgroundRecorder(tmp_path, HEADER, Redactor())
    assert recorder.close()
    assert not recorder.put(request_record(0))
    assert recorder.counts().dropped == {"request": 1}
    assert recorder.close(), "closing twice is harmless"


def test_close_says_when_the_disk_takes_too_long(tmp_path: Path, gate: Gate) -> None:
    recorder = BackgroundRecorder(tmp_path, HEADER, Redactor())
    recorder.put(request_record(0))
    assert gate.waiting.wait(60)
    assert not recorder.close(timeout_seconds=0.0)
    gate.open.set()
    assert recorder.close(timeout_seconds=60)


def test_a_directory_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        BackgroundRecorder(tmp_path / "file" / "records", HEADER, Redactor())
