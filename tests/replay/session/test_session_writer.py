"""Files of a session: made, rotated, sealed, and kept whole when the disk is not."""

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from session_samples import HEADER, request_record, sample_records

from replay.session.frames import zstd
from replay.session.reader import read_session
from replay.session.schema import Line, RequestRecord, encode
from replay.session.writer import Clock, SessionWriter


def lines_of(count: int, first: int = 0) -> list[Line]:
    return [encode(request_record(seq)) for seq in range(first, first + count)]


def sealed_files(directory: Path) -> list[Path]:
    assert not list(directory.glob("*.jsonl"))
    assert not list(directory.glob("*.tmp"))
    return sorted(directory.glob("*.jsonl.zst"))


def request_numbers(path: Path) -> list[int]:
    return [entry.record.seq for entry in read_session(path) if isinstance(entry.record, RequestRecord)]


def all_request_numbers(directory: Path) -> list[int]:
    return [number for path in sealed_files(directory) for number in request_numbers(path)]


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = Clock(1_764_000_000.0, 100.0)

    def __call__(self) -> Clock:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now = Clock(self.now.unix + seconds, self.now.monotonic + seconds)


class FullDisk:
    """``os.write`` that stops after some bytes, as a full disk does, until there is room again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self._write = os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, descriptor: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._write(descriptor, bytes(data)[: self.room])
        self.room -= written
        return written


def test_a_live_file_is_plain_json_lines(tmp_path: Path) -> None:
    clock = HandClock()
    writer = SessionWriter(tmp_path, HEADER, clock=clock)
    writer.append(lines_of(3))
    assert writer.path is not None
    header, *requests = [json.loads(line) for line in writer.path.read_bytes().splitlines()]
    assert header == {
        "type": "session",
        "format": "specbreaker-session/1",
        "tool_version": "0.1.0",
        "session_id": "5e55",
        "part": 0,
        "started_unix": 1_764_000_000.0,
        "started": 100.0,
        "content": "none",
        "backends": [{"name": "primary", "host_hash": "00ff", "engine_version": None}],
    }
    assert [(record["type"], record["seq"]) for record in requests] == [("request", 0), ("request", 1), ("request", 2)]
    assert writer.path.name == f"specbreaker-20251124T160000Z-{os.getpid()}-0000.jsonl"
    writer.close()


def test_only_the_owner_can_read(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "records"
    writer = SessionWriter(directory, HEADER)
    assert writer.path is not None
    assert stat.S_IMODE(writer.path.stat().st_mode) == 0o600
    writer.close()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in sealed_files(directory)] == [0o600]


def test_a_directory_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    SessionWriter(tmp_path, HEADER).close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_batch_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SessionWriter(tmp_path, HEADER)
    sizes: list[int] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: sizes.append(len(data)) or write(descriptor, data))
    length = writer.append(lines_of(50))
    assert sizes == [length]
    writer.close()


def test_closing_seals_compresses_and_removes_the_live_file(tmp_path: Path) -> None:
    writer = SessionWriter(tmp_path, HEADER)
    writer.append([encode(record) for record in sample_records(20)])
    writer.note_dropped({"event": 2})
    writer.close()
    (path,) = sealed_files(tmp_path)
    content = zstd.decompress(path.read_bytes())
    *_, last = content.splitlines(keepends=True)
    seal = json.loads(last)
    assert seal["counts"] == {"session": 1, "request": 20, "response": 20}
    assert seal["dropped"] == {"event": 2}
    assert seal["sha256"] == hashlib.sha256(content[: -len(last)]).hexdigest()
    assert (seal["recovered"], seal["torn_bytes"]) == (False, 0)


def test_a_file_that_is_large_enough_is_followed_by_the_next_part(tmp_path: Path) -> None:
    writer = SessionWriter(tmp_path, HEADER, max_bytes=5000)
    for first in range(0, 100, 5):
        writer.append(lines_of(5, first))
    writer.close()
    paths = sealed_files(tmp_path)
    sessions = [read_session(path) for path in paths]
    assert len(paths) > 3
    assert [session.header.part for session in sessions if session.header] == list(range(len(paths)))
    assert all_request_numbers(tmp_path) == list(range(100))
    assert all(5000 <= len(zstd.decompress(path.read_bytes())) < 8000 for path in paths[:-1])


def test_a_file_that_is_old_enough_is_followed_by_the_next_part(tmp_path: Path) -> None:
    clock = HandClock()
    writer = SessionWriter(tmp_path, HEADER, max_age_seconds=60, clock=clock)
    for first in range(4):
        writer.append(lines_of(1, first))
        clock.advance(30)
    writer.close()
    assert [request_numbers(path) for path in sealed_files(tmp_path)] == [[0, 1], [2, 3]]


def test_drops_are_in_the_seal_of_the_part_in_which_they_fell(tmp_path: Path) -> None:
    writer = SessionWriter(tmp_path, HEADER, max_bytes=1)
    writer.note_dropped({"request": 3})
    writer.append(lines_of(1))
    writer.append(lines_of(1))
    writer.close()
    seals = [json.loads(zstd.decompress(path.read_bytes()).splitlines()[-1]) for path in sealed_files(tmp_path)]
    assert [seal["dropped"] for seal in seals] == [{"request": 3}, {}]


@pytest.mark.parametrize("room", [0, 1, 500, 2500])
def test_a_full_disk_leaves_the_file_as_it_was_and_nothing_is_lost_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    writer = SessionWriter(tmp_path, HEADER)
    writer.append(lines_of(5))
    disk = FullDisk(monkeypatch, room)
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            writer.append(lines_of(20, 5))
    assert len(list(tmp_path.iterdir())) == 1, "retries leave no files behind"
    disk.room = 10**9
    writer.append(lines_of(20, 5))
    writer.close()
    assert all_request_numbers(tmp_path) == list(range(25))
    for path in sealed_files(tmp_path):
        session = read_session(path)
        assert list(session)
        assert (session.sealed, session.damage) == (True, [])


def test_after_every_failure_at_once_the_writer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    writer = SessionWriter(tmp_path, HEADER)
    with monkeypatch.context() as patch:
        FullDisk(patch, 0)
        patch.setattr(Path, "unlink", refuse)
        patch.setattr(os, "ftruncate", refuse)
        for _ in range(3):
            with pytest.raises(PermissionError):
                writer.append(lines_of(3))
        assert writer.path is None
    writer.append(lines_of(3))
    writer.close()
    assert all_request_numbers(tmp_path) == [0, 1, 2]


def test_a_torn_batch_that_cannot_be_cut_off_is_not_followed_by_a_seal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    writer = SessionWriter(tmp_path, HEADER)
    writer.append(lines_of(2))
    with monkeypatch.context() as patch:
        FullDisk(patch, 100)
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(PermissionError):
            writer.append(lines_of(3, 2))
    writer.append(lines_of(3, 2))
    writer.close()
    assert all_request_numbers(tmp_path) == [0, 1, 2, 3, 4]
    torn, _ = sealed_files(tmp_path)
    assert json.loads(zstd.decompress(torn.read_bytes()).splitlines()[-1])["torn_bytes"] == 100


def test_a_file_size_limit_of_the_system_costs_no_whole_record(tmp_path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from session_samples import HEADER, request_record
from replay.session.schema import encode
from replay.session.writer import SessionWriter
writer = SessionWriter(Path(sys.argv[1]), HEADER)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
seq = refused = 0
while seq < 40:
    try:
        writer.append([encode(request_record(seq))])
        seq += 1
    except OSError:
        refused += 1
writer.close()
print(refused)
"""
    command = [sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert int(done.stdout) > 1
    assert all_request_numbers(tmp_path) == list(range(40))


def test_a_deleted_file_is_noticed_and_a_new_one_begun(tmp_path: Path) -> None:
    directory = tmp_path / "records"
    writer = SessionWriter(directory, HEADER)
    writer.append(lines_of(1))
    assert writer.path is not None
    writer.path.unlink()
    directory.rmdir()
    writer.append(lines_of(1, 1))
    writer.close()
    (path,) = sealed_files(directory)
    assert request_numbers(path) == [1]


def test_a_directory_that_cannot_be_made_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        SessionWriter(tmp_path / "file" / "records", HEADER)


def test_two_writers_share_a_directory(tmp_path: Path) -> None:
    clock = HandClock()
    one, other = (SessionWriter(tmp_path, HEADER, clock=clock) for _ in range(2))
    assert one.path != other.path
    one.append(lines_of(1))
    one.close()
    other.append(lines_of(1, 1))
    other.close()
    assert [request_numbers(path) for path in sealed_files(tmp_path)] == [[0], [1]]


def test_the_header_of_a_new_part_has_its_own_clocks(tmp_path: Path) -> None:
    clock = HandClock()
    writer = SessionWriter(tmp_path, HEADER, max_bytes=1, clock=clock)
    writer.append(lines_of(1))
    clock.advance(7.5)
    writer.append(lines_of(1))
    writer.close()
    headers = [read_session(path).header for path in sealed_files(tmp_path)]
    assert [header and (header.started_unix, header.started) for header in headers] == [
        (1_764_000_000.0, 100.0),
        (1_764_000_007.5, 107.5),
    ]
    assert msgspec.structs.replace(headers[1], part=0, started_unix=0, started=0) == HEADER  # type: ignore[type-var]
