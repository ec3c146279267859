"""Whatever happens to a file, what was before the damage is read, and the damage is reported."""

import bisect
import json
import random
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from session_samples import HEADER, RECORDS, UNTIMED, request_record, sample_records, write_session

from replay.detect import detect_command
from replay.session import frames, reader
from replay.session.frames import zstd
from replay.session.reader import Entry, Session, SessionError, read_session
from replay.session.schema import Record, Seal, SessionHeader, UnknownRecord, encode


def whole(path: Path) -> list[Entry]:
    session = read_session(path)
    entries = list(session)
    assert session.damage == []
    return entries


def read(path: Path) -> tuple[list[bytes], Session]:
    session = read_session(path)
    return [entry.raw for entry in session], session


class Ends:
    """Where in a sound file each line ends; in a compressed one, the frame of the line."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        self._offsets: list[int] = []
        end = 0
        while end < len(content):
            if path.suffix == ".zst":
                size = zstd.get_frame_size(content[end:])
                lines = zstd.decompress(content[end : end + size]).count(b"\n")
            else:
                size, lines = content.index(b"\n", end) + 1 - end, 1
            end += size
            self._offsets += [end] * lines

    def lines_before(self, offset: int) -> int:
        return bisect.bisect_right(self._offsets, offset)


@pytest.fixture
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several frames in a small file, so that every place of a frame is tried."""
    monkeypatch.setattr(frames, "FRAME_BYTES", 3000)


@settings(UNTIMED, max_examples=30)
@given(records=st.lists(RECORDS.filter(lambda record: not isinstance(record, Seal | SessionHeader)), max_size=20))
def test_what_was_written_is_read_live_and_sealed(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record]
) -> None:
    for sealed in (False, True):
        path = write_session(tmp_path_factory.mktemp("session"), records, sealed=sealed)
        session = read_session(path)
        header, *others = [entry.record for entry in session]
        assert session.header == header
        assert others[: len(records)] == records
        assert len(others) == len(records) + sealed
        assert (session.sealed, session.damage) == (sealed, [])


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.usefixtures("small_frames")
def test_a_cut_anywhere_in_the_last_4_kb_loses_nothing_before_it(tmp_path: Path, sealed: bool) -> None:
    path = write_session(tmp_path, sample_records(16), sealed=sealed)
    original = [entry.raw for entry in whole(path)]
    content = path.read_bytes()
    assert len(content) > 4096
    ends = Ends(path)
    with path.open("r+b") as file:
        for size in range(len(content) - 1, len(content) - 4097, -1):
            file.truncate(size)
            lines, session = read(path)
            before = ends.lines_before(size)
            assert [line.rstrip() for line in lines[:before]] == [line.rstrip() for line in original[:before]]
            assert lines == original[: len(lines)] or lines[-1] + b"\n" == original[len(lines) - 1]
            at_line_end = not sealed and content[:size].endswith(b"\n")
            assert bool(session.damage) != at_line_end
            assert not session.sealed or lines == original, "only the checksum of the last frame is cut"


class Sound:
    """A sound file, and what must be left of it after damage."""

    def __init__(self, directory: Path, *, sealed: bool, answers: int = 16) -> None:
        path = write_session(directory, sample_records(answers), sealed=True)
        if not sealed:
            path.with_suffix("").write_bytes(zstd.decompress(path.read_bytes()))
            path = path.with_suffix("")
        self.lines = [entry.raw for entry in whole(path)]
        self.content = path.read_bytes()
        self.damaged = path.with_stem("damaged")
        self._ends = Ends(path)

    def check(self, offset: int, damaged: bytes) -> None:
        """Damage begins at ``offset``: the file is opened or refused, and nothing before that is lost."""
        self.damaged.write_bytes(damaged)
        before = self._ends.lines_before(offset)
        try:
            lines, session = read(self.damaged)
        except SessionError:
            assert before == 0, "only a damaged header may make the file unknown"
            return
        assert [line.rstrip() for line in lines[:before]] == [line.rstrip() for line in self.lines[:before]]
        if lines != self.lines and before < len(self.lines) - 1:
            assert session.damage or self.content.startswith(damaged), "a live file may end after any line"
            assert not session.sealed

    def check_bad_byte(self, offset: int, generator: random.Random) -> None:
        bad = bytes([self.content[offset] ^ generator.randrange(1, 256)])
        self.check(offset, self.content[:offset] + bad + self.content[offset + 1 :])


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("kilobyte", [4, 3, 2, 1])
@pytest.mark.usefixtures("small_frames")
def test_a_bad_byte_anywhere_in_the_last_4_kb_loses_nothing_before_it(
    tmp_path: Path, kilobyte: int, sealed: bool
) -> None:
    sound, generator = Sound(tmp_path, sealed=sealed), random.Random(kilobyte)
    begin = len(sound.content) - 1024 * kilobyte
    assert begin > 0
    for offset in range(begin, begin + 1024):
        sound.check_bad_byte(offset, generator)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.usefixtures("small_frames")
