"""What a dead writer leaves is sealed by the next one."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from session_samples import HEADER, request_record, sample_records

from replay.session.frames import zstd
from replay.session.reader import read_session
from replay.session.schema import RequestRecord, encode
from replay.session.sealing import seal_file
from replay.session.writer import SessionWriter

LEFT = "specbreaker-20261122T080000Z-1-0000.jsonl"


def left_behind(directory: Path, *, count: int = 3, tail: bytes = b"") -> Path:
    path = directory / LEFT
    path.write_bytes(b"".join(encode(record).data for record in [HEADER, *map(request_record, range(count))]) + tail)
    return path


def run(path: Path) -> None:
    for _ in seal_file(path):
        pass


def seal_of(path: Path) -> dict[str, object]:
    seal = json.loads(zstd.decompress(path.read_bytes()).splitlines()[-1])
    assert seal["type"] == "seal"
    return dict(seal)


def test_a_new_writer_seals_what_a_killed_one_left(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from session_samples import HEADER, request_record
from replay.session.schema import encode
from replay.session.writer import SessionWriter
writer = SessionWriter(Path(sys.argv[1]), HEADER)
writer.append([encode(request_record(seq)) for seq in range(10)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent)]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    SessionWriter(tmp_path, HEADER).close()
    left, own = sorted(tmp_path.iterdir(), key=lambda path: f"-{os.getpid()}-" in path.name)
    session = read_session(left)
    assert [entry.record.seq for entry in session if isinstance(entry.record, RequestRecord)] == list(range(10))
    assert session.sealed
    assert session.damage == []
    assert seal_of(left)["recovered"] is True
    assert seal_of(own)["recovered"] is False


@pytest.mark.parametrize("torn", [b"{", b'{"type":"request","seq":', b'{"type":"seal","counts":{}', b"\x00" * 300])
def test_a_torn_last_line_is_cut_off_and_counted(tmp_path: Path, torn: bytes) -> None:
    run(left_behind(tmp_path, tail=torn))
    path = tmp_path / f"{LEFT}.zst"
    session = read_session(path)
    assert len(list(session)) == 1 + 3 + 1
    assert (session.sealed, session.damage) == (True, [])
    assert seal_of(path)["torn_bytes"] == len(torn)


def test_lines_that_are_no_records_are_kept_and_counted(tmp_path: Path) -> None:
    run(left_behind(tmp_path, tail=b'\x00\x00\n{"type":"novel","x":1}\n'))
    path = tmp_path / f"{LEFT}.zst"
    assert seal_of(path)["counts"] == {"session": 1, "request": 3, "unreadable": 1, "novel": 1}
    assert b"\x00\x00\n" in zstd.decompress(path.read_bytes())


def test_a_file_that_was_sealed_but_not_compressed_gets_no_second_seal(tmp_path: Path) -> None:
    writer = SessionWriter(tmp_path, HEADER)
    writer.append([encode(record) for record in sample_records(3)])
    writer.close()
    (sealed,) = tmp_path.iterdir()
    content = zstd.decompress(sealed.read_bytes())
    # As after a crash between the renaming and the removal.
    sealed.with_suffix("").write_bytes(content)
    run(sealed.with_suffix(""))
    assert [path.name for path in tmp_path.iterdir()] == [sealed.name]
    assert zstd.decompress(sealed.read_bytes()) == content


@pytest.mark.parametrize("content", [b"", b'{"type":"session","for'])
def test_a_file_without_a_whole_line_is_removed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / LEFT
    path.write_bytes(content)
    run(path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_use_is_left_alone(tmp_path: Path) -> None:
    writer = SessionWriter(tmp_path, HEADER)
    assert writer.path is not None
    before = writer.path.read_bytes()
    run(writer.path)
    assert writer.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [writer.path]
    writer.close()


def test_a_file_that_is_gone_is_no_error(tmp_path: Path) -> None:
    run(tmp_path / LEFT)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_compressed_stays_readable_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(OSError, match="No space left"):
            SessionWriter(tmp_path, HEADER).close()
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob("*.zst"))
    session = read_session(tmp_path / LEFT)
    assert len(list(session)) == 1 + 3 + 1
    assert session.sealed
    SessionWriter(tmp_path, HEADER).close()
    assert len(list(tmp_path.glob("*.zst"))) == len(list(tmp_path.iterdir())) == 3


def test_sealing_is_done_in_steps_that_a_recorder_can_write_between(tmp_path: Path) -> None:
    left_behind(tmp_path, count=5000)
    writer = SessionWriter(tmp_path, HEADER)
    steps = 0
    while writer.seal_step():
        steps += 1
        writer.append([encode(request_record(steps))])
    writer.close()
    assert steps > 10
    own = next(path for path in tmp_path.iterdir() if path.name != f"{LEFT}.zst")
    assert seal_of(own)["counts"] == {"session": 1, "request": steps}