def test_a_bad_byte_at_1000_random_places_loses_nothing_before_it(tmp_path: Path, sealed: bool) -> None:
    sound, generator = Sound(tmp_path, sealed=sealed), random.Random(2026)
    for _ in range(1000):
        sound.check_bad_byte(generator.randrange(len(sound.content)), generator)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.usefixtures("small_frames")
def test_a_cut_at_1000_random_places_loses_nothing_before_it(tmp_path: Path, sealed: bool) -> None:
    sound, generator = Sound(tmp_path, sealed=sealed), random.Random(2027)
    for _ in range(1000):
        size = generator.randrange(len(sound.content))
        sound.check(size, sound.content[:size])


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.usefixtures("small_frames")
def test_a_lost_sector_loses_nothing_before_it(tmp_path: Path, sealed: bool) -> None:
    """A disk gives zeros for a sector that it cannot read, or that was never written."""
    sound = Sound(tmp_path, sealed=sealed)
    for offset in range(0, len(sound.content), 512):
        lost = bytes(len(sound.content[offset : offset + 512]))
        sound.check(offset, sound.content[:offset] + lost + sound.content[offset + 512 :])


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.usefixtures("small_frames")
def test_commands_open_a_damaged_file_or_refuse_it_with_one_line(tmp_path: Path, sealed: bool) -> None:
    sound, generator = Sound(tmp_path, sealed=sealed, answers=3), random.Random(2028)
    exit_codes = set()
    for number in range(24):
        offset = number if number < 8 else generator.randrange(len(sound.content))
        rest = b"" if number % 2 else b"\x00" + sound.content[offset + 1 :]
        sound.damaged.write_bytes(sound.content[:offset] + rest)
        ran = CliRunner().invoke(detect_command, [str(sound.damaged)])
        exit_codes.add(ran.exit_code)
        assert isinstance(ran.exception, SystemExit | None), offset
        if ran.exit_code == 2:
            assert len(ran.stderr.splitlines()) == 1
            assert str(sound.damaged) in ran.stderr
    assert exit_codes <= {0, 1, 2}
    assert {0, 2} <= exit_codes


def test_damage_in_the_middle_costs_its_lines_only(tmp_path: Path) -> None:
    path = write_session(tmp_path, sample_records(5), sealed=False)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = b"\x00" * 40 + b"\n"
    lines[4] = b'{"type":"request","seq":"three"}\n'
    lines[7] = lines[7][:20] + b"\n"
    path.write_bytes(b"".join(lines))
    session = read_session(path)
    assert [entry.line for entry in session] == [1, 2, 3, 6, 7, 9, 10, 11]
    assert [(damage.first_line, damage.last_line) for damage in session.damage] == [(4, 5), (8, 8)]
    assert str(session.damage[0]).startswith("lines 4-5: not JSON")
    assert str(session.damage[1]).startswith("line 8: not JSON")


def test_a_changed_figure_is_found_by_the_seal(tmp_path: Path) -> None:
    path = write_session(tmp_path, sample_records(5), sealed=True)
    changed = path.with_suffix("")
    changed.write_bytes(zstd.decompress(path.read_bytes()).replace(b'"seq":3', b'"seq":4'))
    _, session = read(changed)
    assert not session.sealed
    assert ["SHA-256" in str(damage) for damage in session.damage] == [True]


def test_a_compressed_file_cut_between_frames_says_that_its_end_is_lost(tmp_path: Path) -> None:
    path = write_session(tmp_path, sample_records(300), sealed=True)
    path.write_bytes(path.read_bytes()[: zstd.get_frame_size(path.read_bytes())])
    lines, session = read(path)
    assert len(lines) > 50
    assert [damage.reason for damage in session.damage] == ["the seal is missing: the end of the file is lost"]


def test_a_lost_first_frame_leaves_the_others(tmp_path: Path) -> None:
    path = write_session(tmp_path, sample_records(300), sealed=True)
    original = [entry.raw for entry in whole(path)]
    content = path.read_bytes()
    path.write_bytes(b"\x00\x00" + content[2:])
    lines, session = read(path)
    assert session.header is None
    assert lines == original[-len(lines) :]
    assert len(lines) > 100


def test_parts_that_were_joined_read_as_one(tmp_path: Path) -> None:
    paths = [write_session(tmp_path / name, sample_records(3), sealed=True) for name in "ab"]
    joined = tmp_path / "joined.zst"
    joined.write_bytes(b"".join(path.read_bytes() for path in paths))
    entries = whole(joined)
    assert [entry.record for entry in entries] == [entry.record for path in paths for entry in whole(path)]
    assert [entry.line for entry in entries] == list(range(1, 17))


def test_lines_after_the_seal_are_reported(tmp_path: Path) -> None:
    path = write_session(tmp_path, sample_records(2), sealed=True)
    with path.with_suffix("").open("wb") as file:
        file.write(zstd.decompress(path.read_bytes()) + encode(request_record(9)).data)
    lines, session = read(path.with_suffix(""))
    assert len(lines) == 1 + 4 + 1 + 1
    assert [str(damage) for damage in session.damage] == ["line 7: follows the seal of line 6"]
    assert not session.sealed


def test_a_session_can_be_iterated_twice(tmp_path: Path) -> None:
    path = write_session(tmp_path, sample_records(3), sealed=False)
    with path.open("ab") as file:
        file.write(b"torn")
    session = read_session(path)
    assert list(session) == list(session)
    assert len(session.damage) == 1


def session_lines(path: Path, *records: dict[str, object], version: str = "specbreaker-session/1") -> Path:
    header = msgspec.to_builtins(HEADER) | {"format": version}
    path.write_text("".join(json.dumps(record) + "\n" for record in (header, *records)))
    return path


def test_fields_and_types_of_a_newer_minor_version_are_kept(tmp_path: Path) -> None:
    request = msgspec.to_builtins(request_record(0)) | {"color": "blue"}
    changed = msgspec.to_builtins(request_record(1)) | {"at": "noon"}
    path = session_lines(
        tmp_path / "f", request, {"type": "gpu", "watts": 600}, changed, version="specbreaker-session/1.7"
    )
    _, first, second, third = whole(path)
    assert first.record == request_record(0)
    assert json.loads(first.raw)["color"] == "blue"
    assert second.record == UnknownRecord("gpu")
    assert json.loads(second.raw) == {"type": "gpu", "watts": 600}
    assert third.record == UnknownRecord("request"), "what a newer version says otherwise is not damage"


def test_a_newer_major_version_is_refused_with_one_line(tmp_path: Path) -> None:
    path = session_lines(tmp_path / "f", {"type": "request", "x": 1}, version="specbreaker-session/2")
    with pytest.raises(
        SessionError, match=r"^.*f: written as specbreaker-session/2.0, newer than .*newer specbreaker$"
    ):
        read_session(path)


@pytest.mark.parametrize("content", [b"", b"\n" * 2000, b"a,b\n1,2\n", b"{}\n", b"\x28\xb5\x2f\xfd", bytes(70_000)])
def test_what_is_no_session_is_said_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    with pytest.raises(SessionError, match="not a session file") as caught:
        read_session(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_directory_are_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="none: cannot be read: No such file or directory"):
        read_session(tmp_path / "none")
    with pytest.raises(SessionError, match="cannot be read: Is a directory"):
        read_session(tmp_path)


def test_json_lines_of_another_program_are_no_session(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text('{"type":"user","text":"hi"}\n' * 5)
    with pytest.raises(SessionError, match="not a session file"):
        read_session(path)


def test_a_header_whose_format_was_damaged_does_not_lose_the_rest(tmp_path: Path) -> None:
    path = session_lines(tmp_path / "f", msgspec.to_builtins(request_record(0)), version="specbreaker-sessioN/1")
    session = read_session(path)
    assert session.header is None
    assert [entry.record for entry in session] == [request_record(0)]
    assert "sessioN" in str(session.damage[0])


def test_an_endless_line_costs_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_session(tmp_path, sample_records(2), sealed=False)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"x" * 300_000 + b"\n", *lines[2:]]))
    monkeypatch.setattr(reader, "MAX_LINE_BYTES", 100_000)
    read_lines, session = read(path)
    assert read_lines == lines
    assert [str(damage) for damage in session.damage] == ["line 3: a line is longer than 100000 bytes"]
